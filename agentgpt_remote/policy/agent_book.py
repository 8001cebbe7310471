"""The agents of one policy object: who they are, how long they have acted, and under how much control."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import CapacityReached, ConfigError
from agentgpt_remote.policy.options import Bools, agent_key, draw_control
from agentgpt_remote.policy.wire import check_ended

_REMEMBERED = 4096


@dataclass
class _Agent:
    key: int
    steps: int = 0
    used: int = 0
    control: float | None = None


class AgentBook:
    """Agents by id, in the order in which they joined.

    Args:
        max_agents: most of them; those that have not acted for longest make room.

    Attributes:
        max_agents: as above; may be changed while there are none.
        control: control value of agents without one of their own.
    """

    def __init__(self, max_agents: int) -> None:
        self.max_agents = max_agents
        self.control = 1.0
        self._agents: dict[str, _Agent] = {}
        self._dropped: OrderedDict[str, None] = OrderedDict()
        self._own_control = False
        # What the same agents do call after call is added up when others come, or someone asks.
        self._ids: tuple[str, ...] = ()
        self._streak = self._calls = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._agents)

    def __iter__(self) -> Iterator[str]:
        """Go through their ids."""
        return iter(self._agents)

    def __contains__(self, agent: object) -> bool:
        """Tell whether an agent is held."""
        return agent in self._agents

    @property
    def ids(self) -> list[str]:
        """Their ids."""
        return list(self._agents)

    def room_for(self, ids: tuple[str, ...], ended: Collection[str]) -> tuple[str, ...]:
        """Return the agents that have to make room for others, those that have not acted for longest.

        Raises:
            CapacityReached: more than ``max_agents`` would act at once.
        """
        if ids == self._ids:
            return ()
        if len(ids) > self.max_agents:
            raise CapacityReached(
                f"{len(ids)} agents at once: this policy holds at most {self.max_agents}; "
                "terminate agents that are gone"
            )
        acting, over = set(ids), set(ended)
        staying = self._agents.keys() - over - acting
        excess = len(acting) + len(staying) - self.max_agents
        if excess <= 0:
            return ()
        self._settle()
        return tuple(sorted(staying, key=lambda agent: self._agents[agent].used)[:excess])

    def acted(self, ids: tuple[str, ...], ended: Iterable[str], dropped: Iterable[str]) -> None:
        """Take note of a step.

        Args:
            ids: agents that acted.
            ended: agents whose episode had ended before.
            dropped: agents that made room.
        """
        if ids != self._ids:
            self._settle()
            self._ids = ids
            for agent in ids:
                if agent not in self._agents:
                    self._agents[agent] = _Agent(agent_key(agent))
                    self._dropped.pop(agent, None)
        acting = set(ids) if ended else ()
        self.forget([agent for agent in ended if agent not in acting])
        for agent in ended:
            if agent in self._agents:
                self._settle()
                self._agents[agent].steps = 0
        for agent in dropped:
            self.forget([agent])
            self._dropped[agent] = None
            while len(self._dropped) > _REMEMBERED:
                self._dropped.popitem(last=False)
        self._streak += 1
        self._calls += 1

    def _settle(self) -> None:
        """Add up what the agents of the last calls did."""
        if self._streak:
            for agent in self._ids:
                if agent in self._agents:
                    self._agents[agent].steps += self._streak
                    self._agents[agent].used = self._calls
            self._streak = 0

    def forget(self, ids: Iterable[str]) -> None:
        """Drop agents; unknown ids are ignored."""
        for agent in ids:
            if self._agents.pop(agent, None) is not None and agent in self._ids:
                self._settle()
                self._ids = ()

    def clear(self) -> None:
        """Drop all agents."""
        self._agents.clear()
        self._dropped.clear()
        self._ids, self._streak, self._own_control = (), 0, False

    def set_control(self, agent_ids: Sequence[str] | None, value: float) -> None:
        """Set the control value of some agents, or of all that are and will be.

        Raises:
            ConfigError: it is no number from 0 to 1.
            UnknownAgent: an agent is not held; nothing changes.
        """
        if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ConfigError(f"control_value={value!r}: expected a number from 0 to 1")
        if agent_ids is None:
            self.control, self._own_control = float(value), False
            for agent in self._agents.values():
                agent.control = None
            return
        check_ended(tuple(agent_ids), self._agents)
        self._own_control = self._own_control or bool(agent_ids)
        for name in agent_ids:
            self._agents[name].control = float(value)

    def control_of(self, agent: str) -> float:
        """Return the control value of an agent."""
        held = self._agents.get(agent)
        return self.control if held is None or held.control is None else held.control

    def in_control(self, ids: tuple[str, ...], seed: int) -> Bools | None:
        """Draw who acts in one step; None stands for all."""
        if self.control == 1.0 and not self._own_control:
            return None
        values: NDArray[np.float64] = np.array([self.control_of(agent) for agent in ids])
        held = self._agents
        keys = [held[agent].key if agent in held else agent_key(agent) for agent in ids]
        return draw_control(seed, keys, values)

    def status(self, agent_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what there is to tell of agents, also of those that are not held."""
        self._settle()
        result: dict[str, dict[str, Any]] = {}
        for name in agent_ids:
            agent = self._agents.get(name)
            if agent is None:
                result[name] = {"status": "dropped" if name in self._dropped else "unknown"}
            else:
                result[name] = {"status": "active", "steps": agent.steps, "control_value": self.control_of(name)}
        return result
