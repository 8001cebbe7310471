"""The last steps of many agents, from which a memory that was lost or is stale can be made again; without torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidObservation
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures, SpaceFeatures
from agentgpt_remote.policy.images import UInt8

Rows = NDArray[np.int64]


def history_length(config: GPTConfig) -> int:
    """Return how many steps an agent's memory depends on: a multiple of the window, over all layers."""
    return config.num_layers * config.max_input_states


class Steps(NamedTuple):
    """Steps of agents.

    Attributes:
        rows: float32 of shape (..., observation width + action width + 1): compact observation, compact previous
            action, and 1 where an episode begins.
        pixels: bytes of the observations' images, uint8 of shape (..., P); None where there are none.
    """

    rows: Float32
    pixels: UInt8 | None


class StepHistory:
    """Rings of the last steps, one per slot.

    Args:
        observations: the compact vector of the observation space.
        actions: the compact vector of the action space.
        length: steps that a ring holds.
        capacity: slots.
    """

    def __init__(
        self, observations: ObservationFeatures, actions: ActionFeatures, length: int, capacity: int = 0
    ) -> None:
        self.length = length
        self._obs_width, self._action_width = observations.width, actions.width
        self.width = observations.width + actions.width + 1
        self.pixel_width = observations.pixel_width
        self._rows = np.zeros((capacity, length, self.width), np.float32)
        self._pixels = np.zeros((capacity, length, self.pixel_width), np.uint8) if self.pixel_width else None
        self._total = np.zeros(capacity, np.int64)

    @property
    def slot_bytes(self) -> int:
        """Size of one ring in bytes."""
        return self.length * (4 * self.width + self.pixel_width)

    @property
    def capacity(self) -> int:
        """Slots that there are."""
        return len(self._total)

    def grow(self, capacity: int) -> None:
        """Make room for more slots; what is held stays."""
        extra = capacity - self.capacity
        self._rows = np.concatenate((self._rows, np.zeros((extra, *self._rows.shape[1:]), np.float32)))
        if self._pixels is not None:
            self._pixels = np.concatenate((self._pixels, np.zeros((extra, *self._pixels.shape[1:]), np.uint8)))
        self._total = np.concatenate((self._total, np.zeros(extra, np.int64)))

    def row(self, obs: Float32, previous: Float32, is_first: NDArray[np.bool_]) -> Float32:
        """Return the rows of one step, of shape (n, width).

        Args:
            obs: compact observations, float32 of shape (n, observation width).
            previous: compact previous actions, float32 of shape (n, action width); ignored where is_first.
            is_first: bool of shape (n,).
        """
        rows = np.empty((len(obs), self.width), np.float32)
        rows[:, : self._obs_width] = obs
        rows[:, self._obs_width : -1] = previous
        rows[:, -1] = is_first
        rows[is_first, self._obs_width : -1] = 0.0
        return rows

    def split(self, rows: Float32) -> tuple[Float32, Float32, NDArray[np.bool_]]:
        """Return observations, previous actions and is_first of rows of shape (..., width)."""
        return rows[..., : self._obs_width], rows[..., self._obs_width : -1], rows[..., -1] > 0.5

    def record(
        self, slots: Rows, obs: Float32, previous: Float32, is_first: NDArray[np.bool_], pixels: UInt8 | None
    ) -> None:
        """Add one step per slot; one that begins an episode forgets what was before.

        Args:
            slots: n different slots.
            obs: as for :meth:`row`.
            previous: as for :meth:`row`.
            is_first: as for :meth:`row`.
            pixels: uint8 of shape (n, P), where there are any.
        """
        if len(slots) == 1:
            self._record_one(int(slots[0]), obs[0], previous[0], bool(is_first[0]), pixels)
            return
        total = np.where(is_first, 0, self._total[slots])
        index = total % self.length
        self._rows[slots, index] = self.row(obs, previous, is_first)
        if self._pixels is not None and pixels is not None:
            self._pixels[slots, index] = pixels
        self._total[slots] = total + 1

    def _record_one(self, slot: int, obs: Float32, previous: Float32, is_first: bool, pixels: UInt8 | None) -> None:
        """Add a step of one slot, several times as fast as of many."""
        total = 0 if is_first else int(self._total[slot])
        index = total % self.length
        row = self._rows[slot, index]
        row[: self._obs_width] = obs
        row[self._obs_width : -1] = 0.0 if is_first else previous
        row[-1] = is_first
        if self._pixels is not None and pixels is not None:
            self._pixels[slot, index] = pixels[0]
        self._total[slot] = total + 1

    def held(self, slots: Rows) -> Rows:
        """Return how many steps of the current episode each slot holds, int64 of shape (n,)."""
        result: Rows = np.minimum(self._total[slots], self.length)
        return result

    def last(self, slots: Rows, count: int) -> Steps:
        """Return the last steps of some slots, oldest first, of shape (n, count, ...).

        What is missing in front is filled with steps of zeros that each begin an episode. The first step that is
        there is marked as one that begins an episode where it is not as old as ``count`` asks for.
        """
        total = self._total[slots]
        number = total[:, None] - count + np.arange(count)  # (n, count)
        missing = number < np.maximum(total - self.length, 0)[:, None]
        index = number % self.length
        rows = self._rows[slots[:, None], index]
        rows[missing] = 0.0
        rows[missing, -1] = 1.0
        starts = np.count_nonzero(missing, axis=1)
        begun = np.flatnonzero((starts > 0) & (starts < count))
        rows[begun, starts[begun], -1] = 1.0
        pixels = None
        if self._pixels is not None:
            pixels = self._pixels[slots[:, None], index]
            pixels[missing] = 0
        return Steps(rows, pixels)

    def of(self, slot: int) -> Steps:
        """Return all steps that one slot holds, of shape (held, ...)."""
        rows, pixels = self.last(np.array([slot]), int(self.held(np.array([slot]))[0]))
        return Steps(rows[0], None if pixels is None else pixels[0])

    def restore(self, slot: int, steps: Steps) -> None:
        """Replace what a slot holds; of more steps than the ring holds the last ones are kept."""
        rows = steps.rows[-self.length :]
        self._rows[slot, : len(rows)] = rows
        if self._pixels is not None and steps.pixels is not None:
            self._pixels[slot, : len(rows)] = steps.pixels[-self.length :]
        self._total[slot] = len(rows)

    def clear(self, slots: Rows) -> None:
        """Forget what slots hold."""
        self._total[slots] = 0


def check_steps(observations: ObservationFeatures, actions: ActionFeatures, rows: Float32, agent: str) -> None:
    """Check rows that came over the network.

    Raises:
        InvalidObservation: a value is not finite, or no category of its column; names the agent.
    """
    bad = not np.isfinite(rows).all() or not np.isin(rows[:, -1], (0.0, 1.0)).all()
    start = 0
    features: SpaceFeatures
    for features in (observations, actions):
        part = rows[:, start : start + features.width]
        start += features.width
        bits = part[:, features.numeric_width : features.numeric_width + features.binary_width]
        categories = part[:, features.numeric_width + features.binary_width :]
        whole = (categories == np.rint(categories)) & (categories >= 0)
        bad = bad or not np.isin(bits, (0.0, 1.0)).all()
        bad = bad or not (whole & (categories < np.asarray(features.category_sizes, np.float32))).all()
    if bad:
        raise InvalidObservation(f"the steps of agent {agent!r} that were sent again do not fit the policy's spaces")
