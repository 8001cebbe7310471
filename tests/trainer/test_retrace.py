from __future__ import annotations

import numpy as np
import pytest
import torch

from agentgpt_remote.trainer.retrace import retrace_targets

GAMMA = 0.9


def naive(arrays: dict[str, np.ndarray], lambda_: float) -> np.ndarray:
    """Return targets as Munos et al. 2016, eq. 3, sums them: corrections under products of traces."""
    reward = arrays["reward"]
    sequences, steps = reward.shape
    targets = np.zeros_like(reward)
    for c in range(sequences):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for k in range(t, steps):
                bootstrap = GAMMA * (1 - arrays["terminated"][c, k]) * arrays["next_value"][c, k]
                known = 0.0 if k == t else arrays["next_action_value"][c, k - 1]
                total += weight * (reward[c, k] + bootstrap - known)
                if arrays["terminated"][c, k] or arrays["cut"][c, k]:
                    break
                weight *= GAMMA * lambda_ * arrays["next_trace"][c, k]
            targets[c, t] = total
    return targets


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_targets_are_the_sums_of_the_paper(lambda_: float) -> None:
    rng = np.random.default_rng(0)
    shape = (5, 12)
    terminated = rng.random(shape) < 0.15
    arrays = {
        "reward": rng.normal(size=shape),
        "terminated": terminated.astype(float),
        "cut": (terminated | (rng.random(shape) < 0.15)).astype(float),
        "next_value": rng.normal(size=shape),
        "next_action_value": rng.normal(size=shape),
        "next_trace": rng.random(shape),
    }
    arrays["cut"][:, -1] = 1
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    targets = retrace_targets(**tensors, gamma=GAMMA, lambda_=lambda_)
    np.testing.assert_allclose(targets.numpy(), naive(arrays, lambda_), rtol=1e-12, atol=1e-12)
