"""Wall-clock to a training return of 475 on CartPole-v1: this package over a socket beside SB3's PPO in process.

Usage, from the repository's root: ``python -m benchmarks.wallclock_vs_sb3 [--seeds 5]``.
Both sides stop when the mean return of the last 20 finished training episodes reaches 475. Time runs from
the call that starts training: for this package that includes starting the host process, for both it
excludes importing torch. SB3 has rl-zoo's hyperparameters. Seeds alternate between the two sides.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from benchmarks.baselines import run_baseline
from benchmarks.common import Crossing, parse_overrides, parser, print_table, write_report
from benchmarks.tasks import TASKS

BAR = 475.0


def run_ours(seed: int, overrides: dict[str, Any]) -> Crossing:
    """Train over a socket until the bar is crossed."""
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as scratch:
        values: dict[str, Any] = {"env_id": "CartPole-v1", "max_steps": 60_000, "seed": seed, **overrides}
        crossing = Crossing(BAR, stop.set)
        train(Hyperparameters(**values), run_dir=Path(scratch), on_progress=crossing.on_progress, stop_event=stop)
    return crossing


def run_sb3(seed: int) -> Crossing:
    """Train rl-zoo's PPO in process until the bar is crossed."""
    task = TASKS["cartpole"]
    if task.baseline is None:
        raise RuntimeError("the cartpole task names no baseline")
    return run_baseline(task.baseline, task.source, BAR, seed)[0]


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--threads", type=int, default=1, help="torch threads of both sides")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    overrides = {"torch_threads": arguments.threads, **parse_overrides(arguments.set)}
    rows: list[dict[str, Any]] = []
    times: dict[str, list[float]] = {"agentgpt_remote": [], "sb3": []}
    for seed in range(arguments.seeds or 5):
        for side in times:
            began = time.perf_counter()
            crossing = run_ours(seed, overrides) if side == "agentgpt_remote" else run_sb3(seed)
            # A run that never crosses counts with all the time it took.
            times[side].append(crossing.wall_s or time.perf_counter() - began)
            row = {"side": side, "seed": seed, "steps": crossing.env_steps, "wall_s": round(times[side][-1], 2)}
            rows.append(row | {"cpu_s": None if crossing.cpu_s is None else round(crossing.cpu_s, 2)})
            print(rows[-1], flush=True)
    medians = {side: statistics.median(values) for side, values in times.items()}
    ratio = medians["agentgpt_remote"] / medians["sb3"]
    print()
    print_table(rows)
    print(f"medians: {medians}; ratio {ratio:.2f} (bar: at most 1.0)")
    write_report(arguments.json, {"benchmark": "wallclock", "rows": rows, "medians_s": medians, "ratio": ratio})
    return 0 if ratio <= 1.0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
