"""A run that was stopped and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv

from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.exploration import Exploration
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.results import TrainingResult
from examples.envs import catch, doors
from tests.trainer.test_spaces import Everything
from tests.trainer.tiny_envs import Echo

Envs = VectorEnv[Any, Any, Any]
SMALL: dict[str, Any] = {
    "rollout_steps": 256,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "torch_threads": 1,
    "use_tensorboard": False,
    "max_steps": 2000,
}


def same_bits(one: Any, other: Any, path: str = "state") -> None:
    """Fail at the first value of two nests that is not the same."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            same_bits(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            same_bits(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert one.numpy().tobytes() == other.numpy().tobytes(), path
    else:
        assert one == other, path


def stable(run_dir: Path) -> list[dict[str, Any]]:
    """Return the metrics that do not depend on the clock."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "remote/"))} for row in rows]


def last_state(run_dir: Path) -> dict[str, Any]:
    state = Checkpoints(run_dir / "checkpoints", keep=3).load_last()
    assert state is not None
    # best_saved tells which checkpoints were written, which is up to the clock.
    return {name: value for name, value in state.items() if name not in ("wall_s", "resumes", "best_saved")}


class Stopping(gym.Wrapper[Any, Any, Any, Any]):
    """Sets an event at a step of its own, anywhere in a rollout."""

    def __init__(self, env: gym.Env[Any, Any], stop: threading.Event, step: int) -> None:
        super().__init__(env)
        self._stop, self._left = stop, step

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._stop.set()
        return super().step(action)


def run(
    run_dir: Path, make: Callable[[], gym.Env[Any, Any]], stop_at: int | None = None, **values: Any
) -> TrainingResult:
    stop = threading.Event()
    first = make if stop_at is None else lambda: Stopping(make(), stop, stop_at)
    envs = SyncVectorEnv([first, *[make] * 3])
    try:
        return train(Hyperparameters(**{**SMALL, **values}), run_dir=run_dir, envs=[envs], stop_event=stop)
    finally:
        envs.close()


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", max_episode_steps=70)


def mujoco() -> gym.Env[Any, Any]:
    return gym.make("InvertedPendulum-v5")


@pytest.mark.parametrize("make", [Echo, cartpole, pendulum, mujoco, catch, doors, Everything])
def test_stopped_and_resumed_run_equals_the_one_that_was_not(
    tmp_path: Path, make: Callable[[], gym.Env[Any, Any]]
) -> None:
    whole = run(tmp_path / "whole", make)
    for stop_at in (37, 101, 150):  # in the middle of rollouts and of episodes
        assert run(tmp_path / "parts", make, stop_at, resume_training=True).stopped
    parts = run(tmp_path / "parts", make, resume_training=True)
    assert parts.env_steps == whole.env_steps
    assert parts.episode_return == whole.episode_return
    same_bits(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    assert stable(tmp_path / "whole") == stable(tmp_path / "parts")
    weights = [(tmp_path / name / "policy" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("make", "noise"), [(Echo, "none"), (Echo, "parameter_noise"), (doors, "epsilon_greedy"), (Everything, "none")]
)
def test_off_policy_run_goes_on_with_its_replay_as_if_it_had_not_been_stopped(
    tmp_path: Path, make: Callable[[], gym.Env[Any, Any]], noise: Any
) -> None:
    chosen: dict[str, Any] = {"algorithm": "offpolicy", "rollout_steps": None, "batch_size": 64, "replay_ratio": 2.0}
    chosen |= {"learning_starts": 200, "max_steps": 1200, "exploration": {"discrete": Exploration(type=noise)}}
    run(tmp_path / "whole", make, **chosen)
    for stop_at in (37, 101):
        assert run(tmp_path / "parts", make, stop_at, resume_training=True, **chosen).stopped
    run(tmp_path / "parts", make, resume_training=True, **chosen)
    same_bits(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    assert stable(tmp_path / "whole") == stable(tmp_path / "parts") != []


class Forgetful(Echo):
    """Draws from a generator that no reset seeds."""

    def _observe(self) -> dict[str, Any]:
        return {**super()._observe(), "noise": np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)}


def test_environments_that_do_not_repeat_themselves_begin_new_episodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentgpt_remote.trainer")
    stopped = run(tmp_path, Forgetful, 101)
    assert stopped.stopped
    resumed = run(tmp_path, Forgetful, resume_training=True)
    assert "begins new episodes" in caplog.text
    assert resumed.env_steps > stopped.env_steps
    state = last_state(tmp_path)
    cut = state["streams"]["arrays"]
    assert not (cut["terminated"] & ~cut["valid"]).any()
    assert set(state["collector"]["episodes"]["lengths"]) == {8}


def test_another_number_of_agents_goes_on_with_new_episodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped = run(tmp_path, Echo, 101)
    envs = SyncVectorEnv([Echo] * 3)
    resumed = train(Hyperparameters(**SMALL, resume_training=True), run_dir=tmp_path, envs=[envs])
    assert "had 4 agents, now 3" in caplog.text
    assert resumed.env_steps > stopped.env_steps
    envs.close()
