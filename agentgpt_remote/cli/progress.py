"""How far training is: a live line on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentgpt_remote.trainer.reporting import Progress

_PLAIN_INTERVAL_S = 5.0
_SHOWN = (
    *("device", "torch_threads", "seed", "max_steps", "num_layers", "d_model", "num_heads", "max_input_states"),
    *("rollout_steps", "batch_size", "replay_ratio", "lr_init", "entropy_coef"),
)


@contextlib.contextmanager
def show_progress(run_dir: Path) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback that shows progress on standard error.

    Args:
        run_dir: the run's folder; its resolved hyperparameters are shown first.
    """
    shown = False

    def first(say: Callable[[str], Any]) -> None:
        nonlocal shown
        if not shown:
            shown = True
            say(_resolved(run_dir))

    if not sys.stderr.isatty():
        yield _plain(first)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None, detail="starting the environments")

        def live(progress: Progress) -> None:
            first(bar.console.print)
            bar.update(task, total=progress.max_steps, completed=progress.env_steps, detail=_detail(progress))

        yield live


def _plain(first: Callable[[Callable[[str], Any]], None]) -> Callable[[Progress], None]:
    last = -_PLAIN_INTERVAL_S

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def plain(progress: Progress) -> None:
        nonlocal last
        first(say)
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S or progress.env_steps >= progress.max_steps:
            last = now
            say(f"{progress.env_steps}/{progress.max_steps} env steps, {_detail(progress)}, {progress.wall_s:.0f} s")

    return plain


def _detail(progress: Progress) -> str:
    returned = "-" if progress.episode_return is None else f"{progress.episode_return:.1f}"
    sps = progress.metrics.get("time/sps") or 0.0
    return f"return {returned}, {progress.episodes} episodes, {sps:.0f} steps/s"


def _resolved(run_dir: Path) -> str:
    """Return the resolved hyperparameters as one line."""
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    values = config["hyperparameters"]
    return f"run {run_dir}: " + ", ".join(f"{name}={values[name]}" for name in _SHOWN)
