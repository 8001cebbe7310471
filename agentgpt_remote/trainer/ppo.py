"""Proximal policy optimisation over sequence chunks (Schulman et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters, required
from agentgpt_remote.trainer.metagradient import DiscountTuner, meta_gradient
from agentgpt_remote.trainer.optimizer import FlatAdam
from agentgpt_remote.trainer.ranks import ALONE, Ranks
from agentgpt_remote.trainer.sampler import Chunks, Window, cut_chunks, window_values
from agentgpt_remote.trainer.schedules import learning_rate
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.trainer.targets import Batch, Float64, RewardScaling, Targets, ValueScale, make_targets

_TUNED_STEPS = 2048  # of a rollout that gamma and lambda are learned from


class PPO:
    """The learner: actor, critic and their optimizers.

    Args:
        actor: the policy, also the one that acts.
        critic: the value model.
        hyperparameters: resolved.
        seed: of the order of minibatches.
        ranks: that learn together.

    Attributes:
        updates: gradient steps taken.
        tuner: gamma and lambda.
    """

    def __init__(
        self,
        actor: PolicyModel,
        critic: ValueModel,
        hyperparameters: Hyperparameters,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.actor, self.critic, self.hp, self.ranks = actor, critic, hyperparameters, ranks
        self.tuner = DiscountTuner(hyperparameters, critic, ranks)
        self.value_scale = ValueScale()
        self.device = actor.log_std.device
        self.value_scale.to(self.device)
        self.rng = np.random.default_rng(seed)
        self.updates = 0
        norm = required(hyperparameters.max_grad_norm)
        self.actor_optimizer = FlatAdam(actor.parameters(), max_norm=norm, ranks=ranks)
        self.critic_optimizer = FlatAdam(critic.parameters(), max_norm=norm, ranks=ranks)

    def _rate(self, progress: float) -> float:
        return learning_rate(self.hp, progress, self.updates)

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
            RankLost: another rank has ended, or did not answer in time.
        """
        window = Window.of(store)
        blocks = max(self.actor.config.num_layers, self.critic.config.num_layers)
        chunks = cut_chunks(store, window, required(self.hp.chunk_steps), self.actor, blocks, self.device)
        scaled = window_values(store, window, chunks, self.critic, self.device)
        targets_of = partial(
            make_targets,
            store,
            window,
            scaled * self.value_scale.std.item() + self.value_scale.mean.item(),
            scaling=RewardScaling(reward_scale, reward_clip),
            version=version,
        )
        targets = targets_of(gamma=self.tuner.gamma, lambda_=self.tuner.lambda_)
        batch = targets.batch(store, window, chunks, self.device, self.ranks)
        if self.tuner.due(progress):
            self._tune(targets_of, chunks, batch, progress)
        fresh = torch.from_numpy(targets.value_target[targets.trained]).float()
        self.value_scale.update(fresh.to(self.device), self.critic.head, ranks=self.ranks)
        metrics = targets.metrics()
        store.trained[:] = store.position
        metrics |= self.train_epochs(chunks, batch, progress)
        return metrics | {"train/trained_tokens": metrics["train/epochs"] * float(targets.trained.sum())}

    def _tune(self, targets_of: Callable[..., Targets], chunks: Chunks, batch: Batch, progress: float) -> None:
        """Move gamma and lambda for the next rollout, by how training on some agents would do for others here."""
        inner, outer = self._halves(chunks)
        if not outer.numel():
            self.tuner.follow(None)
            return

        def advantage(gamma: float, lambda_: float) -> Float64:
            return targets_of(gamma=gamma, lambda_=lambda_).normalised_advantage()

        def part(values: Float64, index: Tensor) -> Tensor:
            rows = index.cpu().numpy()
            picked = values[chunks.stream[rows][:, None], chunks.column[rows]]
            weight = batch.weight[index]
            return torch.from_numpy(picked).float().to(self.device) * weight / weight.sum().clamp(min=1.0)

        def ratio(index: Tensor) -> Tensor:
            distribution = self.actor.distribution(chunks.outputs(self.actor, index), batch.allowed(index))
            return (distribution.log_prob(batch.action[index]) - batch.log_prob[index]).exp()

        wanted = part(advantage(*self.tuner.fixed), outer)
        score = ratio(inner)
        gradient = meta_gradient(
            self.actor_optimizer.parameters,
            inner_loss=-(part(advantage(self.tuner.gamma, self.tuner.lambda_), inner) * score).sum(),
            score=score,
            tangents=[part(tangent, inner) for tangent in self.tuner.tangents(advantage)],
            outer_loss=lambda: -(wanted * ratio(outer)).sum(),
            step=self._rate(progress),
        )
        self.tuner.follow(gradient)

    def _halves(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Return chunks of some agents and of others at random; those of one agent are split in time."""
        order = self.rng.permutation(chunks.stream.max() + 1)
        rows = np.argsort(order[chunks.stream], kind="stable")
        half = min(len(rows) // 2, max(1, _TUNED_STEPS // (2 * chunks.steps)))
        index = torch.from_numpy(rows).to(self.device)
        return index[:half], index[len(rows) - half :]

    def train_epochs(self, chunks: Chunks, batch: Batch, progress: float) -> dict[str, float]:
        """Take every gradient step of an update.

        Args:
            chunks: of the actor's and the critic's inputs.
            batch: what they are trained for.
            progress: fraction of the run.

        Returns:
            Metrics, named ``train/...``, of the last epoch.
        """
        count, steps = chunks.column.shape
        size = max(1, round(required(self.hp.batch_size) / steps))
        parts = self._minibatches(count, size)
        sums: dict[str, float] = {}
        epochs = 0
        for _ in range(math.ceil(required(self.hp.replay_ratio))):
            order = torch.from_numpy(self.rng.permutation(count)).to(self.device)
            shuffled, targets = chunks.reordered(order), batch.reordered(order)
            sums = dict.fromkeys(("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"), 0.0)
            for part in np.array_split(np.arange(count), parts):
                rows = slice(part[0], part[-1] + 1)
                for name, value in self._minibatch(shuffled, targets, rows, progress).items():
                    sums[name] += value / parts
            epochs += 1
            sums = self._of_all_ranks(sums)
            if sums["approx_kl"] > self.hp.target_kl:
                break
        metrics = {f"train/{name}": value for name, value in sums.items()}
        return metrics | {"train/epochs": float(epochs), "train/learning_rate": self._rate(progress)}

    def _minibatches(self, count: int, size: int) -> int:
        """Return into how many minibatches all ranks cut their chunks: as many of them make one as ranks are there."""
        counts, sizes = zip(*self.ranks.share([count, size]), strict=True)
        parts: int = min(max(1, round(sum(counts) / sum(sizes))), *counts)
        return parts

    def _of_all_ranks(self, sums: dict[str, float]) -> dict[str, float]:
        """Return the sums over all ranks of what each has summed over its own tokens."""
        rows = self.ranks.share(sums)
        return rows[0] if len(rows) == 1 else {name: sum(row[name] for row in rows) for name in sums}

    def _minibatch(self, chunks: Chunks, batch: Batch, index: slice, progress: float) -> dict[str, float]:
        weight = batch.weight[index]
        weight = weight / self.ranks.sum_(weight.sum()).clamp(min=1.0)

        distribution = self.actor.distribution(chunks.outputs(self.actor, index), batch.allowed(index))
        log_ratio = distribution.log_prob(batch.action[index]) - batch.log_prob[index]
        ratio = log_ratio.exp()
        advantage = batch.advantage[index]
        clipped = ratio.clamp(1 - self.hp.clip_range, 1 + self.hp.clip_range)
        policy_loss = -(torch.minimum(ratio * advantage, clipped * advantage) * weight).sum()
        entropy = (distribution.entropy() * weight).sum()

        value = chunks.outputs(self.critic, index)[..., 0]
        target = (batch.value_target[index] - self.value_scale.mean) / self.value_scale.std
        value_loss = 0.5 * ((value - target).square() * weight).sum()

        bonus = required(self.hp.entropy_coef) * (1 - min(max(progress, 0.0), 1.0))
        actor_loss = policy_loss - bonus * entropy
        self._step(actor_loss, value_loss, progress)
        with torch.no_grad():
            kl = ((ratio - 1 - log_ratio) * weight).sum()
            outside = (((ratio - 1).abs() > self.hp.clip_range) * weight).sum()
            values = torch.stack((policy_loss, value_loss, entropy, kl, outside)).tolist()
        return dict(zip(("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"), values, strict=True))

    def _step(self, actor_loss: Tensor, critic_loss: Tensor, progress: float) -> None:
        rate = self._rate(progress)
        for name, loss, optimizer, factor in (
            ("actor", actor_loss, self.actor_optimizer, 1.0),
            ("critic", critic_loss, self.critic_optimizer, required(self.hp.critic_lr_factor)),
        ):
            gradients = torch.autograd.grad(loss, optimizer.parameters, allow_unused=True, materialize_grads=True)
            norm = optimizer.step(gradients, rate * factor)
            if not math.isfinite(norm):
                raise TrainingFailed(
                    f"the {name}'s gradient is not finite (loss {loss.item()}, gradient step {self.updates}): "
                    "its weights were not changed; lower lr_init, or check the environment's numbers"
                )
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that learning goes on from."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "value_scale": self.value_scale.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "updates": self.updates,
            "tuner": self.tuner.state_dict(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.value_scale.load_state_dict(state["value_scale"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.updates = int(state["updates"])
        self.tuner.load_state_dict(state.get("tuner", {}))
        self.rng.bit_generator.state = state["rng"]
