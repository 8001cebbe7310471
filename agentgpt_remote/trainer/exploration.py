"""Noise on top of the policy's own, with the probability that it gives the actions that are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from agentgpt_remote.policy.distributions import JointDistribution

CONTINUOUS, DISCRETE = "continuous", "discrete"
_TYPES = {
    CONTINUOUS: ("none", "gaussian_noise", "ornstein_uhlenbeck", "parameter_noise"),
    DISCRETE: ("none", "epsilon_greedy", "parameter_noise"),
}


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """How actions of one kind are explored beyond what the policy itself samples.

    ``initial`` and ``final`` are the size of the noise: of epsilon_greedy the probability of a random action; of
    gaussian_noise and ornstein_uhlenbeck the standard deviation in units of half the action's range, before it is
    squashed; of parameter_noise the deviation of a weight relative to the root mean square of its matrix. In between
    it falls linearly.

    Attributes:
        type: none, epsilon_greedy (discrete), gaussian_noise or ornstein_uhlenbeck (continuous), or parameter_noise.
        initial: size at the start.
        final: size after ``fraction`` of the run.
        fraction: of ``max_steps`` over which the size changes.
        theta: ornstein_uhlenbeck: how much of the last noise is forgotten in a step (Uhlenbeck and Ornstein 1930).
    """

    type: Literal["none", "epsilon_greedy", "gaussian_noise", "ornstein_uhlenbeck", "parameter_noise"] = "none"
    initial: float = 0.1
    final: float = 0.02
    fraction: float = 0.5
    theta: float = 0.15

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: an unknown type, or a number out of range.
        """
        known = sorted({name for names in _TYPES.values() for name in names})
        if self.type not in known:
            raise ConfigError(f"exploration type={self.type!r}: expected one of {', '.join(known)}")
        limits = {"initial": (0, 1 if self.type == "epsilon_greedy" else 10), "fraction": (0, 1), "theta": (0, 1)}
        limits["final"] = limits["initial"]
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"exploration {name}={value!r}: expected a number from {low} to {high}")

    def size(self, progress: float) -> float:
        """Return the size of the noise after a fraction of the run; 0 without any."""
        if self.type == "none":
            return 0.0
        done = min(max(progress, 0.0) / self.fraction, 1.0) if self.fraction else 1.0
        return self.initial + (self.final - self.initial) * done


def check_exploration(value: Any) -> dict[str, Exploration]:
    """Return exploration by kind of action, from objects or from what JSON holds.

    Raises:
        ConfigError: an unknown kind, or a type that is not for it.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"exploration={value!r}: expected a mapping of {CONTINUOUS!r} or {DISCRETE!r} to Exploration")
    checked = {}
    for kind, chosen in value.items():
        if kind not in _TYPES:
            raise ConfigError(f"exploration[{kind!r}]: expected {CONTINUOUS!r} or {DISCRETE!r}")
        if isinstance(chosen, Mapping):
            names = [spec.name for spec in fields(Exploration)]
            unknown = [name for name in chosen if name not in names]
            if unknown:
                raise ConfigError(f"exploration[{kind!r}] has no field {unknown[0]!r}: expected {', '.join(names)}")
            chosen = Exploration(**chosen)
        if not isinstance(chosen, Exploration):
            raise ConfigError(f"exploration[{kind!r}]={chosen!r}: expected an Exploration")
        if chosen.type not in _TYPES[kind]:
            raise ConfigError(
                f"exploration[{kind!r}] has type {chosen.type!r}: expected one of {', '.join(_TYPES[kind])}"
            )
        checked[str(kind)] = chosen
    return checked


class Explorer:
    """Draws the actions that are taken.

    Args:
        exploration: by kind of action.
        random_steps: environment steps in which every action is random.
        numeric_width: numeric columns of an action.
        num_streams: agents.
        generator: of all randomness.
    """

    def __init__(
        self,
        exploration: Mapping[str, Exploration],
        random_steps: int,
        numeric_width: int,
        num_streams: int,
        generator: torch.Generator,
    ) -> None:
        import torch

        self._continuous = exploration.get(CONTINUOUS, Exploration())
        self._discrete = exploration.get(DISCRETE, Exploration())
        self._random_steps = random_steps
        self._generator = generator
        self._noise = torch.zeros(num_streams, numeric_width, device=generator.device)
        self.parameter_noise = [each for each in (self._continuous, self._discrete) if each.type == "parameter_noise"]

    def draw(
        self,
        distribution: JointDistribution,
        streams: slice | Tensor,
        is_first: Tensor,
        env_steps: int,
        progress: float,
    ) -> tuple[Tensor, Tensor]:
        """Return compact actions, (n, columns), and the log-probability with which they were drawn, (n,).

        Args:
            distribution: of the policy.
            streams: the n agents.
            is_first: bool (n,): an episode begins, and with it noise that remembers.
            env_steps: steps taken so far.
            progress: fraction of the run.
        """
        import torch

        if env_steps < self._random_steps:
            return distribution.random(self._generator)
        epsilon = self._discrete.size(progress) if self._discrete.type == "epsilon_greedy" else 0.0
        size = self._continuous.size(progress)
        if self._continuous.type == "gaussian_noise" and size:
            distribution, noise = self._with_noise(distribution, torch.zeros_like(self._noise[streams]), size)
        elif self._continuous.type == "ornstein_uhlenbeck" and size:
            kept = self._noise[streams].masked_fill(is_first[:, None], 0.0) * (1.0 - self._continuous.theta)
            distribution, noise = self._with_noise(distribution, kept, size)
            self._noise[streams] = noise
        sample = distribution.sample(self._generator)
        if not epsilon or not distribution.has_discrete:
            return sample, distribution.log_prob(sample)
        return self._epsilon_greedy(distribution, sample, epsilon)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise that remembers."""
        return {"noise": self._noise.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._noise.copy_(state["noise"])

    def _with_noise(
        self, distribution: JointDistribution, mean: Tensor, size: float
    ) -> tuple[JointDistribution, Tensor]:
        """Return the distribution of the noisy action given the noise so far, and the noise that was drawn."""
        import torch

        noise = mean + size * torch.empty_like(mean).normal_(generator=self._generator)
        return distribution.shifted(noise, mean, size), noise

    def _epsilon_greedy(self, distribution: JointDistribution, sample: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        import torch

        uniform, uniform_log_prob = distribution.random_discrete(self._generator)
        chosen = torch.empty(len(sample), 1, device=sample.device).uniform_(generator=self._generator) < epsilon
        width = sample.shape[-1] - uniform.shape[-1]
        sample = torch.cat((sample[:, :width], torch.where(chosen, uniform, sample[:, width:])), -1)
        own = distribution.discrete_log_prob(sample)
        kept = math.log1p(-epsilon) if epsilon < 1 else -math.inf
        log_prob = torch.logaddexp(own + kept, uniform_log_prob + math.log(epsilon))
        return sample, log_prob + distribution.numeric_log_prob(sample) if width else log_prob


def add_parameter_noise(
    model: nn.Module, exploration: Sequence[Exploration], progress: float, generator: torch.Generator
) -> None:
    """Add noise to the weights of an acting policy (Plappert et al. 2018), which explores consistently over steps.

    Args:
        model: changed in place.
        exploration: of type parameter_noise; the largest size counts.
        progress: fraction of the run.
        generator: of the noise.
    """
    import torch

    size = max(each.size(progress) for each in exploration)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and size:
                noise = torch.empty_like(weight).normal_(generator=generator)
                weight.add_(noise, alpha=size * weight.square().mean().sqrt().item())
