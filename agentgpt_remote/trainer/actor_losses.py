"""What the actor is trained towards by action values, for each kind of action space.

Advantages are compared with their own noise, so that one setting serves rewards of any size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agentgpt_remote.trainer.ranks import ALONE, Ranks

_MAX_SHIFT = 1.0  # an action's probability changes by a factor of e at most (CMPO's clip)
_MAX_PG = 3.0
_MAX_LOG_RATIO = 20.0
_MAX_SHARPNESS = math.log(5.0)
_RATE = 0.01


class ActorLoss(NamedTuple):
    """A loss per token, (C, T), and the entropy that a temperature is tuned by, (C, T)."""

    loss: Tensor
    entropy: Tensor


class AdvantageScale:
    """Running sizes of advantages and of temporal differences, and how sharply the actor follows the former.

    Args:
        ranks: whose batches are taken in together.

    Attributes:
        sharpness: logarithm of the factor on advantages; drifts with the entropy's error.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.advantage = 0.0
        self.difference = 0.0
        self.sharpness = 0.0

    def observe(self, advantage: Tensor, difference: Tensor, weight: Tensor) -> None:
        """Take in the advantages of the policy's own actions and the temporal differences of a batch."""
        squares = [(value.square() * weight).sum() for value in (advantage, difference)]
        total, *sums = self._ranks.sum_(torch.stack((weight.sum(), *squares))).tolist()
        sizes = [math.sqrt(value / max(total, 1.0)) for value in sums]
        rate = 1.0 if self.difference == 0.0 else _RATE
        self.advantage += rate * (sizes[0] - self.advantage)
        self.difference += rate * (sizes[1] - self.difference)

    def drift(self, entropy_error: float) -> None:
        """Follow advantages more sharply while the entropy is above its target."""
        self.sharpness = min(max(self.sharpness + 1e-3 * entropy_error, 0.0), _MAX_SHARPNESS)

    @property
    def factor(self) -> float:
        """What advantages are multiplied by before they shift probabilities."""
        return math.exp(self.sharpness) / max(self.advantage, 0.3 * self.difference, 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers."""
        return {"advantage": self.advantage, "difference": self.difference, "sharpness": self.sharpness}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.advantage, self.difference = float(state["advantage"]), float(state["difference"])
        self.sharpness = float(state["sharpness"])


def all_actions_loss(log_probs: Tensor, target_log_probs: Tensor, advantage: Tensor, scale: AdvantageScale) -> Tensor:
    """Return the loss of clipped maximum a posteriori policy optimisation (Hessel et al. 2021, eq. 5), (C, T).

    Args:
        log_probs: of every action, (C, T, n).
        target_log_probs: the same under the slow copy of the policy.
        advantage: of every action, (C, T, n).
        scale: of advantages.
    """
    shift = (advantage * scale.factor).clamp(-_MAX_SHIFT, _MAX_SHIFT)
    improved = torch.softmax(target_log_probs + shift, -1)
    return -(improved * log_probs).sum(-1)


def taken_action_loss(
    log_prob: Tensor, target_log_prob: Tensor, behaviour_log_prob: Tensor, difference: Tensor, scale: AdvantageScale
) -> Tensor:
    """Return a clipped policy-gradient loss of the actions that were taken, (C, T).

    Args:
        log_prob: of the actions, (C, T).
        target_log_prob: under the slow copy of the policy, which ratios are taken against.
        behaviour_log_prob: under the policy that took them.
        difference: their target minus the state's value.
        scale: of temporal differences.
    """
    advantage = (difference / max(scale.difference, 1e-8)).clamp(-_MAX_PG, _MAX_PG)
    # Where nothing was decided the action may be one that is not allowed, whose two logarithms are far apart.
    ratio = (log_prob - target_log_prob).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    trust = (target_log_prob - behaviour_log_prob).exp().clamp(max=1.0)
    return -surrogate * trust


def sampled_actions_loss(log_probs: Tensor, advantage: Tensor, scale: AdvantageScale) -> Tensor:
    """Return the same as :func:`all_actions_loss` from K actions of the slow copy of the policy, (C, T).

    Args:
        log_probs: of the K actions under the policy that is learned, (K, C, T).
        advantage: of the actions, (K, C, T).
        scale: of advantages.
    """
    weights = torch.softmax((advantage * scale.factor).clamp(-_MAX_SHIFT, _MAX_SHIFT), 0)
    return -(weights * log_probs).sum(0)
