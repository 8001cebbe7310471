"""What a client remembers of its agents, to tell a server that has lost them; without torch."""

from __future__ import annotations

from collections.abc import Collection, KeysView, Sequence
from typing import Any

import numpy as np

from agentgpt_remote.policy import wire
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures
from agentgpt_remote.policy.history import StepHistory


class ClientHistory:
    """The last steps of each agent, as the server's model saw them.

    Args:
        observations: the compact vector of the observation space.
        actions: the compact vector of the action space.
        length: steps that an agent's memory depends on.
    """

    def __init__(self, observations: ObservationFeatures, actions: ActionFeatures, length: int) -> None:
        self._observations, self._actions = observations, actions
        self._steps = StepHistory(observations, actions, length)
        self._previous = np.zeros((0, actions.width), np.float32)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._last_ids: tuple[str, ...] = ()
        self._last_slots = np.zeros(0, np.int64)

    @property
    def agent_ids(self) -> KeysView[str]:
        """Agents that are remembered."""
        return self._slots.keys()

    def add(self, agent_ids: tuple[str, ...], batch: Any, starting: Collection[str], vectors: Float32) -> None:
        """Remember one step.

        Args:
            agent_ids: n different ids.
            batch: checked observations with leading axis n.
            starting: agents whose episode begins with it.
            vectors: compact actions that were taken, float32 of shape (n, width).
        """
        if agent_ids != self._last_ids:
            self._place(agent_ids)
        slots = self._last_slots
        is_first = np.zeros(len(slots), np.bool_)
        if starting:
            is_first = np.fromiter((agent in starting for agent in agent_ids), np.bool_, len(agent_ids))
        obs, pixels = self._observations.encode(batch), self._observations.pixels(batch)
        self._steps.record(slots, obs, self._previous[slots], is_first, pixels)
        self._previous[slots] = vectors

    def _place(self, agent_ids: tuple[str, ...]) -> None:
        fresh = [agent for agent in agent_ids if agent not in self._slots]
        if len(fresh) > len(self._free):
            old = self._steps.capacity
            new = max(2 * old, old + len(fresh))
            self._steps.grow(new)
            added = np.zeros((new - old, self._previous.shape[1]), np.float32)
            self._previous = np.concatenate((self._previous, added))
            self._free.extend(range(new - 1, old - 1, -1))
        for agent in fresh:
            self._slots[agent] = self._free.pop()
        self._last_ids = agent_ids
        self._last_slots = np.array([self._slots[agent] for agent in agent_ids], np.int64)

    def forget(self, agent_ids: Collection[str]) -> None:
        """Forget agents; unknown ids are ignored."""
        slots = [self._slots.pop(agent) for agent in agent_ids if agent in self._slots]
        if slots:
            self._steps.clear(np.array(slots, np.int64))
            self._free.extend(slots)
            self._last_ids = ()

    def clear(self) -> None:
        """Forget all agents and free the memory."""
        self._slots.clear()
        self._free.clear()
        self._last_ids = ()
        self._steps = StepHistory(self._observations, self._actions, self._steps.length)
        self._previous = self._previous[:0]

    def told(self, agent_ids: Sequence[str], max_bytes: int) -> list[tuple[wire.Restored, list[bytes]]]:
        """Return tails and raw parts of RESTORE requests that tell agents' last steps.

        Args:
            agent_ids: agents that are remembered.
            max_bytes: most raw bytes of one request; of an agent that has more, fewer of its last steps are told.
        """
        requests: list[tuple[wire.Restored, list[bytes]]] = []
        room = 0
        step_bytes = 4 * self._steps.width + self._steps.pixel_width
        for agent in agent_ids:
            slot = self._slots[agent]
            rows, pixels = self._steps.of(slot)
            count = min(len(rows), max(1, max_bytes // step_bytes - 1))
            parts = [rows[-count:].tobytes(), self._previous[slot].tobytes()]
            if pixels is not None:
                parts.append(pixels[-count:].tobytes())
            size = sum(map(len, parts))
            if size > room:
                requests.append((wire.Restored([], []), []))
                room = max_bytes
            tail, raw = requests[-1]
            tail.ids.append(agent)
            tail.counts.append(count)
            raw.extend(parts)
            room -= size
        return requests
