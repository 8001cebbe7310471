from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.distributions import ActionHead, JointDistribution
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.exploration import Exploration, Explorer, add_parameter_noise, check_exploration

STREAMS = slice(0, 40_000)
BEGIN = torch.ones(40_000, dtype=torch.bool)
PUSH = spaces.Box(-1, 1, (1,), np.float32)


def explorer(exploration: dict[str, Exploration], numeric: int = 0, random_steps: int = 0) -> Explorer:
    return Explorer(exploration, random_steps, numeric, len(BEGIN), torch.Generator().manual_seed(0))


def distribution(space: spaces.Space[Any], params: list[float], *, squashed: bool = False) -> JointDistribution:
    head = ActionHead(ActionFeatures(space), squashed)
    return JointDistribution(head, torch.tensor(params).expand(len(BEGIN), -1), torch.full((head.numeric,), -1.0))


def test_epsilon_greedy_draws_with_the_probability_that_it_tells() -> None:
    noisy = explorer({"discrete": Exploration(type="epsilon_greedy", initial=0.3, final=0.3)})
    policy = distribution(spaces.Discrete(3), [2.0, 0.0, -2.0])
    sample, log_prob = noisy.draw(policy, STREAMS, BEGIN, 0, 0.0)
    own = torch.softmax(torch.tensor([2.0, 0.0, -2.0]), 0)
    for action in range(3):
        chosen = sample[:, 0] == action
        expected = 0.7 * float(own[action]) + 0.3 / 3
        assert log_prob[chosen].exp().numpy() == pytest.approx(expected, rel=1e-5)
        assert float(chosen.float().mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", ["gaussian_noise", "ornstein_uhlenbeck"])
@pytest.mark.parametrize("squashed", [False, True])
def test_noise_on_numbers_has_the_density_that_it_tells(kind: Any, squashed: bool) -> None:
    noisy = explorer({"continuous": Exploration(type=kind, initial=0.5, final=0.5)}, numeric=1)
    policy = distribution(PUSH, [0.2, 0.3] if squashed else [0.2], squashed=squashed)
    sample, log_prob = noisy.draw(policy, STREAMS, BEGIN, 0, 0.0)
    raw = torch.atanh(sample[:, 0]) if squashed else sample[:, 0]
    deviation = math.hypot(float(policy._log_std.exp().flatten()[0]), 0.5)
    assert float(raw.mean()) == pytest.approx(0.2, abs=0.02)
    assert float(raw.std()) == pytest.approx(deviation, rel=0.03)
    density = torch.distributions.Normal(0.2, deviation).log_prob(raw)
    if squashed:
        density = density - torch.log1p(-sample[:, 0].square())
    torch.testing.assert_close(log_prob, density, rtol=1e-3, atol=1e-3)


def test_ornstein_uhlenbeck_noise_is_correlated_within_an_episode_and_forgotten_after_it() -> None:
    noisy = explorer({"continuous": Exploration(type="ornstein_uhlenbeck", initial=0.5, final=0.5)}, numeric=1)
    policy = distribution(PUSH, [0.0])
    first, _ = noisy.draw(policy, STREAMS, BEGIN, 0, 0.0)
    noise = noisy._noise.clone()
    second, log_prob = noisy.draw(policy, STREAMS, torch.zeros_like(BEGIN), 0, 0.0)
    assert np.corrcoef(first[:, 0], second[:, 0])[0, 1] > 0.3
    deviation = math.hypot(math.exp(-1.0), 0.5)
    expected = torch.distributions.Normal(0.85 * noise[:, 0], deviation).log_prob(second[:, 0])
    torch.testing.assert_close(log_prob, expected)
    third, _ = noisy.draw(policy, STREAMS, BEGIN, 0, 0.0)
    assert abs(np.corrcoef(second[:, 0], third[:, 0])[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("space", "width"),
    [(spaces.Discrete(3), 3), (spaces.MultiDiscrete([2, 3]), 5), (spaces.MultiBinary(2), 2), (PUSH, 1)],
)
def test_first_steps_are_random(space: spaces.Space[Any], width: int) -> None:
    noisy = explorer({}, ActionFeatures(space).numeric_width, random_steps=10)
    policy = distribution(space, [5.0] * width)
    sample, log_prob = noisy.draw(policy, STREAMS, BEGIN, 9, 0.0)
    if space is PUSH:
        assert log_prob.exp().numpy() == pytest.approx(0.5)
        assert float(sample.std()) == pytest.approx(1 / math.sqrt(3), rel=0.02)
    else:
        kinds, counts = np.unique(sample.numpy(), axis=0, return_counts=True)
        assert log_prob.exp().numpy() == pytest.approx(1 / len(kinds))
        assert counts / counts.sum() == pytest.approx(1 / len(kinds), abs=0.01)
    later, own = noisy.draw(policy, STREAMS, BEGIN, 10, 0.0)
    torch.testing.assert_close(own, policy.log_prob(later))


def test_parameter_noise_changes_the_acting_weights_by_its_size() -> None:
    torch.manual_seed(0)
    model = PolicyModel(PUSH, spaces.Discrete(2), GPTConfig(d_model=32, num_heads=2))
    before = [weight.clone() for weight in model.parameters()]
    noise = Exploration(type="parameter_noise", initial=0.2, final=0.1, fraction=1.0)
    add_parameter_noise(model, [noise], 1.0, torch.Generator().manual_seed(0))
    matrices = [(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.dim() > 1]
    for old, new in matrices:
        assert ((new - old).square().mean() / old.square().mean()).sqrt().item() == pytest.approx(0.1, rel=0.2)


def test_size_falls_linearly() -> None:
    noise = Exploration(type="epsilon_greedy", initial=1.0, final=0.0, fraction=0.5)
    assert [noise.size(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]
    assert Exploration().size(0.0) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"numbers": Exploration()}, "'continuous' or 'discrete'"),
        ({"continuous": {"type": "epsilon_greedy"}}, "epsilon_greedy"),
        ({"discrete": {"type": "epsilon_greedy", "initial": 2}}, "initial=2"),
        ({"discrete": {"kind": "none"}}, "no field 'kind'"),
        ({"discrete": {"type": "softmax"}}, "'softmax'"),
        ({"discrete": 3}, "expected an Exploration"),
        ([], "expected a mapping"),
    ],
)
def test_bad_exploration_is_refused(value: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_exploration(value)
    assert text in str(caught.value)
