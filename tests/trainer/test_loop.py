"""Whole runs on environments in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import ConfigError, TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.trainer.checkpoint import load_checkpoint
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.ppo import PPO
from agentgpt_remote.trainer.reporting import Progress
from agentgpt_remote.trainer.results import TrainingResult
from tests.trainer.tiny_envs import Echo

SMALL: dict[str, Any] = {"rollout_steps": 256, "d_model": 32, "num_heads": 2, "max_input_states": 4, "chunk_steps": 16}


@pytest.fixture
def envs() -> Iterator[SyncVectorEnv]:
    made = SyncVectorEnv([Echo] * 8)
    yield made
    made.close()


def run(run_dir: Path, **values: Any) -> TrainingResult:
    made = SyncVectorEnv([Echo] * 8)
    try:
        return train(Hyperparameters(use_tensorboard=False, **{**SMALL, **values}), run_dir=run_dir, envs=[made])
    finally:
        made.close()


def stable(run_dir: Path) -> list[dict[str, Any]]:
    """Return the metrics that do not depend on the clock."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "remote/"))} for row in rows]


def test_train_learns_a_nested_action_space_and_fills_the_run_folder(tmp_path: Path, envs: SyncVectorEnv) -> None:
    seen: list[Progress] = []
    hyperparameters = Hyperparameters(max_steps=6000, lr_init=2e-3, replay_ratio=8, **SMALL)
    result = train(hyperparameters, run_dir=tmp_path, envs=[envs], on_progress=seen.append)
    assert result.episode_return is not None
    assert result.episode_return > 17
    assert 5900 < result.env_steps <= 6000
    assert not result.stopped
    assert [p.env_steps for p in seen] == [row["env_steps"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    config = json.loads((tmp_path / "config.json").read_text())
    optional = ("env_id", "wandb_project", "max_agents")
    assert None not in {name: told for name, told in config["hyperparameters"].items() if name not in optional}.values()
    assert Hyperparameters.from_dict(config["hyperparameters"]).max_steps == 6000
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "result.json").read_text())["env_steps"] == result.env_steps
    assert load_bundle(result.bundle).action_space == Echo.action_space


def test_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name, max_steps=1000, seed=3)
    run(tmp_path / "c", max_steps=1000, seed=4)
    assert stable(tmp_path / "a") == stable(tmp_path / "b")
    assert stable(tmp_path / "a") != stable(tmp_path / "c")


def test_resume_continues_in_one_piece(tmp_path: Path) -> None:
    first = run(tmp_path, max_steps=1000)
    before = stable(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 999999, "rollout/episode_return": 0}\n{"env_steps": 99')
    second = run(tmp_path, max_steps=2500, resume_training=True)
    rows = stable(tmp_path)
    steps = [row["env_steps"] for row in rows]
    assert rows[: len(before)] == before
    assert steps == sorted(set(steps))
    assert first.env_steps < steps[len(before)] < first.env_steps + 400
    assert second.env_steps == steps[-1] > 2400
    assert second.wall_s > first.wall_s
    assert second.episodes > first.episodes


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = run(tmp_path, max_steps=600)
    before = stable(tmp_path)
    again = run(tmp_path, max_steps=600, resume_training=True)
    assert again.env_steps == first.env_steps
    assert stable(tmp_path) == before


def test_resume_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert run(tmp_path, max_steps=600, resume_training=True).env_steps > 500


def test_resume_with_another_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_steps=600)
    with pytest.raises(ConfigError, match="d_model"):
        run(tmp_path, max_steps=900, resume_training=True, d_model=64)


def test_stop_event_ends_with_checkpoint_and_bundle(tmp_path: Path, envs: SyncVectorEnv) -> None:
    stop = threading.Event()

    def on_progress(progress: Progress) -> None:
        if progress.env_steps > 500:
            stop.set()

    hyperparameters = Hyperparameters(max_steps=10**6, **SMALL)
    result = train(hyperparameters, run_dir=tmp_path, envs=[envs], on_progress=on_progress, stop_event=stop)
    assert result.stopped
    assert 500 < result.env_steps < 1000
    assert (tmp_path / "checkpoints" / f"step-{result.env_steps:012d}.pt").exists()
    assert load_bundle(result.bundle).provenance["env_steps"] == result.env_steps


def test_observation_that_is_not_finite_names_lane_and_agent(tmp_path: Path) -> None:
    made = SyncVectorEnv([Echo, lambda: Echo(bad_step=150)])
    with pytest.raises(
        TrainingFailed, match=r"envs\[0\]: the observation of agent 1 at step 168 is not finite"
    ) as caught:
        train(Hyperparameters(max_steps=10_000, **SMALL), run_dir=tmp_path, envs=[made])
    assert "nan" in str(caught.value)
    made.close()


def test_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(tmp_path: Path, envs: SyncVectorEnv) -> None:
    def spoil(learner: PPO, *args: Any) -> None:
        if learner.updates > 40:
            learner.critic.head.bias.data.fill_(float("nan"))
        step(learner, *args)

    step = PPO._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "_step", spoil)
        with pytest.raises(TrainingFailed, match="not finite"):
            train(Hyperparameters(max_steps=5000, **SMALL), run_dir=tmp_path, envs=[envs])
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*.pt")
    state = load_checkpoint(checkpoint)
    assert all(torch.isfinite(value).all() for value in state["learner"]["critic"].values())


def test_unsuitable_environments_are_refused(tmp_path: Path, envs: SyncVectorEnv) -> None:
    same_step = SyncVectorEnv([Echo], autoreset_mode=AutoresetMode.SAME_STEP)
    other = gym.make_vec("CartPole-v1", num_envs=1)
    hyperparameters = Hyperparameters(**SMALL)
    with pytest.raises(ConfigError, match="NEXT_STEP"):
        train(hyperparameters, run_dir=tmp_path, envs=[same_step])
    with pytest.raises(ConfigError, match="same environment"):
        train(hyperparameters, run_dir=tmp_path, envs=[envs, other])
    with pytest.raises(ConfigError, match="no environment is named"):
        train(hyperparameters, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="at least one"):
        train(hyperparameters, run_dir=tmp_path, envs=[])
    other.close()


def test_two_lanes_of_different_sizes_learn_together(tmp_path: Path, envs: SyncVectorEnv) -> None:
    small = SyncVectorEnv([Echo] * 3)
    result = train(Hyperparameters(max_steps=3000, lr_init=2e-3, **SMALL), run_dir=tmp_path, envs=[envs, small])
    assert result.episode_return is not None
    assert result.episode_return > 13
    small.close()
