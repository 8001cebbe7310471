from __future__ import annotations

import numpy as np
import torch

from agentgpt_remote.trainer.targets import ValueScale, generalized_advantages


def naive_advantages(
    reward: np.ndarray, value: np.ndarray, terminated: np.ndarray, cut: np.ndarray, gamma: float, lambda_: float
) -> np.ndarray:
    """Sum discounted temporal differences forward until the trace is cut."""
    out = np.zeros(len(reward))
    for t in range(len(reward)):
        weight = 1.0
        for k in range(t, len(reward)):
            after = 0.0 if terminated[k] else value[k + 1]
            out[t] += weight * (reward[k] + gamma * after - value[k])
            weight *= gamma * lambda_
            if terminated[k] or cut[k]:
                break
    return out


def test_advantages_equal_the_definition() -> None:
    rng = np.random.default_rng(0)
    streams, steps = 4, 40
    reward, value = rng.normal(size=(streams, steps)), rng.normal(size=(streams, steps + 1))
    terminated = rng.random((streams, steps)) < 0.1
    truncated = (rng.random((streams, steps)) < 0.1) & ~terminated
    valid = np.ones((streams, steps), bool)
    got = generalized_advantages(reward, value, terminated, truncated, valid, gamma=0.9, lambda_=0.8)
    for s in range(streams):
        wanted = naive_advantages(reward[s], value[s], terminated[s], truncated[s], 0.9, 0.8)
        np.testing.assert_allclose(got[s], wanted)


def test_advantages_are_zero_at_final_observations_and_bootstrap_truncation() -> None:
    reward, value = np.array([[1.0, 99.0, 1.0]]), np.array([[0.0, 10.0, 0.0, 7.0]])
    truncated = np.array([[True, False, False]])
    terminated = np.zeros_like(truncated)
    valid = np.array([[True, False, True]])
    got = generalized_advantages(reward, value, terminated, truncated, valid, gamma=0.5, lambda_=1.0)
    np.testing.assert_allclose(got, [[1 + 0.5 * 10, 0, 1 + 0.5 * 7]])


def test_value_scale_keeps_values_while_it_moves() -> None:
    torch.manual_seed(0)
    scale, head = ValueScale(), torch.nn.Linear(4, 1)
    x = torch.randn(16, 4)
    for shift in (0.0, 5.0, -3.0):
        with torch.no_grad():
            before = head(x) * scale.std + scale.mean
            scale.update(torch.randn(64) * 2 + shift, head)
            torch.testing.assert_close(head(x) * scale.std + scale.mean, before, atol=1e-4, rtol=1e-4)
