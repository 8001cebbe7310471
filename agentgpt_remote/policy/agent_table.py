"""One client's agents by id, in the slots of an engine that others use too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, KeysView
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.policy.engine import Decision, PolicyEngine
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.history import Steps
from agentgpt_remote.policy.options import ActOptions, mix
from agentgpt_remote.policy.runner import SlotIndex

_REMEMBERED = 4096
_NO_IDS: frozenset[str] = frozenset()


class AgentsLost(AgentGPTError):
    """Agents that a request takes for known are not held; what they saw must be told again.

    Attributes:
        agent_ids: which.
    """

    def __init__(self, agent_ids: list[str]) -> None:
        super().__init__(agent_ids)
        self.agent_ids = agent_ids


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A decision that is to be made for agents of one table.

    Attributes:
        decision: for the engine.
        agent_ids: of its rows.
        joining: slots of agents that are new, by id.
        reserved: which of these were nobody's; the others are those of agents that leave with this step.
        ended: agents to forget.
        moved: whether these are not the agents of the last call, all of them going on.
    """

    decision: Decision
    agent_ids: tuple[str, ...]
    joining: dict[str, int]
    reserved: list[int]
    ended: tuple[str, ...]
    moved: bool


class AgentTable:
    """One client's agents by id.

    Args:
        engine: shared by all clients.
        seed: seed of sampling where a call brings none.

    Attributes:
        dropped: the last agents that were dropped to make room for others, until they act again.
    """

    def __init__(self, engine: PolicyEngine, seed: int = 0) -> None:
        self.engine = engine
        self.dropped: OrderedDict[str, None] = OrderedDict()
        self._slots: dict[str, int] = {}
        self._last_ids: tuple[str, ...] = ()  # agents of the last call, and where they are
        self._last_index: SlotIndex | None = None
        self._going_on: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._seed, self._draws = seed, 0

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
        deterministic: bool = True,
        action_mask: NDArray[np.bool_] | None = None,
        options: ActOptions | None = None,
    ) -> Any:
        """Return a batch of actions, as the batched action space holds it.

        Args:
            agent_ids: n different ids; those that are new begin an episode.
            batch: checked observations with leading axis n.
            ended: agents to forget first; one that is in ``agent_ids`` too begins a new episode.
            deterministic: take the likeliest actions.
            action_mask: bool of shape (n, categories), checked; None allows everything.
            options: instead of the two before.

        Raises:
            CapacityReached: too many agents; nothing has changed.
        """
        if options is None:
            self._draws += 1
            seed = mix(self._seed, self._draws)
            options = ActOptions(deterministic=deterministic, seed=seed, action_mask=action_mask)
        self.engine.begin()
        prepared = self.prepare(agent_ids, batch, ended, options)
        try:
            (vectors,) = self.engine.decide([prepared.decision])
        except BaseException:
            self.roll_back(prepared)
            raise
        self.commit(prepared)
        return self.engine.model.actions.decode(vectors)

    def prepare(
        self,
        agent_ids: tuple[str, ...],
        batch: Any,
        ended: tuple[str, ...],
        options: ActOptions,
        starting: Collection[str] | None = None,
    ) -> Prepared:
        """Return what the engine needs to act; :meth:`commit` or :meth:`roll_back` must follow.

        Args:
            agent_ids: n different ids.
            batch: checked observations with leading axis n.
            ended: agents to forget first.
            options: how to choose.
            starting: agents that begin an episode with this step; None for those that are new or have ended.

        Raises:
            AgentsLost: agents are not held that do not begin an episode; nothing has changed.
            CapacityReached: too many agents; nothing has changed.
        """
        index, is_first = self._last_index, self._going_on
        joining: dict[str, int] = {}
        reserved: list[int] = []
        moved = index is None or bool(ended) or bool(starting) or agent_ids != self._last_ids
        if index is None or moved:
            index, joining, reserved, is_first = self._place(agent_ids, ended, starting)
        else:
            self.engine.use(index)
        model = self.engine.model
        obs, pixels = model.observations.encode(batch), model.observations.pixels(batch)
        decision = Decision(obs=obs, pixels=pixels, is_first=is_first, index=index, options=options)
        return Prepared(
            decision=decision, agent_ids=agent_ids, joining=joining, reserved=reserved, ended=ended, moved=moved
        )

    def _place(
        self, agent_ids: tuple[str, ...], ended: tuple[str, ...], starting: Collection[str] | None
    ) -> tuple[SlotIndex, dict[str, int], list[int], NDArray[np.bool_]]:
        """Return where the agents are, the slots of new ones, which of these were reserved, and who begins an episode.

        New agents take over the slots of those that leave, in order: where each takes a place, the agents' slots
        stay as they were, consecutive ones above all.
        """
        fresh = [agent for agent in agent_ids if agent not in self._slots]
        if starting is not None:
            lost = [agent for agent in fresh if agent not in starting]
            if lost:
                raise AgentsLost(lost)
        acting = set(agent_ids) if ended else _NO_IDS
        left = sorted(self._slots[agent] for agent in ended if agent not in acting and agent in self._slots)
        taken = left[: len(fresh)]
        used = [self._slots[agent] for agent in agent_ids if agent in self._slots] + taken
        if used:
            self.engine.use(self.engine.index(used))
        needing = fresh[len(taken) :]
        reserved = self.engine.allocate([(agent, self._drop) for agent in needing]) if needing else []
        joining = dict(zip(fresh, taken + reserved, strict=True))
        begins = joining.keys() | (set(ended) if starting is None else set(starting))
        is_first = np.fromiter((agent in begins for agent in agent_ids), np.bool_, len(agent_ids))
        index = self.engine.index([joining[a] if a in joining else self._slots[a] for a in agent_ids])
        return index, joining, reserved, is_first

    def commit(self, prepared: Prepared) -> None:
        """Take note that the engine has acted."""
        if prepared.moved:
            acting = set(prepared.agent_ids) if prepared.ended else _NO_IDS
            leaving = {a: self._slots[a] for a in prepared.ended if a not in acting and a in self._slots}
            taken = set(leaving.values()) & set(prepared.joining.values())
            for agent, slot in leaving.items():
                if slot in taken:
                    del self._slots[agent]
            for agent, slot in prepared.joining.items():
                if slot in taken:
                    self.engine.hand_over(slot, (agent, self._drop))
                self._slots[agent] = slot
                self.dropped.pop(agent, None)
            self.forget([agent for agent, slot in leaving.items() if slot not in taken])
            self._going_on = np.zeros(len(prepared.agent_ids), np.bool_)
        self._last_ids, self._last_index = prepared.agent_ids, prepared.decision.index

    def roll_back(self, prepared: Prepared) -> None:
        """Take note that the engine has not acted: agents that were new have not joined."""
        self.engine.release(prepared.reserved)

    def restore(self, agent: str, steps: Steps, previous: Float32) -> None:
        """Take an agent in with the last steps that it saw, in place of what is held of it.

        Args:
            agent: its id.
            steps: checked, oldest first.
            previous: compact action that followed them, float32 of shape (action width,).

        Raises:
            CapacityReached: too many agents.
        """
        self.forget([agent])
        (slot,) = self.engine.allocate([(agent, self._drop)])
        self._slots[agent] = slot
        self.dropped.pop(agent, None)
        self.engine.restore(slot, steps, previous)

    def _drop(self, agent: str) -> None:
        """Take note that the engine gives an agent's slot to another."""
        self._slots.pop(agent, None)
        self._last_index = None
        self.dropped[agent] = None
        while len(self.dropped) > _REMEMBERED:
            self.dropped.popitem(last=False)

    def forget(self, agent_ids: list[str]) -> None:
        """Drop agents; unknown ids are ignored."""
        slots = [self._slots.pop(agent) for agent in agent_ids if agent in self._slots]
        if slots:
            self.engine.release(slots)
            self._last_index = None

    def clear(self) -> None:
        """Drop all agents."""
        self.forget(self.agent_ids)
        self.dropped.clear()
