"""Learning bars over real sockets, with the trainer's defaults but for what a goal sets, beside Stable-Baselines3.

Usage, from the repository's root::

    python -m benchmarks.learning [cartpole masked pendulum ...] [--algorithm offpolicy] [--seeds 3] [--out results/]

Environments run in a host process of their own, as ``agentgpt train`` starts it; the bundle is evaluated greedily and
by sampling over 20 episodes each, in another host process. Evaluation steps are no part of training: they choose
nothing. A seed passes where the greedy return reaches the bar and the run was no longer than the goal, or its training
return (mean of the last 20 episodes) crossed the bar within it. A task passes where most seeds do.

Where the task names a baseline (unless ``--no-baseline``), each seed is followed by a run of it in process, in the same
minute, with one torch thread as well, until its training return crosses the bar. The ratio is that of the median
seconds to the crossing, where a run that never crosses counts with all its seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.reporting import Progress
from benchmarks.baselines import Curve, run_baseline
from benchmarks.common import Crossing, parse_overrides, parser, print_table, write_report
from benchmarks.curves import write_curves
from benchmarks.tasks import TASKS, Goal, Task

DEFAULT_TASKS = ["cartpole", "masked", "pendulum", "tmaze"]
EVALUATION_EPISODES = 20
EVALUATION_SEED = 10_000


@dataclass(frozen=True, kw_only=True)
class Run:
    """One seed of one side.

    Attributes:
        side: ``agentgpt`` or the baseline's name.
        crossed_at_steps: environment steps at which the training return crossed the bar.
        crossed_at_s: seconds at which it did.
        wall_s: seconds of the whole run.
        greedy: mean greedy return at the end; None for a baseline.
        sampled: the same with sampled actions.
        passed: whether the goal is reached; None for a baseline.
        curve: environment steps and training return.
    """

    task: str
    side: str
    seed: int
    env_steps: int
    crossed_at_steps: int | None
    crossed_at_s: float | None
    wall_s: float
    greedy: float | None = None
    sampled: float | None = None
    passed: bool | None = None
    curve: Curve = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds to the crossing, or all of them."""
        return self.wall_s if self.crossed_at_s is None else self.crossed_at_s

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        values = {name: value for name, value in asdict(self).items() if name != "curve"}
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()}


def run_seed(task: Task, goal: Goal, seed: int, runs_dir: Path, overrides: Mapping[str, Any]) -> Run:
    """Train one seed over real sockets and evaluate its bundle over real sockets."""
    # What the run itself would evaluate, the benchmark evaluates at its end.
    defaults = {"env_id": task.source, "max_steps": goal.run_steps, "seed": seed, "eval_interval_steps": 0}
    hyperparameters = Hyperparameters(**{**defaults, **goal.hyperparameters, **overrides})
    crossing, curve = Crossing(goal.bar), Curve()

    def on_progress(progress: Progress) -> None:
        crossing.on_progress(progress)
        if progress.episode_return is not None:
            curve.append((progress.env_steps, progress.episode_return))

    training = train(hyperparameters, run_dir=runs_dir / f"{task.name}-{seed}", on_progress=on_progress)
    means = []
    for deterministic in (True, False):
        with GPTPolicy(str(training.bundle), deterministic=deterministic, seed=seed) as policy:
            played = evaluate_source(policy, task.source, episodes=EVALUATION_EPISODES, seed=EVALUATION_SEED)
        means.append(played.mean)
    in_time = training.env_steps <= goal.within or (
        crossing.env_steps is not None and crossing.env_steps <= goal.within
    )
    return Run(
        task=task.name,
        side="agentgpt",
        seed=seed,
        env_steps=training.env_steps,
        crossed_at_steps=crossing.env_steps,
        crossed_at_s=crossing.wall_s,
        wall_s=training.wall_s,
        greedy=means[0],
        sampled=means[1],
        passed=means[0] >= goal.bar and in_time,
        curve=curve,
    )


def run_beside(task: Task, goal: Goal, seed: int) -> Run | None:
    """Run the task's baseline, if it has one."""
    if task.baseline is None:
        return None
    began = time.perf_counter()
    crossing, curve = run_baseline(task.baseline, task.source, goal.bar, seed)
    return Run(
        task=task.name,
        side=task.baseline.title,
        seed=seed,
        env_steps=(not task.baseline.whole and crossing.env_steps) or task.baseline.max_steps,
        crossed_at_steps=crossing.env_steps,
        crossed_at_s=crossing.wall_s,
        wall_s=time.perf_counter() - began,
        curve=curve,
    )


