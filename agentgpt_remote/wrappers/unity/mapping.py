"""What a Unity behaviour looks like as Gymnasium spaces, and the way of values between the two."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agentgpt_remote.agents import Behavior, rows_of
from agentgpt_remote.wrappers.unity.compat import is_channels_first

Visual = Literal["float32", "uint8"]
CONTINUOUS, DISCRETE = "continuous", "discrete"


class BehaviorMapping:
    """A Unity behaviour's spaces.

    Observations: a vector is a float32 Box; an image is a Box (height, width, channels), float32 from 0 to 1 or uint8
    from 0 to 255, in whichever layout the player has it; several are a Dict by their names. Actions: continuous ones
    are a Box from -1 to 1; one branch is a Discrete, several are a MultiDiscrete, both counted from 0; continuous ones
    beside branches are a Dict of ``continuous`` and ``discrete``.

    Args:
        name: of the behaviour.
        spec: its ``BehaviorSpec``.
        visual: what images are.

    Attributes:
        behavior: the behaviour.
    """

    def __init__(self, name: str, spec: Any, visual: Visual) -> None:
        self.spec = spec
        self._bytes = visual == "uint8"
        self._keys = _names([one.name for one in spec.observation_specs])
        self._first = [
            len(one.shape) == 3 and is_channels_first(one.shape, [int(p) for p in one.dimension_property])
            for one in spec.observation_specs
        ]
        parts = [self._space(one, first) for one, first in zip(spec.observation_specs, self._first, strict=True)]
        observation_space: spaces.Space[Any] = (
            parts[0] if len(parts) == 1 else spaces.Dict(dict(zip(self._keys, parts, strict=True)))
        )
        self.branches = tuple(int(size) for size in spec.action_spec.discrete_branches)
        self.continuous = int(spec.action_spec.continuous_size)
        self.behavior = Behavior(
            name=name,
            observation_space=observation_space,
            action_space=self._actions(),
            mask_width=sum(self.branches),
        )

    def _space(self, spec: Any, first: bool) -> spaces.Box:
        shape = tuple(int(size) for size in spec.shape)
        if len(shape) != 3:
            return spaces.Box(-np.inf, np.inf, shape, np.float32)
        shape = (shape[1], shape[2], shape[0]) if first else shape
        return spaces.Box(0, 255, shape, np.uint8) if self._bytes else spaces.Box(0, 1, shape, np.float32)

    def _actions(self) -> spaces.Space[Any]:
        continuous = spaces.Box(-1, 1, (self.continuous,), np.float32)
        if not self.branches:
            return continuous
        branches = self.branches
        discrete: spaces.Space[Any] = (
            spaces.Discrete(branches[0]) if len(branches) == 1 else spaces.MultiDiscrete(list(branches))
        )
        return spaces.Dict({CONTINUOUS: continuous, DISCRETE: discrete}) if self.continuous else discrete

    def observations(self, parts: list[NDArray[np.float32]]) -> Any:
        """Return a batch of observations for what a player sent: one array (n, ...) for each of them."""
        batches = [self._part(part, first) for part, first in zip(parts, self._first, strict=True)]
        return batches[0] if len(batches) == 1 else dict(zip(self._keys, batches, strict=True))

    def _part(self, part: NDArray[np.float32], first: bool) -> NDArray[Any]:
        if part.ndim != 4:
            return part
        if first:
            part = part.transpose(0, 2, 3, 1)
        if self._bytes:
            return np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(part)

    def actions(self, batch: Any, n: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return n continuous actions (n, size) and n branches (n, branches), for a batch or a list of actions."""
        if isinstance(batch, list):
            rows = rows_of(batch)
            if self.branches and self.continuous:
                batch = {key: np.array([row[key] for row in rows]) for key in (CONTINUOUS, DISCRETE)}
            else:
                batch = np.array(rows)
        continuous = batch[CONTINUOUS] if isinstance(batch, dict) else batch
        discrete = batch[DISCRETE] if isinstance(batch, dict) else batch
        numbers = np.zeros((n, self.continuous), np.float32)
        choices = np.zeros((n, len(self.branches)), np.int32)
        if self.continuous:
            numbers[:] = np.asarray(continuous, np.float32).reshape(n, self.continuous)
        if self.branches:
            choices[:] = np.asarray(discrete).reshape(n, len(self.branches))
        return numbers, choices

    def info_mask(self, row: NDArray[np.bool_]) -> Any:
        """Return one row of masks in the form in which an info holds it: one array, one per branch, or a dict."""
        parts = tuple(np.split(row, np.cumsum(self.branches)[:-1]))
        mask: Any = parts[0] if len(parts) == 1 else parts
        return {DISCRETE: mask} if self.continuous else mask


def _names(names: list[str]) -> list[str]:
    """Return names that differ, with one for each that has none."""
    result: list[str] = []
    for index, name in enumerate(names):
        chosen = name or f"observation_{index}"
        while chosen in result:
            chosen += "_"
        result.append(chosen)
    return result
