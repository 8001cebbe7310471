"""Two teams whose optimum is known, for training tests: guards answer what they see, runners follow a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv


class Teams(ParallelEnv[str, Any, Any]):
    """A ``guard`` is paid 1 for the choice that it sees; ``runner`` for being near the number that it sees.

    One choice of a guard, never the right one, is forbidden by a mask. Runners end early, and one appears late.
    """

    metadata = {"name": "teams", "render_modes": []}  # noqa: RUF012 - PettingZoo's
    LENGTH, RUNNER_LENGTH, LATE = 12, 8, 4

    def __init__(self, width: int = 4, choices: int = 3) -> None:
        self.possible_agents = ["guard_0", "runner_0", "guard_1", "runner_1"]
        self._width, self._choices = width, choices
        self.agents: list[str] = []
        self._wanted: dict[str, float] = {}
        self._time = 0
        self._random = np.random.default_rng(0)

    def observation_space(self, agent: str) -> Any:
        return spaces.Box(-2, 2, (self._width if agent.startswith("guard") else 4,), np.float32)

    def action_space(self, agent: str) -> Any:
        if agent.startswith("guard"):
            return spaces.Discrete(self._choices)
        return spaces.Box(-1, 1, (1,), np.float32)

    def _see(self, agent: str) -> Any:
        obs = np.zeros(self.observation_space(agent).shape, np.float32)
        if agent.startswith("guard"):
            self._wanted[agent] = float(self._random.integers(self._choices))
            obs[int(self._wanted[agent])] = 1.0
        else:
            self._wanted[agent] = float(self._random.uniform(-0.9, 0.9))
            obs[0] = self._wanted[agent]
        return obs

    def _info(self, agent: str) -> dict[str, Any]:
        if not agent.startswith("guard"):
            return {}
        mask = np.ones(self._choices, np.int8)
        if self._choices > 1:
            mask[(int(self._wanted[agent]) + 1) % self._choices] = 0
        return {"action_mask": mask}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._time = 0
        self.agents = self.possible_agents[:3]
        return {one: self._see(one) for one in self.agents}, {one: self._info(one) for one in self.agents}

    def _reward(self, agent: str, action: Any) -> float:
        if agent.startswith("guard"):
            assert (int(self._wanted[agent]) + 1) % self._choices != int(action) or self._choices == 1, "masked"
            return float(int(action) == int(self._wanted[agent]))
        return 1.0 - 2.0 * abs(float(np.clip(action[0], -1, 1)) - self._wanted[agent])

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents)
        self._time += 1
        rewards = {one: self._reward(one, action) for one, action in actions.items()}
        ends = {one: self._time == self._born(one) + self._length(one) for one in actions}
        truncated = {one: ends[one] and one.startswith("guard") for one in actions}
        terminated = {one: ends[one] and not truncated[one] for one in actions}
        self.agents = [one for one in actions if not ends[one]]
        seen = {one: self._see(one) for one in actions}
        infos = {one: self._info(one) for one in actions}
        if self._time == self.LATE:
            late = self.possible_agents[3]
            self.agents.append(late)
            seen[late], infos[late] = self._see(late), {}
            rewards[late], terminated[late], truncated[late] = 0.0, False, False
        return seen, rewards, terminated, truncated, infos

    def _born(self, agent: str) -> int:
        return self.LATE if agent == self.possible_agents[3] else 0

    def _length(self, agent: str) -> int:
        return self.LENGTH if agent.startswith("guard") else self.RUNNER_LENGTH


def wider() -> Teams:
    """Make teams whose guards see more."""
    return Teams(width=5)


def no_choice() -> Teams:
    """Make teams whose guards can't choose."""
    return Teams(choices=1)


class Turns(AECEnv[str, Any, Any]):
    """Two players in turns; each is paid for the choice that it sees, until both had ten turns."""

    metadata = {"name": "turns", "render_modes": [], "is_parallelizable": False}  # noqa: RUF012 - PettingZoo's

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["player_0", "player_1"]
        self._space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)
        self._random = np.random.default_rng(0)

    def observation_space(self, agent: str) -> Any:
        return self._space[0]

    def action_space(self, agent: str) -> Any:
        return self._space[1]

    def observe(self, agent: str) -> Any:
        obs = np.zeros(2, np.float32)
        obs[self._wanted[agent]] = 1.0
        return obs

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}
        self._wanted = {agent: int(self._random.integers(2)) for agent in self.agents}
        self._left = dict.fromkeys(self.agents, 10)
        self.agent_selection = self.agents[0]

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._cumulative_rewards[agent] = 0.0
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self.rewards[agent] = float(action == self._wanted[agent])
        self._wanted[agent] = int(self._random.integers(2))
        self._left[agent] -= 1
        if not any(self._left.values()):
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = self.agents[1 - self.agents.index(agent)]
        self._accumulate_rewards()


def turns() -> Turns:
    """Make players in turns."""
    return Turns()
