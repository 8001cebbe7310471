"""Numbers from environments that are not finite."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.server.serve import serve
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.finite import MAX_REWARD, FiniteCheck
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.ppo import PPO
from tests.trainer.tiny_envs import Echo

SMALL: dict[str, Any] = {
    "rollout_steps": 64,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "torch_threads": 1,
    "use_tensorboard": False,
    "max_steps": 300,
}


class Spoiled(Echo):
    """Rewards or observations that are no numbers, now and then."""

    def __init__(self, what: str = "reward", values: tuple[float, ...] = (math.nan, math.inf, -math.inf)) -> None:
        super().__init__()
        self._what, self._values = what, values

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self._total % 20 == 0:
            value = self._values[self._total // 20 % len(self._values)]
            if self._what == "reward":
                reward = value
            else:
                observation["noise"][0] = value
        return observation, reward, terminated, truncated, info


def spoiled(**kwargs: Any) -> Spoiled:
    return Spoiled(**kwargs)


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_refused_number_names_host_agent_and_step(tmp_path: Path, what: str) -> None:
    with serve("tests.trainer.test_finite:spoiled", port=0, num_envs=2, block=False) as server:
        hosts = {"lab": EnvHost(env_endpoint=server.url, num_agents=2)}
        hyperparameters = Hyperparameters(env_hosts=hosts, env_kwargs={"what": what}, **SMALL)
        # 20 steps of the environments, and two that only reset them.
        pattern = rf"lab/0: the {what} of agent 0 at step 22 is not finite .*nonfinite=clip"
        with pytest.raises(TrainingFailed, match=pattern):
            train(hyperparameters, run_dir=tmp_path)


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_clipped_numbers_never_reach_the_weights(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentgpt_remote.trainer")
    envs = SyncVectorEnv([lambda: Spoiled(what)] * 2)
    train(Hyperparameters(nonfinite="clip", **SMALL), run_dir=tmp_path, envs=[envs])
    state = Checkpoints(tmp_path / "checkpoints", keep=3).load_last()
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["learner"]["actor"].values())
    assert all(torch.isfinite(value).all() for value in state["streams"]["arrays"].values())
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert rows[-1]["rollout/clipped"] >= 10
    assert all(0 <= row["rollout/episode_return"] <= 24 for row in rows)
    assert caplog.text.count("clipped, as all that follow") == 1
    envs.close()


def test_clipping_stays_within_what_was_seen() -> None:
    check = FiniteCheck("host", "observation", "clip")
    good = np.array([[1.0, -5.0], [2.0, 5.0]], np.float32)
    assert check(good, 1) is good
    clipped = check(np.array([[np.inf, np.nan], [np.nan, -np.inf]], np.float32), 2)
    assert clipped.tolist() == [[2.0, 0.0], [1.0, -5.0]]
    assert clipped.dtype == np.float32
    assert check.clipped == 4
    again = FiniteCheck("host", "observation", "clip")
    again.load_state_dict(check.state_dict())
    assert again(np.full((1, 2), np.inf, np.float32), 3).tolist() == [[2.0, 5.0]]
    assert FiniteCheck("host", "observation", "clip")(np.full((1, 2), np.nan), 1).tolist() == [[0.0, 0.0]]


def test_reward_too_large_to_be_summed_is_refused() -> None:
    with pytest.raises(TrainingFailed, match=r"host: the reward of agent 1 at step 7 is not finite \(1e\+300\)"):
        FiniteCheck("host", "reward", "refuse", MAX_REWARD)(np.array([0.0, 1e300]), 7)


def test_loss_that_is_not_finite_names_step_loss_and_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PPO.update

    def spoil(self: PPO, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = update(self, *args, **kwargs)
        return metrics | ({"train/value_loss": math.nan} if kwargs["version"] == 2 else {})

    monkeypatch.setattr(PPO, "update", spoil)
    envs = SyncVectorEnv([Echo] * 2)
    with pytest.raises(TrainingFailed, match=r"env step \d+ failed: train/value_loss is nan.*step-\d+\.pt"):
        train(Hyperparameters(**SMALL), run_dir=tmp_path, envs=[envs])
    (checkpoint,) = Checkpoints(tmp_path / "checkpoints", keep=3).paths()
    assert int(checkpoint.stem.removeprefix("step-")) < 90, "the failed update was kept"
    envs.close()
