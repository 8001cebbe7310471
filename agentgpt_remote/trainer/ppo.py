"""Proximal policy optimisation over sequence chunks (Schulman et al. 2017)."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.policy.encoder import TokenInputs
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.sampler import Chunks, Window, cut_chunks, window_values
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.trainer.targets import Batch, RewardScaling, ValueScale, make_targets

_T = TypeVar("_T")


class PPO:
    """The learner: actor, critic and their optimizer.

    Args:
        actor: the policy, also the one that acts.
        critic: the value model.
        hyperparameters: resolved.
        seed: of the order of minibatches.

    Attributes:
        updates: gradient steps taken.
    """

    def __init__(self, actor: PolicyModel, critic: ValueModel, hyperparameters: Hyperparameters, seed: int) -> None:
        self.actor, self.critic, self.hp = actor, critic, hyperparameters
        self.value_scale = ValueScale()
        self.device = actor.log_std.device
        self.value_scale.to(self.device)
        self.rng = np.random.default_rng(seed)
        self.updates = 0
        lr = _required(hyperparameters.lr_init)
        groups = [
            {"params": list(actor.parameters()), "factor": 1.0},
            {"params": list(critic.parameters()), "factor": hyperparameters.critic_lr_factor},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0, fused=True)

    def learning_rate(self, progress: float) -> float:
        """Return the actor's learning rate after a fraction of the run, warm-up included."""
        high, low = _required(self.hp.lr_init), _required(self.hp.lr_end)
        progress = min(max(progress, 0.0), 1.0)
        if self.hp.lr_scheduler == "linear":
            rate = high + (low - high) * progress
        elif self.hp.lr_scheduler == "cosine":
            rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
        else:
            rate = high
        warmup = self.hp.lr_warmup_updates
        return rate * min(1.0, (self.updates + 1) / warmup) if warmup else rate

    def update(
        self, store: StreamStore, *, reward_scale: float, reward_clip: float, version: int, progress: float
    ) -> dict[str, float]:
        """Train on everything in the store that is new, and mark it as trained.

        Args:
            store: the streams.
            reward_scale: factor of rewards.
            reward_clip: limit of scaled rewards.
            version: the policy's version now; older decisions than two versions are left out.
            progress: fraction of the run, for the learning rate.

        Returns:
            Metrics, named ``train/...``.

        Raises:
            TrainingFailed: a loss or a gradient is not finite.
        """
        window = Window.of(store)
        chunks = cut_chunks(store, window, _required(self.hp.chunk_steps), self.actor, self.device)
        scaled = window_values(store, window, chunks, self.critic, self.device)
        targets = make_targets(
            store,
            window,
            scaled * self.value_scale.std.item() + self.value_scale.mean.item(),
            scaling=RewardScaling(reward_scale, reward_clip),
            gamma=self.hp.gamma_init,
            lambda_=self.hp.lambda_init,
            version=version,
        )
        batch = targets.batch(store, window, chunks, self.device)
        fresh = torch.from_numpy(targets.value_target[targets.trained]).float()
        self.value_scale.update(fresh.to(self.device), self.critic.head)
        metrics = targets.metrics()
        store.trained[:] = store.position
        metrics |= self._epochs(chunks, batch, progress)
        return metrics

    def _epochs(self, chunks: Chunks, batch: Batch, progress: float) -> dict[str, float]:
        count, steps = chunks.column.shape
        size = max(1, round(_required(self.hp.batch_size) / steps))
        parts = max(1, round(count / size))
        sums: dict[str, float] = {}
        epochs = 0
        for _ in range(_required(self.hp.replay_ratio)):
            order = self.rng.permutation(count)
            sums = dict.fromkeys(("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"), 0.0)
            for part in np.array_split(order, parts):
                index = torch.from_numpy(part).to(self.device)
                for name, value in self._minibatch(chunks, batch, index, progress).items():
                    sums[name] += value / parts
            epochs += 1
            if sums["approx_kl"] > self.hp.target_kl:
                break
        metrics = {f"train/{name}": value for name, value in sums.items()}
        return metrics | {"train/epochs": float(epochs), "train/learning_rate": self.learning_rate(progress)}

    def _minibatch(self, chunks: Chunks, batch: Batch, index: Tensor, progress: float) -> dict[str, float]:
        inputs = TokenInputs(chunks.inputs.numeric[index], chunks.inputs.categories[index])
        mask = chunks.mask[index]
        weight = batch.weight[index]
        weight = weight / weight.sum().clamp(min=1.0)

        params = self.actor.outputs(inputs, mask, trim=True)[:, : chunks.steps]
        distribution = self.actor.distribution(params)
        log_ratio = distribution.log_prob(batch.action[index]) - batch.log_prob[index]
        ratio = log_ratio.exp()
        advantage = batch.advantage[index]
        clipped = ratio.clamp(1 - self.hp.clip_range, 1 + self.hp.clip_range)
        policy_loss = -(torch.minimum(ratio * advantage, clipped * advantage) * weight).sum()
        entropy = (distribution.entropy() * weight).sum()

        value = self.critic.outputs(inputs, mask, trim=True)[:, : chunks.steps, 0]
        target = (batch.value_target[index] - self.value_scale.mean) / self.value_scale.std
        value_loss = 0.5 * ((value - target).square() * weight).sum()

        loss = policy_loss - _required(self.hp.entropy_coef) * entropy + value_loss
        self._step(loss, progress)
        with torch.no_grad():
            kl = ((ratio - 1 - log_ratio) * weight).sum()
            outside = (((ratio - 1).abs() > self.hp.clip_range) * weight).sum()
            values = torch.stack((policy_loss, value_loss, entropy, kl, outside)).tolist()
        return dict(zip(("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"), values, strict=True))

    def _step(self, loss: Tensor, progress: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = self.learning_rate(progress)
        for group in self.optimizer.param_groups:
            norm = nn.utils.clip_grad_norm_(group["params"], self.hp.max_grad_norm, foreach=True)
            if not math.isfinite(norm.item()):
                raise TrainingFailed(
                    f"a gradient is not finite (loss {loss.item()}, gradient step {self.updates}): "
                    "the weights were not changed; lower lr_init, or check the environment's numbers"
                )
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that learning goes on from."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "value_scale": self.value_scale.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.value_scale.load_state_dict(state["value_scale"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])
        self.rng.bit_generator.state = state["rng"]


def _required(value: _T | None) -> _T:
    """Return a resolved hyperparameter."""
    if value is None:
        raise ValueError("hyperparameters are open: expected the result of Hyperparameters.resolve")
    return value
