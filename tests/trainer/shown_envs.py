"""Environments whose frames tell which step they show."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH, HEIGHT, WIDTH = 5, 35, 49


class Shown(gym.Env[Any, Any]):
    """Episodes of five steps; a frame is as bright as many steps were taken. Actions 1 make rewards of 1."""

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-5, 5, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, masked: bool = False) -> None:
        self.render_mode, self.masked, self.steps = render_mode, masked, 0

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([0, 1], np.int8)} if self.masked else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=4).astype(np.float32), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self.np_random.normal(size=4).astype(np.float32)
        return observation, float(action), self.steps == LENGTH, False, self._info()

    def render(self) -> Any:
        return np.full((HEIGHT, WIDTH, 3), min(255, 40 * self.steps), np.uint8)


class HumanOnly(Shown):
    metadata: dict[str, Any] = {"render_modes": ["human"]}  # noqa: RUF012


class Growing(Shown):
    def render(self) -> Any:
        return np.zeros((HEIGHT + self.steps, WIDTH, 3), np.uint8)


class Floats(Shown):
    def render(self) -> Any:
        return np.zeros((HEIGHT, WIDTH, 3))


class Endless(Shown):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:2], False, False, {}


def no_render_mode() -> Shown:
    return Shown()
