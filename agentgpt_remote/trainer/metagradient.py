"""Discount factor and trace decay that are learned by meta-gradient.

Neither is ever trained on the loss that it shapes: gamma would fall until targets are trivial. What is followed
instead (Xu et al. 2018, eq. 4, with a single inner step) is how one step towards targets under the current gamma and
lambda changes the loss of other data under the initial ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from agentgpt_remote.policy.model import SequenceModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters, required
from agentgpt_remote.trainer.optimizer import FlatAdam
from agentgpt_remote.trainer.ranks import ALONE, Ranks

FROZEN_FRACTION = 0.1
LIMIT = math.log(4.0)  # a horizon, or the odds of a decay, stay within a quarter and four times their first value
_STEP = 1e-3  # of the differences that targets are differentiated by, in units of the logarithms


class _Numbers(Protocol):
    """What differences are taken of: arrays and tensors, in double precision."""

    def __sub__(self, other: Any, /) -> Any: ...


_N = TypeVar("_N", bound=_Numbers)
Targets = Callable[[float, float], _N]


class DiscountTuner:
    """Gamma and lambda as they are now, and what moves them.

    Each is kept as an offset from its initial value: of the logarithm of the horizon ``1 / (1 - gamma)``, and of the
    logit of lambda. What is not learned stays the initial value to the bit.

    Args:
        hyperparameters: resolved; those that are learned begin at ``gamma_init`` and ``lambda_init``.
        critic: told of the horizon where gamma is learned: its encoder is replaced by one that sees it.
        ranks: whose meta-gradients are averaged.

    Attributes:
        skipped: meta-gradients that were not finite, and changed nothing.
    """

    def __init__(self, hyperparameters: Hyperparameters, critic: SequenceModel, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._gamma, self._lambda = hyperparameters.gamma_init, required(hyperparameters.lambda_init)
        learned = {"gamma": hyperparameters.learn_gamma, "lambda": hyperparameters.learn_lambda}
        self.names = [name for name, wanted in learned.items() if wanted]
        self.rate, self.skipped = hyperparameters.meta_lr, 0
        self._offsets = nn.Parameter(torch.zeros(len(self.names)), requires_grad=False)
        self._optimizer = FlatAdam([self._offsets], max_norm=math.inf, eps=1e-16) if self.names else None
        self._encoder: HorizonEncoder | None = None
        if hyperparameters.learn_gamma:
            self._encoder = HorizonEncoder(critic.encoder, critic.config.d_model)
            critic.encoder = self._encoder  # type: ignore[assignment]

    @property
    def gamma(self) -> float:
        """The discount factor that targets take now."""
        return max(0.0, self._at(self._values())[0])  # offsets are in single precision

    @property
    def lambda_(self) -> float:
        """The trace decay that targets take now."""
        return self._at(self._values())[1]

    @property
    def fixed(self) -> tuple[float, float]:
        """Gamma and lambda of the outer loss: the initial ones."""
        return self._gamma, self._lambda

    def due(self, progress: float) -> bool:
        """Return whether anything is learned yet; nothing is in the first tenth of a run."""
        return bool(self.names) and progress >= FROZEN_FRACTION

    def tangents(self, targets: Targets[_N]) -> list[_N]:
        """Return the derivative of targets to each offset that is learned.

        Args:
            targets: of gamma and lambda, arrays in double precision. They are polynomials of both, or of their
                normalisation, so central differences are as exact as the single precision they are used in.
        """
        values, derivatives = self._values(), []
        for index in range(len(values)):
            sides = []
            for sign in (1.0, -1.0):
                moved = list(values)
                moved[index] += sign * _STEP
                sides.append(targets(*self._at(moved)))
            derivatives.append((sides[0] - sides[1]) / (2 * _STEP))
        return derivatives

    @torch.no_grad()
    def follow(self, gradient: Sequence[float] | None) -> None:
        """Take a step against the gradient of the outer loss, within the limits; skip and count one that isn't finite.

        Args:
            gradient: for each offset that is learned; None where this rank had too little to take one from.

        Raises:
            RankLost: another rank has ended, or did not answer in time.
        """
        if self._optimizer is None:
            return
        known = [each for each in self._ranks.share(gradient) if each is not None]
        if not known:
            return
        mean = torch.tensor(known, dtype=torch.float32).mean(0)
        if not math.isfinite(self._optimizer.step([mean], self.rate)):
            self.skipped += 1
            return
        self._offsets.clamp_(-LIMIT, LIMIT)
        if "gamma" in self.names:
            # A horizon is no shorter than the step itself.
            self._offsets[0].clamp_(min=math.log(1.0 - self._gamma))
        self._tell()

    def metrics(self) -> dict[str, float]:
        """Return both values and, where one is learned, how many meta-gradients were skipped."""
        values = {"train/gamma": self.gamma, "train/lambda": self.lambda_}
        return values | ({"train/meta_skipped": float(self.skipped)} if self.names else {})

    def state_dict(self) -> dict[str, Any]:
        """Return the offsets and the state of their optimizer; empty where nothing is learned."""
        if self._optimizer is None:
            return {}
        offsets = self._offsets.detach().clone()
        return {"offsets": offsets, "optimizer": self._optimizer.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._optimizer is None or not state:
            return
        with torch.no_grad():
            self._offsets.copy_(state["offsets"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.skipped = int(state["skipped"])
        self._tell()

    def _values(self) -> list[float]:
        return [float(value) for value in self._offsets.tolist()]

    def _at(self, offsets: Sequence[float]) -> tuple[float, float]:
        """Return gamma and lambda at some offsets of those that are learned."""
        moved = dict(zip(self.names, offsets, strict=True))
        gamma, lambda_ = self._gamma, self._lambda
        if "gamma" in moved:
            gamma = 1.0 - (1.0 - gamma) * math.exp(-moved["gamma"])
        if "lambda" in moved:
            odds = lambda_ / (1.0 - lambda_) * math.exp(moved["lambda"])
            lambda_ = odds / (1.0 + odds)
        return gamma, lambda_

    def _tell(self) -> None:
        """Tell the critic of the horizon, as a number from -1 to 1."""
        if self._encoder is not None:
            self._encoder.horizon.fill_(float(self._offsets[0]) / LIMIT)


class HorizonEncoder(nn.Module):
    """A critic's token encoder with one input more: how far the horizon is from where it began.

    Args:
        encoder: of the critic.
        width: of a token.
    """

    horizon: Tensor

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.tokens = encoder
        self.weight = nn.Parameter(torch.zeros(width))
        self.register_buffer("horizon", torch.zeros(()))
        self.to(next(encoder.parameters()).device)

    def forward(self, inputs: Any) -> Tensor:
        """Return embedded tokens of shape (..., width)."""
        embedded: Tensor = self.tokens(inputs)
        return embedded + self.horizon * self.weight


def meta_gradient(
    parameters: Sequence[Tensor],
    *,
    inner_loss: Tensor,
    score: Tensor,
    tangents: Sequence[Tensor],
    outer_loss: Callable[[], Tensor],
    step: float,
) -> list[float]:
    """Return the derivative of ``outer(theta - step * grad inner(theta, eta))`` to each eta.

    The inner loss depends on eta through targets that are constants for theta, and linearly: it is
    ``rest(theta) - sum(target(eta) * score(theta))``. So the derivative of its gradient to an eta is the gradient of
    the same loss with the target's derivative in its place: no second derivative is taken.

    Args:
        parameters: theta, changed for the while of the outer loss and then restored to the bit.
        inner_loss: with its graph.
        score: what targets are multiplied by, with its graph.
        tangents: derivatives of the targets to each eta, weights included; as broad as the score.
        outer_loss: computes the outer loss with the parameters as they are then.
        step: of the inner step.
    """
    gradient = _gradient(inner_loss, parameters)
    changes = [_gradient(-(tangent * score).sum(), parameters) for tangent in tangents]
    with _moved(parameters, gradient, -step):
        outer = _gradient(outer_loss(), parameters)
    return [-step * sum(float((a * b).sum()) for a, b in zip(outer, change, strict=True)) for change in changes]


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


@contextlib.contextmanager
def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], by: float) -> Iterator[None]:
    """Move parameters for a while."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), list(direction), alpha=by)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), saved)
