"""Neutral actions: what an agent does in the steps in which its policy has no control.

===============  ======================================================================
space            neutral action
===============  ======================================================================
Box              0, or the bound nearest to it where 0 lies outside
Discrete         the first category (``start``)
MultiDiscrete    the first category of each column
MultiBinary      all 0
Dict, Tuple      that of each part
===============  ======================================================================

Where an action mask forbids the first category, it is the first that is allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from agentgpt_remote.policy.features import ActionFeatures, Float32
from agentgpt_remote.policy.options import Bools


def neutral_action(space: Space[Any]) -> Any:
    """Return the neutral action of a space, with the space's dtype.

    Example:
        >>> neutral_action(spaces.Box(0.5, 2.0, (2,), np.float32))
        array([0.5, 0.5], dtype=float32)
        >>> neutral_action(spaces.Discrete(3, start=7))
        np.int64(7)
    """
    if isinstance(space, spaces.Dict):
        return {key: neutral_action(child) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(neutral_action(child) for child in space.spaces)
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(getattr(space, "start", 0), space.dtype)
        return np.broadcast_to(start, space.nvec.shape).copy()
    zeros = np.zeros(space.shape or (), space.dtype)
    return np.clip(zeros, space.low, space.high) if isinstance(space, spaces.Box) else zeros


class NeutralActions:
    """Neutral actions as compact vectors.

    Args:
        actions: the compact vector of the action space.
    """

    def __init__(self, actions: ActionFeatures) -> None:
        self._sizes = actions.category_sizes
        self._first_category = actions.width - len(self._sizes)
        self._vector = actions.encode(_batch_of_one(neutral_action(actions.space)))[0]

    def take_over(self, vectors: Float32, in_control: Bools, action_mask: Bools | None) -> None:
        """Write the neutral action to the rows that are not in control.

        Args:
            vectors: compact actions, float32 of shape (n, width); written in place.
            in_control: bool array of shape (n,).
            action_mask: bool array of shape (n, categories), what is allowed; None allows everything.
        """
        idle = ~in_control
        vectors[idle] = self._vector
        if action_mask is None:
            return
        start = 0
        for column, size in enumerate(self._sizes, start=self._first_category):
            vectors[idle, column] = action_mask[idle, start : start + size].argmax(axis=1)
            start += size


def _batch_of_one(action: Any) -> Any:
    if isinstance(action, dict):
        return {key: _batch_of_one(value) for key, value in action.items()}
    if isinstance(action, tuple):
        return tuple(_batch_of_one(value) for value in action)
    return np.asarray(action)[None]
