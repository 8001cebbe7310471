"""Infos of a vector environment, taken apart into one dict for each of its environments."""

from __future__ import annotations

from typing import Any

import numpy as np


def split_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return the info of each environment.

    Args:
        infos: of a vector environment: values with one entry for each environment (num_envs, ...), and a mask
            ``_key`` (bool, (num_envs,)) beside those ``key`` that not all of them have.
        num_envs: how many there are.

    Returns:
        One dict for each; what is no batch is in all of them.
    """
    split: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in infos.items():
        if isinstance(key, str) and key.startswith("_") and key[1:] in infos:
            continue  # a mask
        mask = infos.get(f"_{key}")
        owners = range(num_envs) if mask is None else np.flatnonzero(mask).tolist()
        if isinstance(value, dict):
            values: Any = split_infos(value, num_envs)
        elif isinstance(value, (np.ndarray, list, tuple)) and len(value) == num_envs:
            values = value
        else:
            values = [value] * num_envs
        for index in owners:
            split[index][key] = values[index]
    return split
