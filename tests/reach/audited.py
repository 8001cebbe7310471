"""CartPole that keeps account of its steps, on its host, and an account of what a trainer has received of it."""

from __future__ import annotations

import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

FOLDER_VARIABLE = "AUDIT_FOLDER"
SOURCE = "tests.reach.audited:make"


class Audited(gym.Wrapper[Any, Any, Any, Any]):
    """Writes into a file of its own how many steps it has taken, and tells the same in ``info``."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._name = secrets.randbits(62)
        self._count = 0
        self._file = os.open(Path(os.environ[FOLDER_VARIABLE]) / str(self._name), os.O_WRONLY | os.O_CREAT, 0o600)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation, info | {"name": self._name, "count": self._count, "stepped": False}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._count += 1
        os.pwrite(self._file, self._count.to_bytes(8, "little"), 0)
        observation, reward, terminated, truncated, info = self.env.step(action)
        info |= {"name": self._name, "count": self._count, "stepped": True}
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        os.close(self._file)
        super().close()


def make() -> gym.Env[Any, Any]:
    """Return an audited CartPole."""
    return Audited(gym.make("CartPole-v1"))


class Account:
    """What was received of each environment.

    Args:
        step_wait: of the vector environments that the trainer steps.
    """

    def __init__(self, step_wait: Callable[..., Any]) -> None:
        self._lock = threading.Lock()
        self.received: dict[int, list[int]] = defaultdict(list)
        self.step_wait = lambda envs, *args, **kwargs: self._noted(step_wait(envs, *args, **kwargs))

    def _noted(self, result: Any) -> Any:
        infos = result[4]
        if "name" not in infos:  # those that the policy is evaluated on
            return result
        with self._lock:
            for name, count, stepped in zip(infos["name"], infos["count"], infos["stepped"], strict=True):
                if stepped:
                    self.received[int(name)].append(int(count))
        return result

    @property
    def total(self) -> int:
        """Steps received of all environments."""
        with self._lock:
            return sum(map(len, self.received.values()))

    def check(self, folder: Path) -> None:
        """Check that each step was received once and in order, but for one that may have been under way at the end."""
        for name, counts in self.received.items():
            assert counts == list(range(1, len(counts) + 1)), f"{name}: {np.flatnonzero(np.diff(counts) != 1)}"
        taken = {int(path.name): int.from_bytes(path.read_bytes(), "little") for path in folder.iterdir()}
        assert set(self.received) <= set(taken)
        for name, count in taken.items():
            assert count - len(self.received.get(name, [])) in (0, 1), f"{name}: {count} steps taken"
