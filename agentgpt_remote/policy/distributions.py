"""One joint distribution over the leaves of an action space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agentgpt_remote.policy.features import ActionFeatures

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
# A logit that leaves probability 0 in every float type, and finite products with it.
_ILLEGAL = -1e9
_MIN_LOG = -1e3


class ActionHead:
    """Says how the parameters of the joint distribution lie in one vector.

    The parameters are, in order: a mean per numeric column, a logit per binary column, the logits of each
    categorical column. Columns are those of :class:`~agentgpt_remote.policy.features.ActionFeatures`.

    Attributes:
        num_params: length of the parameter vector.
        num_columns: length of the compact action vector.
        num_categories: categories of all categorical columns.
    """

    def __init__(self, features: ActionFeatures) -> None:
        self.numeric = features.numeric_width
        self.binary = features.binary_width
        self.sizes = features.category_sizes
        self.num_categories = sum(self.sizes)
        self.num_params = self.numeric + self.binary + self.num_categories
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
        self._mean = params[..., : head.numeric]
        self._log_std = log_std
        self._logits = params[..., head.numeric : head.numeric + head.binary]
        self._log_probs: list[Tensor] = []
        self._masked = action_mask is not None
        if head.sizes:
            logits = params[..., head.numeric + head.binary :]
            if action_mask is not None:
                logits = logits.masked_fill(~action_mask, _ILLEGAL)
            parts = torch.split(logits, list(head.sizes), dim=-1)
            self._log_probs = [F.log_softmax(part, dim=-1) for part in parts]

    def _columns(self, numeric: Tensor, binary: Tensor, categories: list[Tensor]) -> Tensor:
        parts = [numeric] if self._head.numeric else []
        if self._head.binary:
            parts.append(binary)
        parts.extend(index.to(numeric.dtype) for index in categories)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw compact actions of shape (..., num_columns)."""
        numeric, binary = self._mean, self._logits
        if self._head.numeric:
            noise = torch.empty_like(numeric).normal_(generator=generator)
            numeric = torch.addcmul(numeric, noise, self._log_std.exp())
        if self._head.binary:
            uniform = torch.empty_like(binary).uniform_(generator=generator)
            binary = (uniform < binary.sigmoid()).to(numeric.dtype)
        # Gumbel-max with exponential variates: argmax(log p - log E).
        categories = [(lp - self._log_exponential(lp, generator)).argmax(-1, keepdim=True) for lp in self._log_probs]
        return self._columns(numeric, binary, categories)

    def _log_exponential(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.empty_like(like).exponential_(generator=generator).log_()
        # A variate of 0 would make its category infinitely good, which one that is not allowed must not be.
        return drawn.clamp_(min=_MIN_LOG) if self._masked else drawn

    def mode(self) -> Tensor:
        """Return the most probable compact actions, of shape (..., num_columns)."""
        binary = (self._logits > 0).to(self._mean.dtype)
        return self._columns(self._mean, binary, [lp.argmax(-1, keepdim=True) for lp in self._log_probs])

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the joint log-probability of compact actions.

        Args:
            actions: float tensor of shape (..., num_columns).

        Returns:
            float tensor of shape (...).
        """
        head = self._head
        terms = []
        if head.numeric:
            scaled = (actions[..., : head.numeric] - self._mean) * torch.exp(-self._log_std)
            constant = self._log_std.sum() + head.numeric * _HALF_LOG_TAU
            terms.append(scaled.square().sum(-1) * -0.5 - constant)
        if head.binary:
            bits = actions[..., head.numeric : head.numeric + head.binary]
            terms.append(-F.binary_cross_entropy_with_logits(self._logits, bits, reduction="none").sum(-1))
        first = head.numeric + head.binary
        for column, log_probs in enumerate(self._log_probs, start=first):
            index = actions[..., column : column + 1].long()
            terms.append(log_probs.gather(-1, index).squeeze(-1))
        return _add(terms)

    def entropy(self) -> Tensor:
        """Return the joint entropy in nats, of shape (...)."""
        head = self._head
        terms = []
        if head.numeric:
            gaussian = self._log_std.sum() + head.numeric * (0.5 + _HALF_LOG_TAU)
            terms.append(gaussian.expand(self._mean.shape[:-1]))
        if head.binary:
            p = self._logits.sigmoid()
            terms.append(F.binary_cross_entropy_with_logits(self._logits, p, reduction="none").sum(-1))
        terms.extend(-(lp.exp() * lp).sum(-1) for lp in self._log_probs)
        return _add(terms)


def _add(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
