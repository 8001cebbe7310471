"""Many agents on a host, as a PettingZoo ParallelEnv."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import gymnasium as gym
from pettingzoo import ParallelEnv

from agentgpt_remote.agents import Acting, Behavior, Ended, Turns, rows_of, stack
from agentgpt_remote.errors import ConfigError, InvalidAction, UnknownAgent
from agentgpt_remote.wrappers.hosting import Host, LentHost
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from agentgpt_remote.wrappers.remote_base import METHOD, MISSING

ACTS = "acts"  # key of the info of an agent that needs no action now
MASK_KEY = "action_mask"

_Dicts = tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


class RemoteParallelEnv(ParallelEnv[str, Any, Any]):  # type: ignore[misc]
    """An environment of many agents that runs on a host; a PettingZoo ParallelEnv.

    A PettingZoo environment behaves as it would here. Of other sources, and of PettingZoo's whose agents take turns:

    * An agent that needs no action now (it decides at a slower pace, or it is not its turn) shows its latest
      observation with a reward of 0 and ``info["acts"] = False``; an action for it is not used. With
      ``idle="leave_out"`` it is in no dict until it needs one.
    * An agent whose episode ends and begins anew in the same step shows the first observation of the new episode; the
      last one is ``info["final_obs"]``, and reward, ``terminated`` and ``truncated`` are those of the old one. It stays
      in ``agents``.
    * Ids that were never seen may appear at any step.

    Args:
        source: ``pettingzoo:package.module``, ``unity:PATH``, ``unity:`` (the editor), ``module:factory``, a callable
            that returns a PettingZoo environment, or one itself, which is then served from a thread of this process.
            With ``url`` the source that the host must serve; ``None`` takes whatever it serves.
        url: where a host listens; without it a host process is started on this machine.
        idle: what is shown of agents that need no action: ``repeat`` or ``leave_out``.
        token: token of the host; ``AGENTGPT_TOKEN`` by default.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        options: as for :class:`~agentgpt_remote.wrappers.remote_agents.RemoteAgents`, with the arguments of the
            environment's constructor.

    Attributes:
        agents: ids of the agents that are alive, in the order of ``possible_agents``.
        possible_agents: ids that are known so far.
        behaviors: of the agents, by name.
        url: where it is served.

    Raises:
        DependencyNotInstalled: PettingZoo is not installed.
        ConfigError: the source makes environments of one agent.
    """

    metadata: dict[str, Any] = {"name": "agentgpt_remote", "render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012

    def __init__(
        self,
        source: Any = None,
        *,
        url: str | Host | None = None,
        idle: Literal["repeat", "leave_out"] = "repeat",
        token: str | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if idle not in ("repeat", "leave_out"):
            raise ConfigError(f"unknown idle={idle!r}: expected 'repeat' or 'leave_out'")
        self._repeats = idle == "repeat"
        self._remote = RemoteAgents(source, url=url, token=token, render_mode=render_mode, **options)
        self.render_mode = self._remote.render_mode
        self.metadata = self._remote.metadata
        self.agents: list[str] = []
        self._behavior_of: dict[str, Behavior] = {}
        self._spaces: dict[str, tuple[gym.Space[Any], gym.Space[Any]]] = {}
        self._order: dict[str, int] = {}
        self._latest: dict[str, Any] = {}
        behavior_of = {agent: behavior for behavior in self.behaviors.values() for agent in behavior.agent_ids}
        for agent in self._remote.agent_ids:
            self._know(agent, behavior_of[agent])

    @property
    def possible_agents(self) -> list[str]:
        """Ids that are known so far."""
        return list(self._behavior_of)

    @property
    def behaviors(self) -> dict[str, Behavior]:
        """Behaviours so far, by name."""
        return self._remote.behaviors

    @property
    def url(self) -> str:
        """Where it is served."""
        return str(self._remote.url)

    @property
    def acting(self) -> list[str]:
        """Ids of the agents that need an action now."""
        return [agent for ids in self._remote.acting.values() for agent in ids]

    def behavior_of(self, agent: str) -> str:
        """Return the name of an agent's behaviour.

        Raises:
            UnknownAgent: it was never seen.
        """
        return self._found(agent).name

    def observation_space(self, agent: str) -> gym.Space[Any]:
        """Return the space of an agent's observations, always the same object."""
        return self._spaces_of(agent)[0]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """Return the space of an agent's actions, always the same object."""
        return self._spaces_of(agent)[1]

    def _spaces_of(self, agent: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
        if agent not in self._spaces:
            behavior = self._found(agent)
            self._spaces[agent] = copy.deepcopy((behavior.observation_space, behavior.action_space))
        return self._spaces[agent]

    def _found(self, agent: str) -> Behavior:
        behavior = self._behavior_of.get(agent)
        if behavior is None:
            raise UnknownAgent(f"agent {agent!r} was never seen: expected one of {self.possible_agents}")
        return behavior

    def _know(self, agent: str, behavior: Behavior) -> None:
        if agent not in self._behavior_of:
            self._behavior_of[agent] = behavior
            self._order[agent] = len(self._order)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Reset the environment and return observations and infos by agent.

        Raises:
            NotSendable: ``options`` holds a value that the wire can't carry.
        """
        turns = self._remote.reset(seed=seed, options=options)
        self._latest.clear()
        self.agents = []
        observations, _, _, _, infos = self._take(turns)
        return observations, infos

    def step(self, actions: dict[str, Any]) -> _Dicts:
        """Step the environment.

        Args:
            actions: by agent; one for each that needs one.

        Returns:
            Observations, rewards (floats), terminations, truncations (bools) and infos, by agent.

        Raises:
            InvalidAction: an agent that needs an action has none, or one that is not alive has one.
            ResetNeeded: the environment was not reset before.
            RemoteEnvError: the environment raised; holds its traceback. The session goes on.
            RemoteTimeout: no reply in time.
            ConnectionLost: the host is gone, and did not come back.
        """
        self._check(actions)
        batches = {
            name: stack(self.behaviors[name].action_space, [actions[agent] for agent in ids])
            for name, ids in self._remote.acting.items()
        }
        return self._take(self._remote.step(batches))

    def _check(self, actions: Mapping[str, Any]) -> None:
        dead = sorted(set(actions) - set(self.agents))
        if dead:
            raise InvalidAction(f"got an action for {dead[0]!r}, which is not alive: expected agents of {self.agents}")
        missing = [agent for agent in self.acting if agent not in actions]
        if missing:
            raise InvalidAction(f"got no action for {missing[0]!r}: expected one for each of {self.acting}")

    def _take(self, turns: Turns) -> _Dicts:
        """Return the dicts of PettingZoo's API for what a step brought."""
        result: _Dicts = ({}, {}, {}, {}, {})
        for name, turn in turns.items():
            self._take_ended(self.behaviors[name], turn.ended, result)
            self._take_acting(self.behaviors[name], turn.acting, result)
        if self._repeats:
            for agent in self.agents:
                if agent not in result[0]:
                    _put(result, agent, self._latest[agent], 0.0, False, False, {ACTS: False})
        self.agents = sorted(self._latest, key=self._order.__getitem__)
        return result

    def _take_ended(self, behavior: Behavior, ended: Ended, result: _Dicts) -> None:
        rows = zip(ended.agent_ids, rows_of(ended.observations), strict=True)
        for index, (agent, obs) in enumerate(rows):
            self._know(agent, behavior)
            self._latest.pop(agent, None)
            flags = bool(ended.terminated[index]), bool(ended.truncated[index])
            _put(result, agent, obs, float(ended.rewards[index]), *flags, ended.infos.get(agent, {}))

    def _take_acting(self, behavior: Behavior, acting: Acting, result: _Dicts) -> None:
        for index, (agent, obs) in enumerate(zip(acting.agent_ids, rows_of(acting.observations), strict=True)):
            self._know(agent, behavior)
            info = acting.infos.get(agent, {})
            if acting.action_mask is not None and MASK_KEY not in info and not isinstance(obs, dict):
                info = {**info, MASK_KEY: acting.action_mask[index]}
            if agent in result[0]:  # ended and began anew
                final = {"final_obs": result[0][agent], "final_info": result[4][agent]}
                result[0][agent], result[4][agent] = obs, {**info, **final}
            else:
                _put(result, agent, obs, float(acting.rewards[index]), False, False, info)
            self._latest[agent] = obs

    def render(self) -> Any:
        """Return a frame (``rgb_array``: uint8 array (height, width, 3); ``ansi``: str) or ``None``."""
        return self._remote.render()

    def state(self) -> Any:
        """Return the environment's global state, where it has one."""
        return self._remote.call("state")

    def lend(self) -> list[LentHost]:
        """Return where its host listens, for another process to train there while this one keeps it alive."""
        return self._remote.lend()

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment on its host, or read an attribute; public names only."""
        return self._remote.call(name, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the environment on its host; a method runs there when it is called."""
        remote = self.__dict__.get("_remote")
        kind = MISSING if name.startswith("_") or remote is None or remote.closed else remote.find(name)
        if kind == MISSING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self.call, name) if kind == METHOD else self.call(name)

    def close(self) -> None:
        """End the session with its environment, and the host that was started for it; idempotent."""
        self._remote.close()

    def __enter__(self) -> RemoteParallelEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteParallelEnv of {', '.join(self.behaviors)} at {self.url}>"


def _put(
    result: _Dicts, agent: str, obs: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
) -> None:
    parts: tuple[dict[str, Any], ...] = result
    for part, value in zip(parts, (obs, reward, terminated, truncated, info), strict=True):
        part[agent] = value
