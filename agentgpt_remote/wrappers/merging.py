"""Batches of consecutive environments, put together and taken apart as one Gymnasium vector environment has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_ARRAY_SPACES: Final = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def merge_batches(space: gym.Space[Any], batches: Sequence[Any]) -> Any:
    """Return one batch of all environments.

    Args:
        space: of one environment.
        batches: of each part, in order: nested dict and tuple of arrays (n, ...); a tuple of n values where a space
            has no batch (Text, Graph, Sequence, OneOf).
    """
    if isinstance(space, _ARRAY_SPACES):
        return np.concatenate(batches, dtype=np.asarray(batches[0]).dtype)  # a foreign byte order too
    if isinstance(space, spaces.Dict):
        return {key: merge_batches(item, [batch[key] for batch in batches]) for key, item in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            merge_batches(item, [batch[index] for batch in batches]) for index, item in enumerate(space.spaces)
        )
    return tuple(itertools.chain.from_iterable(batches))


def slice_batch(space: gym.Space[Any], batch: Any, start: int, stop: int) -> Any:
    """Return the batch of the environments from ``start`` to ``stop``; see :func:`merge_batches`."""
    if isinstance(space, spaces.Dict) and isinstance(batch, dict):
        return {key: slice_batch(space.spaces[key], part, start, stop) for key, part in batch.items()}
    if isinstance(space, spaces.Tuple) and isinstance(batch, tuple) and len(batch) == len(space.spaces):
        return tuple(slice_batch(item, part, start, stop) for item, part in zip(space.spaces, batch, strict=True))
    return batch[start:stop]


def merge_infos(infos: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, Any]:
    """Return the infos of all environments, as one ``SyncVectorEnv`` of them all would have put them together.

    Args:
        infos: of each part, in order.
        sizes: number of environments of each part.
    """
    merged: dict[str, Any] = {}
    if not any(infos):
        return merged
    for key in dict.fromkeys(itertools.chain.from_iterable(infos)):
        values = [info.get(key) for info in infos]
        known = [value for value in values if value is not None]
        if all(isinstance(value, dict) for value in known):
            merged[key] = merge_infos([value or {} for value in values], sizes)
        elif all(_is_batch(value, size) for value, size in zip(values, sizes, strict=True) if value is not None):
            masks = [info.get(f"_{key}") for info in infos]
            merged[key] = _merge_arrays(values, masks, known[0], sizes)
        else:  # a vector environment's own kind of info
            merged[key] = tuple(values)
    return merged


def _is_batch(value: Any, size: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == size


def _merge_arrays(values: Sequence[Any], masks: Sequence[Any], first: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Return one array in the dtype of the first; what an environment lacks is zero or ``None``, as in Gymnasium."""
    merged = np.zeros((sum(sizes), *first.shape[1:]), first.dtype)
    if first.dtype == object:
        merged.fill(None)
    start = 0
    for value, mask, size in zip(values, masks, sizes, strict=True):
        if value is not None:
            # Without its mask, what an environment lacks would be zero where others have None, or the other way round.
            owned = mask if _is_batch(mask, size) and mask.dtype == np.bool_ else slice(None)
            merged[start : start + size][owned] = value[owned]
        start += size
    return merged
