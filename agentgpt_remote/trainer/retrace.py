"""Targets of action values over sequences that another policy decided."""

from __future__ import annotations

import torch
from torch import Tensor


def retrace_targets(
    reward: Tensor,
    terminated: Tensor,
    cut: Tensor,
    next_value: Tensor,
    next_action_value: Tensor,
    next_trace: Tensor,
    *,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Return Retrace targets (Munos et al. 2016, eq. 4, in the recursive form).

    ``y_t = r_t + gamma (1 - terminated_t) [V_{t+1} + lambda c_{t+1} (y_{t+1} - Q_{t+1})]``; where the trace is cut,
    only ``V_{t+1}`` is left of the bracket. Each array has shape (C, T).

    Args:
        reward: scaled.
        terminated: 1 where nothing comes after.
        cut: 1 where the next token is another episode's, or was not decided, or is the last.
        next_value: value of the next token under the policy that is learned.
        next_action_value: value of the action that was taken there.
        next_trace: probability of that action under the policy over that under the one that took it, at most 1.
        gamma: discount factor.
        lambda_: decay of the trace.
    """
    targets = torch.empty_like(reward)
    discount = gamma * (1.0 - terminated)
    if lambda_ == 0.0:
        return torch.addcmul(reward, discount, next_value, out=targets)
    decay = lambda_ * next_trace * (1.0 - cut)
    later = torch.zeros_like(reward[:, 0])
    for t in range(reward.shape[1] - 1, -1, -1):
        correction = decay[:, t] * (later - next_action_value[:, t])
        later = reward[:, t] + discount[:, t] * (next_value[:, t] + correction)
        targets[:, t] = later
    return targets
