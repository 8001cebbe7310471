"""Combinations that can't work are refused before the first step, and leave no folder behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import ConfigError, UnsupportedSpace
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from tests.trainer.tiny_envs import Echo


class Odd(gym.Env[Any, Any]):
    """Has the spaces it is given, and must never be stepped."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"device": "cuda:77"}, r"device='cuda:77': not a torch device of this machine.*expected 'auto'"),
        ({"device": "abacus"}, r"device='abacus': not a torch device"),
        ({"d_model": 60, "num_heads": 7}, r"d_model=60 with num_heads=7: expected d_model to be a multiple of"),
        ({"batch_size": 8, "chunk_steps": 16}, r"batch_size=8: expected at least chunk_steps=16.*set batch_size=16"),
        ({"lr_end": 0.5}, r"lr_end=0.5: expected at most lr_init"),
    ],
)
def test_combination_is_refused_by_field_value_and_remedy(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    envs = SyncVectorEnv([Echo] * 2)
    with pytest.raises(ConfigError, match=told):
        train(Hyperparameters(use_tensorboard=False, **values), run_dir=tmp_path / "run", envs=[envs])
    assert not (tmp_path / "run").exists()
    envs.close()


def test_context_that_does_not_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentgpt_remote.trainer.compatibility._memory_bytes", lambda _: 2**22)
    envs = SyncVectorEnv([Echo] * 2)
    with pytest.raises(ConfigError, match=r"max_input_states=8192: 2 agents would remember .* at most \d+"):
        train(Hyperparameters(max_input_states=8192, device="cpu"), run_dir=tmp_path / "run", envs=[envs])
    envs.close()


BOX, PAIR = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "told"),
    [
        (spaces.Box(-1, 1, (0,), np.float32), PAIR, "observation_space is .* nothing to see"),
        (BOX, spaces.Discrete(1), r"action_space is Discrete\(1\), which leaves no choice"),
        (BOX, spaces.Dict(a=spaces.Discrete(1), b=spaces.MultiDiscrete([1, 1])), "leaves no choice"),
    ],
)
def test_space_that_leaves_nothing_to_learn_is_refused(
    tmp_path: Path, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], told: str
) -> None:
    envs = SyncVectorEnv([lambda: Odd(observation_space, action_space)])
    with pytest.raises(UnsupportedSpace, match=told):
        train(Hyperparameters(use_tensorboard=False), run_dir=tmp_path / "run", envs=[envs])
    assert not (tmp_path / "run").exists()
    envs.close()
