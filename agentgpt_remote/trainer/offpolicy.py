"""Off-policy learning from a replay of streams: action values by Retrace, an actor for each kind of action space."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.policy.distributions import JointDistribution
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.actor_losses import (
    AdvantageScale,
    all_actions_loss,
    sampled_actions_loss,
    taken_action_loss,
)
from agentgpt_remote.trainer.critics import ActionCritic, DiscreteCritic
from agentgpt_remote.trainer.hyperparameters import Hyperparameters, required
from agentgpt_remote.trainer.metagradient import DiscountTuner, meta_gradient
from agentgpt_remote.trainer.optimizer import FlatAdam
from agentgpt_remote.trainer.ranks import ALONE, Ranks
from agentgpt_remote.trainer.replay import RECENT_STEPS, Replay, draw, held_tokens
from agentgpt_remote.trainer.retrace import retrace_targets
from agentgpt_remote.trainer.schedules import learning_rate
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.trainer.targets import RewardScaling

MAX_ENUMERATED = 128  # actions of a Discrete space that all get a value at once
_SAMPLED_ACTIONS = 8
_ALPHA_RATE = 1e-3
_TUNE_EVERY = 8  # gradient steps


def enumerates(action_space: spaces.Space[Any]) -> bool:
    """Tell whether an action space is so small that each action gets a value of its own."""
    sizes = ActionFeatures(action_space).category_sizes
    return type(action_space) is spaces.Discrete and sizes[0] <= MAX_ENUMERATED


class _Evaluation(NamedTuple):
    """What the critics say of a batch; all without a gradient, (C, T + 1) or (C, T).

    Attributes:
        value: of the tokens under the policy, from the slow critics.
        taken: of the actions that were taken there, from the slow critics.
        trace: probability of those under the policy over that under the one that took them, at most 1.
    """

    value: Tensor
    taken: Tensor
    trace: Tensor


class OffPolicy:
    """The learner: actor, twin critics, slow copies of both, and their optimizers.

    Args:
        actor: the policy, also the one that acts.
        critic: the action values; :func:`make_critic` builds them.
        hyperparameters: resolved.
        seed: of the draws.
        ranks: that learn together.

    Attributes:
        updates: gradient steps taken.
        tuner: gamma and lambda.
    """

    def __init__(
        self,
        actor: PolicyModel,
        critic: DiscreteCritic | ActionCritic,
        hyperparameters: Hyperparameters,
        seed: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.actor, self.critic, self.hp, self.ranks = actor, critic, hyperparameters, ranks
        self.device = actor.log_std.device
        self.tuner = DiscountTuner(hyperparameters, critic, ranks)
        self.slow_critic = _frozen_copy(critic)
        self.slow_actor = _frozen_copy(actor)
        self._followers = [_Follower(self.slow_critic, critic), _Follower(self.slow_actor, actor)]
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.updates = 0
        self._credit = 0.0
        self._scale = AdvantageScale(ranks)
        actions = actor.actions
        self._enumerates = isinstance(critic, DiscreteCritic)
        self._reparametrised = not (actions.binary_width or actions.category_sizes)
        first = 0.02 if self._reparametrised else 0.01
        self.log_alpha = torch.full((), math.log(first), device=self.device, requires_grad=True)
        norm = required(hyperparameters.max_grad_norm)
        self.actor_optimizer = FlatAdam(actor.parameters(), max_norm=norm, betas=(0.9, 0.99), ranks=ranks)
        self.critic_optimizer = FlatAdam(critic.parameters(), max_norm=norm, betas=(0.9, 0.99), ranks=ranks)
        self.alpha_optimizer = FlatAdam([nn.Parameter(self.log_alpha.detach())], max_norm=math.inf)

    def update(
        self, store: StreamStore, *, reward_scale: float, reward_clip: float, version: int, progress: float
    ) -> dict[str, float]:
        """Take as many gradient steps as the tokens that are new in the stores of all ranks pay for.

        Args:
            store: the streams.
            reward_scale: factor of rewards.
            reward_clip: limit of scaled rewards.
            version: the policy's version now, for its lag.
            progress: fraction of the run, for the learning rate.

        Returns:
            Metrics, named ``train/...``; empty where no step was taken.

        Raises:
            TrainingFailed: a loss or a gradient is not finite.
            RankLost: another rank has ended, or did not answer in time.
        """
        told = self.ranks.share([store.new_tokens(), int(held_tokens(store).sum()), self._capacity(store)])
        new, held, capacity = map(sum, zip(*told, strict=True))
        store.trained[:] = store.position
        if held < min(required(self.hp.learning_starts), capacity):
            return {}
        self._credit += new * required(self.hp.replay_ratio)
        batch = required(self.hp.batch_size) * self.ranks.size
        rows: list[dict[str, float]] = []
        while self._credit >= batch:
            self._credit -= batch
            rows.append(self._gradient_step(store, reward_scale, reward_clip, version, progress))
        if not rows:
            return {}
        means = {f"train/{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return means | {"train/trained_tokens": float(len(rows) * required(self.hp.batch_size))}

    @staticmethod
    def _capacity(store: StreamStore) -> int:
        return store.num_streams * (store.capacity - 1)

    def _gradient_step(
        self, store: StreamStore, reward_scale: float, reward_clip: float, version: int, progress: float
    ) -> dict[str, float]:
        replay = self.draw(store, version)
        replay = replay._replace(total_weight=self.ranks.sum_(replay.total_weight))
        reward = (replay.reward * reward_scale).clamp(-reward_clip, reward_clip)
        weight = replay.normalised_weight()
        distribution = self.actor.distribution(replay.outputs(self.actor), replay.action_mask)
        learn = self._learn_enumerated if self._enumerates else self._learn_given
        metrics = learn(replay, reward, weight, distribution, progress)
        self.updates += 1
        if self.updates % _TUNE_EVERY == 0 and self.tuner.due(progress):
            self._tune(store, RewardScaling(reward_scale, reward_clip), version, progress)
        tau = required(self.hp.tau)
        for follower in self._followers:
            follower.follow(tau)
        return {**metrics, "policy_lag": replay.lag, "learning_rate": self._rate(progress)}

    def _tune(self, store: StreamStore, scaling: RewardScaling, version: int, progress: float) -> None:
        """Move gamma and lambda, by how a critic's step on the replay would do for the newest steps."""
        inner, outer = self.draw(store, version), self.draw(store, version, newest=True)

        def prepare(replay: Replay) -> tuple[Callable[[], Tensor], Callable[[float, float], Tensor]]:
            evaluation, taken = self._evaluate(replay)
            reward = (replay.reward * scaling.factor).clamp(-scaling.clip, scaling.clip)
            weight = replay.normalised_weight()

            def target(gamma: float, lambda_: float) -> Tensor:
                return self._targets(replay, reward.double(), evaluation, (gamma, lambda_))

            return taken, lambda gamma, lambda_: target(gamma, lambda_) * weight

        def loss(taken: Tensor, weighted_target: Tensor, replay: Replay) -> Tensor:
            """Return half the squared error, up to what does not depend on the critics."""
            return (0.5 * taken.square() * replay.normalised_weight() - weighted_target.float() * taken).sum()

        taken, target = prepare(inner)
        later, wanted = prepare(outer)
        score, goal = taken(), wanted(*self.tuner.fixed)
        gradient = meta_gradient(
            self.critic_optimizer.parameters,
            inner_loss=loss(score, target(self.tuner.gamma, self.tuner.lambda_), inner),
            score=score,
            tangents=[tangent.float() for tangent in self.tuner.tangents(target)],
            outer_loss=lambda: loss(later(), goal, outer),
            step=self._rate(progress) * required(self.hp.critic_lr_factor),
        )
        self.tuner.follow(gradient)

    def draw(self, store: StreamStore, version: int, *, newest: bool = False) -> Replay:
        """Return the sequences of one gradient step, or each stream's newest; ``version`` is the policy's now."""
        steps = required(self.hp.chunk_steps)
        return draw(
            store,
            self.rng,
            sequences=max(1, required(self.hp.batch_size) // steps),
            steps=steps,
            model=self.actor,
            context_blocks=max(self.actor.config.num_layers, self.critic.config.num_layers),
            recent_fraction=1.0 if newest else required(self.hp.recent_fraction),
            recent_steps=0 if newest else RECENT_STEPS,
            version=version,
            device=self.device,
        )

    def _slow_policy(self, replay: Replay) -> JointDistribution:
        distribution: JointDistribution = self.slow_actor.distribution(
            replay.outputs(self.slow_actor), replay.action_mask
        )
        return distribution

    # Discrete spaces whose actions all get a value at once.

    def _learn_enumerated(
        self, replay: Replay, reward: Tensor, weight: Tensor, distribution: JointDistribution, progress: float
    ) -> dict[str, float]:
        critic: Any = self.critic
        log_probs = distribution.log_probs[0]
        action = replay.action.long()
        evaluation, slow_log_probs = self._evaluate_enumerated(replay)
        value = evaluation.value
        slow_taken_log_prob = slow_log_probs.gather(-1, action)[..., 0]
        target = self._targets(replay, reward, evaluation)
        values = critic.action_values(replay.outputs(self.critic))[..., :-1, :]
        now = action[:, :-1]
        taken = values.gather(-1, now.expand(2, *now.shape))[..., 0]
        critic_loss = 0.5 * ((taken - target).square() * weight).sum()
        with torch.no_grad():
            advantage = values.mean(0)
            probabilities = slow_log_probs[:, :-1].exp()
            advantage = advantage - (probabilities * advantage).sum(-1, keepdim=True)
            size = (probabilities * advantage.square()).sum(-1).sqrt()
            self._scale.observe(size, target - value[:, :-1], replay.weight)
        log_probs = log_probs[:, :-1]
        improvement = all_actions_loss(log_probs, slow_log_probs[:, :-1], advantage, self._scale)
        coefficient = self.hp.policy_gradient_coef
        if coefficient:
            gradient = taken_action_loss(
                log_probs.gather(-1, now)[..., 0],
                slow_taken_log_prob[:, :-1],
                replay.log_prob[:, :-1],
                target - value[:, :-1],
                self._scale,
            )
            improvement = 0.5 * improvement + coefficient * gradient
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return self._step(replay, improvement, entropy, critic_loss, taken.mean(0), progress)

    @torch.no_grad()
    def _evaluate_enumerated(self, replay: Replay) -> tuple[_Evaluation, Tensor]:
        """Return what the slow critics say, and the slow policy's log-probabilities of every action."""
        action = replay.action.long()
        slow = self.slow_critic.action_values(replay.outputs(self.slow_critic)).mean(0)
        log_probs = self._slow_policy(replay).log_probs[0]
        value = (log_probs.exp() * slow).sum(-1)
        trace = (log_probs.gather(-1, action)[..., 0] - replay.log_prob).exp().clamp(max=1.0)
        return _Evaluation(value, slow.gather(-1, action)[..., 0], trace), log_probs

    # Every other space: the critics are given the action.

    def _learn_given(
        self, replay: Replay, reward: Tensor, weight: Tensor, distribution: JointDistribution, progress: float
    ) -> dict[str, float]:
        critic: Any = self.critic
        sample, log_prob = self._sample(distribution)
        evaluation = self._evaluate_given(replay, distribution, sample, log_prob)
        value = evaluation.value
        target = self._targets(replay, reward, evaluation)
        state = self._state(critic, replay)[:, :-1]
        taken = critic.action_values(state, replay.action[:, :-1])
        critic_loss = 0.5 * ((taken - target).square() * weight).sum()
        state = state.detach()
        if self._reparametrised:
            entropy = -log_prob[:, :-1]
            improvement = -critic.action_values(state, sample[:, :-1]).amin(0)
        else:
            improvement = self._sampled_improvement(replay, state, distribution, target - value[:, :-1])
            entropy = distribution.entropy()[:, :-1]
        return self._step(replay, improvement, entropy, critic_loss, taken.mean(0), progress)

    def _sample(self, distribution: JointDistribution) -> tuple[Tensor, Tensor]:
        """Return actions, which carry a gradient where they are reparametrised, and their log-probabilities."""
        if self._reparametrised:
            drawn: tuple[Tensor, Tensor] = distribution.sample_numeric(self.generator)
            return drawn
        sample = distribution.sample(self.generator).detach()
        return sample, distribution.log_prob(sample)

    @torch.no_grad()
    def _evaluate_given(
        self, replay: Replay, distribution: JointDistribution, sample: Tensor, log_prob: Tensor
    ) -> _Evaluation:
        slow_state = self._state(self.slow_critic, replay)
        value = self.slow_critic.action_values(slow_state, sample).amin(0) - self.log_alpha.exp() * log_prob
        if not required(self.hp.lambda_init):
            nothing = torch.zeros_like(value)
            return _Evaluation(value, nothing, nothing)
        taken = self.slow_critic.action_values(slow_state, replay.action).amin(0)
        trace = (distribution.log_prob(replay.action) - replay.log_prob).exp().clamp(max=1.0)
        return _Evaluation(value, taken, trace)

    def _evaluate(self, replay: Replay) -> tuple[_Evaluation, Callable[[], Tensor]]:
        """Return what targets are made of, and what computes the values (2, C, T) that are trained towards them."""
        critic: Any = self.critic
        if self._enumerates:
            action = replay.action[:, :-1].long()

            def taken() -> Tensor:
                values: Tensor = critic.action_values(replay.outputs(critic))[..., :-1, :]
                return values.gather(-1, action.expand(2, *action.shape))[..., 0]

            return self._evaluate_enumerated(replay)[0], taken
        with torch.no_grad():
            distribution = self.actor.distribution(replay.outputs(self.actor), replay.action_mask)
            evaluation = self._evaluate_given(replay, distribution, *self._sample(distribution))
        return evaluation, lambda: critic.action_values(self._state(critic, replay)[:, :-1], replay.action[:, :-1])

    def _sampled_improvement(
        self, replay: Replay, state: Tensor, distribution: JointDistribution, difference: Tensor
    ) -> Tensor:
        critic: Any = self.critic
        with torch.no_grad():
            slow = self._slow_policy(replay)
            actions = torch.stack([slow.sample(self.generator) for _ in range(_SAMPLED_ACTIONS)])
            states = state.expand(_SAMPLED_ACTIONS, *state.shape)
            values = critic.action_values(states, actions[..., :-1, :]).mean(0)
            advantage = values - values.mean(0)
            self._scale.observe(advantage.square().mean(0).sqrt(), difference, replay.weight)
        log_probs = distribution.log_prob(actions)[..., :-1]
        return sampled_actions_loss(log_probs, advantage, self._scale)

    @staticmethod
    def _state(critic: Any, replay: Replay) -> Tensor:
        remembered = replay.outputs(critic) if critic.memory else None
        state: Tensor = critic.state(replay.current(), remembered)
        return state

    @torch.no_grad()
    def _targets(
        self,
        replay: Replay,
        reward: Tensor,
        evaluation: _Evaluation,
        discount: tuple[float, float] | None = None,
    ) -> Tensor:
        """Return Retrace's targets under a gamma and lambda, by default those of now, as precise as the rewards."""
        gamma, lambda_ = discount or (self.tuner.gamma, self.tuner.lambda_)
        later = [part[:, 1:] for part in evaluation]
        return retrace_targets(
            reward,
            *(part.to(reward.dtype) for part in (replay.terminated, replay.cut, *later)),
            gamma=gamma,
            lambda_=lambda_,
        )

    def _step(
        self,
        replay: Replay,
        improvement: Tensor,
        entropy: Tensor,
        critic_loss: Tensor,
        taken: Tensor,
        progress: float,
    ) -> dict[str, float]:
        """Follow both gradients, and tune the weight of the entropy."""
        weight = replay.normalised_weight()
        alpha = self.log_alpha.exp().detach()
        actor_loss = ((improvement - alpha * entropy) * weight).sum()
        rate = self._rate(progress)
        # The actor's loss reads the critics: both gradients are taken before either changes.
        losses = ((critic_loss, self.critic_optimizer), (actor_loss, self.actor_optimizer))
        gradients = [
            torch.autograd.grad(loss, optimizer.parameters, allow_unused=True, materialize_grads=True)
            for loss, optimizer in losses
        ]
        rates = (rate * required(self.hp.critic_lr_factor), rate)
        norms = [
            optimizer.step(gradient, own_rate)
            for (_, optimizer), gradient, own_rate in zip(losses, gradients, rates, strict=True)
        ]
        self._check(norms, critic_loss, actor_loss)
        with torch.no_grad():
            means = torch.stack([(entropy * weight).sum(), actor_loss, critic_loss, (taken * weight).sum()])
            mean_entropy, policy_loss, value_loss, action_value = self.ranks.sum_(means)
            error = mean_entropy - self._wanted_entropy(replay)
            self.alpha_optimizer.step([self.log_alpha.exp() * error], _ALPHA_RATE * 10)
            self.log_alpha.copy_(self.alpha_optimizer.parameters[0].clamp_(-12.0, 1.0))
        self._scale.drift(float(error))
        return {
            "policy_loss": policy_loss.item(),
            "value_loss": value_loss.item(),
            "entropy": mean_entropy.item(),
            "entropy_coef": alpha.item(),
            "action_value": action_value.item(),
        }

    def _wanted_entropy(self, replay: Replay) -> float:
        """Return the entropy that is held: of discrete columns a part of the largest that the masks leave."""
        actions, mask = self.actor.actions, replay.action_mask
        largest = sum(math.log(n) for n in actions.category_sizes)
        if mask is not None or self.ranks.size > 1:  # one rank may have met a mask, another none yet
            left = torch.full_like(replay.weight, largest)
            if mask is not None:
                columns = torch.split(mask[:, :-1], list(actions.category_sizes), -1)
                left = torch.stack([column.sum(-1).clamp(min=1).log() for column in columns]).sum(0)
            largest = float(self.ranks.sum_((left * replay.normalised_weight()).sum()))
        largest += actions.binary_width * math.log(2)
        return self.hp.entropy_target * largest - float(actions.numeric_width)

    def _check(self, norms: list[float], critic_loss: Tensor, actor_loss: Tensor) -> None:
        for name, norm, loss in (("critic", norms[0], critic_loss), ("actor", norms[1], actor_loss)):
            if not math.isfinite(norm):
                raise TrainingFailed(
                    f"the {name}'s gradient is not finite (loss {loss.item()}, gradient step {self.updates}): "
                    "its weights were not changed; lower lr_init, or check the environment's numbers"
                )

    def _rate(self, progress: float) -> float:
        return learning_rate(self.hp, progress, self.updates)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that learning goes on from."""
        return {
            **{name: getattr(self, name).state_dict() for name in _MODULES},
            "log_alpha": self.log_alpha.detach().clone(),
            "scale": self._scale.state_dict(),
            "updates": self.updates,
            "tuner": self.tuner.state_dict(),
            "credit": self._credit,
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name in _MODULES:
            getattr(self, name).load_state_dict(state[name])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
            self.alpha_optimizer.parameters[0].copy_(state["log_alpha"])
        self._scale.load_state_dict(state["scale"])
        self.tuner.load_state_dict(state.get("tuner", {}))
        self.updates, self._credit = int(state["updates"]), float(state["credit"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])


_MODULES = (
    *("actor", "critic", "slow_actor", "slow_critic"),
    *("actor_optimizer", "critic_optimizer", "alpha_optimizer"),
)


def make_critic(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], hyperparameters: Hyperparameters
) -> DiscreteCritic | ActionCritic:
    """Return the critics that an action space needs."""
    config = hyperparameters.critic_config()
    if enumerates(action_space):
        return DiscreteCritic(observation_space, action_space, config)
    memory = required(hyperparameters.critic_memory)
    return ActionCritic(observation_space, action_space, config, memory=memory)


def _frozen_copy(model: Any) -> Any:
    frozen = copy.deepcopy(model)
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


class _Follower:
    """Moves a slow copy towards a model; buffers, which are no weights, are copied."""

    def __init__(self, slow: nn.Module, fast: nn.Module) -> None:
        self._slow: list[Tensor] = list(slow.parameters())
        self._fast: list[Tensor] = list(fast.parameters())
        self._buffers = list(zip(slow.buffers(), fast.buffers(), strict=True))

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        torch._foreach_lerp_(self._slow, self._fast, rate)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
