"""A Unity build of one agent, as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agentgpt_remote.agents import Turns, row_of, stack
from agentgpt_remote.errors import ConfigError, ManyAgents, PlayerFailed
from agentgpt_remote.wrappers.unity.agents import UnityAgents

MASK_KEY = "action_mask"


class UnityEnv(gym.Env[Any, Any]):
    """A Unity build of one behaviour with one agent at a time.

    An episode is one of the agent's. The next one begins where the player itself begins it: :meth:`reset` resets the
    scene only when it is called in the middle of an episode, or with a seed or options.

    Args:
        path: of the build; None for the editor.
        options: as for :class:`~agentgpt_remote.wrappers.unity.agents.UnityAgents`.

    Attributes:
        agents: the same player as an environment of many agents; has the side channels.

    Raises:
        ConfigError: the build has more agents or behaviours.
        PlayerFailed: the player ended, or did not connect in time.
    """

    metadata: dict[str, Any] = {"render_modes": [], "thread_bound": True}  # noqa: RUF012 - Gymnasium's

    def __init__(self, path: str | None, **options: Any) -> None:
        self.agents = UnityAgents(path, **options)
        try:
            self._ready: tuple[Any, dict[str, Any]] | None = None
            self._name, self._id = self._only_agent(self.agents.reset())
            behavior = self.agents.behaviors[self._name]
        except BaseException:
            self.agents.close()
            raise
        self.observation_space, self.action_space = behavior.observation_space, behavior.action_space
        self._is_over = True
        self._fresh = True

    def _only_agent(self, turns: Turns) -> tuple[str, str]:
        found = [(name, agent) for name, turn in turns.items() for agent in turn.acting.agent_ids]
        if len(found) != 1:
            shown = ", ".join(f"{len(turn.acting.agent_ids)} of {name}" for name, turn in turns.items())
            raise ManyAgents(f"the Unity player has {len(found)} agents ({shown}): use RemoteParallelEnv")
        self._take(turns)
        return found[0]

    def _take(self, turns: Turns) -> None:
        """Keep what the agent sees now."""
        for name, turn in turns.items():
            if turn.acting.agent_ids:
                agent = turn.acting.agent_ids[0]
                info = dict(turn.acting.infos.get(agent, {}))
                if turn.acting.action_mask is not None:
                    info[MASK_KEY] = self.agents.mapping_of(name).info_mask(turn.acting.action_mask[0])
                self._ready = row_of(turn.acting.observations, 0), info
                self._id = agent

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and return its first observation and info."""
        super().reset(seed=seed)
        if seed is not None or options or not (self._is_over or self._fresh):
            self._only_agent(self.agents.reset(seed=seed, options=options))
        elif self._ready is None:
            self._await_agent()
        if self._ready is None:
            raise PlayerFailed("the Unity player has no agent that needs an action")
        self._is_over = self._fresh = False
        ready, self._ready = self._ready, None
        return ready

    def _await_agent(self) -> None:
        """Step the player until the next agent appears."""
        while self._ready is None:
            self._take(self.agents.step({}))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment.

        Raises:
            ResetNeeded: the episode has ended.
            ConfigError: further agents have appeared.
        """
        if self._is_over:
            raise ResetNeeded("the episode has ended: call reset() before step()")
        batch = stack(self.action_space, [action])
        turns = self.agents.step({self._name: batch})
        self._check_count(turns)
        ended = turns[self._name].ended
        self._ready = None
        before = self._id
        self._take(turns)
        if before in ended.agent_ids:
            row = ended.agent_ids.index(before)
            self._is_over = True
            flags = bool(ended.terminated[row]), bool(ended.truncated[row])
            info = ended.infos.get(before, {})
            return row_of(ended.observations, row), float(ended.rewards[row]), *flags, info
        if self._ready is None:
            raise PlayerFailed("the Unity player neither asks its agent for a decision nor ends its episode")
        (obs, info), self._ready = self._ready, None
        return obs, float(turns[self._name].acting.rewards[0]), False, False, info

    def _check_count(self, turns: Turns) -> None:
        acting = [agent for turn in turns.values() for agent in turn.acting.agent_ids]
        if len(acting) > 1:
            raise ConfigError(
                f"the Unity player now has {len(acting)} agents ({', '.join(acting)}): use RemoteParallelEnv"
            )

    def set_parameters(self, **values: float) -> None:
        """Set environment parameters; see :class:`~agentgpt_remote.wrappers.unity.agents.UnityAgents`."""
        self.agents.set_parameters(**values)

    def set_engine(self, **values: Any) -> None:
        """Set what the engine does; see :class:`~agentgpt_remote.wrappers.unity.agents.UnityAgents`."""
        self.agents.set_engine(**values)

    def stats(self) -> dict[str, list[tuple[float, str]]]:
        """Return what the player reported since the last call."""
        return self.agents.stats()

    def send_raw(self, data: bytes) -> None:
        """Send bytes through the raw side channel."""
        self.agents.send_raw(data)

    def received_raw(self) -> list[bytes]:
        """Return the bytes that came through the raw side channel since the last call."""
        return self.agents.received_raw()

    def close(self) -> None:
        """End the player; idempotent."""
        self.agents.close()
