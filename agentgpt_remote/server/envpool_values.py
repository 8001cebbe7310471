"""What EnvPool's arrays lack to be a Gymnasium vector environment's: bounds, dtypes, masks, and checks of actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from agentgpt_remote.errors import InvalidAction


def with_whole_range(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space without bounds where EnvPool gives the smallest positive number as the lowest one."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: with_whole_range(item) for key, item in space.spaces.items()})
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        limits = np.finfo(space.dtype)
        low = np.where(space.low == limits.tiny, -np.inf, space.low).astype(space.dtype)
        high = np.where(space.high == limits.max, np.inf, space.high).astype(space.dtype)
        return spaces.Box(low, high, dtype=low.dtype.type)
    return space


def cast_batch(space: gym.Space[Any], batch: Any) -> Any:
    """Return a batch in the dtypes of its space: EnvPool has int32 where Gymnasium has int64."""
    if isinstance(space, spaces.Dict):
        return {key: cast_batch(item, batch[key]) for key, item in space.spaces.items()}
    return batch.astype(space.dtype, copy=False)


def replace_rows(whole: Any, part: Any, indices: Any) -> Any:
    """Return the batch of all environments with that of some in its place."""
    if isinstance(whole, dict):
        return {key: replace_rows(value, part[key], indices) for key, value in whole.items()}
    whole = whole.copy()
    whole[indices] = part
    return whole


def with_masks(infos: dict[str, Any], mask: Any) -> dict[str, Any]:
    """Return infos with a mask beside each key, as Gymnasium has them."""
    masked: dict[str, Any] = {}
    for key, value in infos.items():
        masked[key] = with_masks(value, mask) if isinstance(value, dict) else value
        masked[f"_{key}"] = mask.copy()
    return masked


def check_actions(space: gym.Space[Any], actions: Any) -> None:
    """Refuse what EnvPool's C++ would read beyond its memory; numbers may lie outside a Box, as in Gymnasium.

    Raises:
        InvalidAction: the actions have another structure or shape, or name an action that there is not.
    """
    if isinstance(space, spaces.Dict):
        fits = isinstance(actions, dict) and actions.keys() == space.spaces.keys()
        if fits:
            for key, item in space.spaces.items():
                check_actions(item, actions[key])
    elif isinstance(space, spaces.Box):
        fits = isinstance(actions, np.ndarray) and actions.shape == space.shape and actions.dtype.kind in "iuf"
    else:
        fits = bool(space.contains(actions))
    if not fits:
        shown = f"an array of shape {actions.shape}, {actions}" if isinstance(actions, np.ndarray) else repr(actions)
        raise InvalidAction(f"actions: expected {space}, got {shown}")
