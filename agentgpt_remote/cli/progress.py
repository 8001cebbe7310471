"""How far training is: a live view on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentgpt_remote.cli.live import Recent
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
    from rich.live import Live

    from agentgpt_remote.cli.live import Recent, render

    recent = Recent()
    with Live("starting the environments", console=Console(stderr=True), refresh_per_second=4) as view:

        def live(progress: Progress) -> None:
            first(view.console.print)
            recent.add(progress)
            view.update(render(progress, recent), refresh=progress.env_steps >= progress.max_steps)

        yield live


def _plain(first: Callable[[Callable[[str], Any]], None]) -> Callable[[Progress], None]:
    from agentgpt_remote.cli.live import Recent

    last, recent = -_PLAIN_INTERVAL_S, Recent()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def plain(progress: Progress) -> None:
        nonlocal last
        first(say)
        recent.add(progress)
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S or progress.env_steps >= progress.max_steps:
            last = now
            say(_line(progress, recent))

    return plain


def _line(progress: Progress, recent: Recent) -> str:
    from agentgpt_remote.cli.live import duration

    returned = "-" if progress.episode_return is None else f"{progress.episode_return:.1f}"
    greedy = recent.latest.get("rollout/greedy_return")
    left = recent.seconds_left(progress)
    parts = (
        f"{progress.env_steps}/{progress.max_steps} env steps",
        f"return {returned}" + ("" if greedy is None else f" (greedy {greedy:.1f})"),
        f"{progress.episodes} episodes",
        f"{recent.latest.get('time/sps', 0.0):.0f} steps/s",
        f"{progress.wall_s:.0f} s" + ("" if left is None else f", {duration(left)} left"),
    )
    return ", ".join(parts)


def _resolved(run_dir: Path) -> str:
    """Return the resolved hyperparameters as one line."""
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    values = config["hyperparameters"]
    return f"run {run_dir}: " + ", ".join(f"{name}={values[name]}" for name in _SHOWN)
