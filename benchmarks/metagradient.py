"""Gamma and lambda that are learned beside the same that stay, over real sockets, also from bad initial values.

Usage, from the repository's root::

    python -m benchmarks.metagradient [cartpole tmaze pendulum ...] [--algorithm offpolicy] [--starts default gamma=0.9]
        [--seeds 3] [--set meta_lr=0.03] [--json report.json]

Each seed of each start is run twice, one after the other: fixed, then learned (``--learn``: gamma, lambda or both).
Bars, step budgets and the evaluation are those of :mod:`benchmarks.learning`. A row gives medians over seeds: steps
at which the training return crossed the bar, where a run that never crosses counts with all its steps; the greedy
return at the end; what gamma and lambda ended at; seconds of the whole run; and the ratio of the steps, learned over
fixed. Learning helps in a row where that is at most 0.9 and the greedy return is no worse; it is worth being the
default where it helps in most of the rows that begin at the default values. The exit code tells that: 0 or 1.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from agentgpt_remote.metrics import read_metrics
from benchmarks.common import parse_overrides, parser, print_table, write_report
from benchmarks.learning import chosen_goals, run_seed
from benchmarks.tasks import Goal, Task

DEFAULT_TASKS = ["cartpole", "tmaze", "pendulum"]
STARTS: dict[str, dict[str, float]] = {
    "default": {},
    "gamma=0.9": {"gamma_init": 0.9},
    "gamma=0.999": {"gamma_init": 0.999},
    "lambda=0.5": {"lambda_init": 0.5},
}
HELPS = 0.9


@dataclass(frozen=True, kw_only=True)
class TunedRun:
    """One seed with values that stay or are learned.

    Attributes:
        steps: environment steps to the bar, or of the whole run.
        crossed: whether the training return crossed it.
        greedy: mean greedy return at the end.
        gamma: at the end.
        lambda_: at the end.
        wall_s: seconds of the whole run.
    """

    task: str
    start: str
    learned: bool
    seed: int
    steps: int
    crossed: bool
    greedy: float
    gamma: float
    lambda_: float
    wall_s: float


def run_one(
    task: Task, goal: Goal, start: str, seed: int, learn: Mapping[str, bool], told: Mapping[str, Any]
) -> TunedRun:
    """Train and evaluate one seed; nothing in ``learn`` leaves the values fixed."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_seed(task, goal, seed, Path(folder), {**STARTS[start], **told, **learn})
        last: dict[str, Any] = {}
        for row in read_metrics(Path(folder) / f"{task.name}-{seed}" / "metrics.jsonl"):
            last = row
    return TunedRun(
        task=task.name,
        start=start,
        learned=bool(learn),
        seed=seed,
        steps=run.env_steps if run.crossed_at_steps is None else run.crossed_at_steps,
        crossed=run.crossed_at_steps is not None,
        greedy=run.greedy or 0.0,
        gamma=last["train/gamma"],
        lambda_=last["train/lambda"],
        wall_s=run.wall_s,
    )


def row_of(goal: Goal, runs: Sequence[TunedRun]) -> dict[str, Any]:
    """Return the row of one task and start: medians over seeds, fixed beside learned."""
    fixed, learned = [run for run in runs if not run.learned], [run for run in runs if run.learned]
    steps = [median(run.steps for run in side) for side in (fixed, learned)]
    greedy = [median(run.greedy for run in side) for side in (fixed, learned)]
    ratio = steps[1] / steps[0]
    return {
        "task": runs[0].task,
        "start": runs[0].start,
        "bar": goal.bar,
        "seeds": len(fixed),
        "steps fixed": round(steps[0]),
        "learned": round(steps[1]),
        "ratio": round(ratio, 2),
        "crossed fixed": f"{sum(run.crossed for run in fixed)}/{len(fixed)}",
        "crossed learned": f"{sum(run.crossed for run in learned)}/{len(learned)}",
        "greedy fixed": round(greedy[0], 2),
        "greedy learned": round(greedy[1], 2),
        "gamma": f"{fixed[0].gamma:.4g} -> {median(run.gamma for run in learned):.4g}",
        "lambda": f"{fixed[0].lambda_:.4g} -> {median(run.lambda_ for run in learned):.4g}",
        "seconds fixed": round(median(run.wall_s for run in fixed), 1),
        "seconds learned": round(median(run.wall_s for run in learned), 1),
        "helps": ratio <= HELPS and greedy[1] >= greedy[0],
    }


def verdict(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether learning is worth being the default: it helps in most rows that begin at the default values."""
    usual = [bool(row["helps"]) for row in rows if row["start"] == "default"]
    return sum(usual) * 2 > len(usual)


def options() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("tasks", nargs="*", metavar="TASK", help=f"{DEFAULT_TASKS} by default")
    made.add_argument("--algorithm", choices=("ppo", "offpolicy"), default="ppo", help="update rule, and whose goals")
    made.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="initial values")
    made.add_argument("--learn", nargs="+", choices=("gamma", "lambda"), default=["gamma", "lambda"])
    made.add_argument("--first-seed", type=int, default=0)
    return made


def main(arguments: list[str] | None = None) -> int:
    made = options()
    told = made.parse_args(arguments)
    told.tasks = told.tasks or DEFAULT_TASKS
    overrides = {"algorithm": told.algorithm, **parse_overrides(told.set)}
    learn = {f"learn_{name}": True for name in told.learn}
    seeds = range(told.first_seed, told.first_seed + (told.seeds or 3))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    runs: list[TunedRun] = []
    for task, goal in chosen_goals(told, made):
        for start in told.starts:
            done = []
            for seed in seeds:
                for side in ({}, learn):
                    done.append(run_one(task, goal, start, seed, side, overrides))
                    print(asdict(done[-1]), flush=True)
            rows.append(row_of(goal, done))
            runs += done
    print()
    print_table(rows)
    helps = verdict(rows)
    print(f"\nlearned values are {'' if helps else 'not '}worth being the default")
    report = {"benchmark": "metagradient", "algorithm": told.algorithm, "set": overrides, "rows": rows}
    write_report(told.json, {**report, "runs": [asdict(run) for run in runs], "worth_being_the_default": helps})
    return 0 if helps else 1


if __name__ == "__main__":
    raise SystemExit(main())
