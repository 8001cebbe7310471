"""From rewards and values to what actor and critic are trained towards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agentgpt_remote.trainer.normalization import mean_and_deviation
from agentgpt_remote.trainer.ranks import ALONE, Ranks
from agentgpt_remote.trainer.sampler import Chunks, Window
from agentgpt_remote.trainer.streams import StreamStore

MAX_VERSION_LAG = 2
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


def generalized_advantages(
    reward: Float64,
    value: Float64,
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    *,
    gamma: float,
    lambda_: float,
) -> Float64:
    """Return generalised advantage estimates (Schulman et al. 2016, eq. 16).

    A terminated step has no value after it; a truncated one is bootstrapped from the episode's final
    observation, which is the next column. Both cut the trace.

    Args:
        reward: (S, T).
        value: (S, T + 1).
        terminated: (S, T).
        truncated: (S, T).
        valid: (S, T): False where nothing was decided or nothing is there; the advantage is 0 there.
        gamma: discount factor.
        lambda_: decay of the trace.

    Returns:
        Advantages (S, T).
    """
    delta = reward + gamma * np.where(terminated, 0.0, value[:, 1:]) - value[:, :-1]
    delta = np.where(valid, delta, 0.0)
    decay = gamma * lambda_ * (valid & ~terminated & ~truncated)
    advantage = np.zeros_like(delta)
    running = np.zeros(len(delta))
    for t in range(delta.shape[1] - 1, -1, -1):
        running = delta[:, t] + decay[:, t] * running
        advantage[:, t] = running
    return advantage


class RewardScaling(NamedTuple):
    """How raw rewards are scaled: multiplied by ``factor``, then limited to plus or minus ``clip``."""

    factor: float
    clip: float


class Batch(NamedTuple):
    """What chunks are trained towards; each a float tensor of shape (C, steps), the action (C, steps, Fa).

    Attributes:
        action: compact actions taken.
        log_prob: of the actions under the policy that took them.
        advantage: normalised over the rollout.
        value_target: in units of scaled rewards.
        weight: 1 for steps to train on, else 0.
        action_mask: bool (C, steps, categories), what was allowed; None where nothing was ever masked.
    """

    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    value_target: Tensor
    weight: Tensor
    action_mask: Tensor | None = None

    def reordered(self, order: Tensor) -> Batch:
        """Return the chunks in another order."""
        floats = (self.action, self.log_prob, self.advantage, self.value_target, self.weight)
        return Batch(*(part[order] for part in floats))._replace(action_mask=self.allowed(order))

    def allowed(self, index: Tensor | slice) -> Tensor | None:
        """Return the action masks of some chunks."""
        return None if self.action_mask is None else self.action_mask[index]


@dataclass(kw_only=True, eq=False)
class Targets:
    """Targets over a window, each array of shape (S, columns).

    Attributes:
        advantage: not normalised.
        value_target: advantage plus value.
        trained: steps to train on: decided, there, and not too old.
        valid: steps that were decided and are there.
        lag: how many updates old the deciding policy is.
    """

    advantage: Float64
    value_target: Float64
    trained: Bool
    valid: Bool
    lag: NDArray[np.int64]

    def batch(
        self, store: StreamStore, window: Window, chunks: Chunks, device: torch.device, ranks: Ranks = ALONE
    ) -> Batch:
        """Return the targets of chunks as tensors; advantages are normalised over the rollouts of all ranks."""
        arrays: tuple[NDArray[Any], ...] = (
            window.gather(store, store.action),
            window.gather(store, store.log_prob),
            self.normalised_advantage(ranks),
            self.value_target,
            self.trained,
        )
        rows = chunks.stream[:, None]
        parts = [np.ascontiguousarray(array[rows, chunks.column], np.float32) for array in arrays]
        parts[-1] *= chunks.inside
        allowed = None
        if store.action_mask is not None:
            masks = window.gather(store, store.action_mask)[rows, chunks.column]
            allowed = torch.from_numpy(masks).to(device)
        return Batch(*(torch.from_numpy(part).to(device) for part in parts))._replace(action_mask=allowed)

    def normalised_advantage(self, ranks: Ranks = ALONE) -> Float64:
        """Return the advantages in units of their deviation over what all ranks train on, around their mean there."""
        mean, deviation = mean_and_deviation(self.advantage[self.trained], ranks)
        normalised: Float64 = (self.advantage - mean) / (deviation + 1e-8)
        return normalised

    def metrics(self) -> dict[str, float]:
        """Return how well values explain returns, and the policy's lag in updates."""
        used, target = self.advantage[self.trained], self.value_target[self.trained]
        explained = 1 - float(np.var(used)) / max(float(np.var(target)), 1e-12)
        return {"train/explained_variance": explained, "train/policy_lag": float(self.lag[self.valid].mean())}


def make_targets(
    store: StreamStore,
    window: Window,
    value: Float64,
    *,
    scaling: RewardScaling,
    gamma: float,
    lambda_: float,
    version: int,
) -> Targets:
    """Return the targets of a window.

    Args:
        store: the streams.
        window: what is new in them.
        value: (S, columns + 1), in units of scaled rewards.
        scaling: of rewards.
        gamma: discount factor.
        lambda_: decay of the trace.
        version: the policy's version now; decisions older than two versions are not trained on.
    """
    reward = np.clip(window.gather(store, store.reward) * scaling.factor, -scaling.clip, scaling.clip)
    valid: Bool = window.gather(store, store.valid) & window.present()
    terminated, truncated = window.gather(store, store.terminated), window.gather(store, store.truncated)
    advantage = generalized_advantages(reward, value, terminated, truncated, valid, gamma=gamma, lambda_=lambda_)
    lag = version - window.gather(store, store.version)
    fresh = valid & (lag <= MAX_VERSION_LAG)
    return Targets(
        advantage=advantage,
        value_target=advantage + value[:, :-1],
        trained=fresh if fresh.any() else valid,
        valid=valid,
        lag=lag,
    )


class ValueScale(nn.Module):
    """Running mean and deviation of value targets; the critic's head is rewritten so that its values stay.

    This is PopArt (van Hasselt et al. 2016, eq. 7).
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, targets: Tensor, head: nn.Linear, rate: float = 0.3, ranks: Ranks = ALONE) -> None:
        """Move towards the moments of all ranks' targets, and correct the head."""
        mean, std = targets.mean(), targets.std(correction=0)
        if ranks.size > 1:
            mean, std = targets.new_tensor(mean_and_deviation(targets.cpu().numpy(), ranks))
        std = std.clamp(min=0.2)
        if self.started:
            mean = torch.lerp(self.mean, mean, rate)
            std = torch.lerp(self.std, std, rate)
        ratio = self.std / std
        head.weight.mul_(ratio)
        head.bias.copy_(head.bias * ratio + (self.mean - mean) / std)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.started.fill_(True)  # type: ignore[operator]
