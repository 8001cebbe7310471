from __future__ import annotations

import numpy as np

from agentgpt_remote.trainer.normalization import RewardScaler, RunningMoments


def test_moments_in_parts_equal_moments_at_once() -> None:
    rows = np.random.default_rng(0).normal(3.0, [1.0, 5.0], size=(1000, 2))
    moments = RunningMoments(2)
    for part in np.array_split(rows, 7):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, rows.mean(0))
    np.testing.assert_allclose(moments.var, rows.var(0))
    other = RunningMoments(2)
    other.load_state_dict(moments.state_dict())
    np.testing.assert_array_equal(other.scale(), moments.scale())


def test_constant_column_is_left_alone() -> None:
    moments = RunningMoments(1)
    moments.update(np.full((10, 1), 4.0))
    assert moments.scale()[0] == 1.0


def test_reward_scale_is_one_over_the_deviation_of_discounted_sums() -> None:
    scaler, gamma = RewardScaler(1, 0.5), 0.5
    sums, total = [], 0.0
    rewards = np.random.default_rng(0).normal(size=50)
    for t, reward in enumerate(rewards):
        final = t % 10 == 9
        total = total * gamma + reward
        sums.append(total)
        total = 0.0 if final else total
        scaler.observe(slice(0, 1), np.array([reward]), np.array([True]), np.array([final]))
    scaler.refresh()
    np.testing.assert_allclose(scaler.scale(), 1 / np.std(sums))
