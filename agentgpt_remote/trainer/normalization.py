"""Running statistics of observations, rewards and value targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.trainer.ranks import ALONE, Ranks

Float64 = NDArray[np.float64]
REWARD_CLIP = 10.0


class RunningMoments:
    """Mean and variance of everything seen, column by column (Chan et al. 1983, parallel form)."""

    def __init__(self, width: int) -> None:
        self.count = 0.0
        self.mean: Float64 = np.zeros(width)
        self.var: Float64 = np.ones(width)

    def update(self, rows: NDArray[Any], ranks: Ranks = ALONE) -> None:
        """Take in the rows of all ranks, here those of shape (n, width)."""
        told = rows if len(rows) else np.zeros((1, self.mean.size))
        own = len(rows), told.mean(0, dtype=np.float64), told.var(0, dtype=np.float64)
        if ranks.size == 1:
            self._merge(*own)
            return
        for count, mean, var in ranks.share([own[0], own[1].tolist(), own[2].tolist()]):
            self._merge(count, np.asarray(mean), np.asarray(var))

    def _merge(self, count: int, mean: Float64, var: Float64) -> None:
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        squares = (self.var * self.count if self.count else 0.0) + var * count
        self.var = (squares + delta**2 * (self.count * count / total if self.count else 0.0)) / total
        self.count = total

    def scale(self) -> Float64:
        """Return one over the deviation; 1 for a column that does not vary."""
        return np.where(self.var > 1e-12, 1.0 / np.sqrt(np.maximum(self.var, 1e-12)), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as plain lists and numbers."""
        return {"count": self.count, "mean": self.mean.tolist(), "var": self.var.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count = float(state["count"])
        self.mean, self.var = np.asarray(state["mean"], np.float64), np.asarray(state["var"], np.float64)


def mean_and_deviation(values: NDArray[Any], ranks: Ranks = ALONE) -> tuple[float, float]:
    """Return the mean and the standard deviation of all ranks' values."""
    if ranks.size == 1:
        return values.mean(), values.std()
    moments = RunningMoments(1)
    moments.update(values[:, None], ranks)
    return float(moments.mean[0]), float(np.sqrt(moments.var[0]))


class RewardScaler:
    """Divides rewards by the running deviation of their discounted sums.

    Args:
        num_streams: agents.
        gamma: discount factor.
    """

    def __init__(self, num_streams: int, gamma: float) -> None:
        self.gamma = gamma
        self.returns: Float64 = np.zeros(num_streams)
        self.moments = RunningMoments(1)
        self._pending: list[Float64] = []

    def observe(
        self, streams: slice | NDArray[np.int64], reward: Float64, valid: NDArray[np.bool_], done: NDArray[np.bool_]
    ) -> None:
        """Take in one step of some agents; each array has shape (n,)."""
        returns = self.returns[streams] * self.gamma + reward
        self.returns[streams] = np.where(done | ~valid, 0.0, returns)
        self._pending.append(returns[valid])

    def refresh(self, ranks: Ranks = ALONE) -> None:
        """Fold what all ranks observed into the statistics."""
        self.moments.update(np.concatenate([np.zeros(0), *self._pending])[:, None], ranks)
        self._pending.clear()

    def scale(self) -> float:
        """Return the factor for rewards."""
        return float(self.moments.scale()[0])

    def restart(self, streams: slice | NDArray[np.int64]) -> None:
        """Begin the sums of some agents anew, as when their episodes were cut."""
        self.returns[streams] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics and the running sums as plain lists and numbers."""
        pending = np.concatenate(self._pending).tolist() if self._pending else []
        return {"moments": self.moments.state_dict(), "returns": self.returns.tolist(), "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the sums begin anew where there are more or fewer agents."""
        self.moments.load_state_dict(state["moments"])
        if len(state["returns"]) == len(self.returns):
            self.returns = np.asarray(state["returns"], np.float64)
        self._pending = [np.asarray(state["pending"], np.float64)] if state["pending"] else []