def summary(task: Task, goal: Goal, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the task's row: medians over seeds, and whether it passes."""
    ours = [run for run in runs if run.side == "agentgpt"]
    theirs = [run for run in runs if run.side != "agentgpt"]
    crossed = [run.crossed_at_steps for run in ours if run.crossed_at_steps is not None]
    ratio = median(run.seconds for run in ours) / median(run.seconds for run in theirs) if theirs else None
    most = sum(bool(run.passed) for run in ours) * 2 > len(ours)
    return {
        "task": task.name,
        "bar": goal.bar,
        "within": goal.within,
        "seeds": len(ours),
        "greedy": round(median(run.greedy for run in ours if run.greedy is not None), 2),
        "sampled": round(median(run.sampled for run in ours if run.sampled is not None), 2),
        # A seed that never crossed lies beyond all others.
        "crossed_at_steps": sorted(crossed)[len(ours) // 2] if len(crossed) > len(ours) // 2 else None,
        "seconds": round(median(run.seconds for run in ours), 1),
        "baseline": theirs[0].side if theirs else "-",
        "baseline_seconds": round(median(run.seconds for run in theirs), 1) if theirs else None,
        "ratio": None if ratio is None else round(ratio, 2),
        "ratio_bar": task.wall_ratio if theirs else None,
        "passed": most,
        "fast_enough": None if ratio is None or task.wall_ratio is None else ratio <= task.wall_ratio,
    }


def run_task(
    task: Task, goal: Goal, seeds: Sequence[int], runs_dir: Path, overrides: Mapping[str, Any], *, baseline: bool
) -> list[Run]:
    """Run all seeds of a task, each followed by its baseline."""
    runs: list[Run] = []
    for seed in seeds:
        runs.append(run_seed(task, goal, seed, runs_dir, overrides))
        print(runs[-1].row(), flush=True)
        beside = run_beside(task, goal, seed) if baseline else None
        if beside is not None:
            runs.append(beside)
            print(beside.row(), flush=True)
    return runs


def options() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = parser(__doc__ or "")
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("tasks", nargs="*", metavar="TASK", help=f"{', '.join(TASKS)}; {DEFAULT_TASKS} by default")
    made.add_argument("--algorithm", choices=("ppo", "offpolicy"), default="ppo", help="update rule, and whose goals")
    made.add_argument("--out", type=Path, help="write a PNG for each task, and learning.json, to this folder")
    made.add_argument("--runs-dir", type=Path, help="keep the runs here")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--no-baseline", action="store_true", help="run no baseline beside")
    return made


def chosen_goals(told: argparse.Namespace, made: argparse.ArgumentParser) -> list[tuple[Task, Goal]]:
    """Return the tasks asked for with their goals; anything unknown is a usage error."""
    chosen = []
    for name in told.tasks or DEFAULT_TASKS:
        if name not in TASKS:
            made.error(f"unknown task {name!r}: expected some of {', '.join(TASKS)}")
        goal = TASKS[name].goals.get(told.algorithm)
        if goal is None:
            made.error(f"task {name!r} has no goal for --algorithm {told.algorithm}")
        chosen.append((TASKS[name], goal))
    return chosen


def main(arguments: list[str] | None = None) -> int:
    made = options()
    told = made.parse_args(arguments)
    chosen = chosen_goals(told, made)
    overrides = {"algorithm": told.algorithm, **parse_overrides(told.set)}
    seeds = range(told.first_seed, told.first_seed + (told.seeds or 3))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        for task, goal in chosen:
            runs_dir = told.runs_dir or Path(scratch)
            done = run_task(task, goal, seeds, runs_dir, overrides, baseline=not told.no_baseline)
            runs += done
            rows.append(summary(task, goal, done))
            if told.out is not None:
                curves = [(run.side, run.seed, run.curve) for run in done]
                write_curves(
                    told.out / f"{task.name}-{told.algorithm}.png", f"{task.name}, {told.algorithm}", goal, curves
                )
    print()
    print_table(rows)
    report = {"benchmark": "learning", "algorithm": told.algorithm, "rows": rows, "runs": [asdict(run) for run in runs]}
    for path in (told.json, None if told.out is None else told.out / "learning.json"):
        write_report(path, report)
    return 0 if all(row["passed"] and row["fast_enough"] is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
