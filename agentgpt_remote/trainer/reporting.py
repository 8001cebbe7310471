"""What a run reports: metrics.jsonl, TensorBoard, progress."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgpt_remote.metrics import MetricsWriter

logger = logging.getLogger("agentgpt_remote.trainer")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, as handed to ``on_progress`` after every update.

    Attributes:
        env_steps: environment steps so far.
        max_steps: environment steps of the run.
        wall_s: seconds of training so far, those before a resume included.
        episode_return: mean return of the last 20 episodes; None before the first has ended.
        episodes: finished episodes.
        metrics: everything that was written to metrics.jsonl.
    """

    env_steps: int
    max_steps: int
    wall_s: float
    episode_return: float | None
    episodes: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)


class Averages:
    """Means of metrics over several updates."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one update; none where nothing was learned."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Reporter:
    """Writes metrics of a run to metrics.jsonl and, where wanted and installed, to TensorBoard.

    Args:
        run_dir: the run's folder.
        use_tensorboard: also write TensorBoard events.
        resumed_at: environment steps of the checkpoint that the run continues from; later rows are dropped.
    """

    def __init__(self, run_dir: Path, *, use_tensorboard: bool, resumed_at: int | None) -> None:
        self._metrics = MetricsWriter(run_dir / "metrics.jsonl", keep_until=resumed_at or 0)
        self._events: Any = None
        if not use_tensorboard:
            return
        if importlib.util.find_spec("tensorboard") is None:
            logger.warning("tensorboard is not installed: no events are written; pip install tensorboard")
            return
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def write(self, env_steps: int, values: Mapping[str, float | None]) -> None:
        """Write one row of metrics."""
        self._metrics.write(env_steps, values)
        if self._events is not None:
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(name, value, env_steps)

    def close(self) -> None:
        """Flush and close the files."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._metrics.close)
            if self._events is not None:
                stack.callback(self._events.close)
