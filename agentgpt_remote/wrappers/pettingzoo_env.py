"""PettingZoo environments, Parallel and AEC, as environments of many agents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from agentgpt_remote.agents import Behavior, TurnRows, Turns, check_counts, rows_of
from agentgpt_remote.errors import ConfigError

MASK_KEY = "action_mask"
_NUMBERED = re.compile(r"^(.+?)[_-]?\d+$")


def mask_width(space: gym.Space[Any]) -> int:
    """Return how many bools an action mask of a space holds; 0 where it has none."""
    if type(space) is spaces.Discrete:
        return int(space.n)
    if type(space) is spaces.MultiDiscrete:
        return int(np.sum(space.nvec))
    if type(space) is spaces.Dict:
        return sum(map(mask_width, space.spaces.values()))
    return sum(map(mask_width, space.spaces)) if type(space) is spaces.Tuple else 0


def group_agents(env: Any, names: Mapping[str, str] | None = None) -> dict[str, Behavior]:
    """Return the behaviours of a PettingZoo environment.

    Agents whose names differ in their number only, and whose spaces are equal, share a behaviour: ``walker_0`` and
    ``walker_1`` are ``walker``.

    Args:
        env: with ``possible_agents`` and their spaces.
        names: behaviours by agent, in place of that.

    Raises:
        ConfigError: agents of one name in ``names`` have different spaces.
    """
    members: dict[str, list[str]] = {}
    for agent in env.possible_agents:
        if not isinstance(agent, str):
            raise ConfigError(f"agent {agent!r} is a {type(agent).__name__}: expected names that are text")
        match = _NUMBERED.match(agent)
        name = names.get(agent, agent) if names else match[1] if match else agent
        group = members.get(name)
        if group is not None and not _same_spaces(env, group[0], agent):
            if names:
                raise ConfigError(f"agents {group[0]!r} and {agent!r} of behaviour {name!r} have different spaces")
            name = agent
        members.setdefault(name, []).append(agent)
    behaviors = {}
    for name, group in members.items():
        action_space = env.action_space(group[0])
        behaviors[name] = Behavior(
            name=name,
            observation_space=env.observation_space(group[0]),
            action_space=action_space,
            mask_width=mask_width(action_space),
            agent_ids=tuple(group),
        )
    return behaviors


def _same_spaces(env: Any, one: str, other: str) -> bool:
    same_actions: bool = env.action_space(one) == env.action_space(other)
    return same_actions and bool(env.observation_space(one) == env.observation_space(other))


class _PettingZooEnv:
    """What both kinds share."""

    def __init__(self, env: Any, behaviors: Mapping[str, str] | None = None) -> None:
        self._env = env
        self.behaviors = group_agents(env, behaviors)
        self._behavior_of = {agent: name for name, item in self.behaviors.items() for agent in item.agent_ids}
        self.agent_ids: tuple[str, ...] = tuple(env.possible_agents)
        self.metadata: dict[str, Any] = dict(env.metadata)
        self.render_mode: str | None = getattr(env, "render_mode", None)
        self._acting: dict[str, list[str]] = {}
        self._alive: set[str] = set()
        self._was_reset = False

    @property
    def unwrapped(self) -> Any:
        """The PettingZoo environment itself."""
        return self._env

    @property
    def is_over(self) -> bool:
        """Whether no agent is left."""
        return not self._env.agents

    def render(self) -> Any:
        """Return what the environment renders."""
        return self._env.render()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _rows(self) -> dict[str, TurnRows]:
        return {name: TurnRows(behavior) for name, behavior in self.behaviors.items()}

    def _turns(self, rows: dict[str, TurnRows]) -> Turns:
        self._acting = {name: item.acting_ids for name, item in rows.items()}
        return {name: item.turn() for name, item in rows.items()}

    def _act(self, rows: dict[str, TurnRows], agent: str, obs: Any, reward: Any, info: dict[str, Any]) -> None:
        name = self._behavior_of[agent]
        mask = self._mask(name, obs, info)
        rows[name].act(agent, obs, float(reward), agent not in self._alive, mask, info)
        self._alive.add(agent)

    def _mask(self, name: str, obs: Any, info: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """Return the mask that an info or an observation holds, where it fits the behaviour's."""
        mask = info.get(MASK_KEY)
        if mask is None and isinstance(obs, dict):
            mask = obs.get(MASK_KEY)
        width = self.behaviors[name].mask_width
        if mask is None or not width or np.shape(mask) != (width,):
            return None
        return np.asarray(mask).astype(np.bool_)

    def _end(self, rows: dict[str, TurnRows], agent: str, obs: Any, reward: Any, ended: Any, info: Any) -> None:
        terminated, truncated = ended
        rows[self._behavior_of[agent]].end(agent, obs, float(reward), bool(terminated), bool(truncated), info)
        self._alive.discard(agent)

    def _flat(self, actions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the actions by agent."""
        if not self._was_reset:
            raise ResetNeeded("call reset() before step()")
        check_counts(self.behaviors, self._acting, actions)
        flat: dict[str, Any] = {}
        for name, ids in self._acting.items():
            if ids:
                flat |= zip(ids, rows_of(actions[name]), strict=True)
        return flat


class ParallelAgents(_PettingZooEnv):
    """A PettingZoo ParallelEnv: every agent that is left acts at every step.

    Args:
        env: the environment.
        behaviors: the behaviour of each agent, where names and spaces are not to decide.

    Raises:
        ConfigError: an agent's name is no text, or agents of one behaviour have different spaces.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Reset the environment; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        observations, infos = self._env.reset(seed=seed, options=options)
        self._alive.clear()
        self._was_reset = True
        rows = self._rows()
        for agent in self._env.agents:
            self._act(rows, agent, observations[agent], 0.0, infos.get(agent, {}))
        return self._turns(rows)

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Step the environment; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        flat = self._flat(actions)
        observations, rewards, terminations, truncations, infos = self._env.step(
            {agent: flat[agent] for agent in self._env.agents}
        )
        rows, left = self._rows(), set(self._env.agents)
        for agent, obs in observations.items():
            reward, info = rewards.get(agent, 0.0), infos.get(agent, {})
            ended = terminations.get(agent, False), truncations.get(agent, False)
            if any(ended) and agent in self._alive:
                self._end(rows, agent, obs, reward, ended, info)
            if agent in left:
                self._act(rows, agent, obs, reward, info)
        return self._turns(rows)


class AECAgents(_PettingZooEnv):
    """A PettingZoo AECEnv: agents act in turns.

    An agent's reward is what it was given since it acted last, as ``env.last()`` has it.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Reset the environment; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        self._env.reset(seed=seed, options=options)
        self._alive.clear()
        self._was_reset = True
        return self._next()

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Step the environment; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        for action in self._flat(actions).values():
            self._env.step(action)
        return self._next()

    def _next(self) -> Turns:
        """Pass over agents that have ended, to the one that acts next."""
        rows = self._rows()
        while self._env.agents:
            agent = self._env.agent_selection
            obs, reward, terminated, truncated, info = self._env.last()
            if not (terminated or truncated):
                self._act(rows, agent, obs, reward, info)
                break
            self._end(rows, agent, obs, reward, (terminated, truncated), info)
            self._env.step(None)
        return self._turns(rows)


def adapt(env: Any, behaviors: Mapping[str, str] | None = None) -> ParallelAgents | AECAgents | None:
    """Return a PettingZoo environment as one of many agents; None where it is none of PettingZoo's."""
    import sys

    pettingzoo = sys.modules.get("pettingzoo")
    if pettingzoo is None:
        return None
    if isinstance(env, pettingzoo.ParallelEnv):
        return ParallelAgents(env, behaviors)
    return AECAgents(env, behaviors) if isinstance(env, pettingzoo.AECEnv) else None
