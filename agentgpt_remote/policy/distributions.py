"""One joint distribution over the leaves of an action space."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agentgpt_remote.policy.features import ActionFeatures

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
# A logit that leaves probability 0 in every float type, and finite products with it.
_ILLEGAL = -1e9
_MIN_LOG = -1e3
_LOG_STD_RANGE = (-5.0, 2.0)
_FORBIDDEN = -1e8  # log-probabilities below are those of actions that are not allowed
_INSIDE = 1.0 - 1e-6  # the largest value whose inverse hyperbolic tangent is taken


class ActionHead:
    """Says how the parameters of the joint distribution lie in one vector.

    The parameters are, in order: a mean per numeric column, a logit per binary column, the logits of each
    categorical column, and of a squashed Gaussian a log standard deviation per numeric column. Columns are those of
    :class:`~agentgpt_remote.policy.features.ActionFeatures`.

    Args:
        features: of the action space.
        squashed: numeric columns are drawn from a Gaussian whose deviation depends on the state, and those with two
            finite bounds go through a hyperbolic tangent into them.

    Attributes:
        num_params: length of the parameter vector.
        num_columns: length of the compact action vector.
        num_categories: categories of all categorical columns.
    """

    def __init__(self, features: ActionFeatures, squashed: bool = False) -> None:
        self.numeric = features.numeric_width
        self.binary = features.binary_width
        self.sizes = features.category_sizes
        self.squashed = squashed
        self.bounded = torch.from_numpy(features.bounded)
        self.num_categories = sum(self.sizes)
        self.num_params = (2 if squashed else 1) * self.numeric + self.binary + self.num_categories
        self.num_columns = features.width


class JointDistribution:
    """Independent leaves given the parameters: diagonal Gaussian, Bernoulli and categorical columns.

    The joint log-probability is the sum over columns. Gaussians are not squashed; the environment's side
    clips to the bounds.

    Args:
        head: layout of parameters and columns.
        params: float tensor of shape (..., head.num_params).
        log_std: float tensor of shape (head.numeric,).
        action_mask: bool tensor of shape (..., head.num_categories): categories that are allowed, by column; None
            allows all. The others have probability 0.
    """

    def __init__(self, head: ActionHead, params: Tensor, log_std: Tensor, action_mask: Tensor | None = None) -> None:
        self._head = head
        discrete = head.numeric + head.binary + sum(head.sizes)
        self._mean = params[..., : head.numeric]
        self._log_std = log_std
        self._drawn: tuple[Tensor, Tensor] | None = None
        if head.squashed:
            low, high = _LOG_STD_RANGE
            self._log_std = low + 0.5 * (high - low) * (1 + torch.tanh(params[..., discrete:] + log_std))
        self._logits = params[..., head.numeric : head.numeric + head.binary]
        self.log_probs: list[Tensor] = []
        self._masked = action_mask is not None
        if head.sizes:
            logits = params[..., head.numeric + head.binary : discrete]
            if action_mask is not None:
                logits = logits.masked_fill(~action_mask, _ILLEGAL)
            parts = torch.split(logits, list(head.sizes), dim=-1)
            self.log_probs = [F.log_softmax(part, dim=-1) for part in parts]

    def shifted(self, noise: Tensor, mean: Tensor, deviation: float) -> JointDistribution:
        """Return the distribution of an action to which Gaussian noise is added before it is bounded.

        It draws with the noise given, and tells the probability of an action before the noise was known.

        Args:
            noise: float tensor of shape (..., numeric columns).
            mean: of the noise, of the same shape.
            deviation: of the noise.
        """
        noisy = copy.copy(self)
        noisy._drawn = (self._mean + noise, self._log_std)
        noisy._mean = self._mean + mean
        noisy._log_std = 0.5 * torch.log((2 * self._log_std).exp() + deviation**2)
        return noisy

    def random(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return random compact actions (..., num_columns) and the log-probability of each.

        Numeric columns are uniform within their bounds, and normal where a bound is missing.
        """
        parts, log_probs = [], []
        if self._head.numeric:
            bounded = self._head.bounded.to(self._mean.device)
            normal = torch.empty_like(self._mean).normal_(generator=generator)
            uniform = torch.empty_like(self._mean).uniform_(-1.0, 1.0, generator=generator)
            parts.append(torch.where(bounded, uniform, normal))
            log_normal = normal.square() * -0.5 - _HALF_LOG_TAU
            log_probs.append(torch.where(bounded, -math.log(2.0), log_normal).sum(-1))
        if self.has_discrete:
            discrete, log_prob = self.random_discrete(generator)
            parts.append(discrete)
            log_probs.append(log_prob)
        return torch.cat(parts, -1), _add(log_probs)

    def random_discrete(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return random binary and categorical columns and their log-probability, each (...)-shaped."""
        parts: list[Tensor] = []
        log_prob = torch.full(self._mean.shape[:-1], -self._head.binary * math.log(2.0), device=self._mean.device)
        if self._head.binary:
            parts.append((torch.empty_like(self._logits).uniform_(generator=generator) < 0.5).to(self._mean.dtype))
        for own in self.log_probs:
            allowed = own > _FORBIDDEN
            noise = torch.empty_like(own).uniform_(generator=generator)
            parts.append(noise.masked_fill_(~allowed, -1.0).argmax(-1, keepdim=True).to(own.dtype))
            log_prob = log_prob - allowed.sum(-1).to(own.dtype).log()
        return torch.cat(parts, -1), log_prob

    def _columns(self, numeric: Tensor, binary: Tensor, categories: list[Tensor]) -> Tensor:
        parts = [numeric] if self._head.numeric else []
        if self._head.binary:
            parts.append(binary)
        parts.extend(index.to(numeric.dtype) for index in categories)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _bound(self, numeric: Tensor) -> Tensor:
        """Return numeric columns where the environment can take them."""
        if not self._head.squashed:
            return numeric
        return torch.where(self._head.bounded.to(numeric.device), torch.tanh(numeric), numeric)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw compact actions of shape (..., num_columns); numeric columns can be differentiated."""
        numeric, binary = self._mean, self._logits
        if self._head.numeric:
            noise = torch.empty_like(numeric).normal_(generator=generator)
            mean, log_std = self._drawn or (numeric, self._log_std)
            numeric = self._bound(torch.addcmul(mean, noise, log_std.exp()))
        if self._head.binary:
            uniform = torch.empty_like(binary).uniform_(generator=generator)
            binary = (uniform < binary.sigmoid()).to(numeric.dtype)
        # Gumbel-max with exponential variates: argmax(log p - log E).
        categories = [(lp - self._log_exponential(lp, generator)).argmax(-1, keepdim=True) for lp in self.log_probs]
        return self._columns(numeric, binary, categories)

    def _log_exponential(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.empty_like(like).exponential_(generator=generator).log_()
        # A variate of 0 would make its category infinitely good, which one that is not allowed must not be.
        return drawn.clamp_(min=_MIN_LOG) if self._masked else drawn

    def sample_numeric(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw actions that have numeric columns only, and their log-density; both can be differentiated.

        Unlike :meth:`numeric_log_prob` of the actions, the density is exact where squashing rounds to a bound.
        """
        noise = torch.empty_like(self._mean).normal_(generator=generator)
        raw = torch.addcmul(self._mean, noise, self._log_std.exp())
        density = (noise.square() * -0.5 - self._log_std).sum(-1) - self._head.numeric * _HALF_LOG_TAU
        if self._head.squashed:
            log_slope = 2.0 * (math.log(2.0) - raw - F.softplus(-2.0 * raw))  # of the hyperbolic tangent
            density = density - torch.where(self._head.bounded.to(raw.device), log_slope, 0.0).sum(-1)
        return self._bound(raw), density

    def mode(self) -> Tensor:
        """Return the most probable compact actions, of shape (..., num_columns)."""
        binary = (self._logits > 0).to(self._mean.dtype)
        categories = [lp.argmax(-1, keepdim=True) for lp in self.log_probs]
        return self._columns(self._bound(self._mean), binary, categories)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the joint log-probability of compact actions.

        Args:
            actions: float tensor of shape (..., num_columns).

        Returns:
            float tensor of shape (...).
        """
        if not self.has_discrete:
            return self.numeric_log_prob(actions)
        discrete = self.discrete_log_prob(actions)
        return discrete + self.numeric_log_prob(actions) if self._head.numeric else discrete

    @property
    def has_discrete(self) -> bool:
        """Whether there are binary or categorical columns."""
        return bool(self._head.binary or self._head.sizes)

    def numeric_log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-density of the numeric columns of compact actions; there must be some."""
        head = self._head
        numeric = actions[..., : head.numeric]
        raw = numeric
        if head.squashed:
            bounded = head.bounded.to(numeric.device)
            inside = numeric.clamp(-_INSIDE, _INSIDE)
            raw = torch.where(bounded, torch.atanh(inside), numeric)
        scaled = (raw - self._mean) * torch.exp(-self._log_std)
        density = (scaled.square() * -0.5 - self._log_std).sum(-1) - head.numeric * _HALF_LOG_TAU
        if head.squashed:  # the change of variables of the squashed columns
            density = density - torch.where(bounded, torch.log1p(-inside.square()), 0.0).sum(-1)
        return density

    def discrete_log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability of the binary and categorical columns of compact actions; there must be some.

        The actions may have more leading axes than the parameters.
        """
        head = self._head
        terms = []
        if head.binary:
            bits = actions[..., head.numeric : head.numeric + head.binary]
            terms.append(F.logsigmoid(torch.where(bits > 0.5, self._logits, -self._logits)).sum(-1))
        first = head.numeric + head.binary
        for column, log_probs in enumerate(self.log_probs, start=first):
            index = actions[..., column : column + 1].long()
            terms.append(log_probs.expand(*index.shape[:-1], -1).gather(-1, index).squeeze(-1))
        return _add(terms)

    def entropy(self) -> Tensor:
        """Return the joint entropy in nats, of shape (...); of squashed columns that before squashing."""
        head = self._head
        terms = []
        if head.numeric:
            gaussian = self._log_std.sum(-1) + head.numeric * (0.5 + _HALF_LOG_TAU)
            terms.append(gaussian.expand(self._mean.shape[:-1]))
        if head.binary:
            p = self._logits.sigmoid()
            terms.append(F.binary_cross_entropy_with_logits(self._logits, p, reduction="none").sum(-1))
        terms.extend(-(lp.exp() * lp).sum(-1) for lp in self.log_probs)
        return _add(terms)


def _add(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
