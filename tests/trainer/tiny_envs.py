"""Small environments whose optimum is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Echo(gym.Env[Any, Any]):
    """Reward 1 for each part of a nested action that repeats the observed bit; episodes of 8 steps.

    Sampling at random returns about 12 of 24, the optimum is 24.
    """

    observation_space = spaces.Dict(bit=spaces.Discrete(2), noise=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Dict(
        choice=spaces.Discrete(2), many=spaces.MultiBinary(1), push=spaces.Box(-1, 1, (1,), np.float32)
    )

    def __init__(self, bad_step: int | None = None, render_mode: str | None = None) -> None:
        self.render_mode, self._bad_step = render_mode, bad_step
        self._steps = self._total = self._bit = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        wanted = self._bit
        hits = (int(action["choice"]) == wanted, int(action["many"][0]) == wanted, (action["push"][0] > 0) == wanted)
        self._steps += 1
        self._total += 1
        return self._observe(), float(sum(hits)), self._steps == 8, False, {}

    def _observe(self) -> dict[str, Any]:
        self._bit = int(self.np_random.integers(2))
        noise = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        if self._total == self._bad_step:
            noise[1] = np.nan
        return {"bit": np.int64(self._bit), "noise": noise}


def echo(**kwargs: Any) -> Echo:
    """Return the environment, as a source's factory does."""
    return Echo(**kwargs)


class Fragile(Echo):
    """Raises at its 40th step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._total == 40:
            raise RuntimeError("the wheel came off")
        return super().step(action)


def fragile(**kwargs: Any) -> Fragile:
    """Return the environment, as a source's factory does."""
    return Fragile(**kwargs)
