"""Stable-Baselines3 learns the same on a remote environment, bit for bit."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO

import agentgpt_remote.registration

agentgpt_remote.registration.install()


def _learn(env_id: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    with gym.make(env_id) as env:
        model = PPO("MlpPolicy", env, seed=7, device="cpu")
        model.learn(8192)
        return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.filterwarnings("ignore")  # SB3's and torch's own
def test_ppo_ends_with_equal_parameters_remote_and_local() -> None:
    remote, local = _learn("agentgpt/CartPole-v1"), _learn("CartPole-v1")
    assert remote.keys() == local.keys()
    for name, value in local.items():
        assert torch.equal(remote[name], value), name
