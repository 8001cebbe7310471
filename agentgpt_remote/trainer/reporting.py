"""What a run reports: metrics and progress."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgpt_remote.metrics import MetricsWriter
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.ranks import Ranks
from agentgpt_remote.trainer.sinks import Sink, WandbSink, tensorboard_sink
from agentgpt_remote.trainer.watching import HostHealth


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
        hosts: how each host did since the last report.
    """

    env_steps: int
    max_steps: int
    wall_s: float
    episode_return: float | None
    episodes: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    hosts: Sequence[HostHealth] = ()


_COUNTS = frozenset({"train/trained_tokens"})


def metrics_of_all_ranks(metrics: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """Return the ranks' metrics as one: the largest of those named so, sums of what is counted, else means."""
    rows = ranks.share(metrics)
    if len(rows) == 1:
        return dict(metrics)
    together = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        total = max(values) if name.endswith("_max") else sum(values)
        together[name] = total if name in _COUNTS or name.endswith("_max") else total / len(values)
    return together


class Averages:
    """Means of metrics over several updates, and sums of those that count something."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what was added since the last report."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one update; none where nothing was learned."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return means and sums, and begin anew."""
        means = {name: total / (1 if name in _COUNTS else self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Reporter:
    """Writes metrics of a run to metrics.jsonl and, where wanted, to TensorBoard and Weights & Biases.

    Args:
        run_dir: the run's folder.
        hyperparameters: resolved; they say what is wanted.
        resumed_at: environment steps of the checkpoint that the run continues from; later rows are dropped.

    Raises:
        DependencyNotInstalled: Weights & Biases is wanted and not installed.
        ConfigError: it refuses.
    """

    def __init__(self, run_dir: Path, hyperparameters: Hyperparameters, *, resumed_at: int | None) -> None:
        self._sinks: list[Sink] = []
        if hyperparameters.wandb_project is not None:
            self._sinks.append(WandbSink(hyperparameters.wandb_project, run_dir, hyperparameters.to_dict()))
        self._metrics = MetricsWriter(run_dir / "metrics.jsonl", keep_until=resumed_at or 0)
        events = tensorboard_sink(run_dir / "tensorboard", resumed_at) if hyperparameters.use_tensorboard else None
        if events is not None:
            self._sinks.append(events)

    def write(self, env_steps: int, values: Mapping[str, float | None]) -> None:
        """Write one row of metrics."""
        self._metrics.write(env_steps, values)
        for sink in self._sinks:
            sink.write(env_steps, values)

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._metrics.close)
            while self._sinks:
                stack.callback(self._sinks.pop().close)
