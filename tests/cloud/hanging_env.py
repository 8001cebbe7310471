"""An environment whose steps never return once a file is there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym


class Hanging(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        while Path(os.environ["HANG_WHEN"]).exists():
            time.sleep(0.1)
        return self.env.step(action)


def make() -> gym.Env[Any, Any]:
    return Hanging(gym.make("CartPole-v1"))
