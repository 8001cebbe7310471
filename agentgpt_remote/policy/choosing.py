"""Actions from the outputs of a model, without torch: :class:`JointDistribution`'s mode and sample in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.policy.features import ActionFeatures, Float32

_ILLEGAL = np.float32(-1e9)
_LOG_STD_RANGE = (-5.0, 2.0)


class ActionChooser:
    """Reads outputs as :class:`~agentgpt_remote.policy.distributions.ActionHead` lays them out.

    Args:
        actions: the compact vector of the action space.
        squashed: numeric columns go through a hyperbolic tangent, and have a deviation that the model says.
        log_std: float32 array of shape (numeric columns,).
    """

    def __init__(self, actions: ActionFeatures, squashed: bool, log_std: Float32) -> None:
        self._numeric, self._binary, self._sizes = actions.numeric_width, actions.binary_width, actions.category_sizes
        self._first_category = self._numeric + self._binary
        self._squashed, self._bounded, self.log_std = squashed, actions.bounded, log_std
        self._width = actions.width

    def mode(self, params: Float32, mask: NDArray[np.bool_] | None) -> Float32:
        """Return the likeliest compact actions, float32 of shape (n, width).

        Args:
            params: float32 of shape (n, num_params).
            mask: bool of shape (n, categories), what is allowed; None allows everything.
        """
        out = np.empty((len(params), self._width), np.float32)
        if self._numeric:
            out[:, : self._numeric] = self._bound(params[:, : self._numeric])
        if self._binary:
            out[:, self._numeric : self._first_category] = params[:, self._numeric : self._first_category] > 0
        self._categories(params, mask, out, None)
        return out

    def sample(self, params: Float32, mask: NDArray[np.bool_] | None, seed: int) -> Float32:
        """Return compact actions that are drawn; equal seeds draw equal ones."""
        random = np.random.Generator(np.random.Philox(key=seed))
        out = np.empty((len(params), self._width), np.float32)
        if self._numeric:
            mean = params[:, : self._numeric]
            noise = random.standard_normal(mean.shape, np.float32)
            out[:, : self._numeric] = self._bound(mean + noise * np.exp(self._deviation(params)))
        if self._binary:
            logits = params[:, self._numeric : self._first_category]
            # u < sigmoid(x) where logit(u) < x
            uniform = np.maximum(random.random(logits.shape, np.float32), np.float32(1e-12))
            out[:, self._numeric : self._first_category] = np.log(uniform) - np.log1p(-uniform) < logits
        self._categories(params, mask, out, random)
        return out

    def _deviation(self, params: Float32) -> Float32:
        """Return log standard deviations."""
        if not self._squashed:
            return self.log_std
        low, high = _LOG_STD_RANGE
        own = params[:, self._first_category + sum(self._sizes) :]
        result: Float32 = low + 0.5 * (high - low) * (1 + np.tanh(own + self.log_std))
        return result

    def _bound(self, numeric: Float32) -> Float32:
        if not self._squashed:
            return numeric
        result: Float32 = np.where(self._bounded, np.tanh(numeric), numeric)
        return result

    def _categories(
        self, params: Float32, mask: NDArray[np.bool_] | None, out: Float32, random: np.random.Generator | None
    ) -> None:
        """Write a category per column: the likeliest, or one that is drawn (Gumbel-max)."""
        start = self._first_category
        for column, size in enumerate(self._sizes, start=start):
            logits = params[:, start : start + size]
            if random is not None:
                logits = logits - np.log(random.standard_exponential(logits.shape, np.float32) + np.float32(1e-30))
            if mask is not None:
                first = start - self._first_category
                logits = np.where(mask[:, first : first + size], logits, _ILLEGAL)
            out[:, column] = logits.argmax(axis=1)
            start += size
