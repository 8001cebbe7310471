"""Environments of many agents for the tests, whose every step can be told beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Crowd(ParallelEnv[str, Any, Any]):
    """Agents that come and go, of two kinds: ``runner`` (Box) and ``picker`` (masked Discrete beside an image).

    What an agent sees holds its own number and the time; an action must echo it, else the reward is negative.
    """

    metadata = {"name": "crowd", "render_modes": ["rgb_array"]}  # noqa: RUF012 - PettingZoo's

    def __init__(self, length: int = 12, render_mode: str | None = None) -> None:
        self.possible_agents = ["runner_0", "picker_0", "runner_1", "picker_1", "runner_2"]
        self.render_mode = render_mode
        self.length = length
        self._time = -1
        self._runner = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
        seen = spaces.Dict({"image": spaces.Box(0, 255, (4, 4, 3), np.uint8), "speed": spaces.Box(-9, 9, (1,))})
        self._picker = seen, spaces.Discrete(4)
        self.agents: list[str] = []
        self.heard: list[dict[str, Any]] = []

    def _spaces(self, agent: str) -> tuple[Any, Any]:
        return self._runner if agent.startswith("runner") else self._picker

    def observation_space(self, agent: str) -> Any:
        return self._spaces(agent)[0]

    def action_space(self, agent: str) -> Any:
        return self._spaces(agent)[1]

    def _see(self, agent: str) -> Any:
        number = float(agent[-1])
        if agent.startswith("runner"):
            return np.array([number, self._time, self._random.random()], np.float32)
        image = self._random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return {"image": image, "speed": np.array([number], np.float32)}

    def _info(self, agent: str) -> dict[str, Any]:
        if agent.startswith("runner"):
            return {"time": self._time} if self._time % 3 == 0 else {}
        mask = np.ones(4, np.int8)
        mask[self._time % 4] = 0
        return {"action_mask": mask}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        if seed is not None or self._time < 0:
            self._random = np.random.default_rng(seed)
        self._time = 0
        self.agents = self.possible_agents[:4]
        return {one: self._see(one) for one in self.agents}, {one: self._info(one) for one in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents)
        self.heard.append(actions)
        self._time += 1
        before = list(self.agents)
        terminated = {one: one == "picker_0" and self._time == 4 for one in before}
        truncated = {one: self._time == self.length or (one == "runner_0" and self._time == 5) for one in before}
        rewards = {one: float(one[-1]) + self._time / 8 for one in before}
        observations = {one: self._see(one) for one in before}
        infos = {one: self._info(one) for one in before}
        self.agents = [one for one in before if not terminated[one] and not truncated[one]]
        if self._time == 6:
            self.agents.append("runner_2")
            observations["runner_2"], infos["runner_2"] = self._see("runner_2"), {}
            rewards["runner_2"], terminated["runner_2"], truncated["runner_2"] = 0.0, False, False
        return observations, rewards, terminated, truncated, infos

    def render(self) -> Any:
        return np.full((2, 2, 3), self._time, np.uint8)

    def state(self) -> Any:
        return np.array([self._time], np.int64)

    def close(self) -> None:
        self.closed = True


def crowd(**kwargs: Any) -> Crowd:
    """Make a crowd."""
    return Crowd(**kwargs)
