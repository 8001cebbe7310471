"""Numbers of an environment that are not finite: refused by name, or clipped."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import TrainingFailed

Nonfinite = Literal["refuse", "clip"]
MAX_REWARD = 1e30  # the square of what is larger is not finite after a few sums
logger = logging.getLogger("agentgpt_remote.trainer")


class FiniteCheck:
    """Looks at one kind of number of one lane, and keeps what is not finite from the learner.

    Args:
        name: of the lane, such as the host's name.
        what: "observation" or "reward".
        nonfinite: ``refuse`` ends the run; ``clip`` puts a number in its place: for an infinity the largest (or
            smallest) finite one that this column has held, for NaN the one nearest to 0 within that range.
        limit: magnitude from which a number counts as infinite.

    Attributes:
        clipped: numbers replaced so far.
    """

    def __init__(self, name: str, what: str, nonfinite: Nonfinite, limit: float = np.inf) -> None:
        self.name, self.what, self.nonfinite, self.limit = name, what, nonfinite, limit
        self.clipped = 0
        self._low: NDArray[np.float64] | None = None
        self._high: NDArray[np.float64] | None = None

    def __call__(self, values: NDArray[Any], step: int) -> NDArray[Any]:
        """Return the values (n, ...), themselves where all are finite.

        Args:
            values: float array, one row per agent.
            step: steps of the lane so far, for the message.

        Raises:
            TrainingFailed: one is not finite, and ``nonfinite`` is ``refuse``.
        """
        good = np.abs(values) < self.limit if np.isfinite(self.limit) else np.isfinite(values)
        if self.nonfinite == "clip":
            self._widen(values, good)
        if good.all():
            return values
        agent = int(np.argwhere(~good)[0][0])
        told = f"{self.name}: the {self.what} of agent {agent} at step {step} is not finite ({values[agent]})"
        if self.nonfinite == "refuse":
            raise TrainingFailed(
                f"{told}: expected numbers; fix the environment, or set nonfinite=clip to train on with clipped ones"
            )
        if not self.clipped:
            logger.warning("%s: clipped, as all that follow", told)
        self.clipped += int((~good).sum())
        return self._replaced(values, good)

    def _widen(self, values: NDArray[Any], good: NDArray[np.bool_]) -> None:
        low = np.where(good, values, np.inf).min(0)
        high = np.where(good, values, -np.inf).max(0)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def _replaced(self, values: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[Any]:
        # A column that has never held a number has no range: 0.
        seen = np.asarray(self._low <= self._high)  # type: ignore[operator]
        low, high = np.where(seen, self._low, 0.0), np.where(seen, self._high, 0.0)  # type: ignore[arg-type]
        wanted = np.where(np.isnan(values), 0.0, values)
        replaced: NDArray[Any] = np.where(good, values, np.clip(wanted, low, high)).astype(values.dtype)
        return replaced

    def state_dict(self) -> dict[str, Any]:
        """Return the range seen so far and the count."""
        ranges = [None if bound is None else np.asarray(bound).tolist() for bound in (self._low, self._high)]
        return {"clipped": self.clipped, "low": ranges[0], "high": ranges[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.clipped = int(state["clipped"])
        self._low, self._high = (
            None if state[name] is None else np.asarray(state[name], np.float64) for name in ("low", "high")
        )
