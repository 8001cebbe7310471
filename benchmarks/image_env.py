"""``benchmarks.image_env:Image-v0``: an image of 84 x 84 x 4 bytes whose step costs nothing, to time how it travels."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SHAPE = (84, 84, 4)


class ImageEnv(gym.Env[np.ndarray, np.int64]):
    """Always the same image, uint8 of shape (84, 84, 4); never ends."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, SHAPE, np.uint8)
        self.action_space = spaces.Discrete(4)
        self._image = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image."""
        super().reset(seed=seed)
        return self._image, {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return the image."""
        return self._image, 0.0, False, False, {}


gym.register("Image-v0", "benchmarks.image_env:ImageEnv", disable_env_checker=True)  # it would warn of the shared image
