"""The model at work: token streams of many agents in the slots of one KV cache."""

from __future__ import annotations

from collections.abc import KeysView
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgpt_remote.errors import CapacityReached
from agentgpt_remote.policy.cache import KVCache, Slots
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.model import PolicyModel

DEFAULT_MAX_AGENTS = 65_536
MAX_CACHE_BYTES = 4 * 2**30
_FIRST_SLOTS = 16


class PolicyEngine:
    """Acts for agents that each have a slot.

    The cache doubles when it is full, up to ``max_agents``; released slots are used again.

    Args:
        model: the actor.
        max_agents: most agents at once; by default 65,536, or as many as fit in 4 GiB of cache.
    """

    def __init__(self, model: PolicyModel, max_agents: int | None = None) -> None:
        self.model = model
        if max_agents is None:
            max_agents = max(1, min(DEFAULT_MAX_AGENTS, MAX_CACHE_BYTES // _agent_bytes(model)))
        self.max_agents = max_agents
        self._device = model.log_std.device
        self._capacity = min(_FIRST_SLOTS, max_agents)
        self._cache, self._previous = self._make(self._capacity)
        self._free = list(range(self._capacity - 1, -1, -1))

    def _make(self, capacity: int) -> tuple[KVCache, Tensor]:
        return self.model.make_cache(capacity), torch.zeros(capacity, self.model.actions.width, device=self._device)

    def _grow(self, capacity: int) -> None:
        cache, previous = self._make(capacity)
        _copy_cache(self._cache, cache, self._capacity)
        previous[: self._capacity] = self._previous
        self._cache, self._previous = cache, previous
        self._free[:0] = range(capacity - 1, self._capacity - 1, -1)
        self._capacity = capacity

    def allocate(self, count: int) -> list[int]:
        """Return ``count`` slots that are nobody's.

        Raises:
            CapacityReached: there would be more than ``max_agents``.
        """
        used = self._capacity - len(self._free)
        if used + count > self.max_agents:
            raise CapacityReached(
                f"{used + count} agents at once: this policy holds at most {self.max_agents}; "
                "terminate agents that are gone"
            )
        while len(self._free) < count:
            self._grow(min(2 * self._capacity, self.max_agents))
        return [self._free.pop() for _ in range(count)]

    def release(self, slots: list[int]) -> None:
        """Give slots back."""
        self._free.extend(slots)

    @torch.inference_mode()
    def act(
        self,
        obs: NDArray[np.float32],
        slots: Slots,
        is_first: NDArray[np.bool_],
        generator: torch.Generator | None,
        pixels: UInt8 | None = None,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Return compact actions for one new observation per agent.

        Args:
            obs: compact observations, float32 of shape (n, observation width).
            slots: n different slots, from :meth:`index`.
            is_first: bool of shape (n,): the observation begins an episode.
            generator: draws the actions; ``None`` takes the likeliest ones.
            pixels: bytes of the observations' images, uint8 of shape (n, P), where there are any.
            action_mask: bool of shape (n, categories): what is allowed; None allows everything.

        Returns:
            float32 array of shape (n, action width).
        """
        first = torch.from_numpy(is_first).to(self._device)
        observation = torch.tensor(obs, device=self._device)
        images = None if pixels is None else torch.tensor(pixels, device=self._device)
        params = self.model.act_step(observation, self._previous[slots], first, self._cache, slots, images)
        mask = None if action_mask is None else torch.tensor(action_mask, device=self._device)
        distribution = self.model.distribution(params, mask)
        actions: Tensor = distribution.mode() if generator is None else distribution.sample(generator)
        self._previous[slots] = actions
        result: NDArray[np.float32] = actions.cpu().numpy()
        return result

    def index(self, slots: list[int]) -> Slots:
        """Return the slots as a slice where they are consecutive, which is faster to read and write."""
        start, count = slots[0], len(slots)
        if slots == list(range(start, start + count)):
            return slice(start, start + count)
        return torch.tensor(slots, device=self._device)


def _agent_bytes(model: PolicyModel) -> int:
    """Return the size of one agent's keys and values in the cache."""
    config = model.config
    return 2 * config.num_layers * config.d_model * config.max_input_states * model.log_std.element_size()


def _copy_cache(old: KVCache, new: KVCache, count: int) -> None:
    new.keys[:, :count] = old.keys
    new.values[:, :count] = old.values
    new.clock[:count] = old.clock
    new.length[:count] = old.length


class AgentTable:
    """One client's agents by id.

    Args:
        engine: shared by all clients.
        seed: seed of sampling; ``None`` takes entropy.
    """

    def __init__(self, engine: PolicyEngine, seed: int | None = None) -> None:
        self._engine = engine
        self._slots: dict[str, int] = {}
        self._last: tuple[tuple[str, ...], Slots] = ((), slice(0, 0))  # agents of the last call, where they are
        self._generator = torch.Generator(device=engine.model.log_std.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    @property
    def agent_ids(self) -> list[str]:
        """Ids of the agents held, in the order in which they joined."""
        return list(self._slots)

    @property
    def held(self) -> KeysView[str]:
        """The same as a view, which costs nothing however many they are."""
        return self._slots.keys()

    def act(
        self,
        agent_ids: tuple[str, ...],
        batch: Any,
        ended: tuple[str, ...],
        deterministic: bool,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Return a batch of actions, as the batched action space holds it.

        Args:
            agent_ids: n different ids; those that are new begin an episode.
            batch: checked observations with leading axis n.
            ended: agents to forget first; one that is in ``agent_ids`` too begins a new episode.
            deterministic: take the likeliest actions.
            action_mask: bool of shape (n, categories), checked; None allows everything.

        Raises:
            CapacityReached: too many agents; nothing has changed.
        """
        if not ended and agent_ids == self._last[0]:
            return self._step(batch, self._last[1], np.zeros(len(agent_ids), np.bool_), deterministic, action_mask)
        fresh = [agent for agent in agent_ids if agent not in self._slots]
        reserved = self._engine.allocate(len(fresh))
        joining = dict(zip(fresh, reserved, strict=True))
        starting = joining.keys() | set(ended)
        is_first = np.fromiter((agent in starting for agent in agent_ids), np.bool_, len(agent_ids))
        slots = self._engine.index([joining[a] if a in joining else self._slots[a] for a in agent_ids])
        try:
            actions = self._step(batch, slots, is_first, deterministic, action_mask)
        except BaseException:
            # They have not joined: the next call must still begin their episodes in slots that others used.
            self._engine.release(reserved)
            raise
        self._slots.update(joining)
        acting = set(agent_ids)
        self.forget([agent for agent in ended if agent not in acting])
        self._last = (agent_ids, slots)
        return actions

    def _step(
        self,
        batch: Any,
        slots: Slots,
        is_first: NDArray[np.bool_],
        deterministic: bool,
        action_mask: NDArray[np.bool_] | None,
    ) -> Any:
        model = self._engine.model
        generator = None if deterministic else self._generator
        obs, pixels = model.observations.encode(batch), model.observations.pixels(batch)
        return model.actions.decode(self._engine.act(obs, slots, is_first, generator, pixels, action_mask))

    def forget(self, agent_ids: list[str]) -> None:
        """Drop agents; unknown ids are ignored."""
        slots = [self._slots.pop(agent) for agent in agent_ids if agent in self._slots]
        self._engine.release(slots)
        if slots:
            self._last = ((), self._last[1])

    def clear(self) -> None:
        """Drop all agents."""
        self.forget(self.agent_ids)
