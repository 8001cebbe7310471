"""What the benchmarks share: noting when a bar is crossed, tables, options."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from agentgpt_remote import __version__
from agentgpt_remote.trainer.reporting import Progress

RETURN_WINDOW = 20


class Crossing:
    """Notes when the training return (mean of the last 20 finished episodes) first reaches the bar."""

    def __init__(self, bar: float, on_crossing: Callable[[], None] | None = None) -> None:
        self.bar, self._on_crossing = bar, on_crossing
        self.env_steps: int | None = None
        self.wall_s: float | None = None
        self.cpu_s: float | None = None
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def offer(self, env_steps: int, episode_return: float | None, episodes: int) -> None:
        """Take in where a run stands."""
        if self.env_steps is not None or episode_return is None or episodes < RETURN_WINDOW:
            return
        if episode_return >= self.bar:
            self.env_steps = env_steps
            self.wall_s = time.perf_counter() - self._began
            self.cpu_s = time.process_time() - self._cpu_began
            if self._on_crossing is not None:
                self._on_crossing()

    def on_progress(self, progress: Progress) -> None:
        """Take in a trainer's progress."""
        self.offer(progress.env_steps, progress.episode_return, progress.episodes)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of equal keys as a Markdown table."""
    if not rows:
        return
    cells = [[str(name) for name in rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for index, row in enumerate(cells):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |", flush=True)
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report with the versions and the machine it was made on."""
    if path is None:
        return
    machine = {"package": __version__, "torch": torch.__version__, "python": platform.python_version()}
    path.write_text(json.dumps({**machine, "machine": platform.processor() or platform.machine(), **report}, indent=2))


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Return ``field=value`` words as hyperparameters; values are JSON, or texts."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seeds", type=int, help="how many seeds, from 0")
    made.add_argument("--json", type=Path, help="write the report to this file")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="hyperparameters to change")
    return made
