from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel


@pytest.fixture
def model() -> PolicyModel:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=2, d_model=32, num_heads=2, max_input_states=5)
    built = PolicyModel(spaces.Box(-1, 1, (3,)), spaces.Discrete(3), config)
    built.head.weight.data.normal_()
    return built
