"""Environments that do what real ones sometimes do."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, VectorEnv


class CountingEnv(gym.Env[Any, Any]):
    """Counts its steps; an episode takes ``length`` of them. Observations name episode and step."""

    metadata = {"render_modes": ["rgb_array", "ansi", "human"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, length: int = 5, render_mode: str | None = None, **_: Any) -> None:
        self.observation_space = Box(-np.inf, np.inf, (3,), dtype=np.float64)
        self.action_space = Discrete(3)
        self.render_mode = render_mode
        self.length = length
        self.episode = self.count = 0

    def _observe(self, action: float) -> np.ndarray:
        return np.array([self.episode, self.count, action], dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.count = 0
        return self._observe(-1), {"seed": seed, "options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not 0 <= int(action) < 3:
            raise ValueError(f"no such action {action}")
        self.count += 1
        return self._observe(float(action)), self.count * 0.1, self.count >= self.length, False, {"count": self.count}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return f"step {self.count}"
        return np.full((4, 6, 3), self.count % 256, dtype=np.uint8)

    def add(self, number: int, *, times: int = 1) -> int:
        return self.count + number * times


class TangledEnv(gym.Env[Any, Any]):
    """Nested spaces, and infos of every kind, differing from step to step."""

    def __init__(self) -> None:
        self.observation_space = Dict(
            {
                "image": Box(0, 255, (5, 4, 3), dtype=np.uint8),
                "body": Tuple((Discrete(5, start=-2), MultiBinary(3), Dict({"speed": Box(-1, 1, (2,))}))),
            }
        )
        self.action_space = Dict({"move": Box(-1, 1, (2,)), "press": MultiDiscrete([2, 3]), "kind": Discrete(4)})
        self.count = 0

    def _observe(self) -> Any:
        return {
            "image": self.np_random.integers(0, 255, (5, 4, 3), dtype=np.uint8),
            "body": (
                np.int64(self.np_random.integers(-2, 3)),
                self.np_random.integers(0, 2, 3, dtype=np.int8),
                {"speed": self.np_random.uniform(-1, 1, 2).astype(np.float32)},
            ),
        }

    def _info(self) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {},
            {"text": "so", "nothing": None, "deep": {"array": np.arange(3), "list": [1, (2.5, True)]}},
            {"scalar": np.float32(0.1), "flag": np.bool_(True), "int": 3, "nan": float("nan")},
            {"array": np.ones((2, 2), np.float32), "big": [2**80]},
        ]
        return kinds[self.count % len(kinds)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.count += 1
        pressed = float(action["move"].sum()) + int(action["press"].sum()) + int(action["kind"])
        rewards = [pressed, np.float64(pressed), int(pressed), np.float32(pressed), np.float16(pressed)]
        return self._observe(), rewards[self.count % 5], False, self.count >= 7, self._info()


class FragileEnv(CountingEnv):
    """Raises in ``step`` on action 2, and in the constructor where asked to."""

    def __init__(self, broken: bool = False, **kwargs: Any) -> None:
        if broken:
            raise ZeroDivisionError("the simulator has no licence")
        super().__init__(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 2:
            raise RuntimeError("the motor burnt out")
        return super().step(action)


class RaisingEnv(CountingEnv):
    """Raises in its constructor, or in ``step``, what its source names."""

    def __init__(self, at: str, what: str) -> None:
        super().__init__()
        self.at, self.what = at, what
        if at == "constructor":
            self._raise()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.at == "step":
            self._raise()
        return super().step(action)

    def _raise(self) -> None:
        errors: dict[str, BaseException] = {
            "interrupt": KeyboardInterrupt("by the env"),
            "exit": SystemExit("by the env"),
            "cancelled": asyncio.CancelledError("by the env"),
            "stop": StopIteration("by the env"),
            "surrogate": FileNotFoundError("by the env: \udcff"),
        }
        raise errors[self.what]


class QuittingEnv(CountingEnv):
    """Ends the whole process at its first step, as a crash in a library does."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os.write(1, b"about to crash\n")
        os._exit(7)


class LargeEnv(CountingEnv):
    """Observations of a megabyte."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 255, (1024, 1024), dtype=np.uint8)

    def _observe(self, action: float) -> np.ndarray:
        return np.full((1024, 1024), self.count, dtype=np.uint8)


class SlowEnv(CountingEnv):
    """Takes ``seconds`` for each step."""

    def __init__(self, seconds: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        threading.Event().wait(self.seconds)
        return super().step(action)


class StuckEnv(CountingEnv):
    """Never returns from a step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        while True:
            time.sleep(1.0)


class UnsendableEnv(CountingEnv):
    """Puts an object of its own into the info."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "simulator": self}


class SometimesEnv(CountingEnv):
    """Its infos hold a number, ``None`` or nothing, as its seed says."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.kind = 0 if seed is None else seed % 3
        return super().reset(seed=seed, options=options)[0], self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], self._info()

    def _info(self) -> dict[str, Any]:
        known: dict[str, Any] = [{"hit": None}, {"hit": 3 + self.count}, {}][self.kind]
        return {"lap": known} | known


class EmptyEnv(CountingEnv):
    """Its observations have an axis of no length."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(-1, 1, (2, 0), dtype=np.float64)

    def _observe(self, action: float) -> np.ndarray:
        return np.zeros((2, 0))


class LoopingEnv(CountingEnv):
    """Asks its simulator through an event loop, for one moment of each step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return asyncio.run(self._step(action))

    async def _step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        await asyncio.sleep(0)
        return super().step(action)


class BoundEnv(CountingEnv):
    """Must be used in the thread that made it, as an SQLite connection must, and says so."""

    metadata = {**CountingEnv.metadata, "thread_bound": True}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thread = threading.get_ident()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if threading.get_ident() != self.thread:
            raise RuntimeError("used in another thread")
        return super().step(action)


class LateEnv(CountingEnv):
    """Is made only when ``event`` is set, and sets ``closed`` when it is closed."""

    event, closed = threading.Event(), threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.event.wait(30.0)

    def close(self) -> None:
        self.closed.set()


class OddText(gym.spaces.Text):
    """A space of a kind of its own."""


class OddSpaceEnv(CountingEnv):
    """Its observation space has no place on the wire."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = Dict({"name": OddText(5)})


class ProcessEnv(CountingEnv):
    """Tells which process it runs in."""

    def process_id(self) -> int:
        return os.getpid()


class RecordingEnv(ProcessEnv):
    """Writes a line to a file when it is closed."""

    def __init__(self, record: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.record = record

    def close(self) -> None:
        with Path(self.record).open("a") as file:
            file.write("closed\n")


class OwnVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector environment of its own kind, with float32 rewards."""

    def __init__(self, num_envs: int = 2, **_: Any) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = Box(-1, 1, (2,))
        self.single_action_space = Box(-1, 1, (1,))
        self.observation_space = Box(-1, 1, (num_envs, 2))
        self.action_space = Box(-1, 1, (num_envs, 1))
        self.closed = False

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 2), np.float32), {"seed": seed}

    def step(self, actions: Any) -> Any:
        flags = np.zeros(self.num_envs, dtype=bool)
        observations = np.repeat(actions, 2, axis=1)
        return observations, actions[:, 0].astype(np.float32), flags, flags.copy(), {}


def make_counting(length: int = 5, render_mode: str | None = None) -> gym.Env[Any, Any]:
    return CountingEnv(length, render_mode)


def not_an_env() -> str:
    return "no environment"
