"""What the benchmarks share: the tasks, running one seed, tables."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentgpt_remote import __version__
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.trainer.evaluation import Evaluation, evaluate_source
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import TrainingResult, train
from agentgpt_remote.trainer.reporting import Progress

EVALUATION_EPISODES = 20
EVALUATION_SEED = 10_000
RETURN_WINDOW = 20


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task and its bar: the greedy return to reach within so many environment steps."""

    name: str
    source: str
    bar: float
    max_steps: int
    seeds: int = 3


TASKS = {
    task.name: task
    for task in (
        Task(name="cartpole", source="CartPole-v1", bar=475, max_steps=60_000, seeds=5),
        Task(name="masked", source="examples.envs:masked_cartpole", bar=475, max_steps=80_000),
        Task(name="pendulum", source="Pendulum-v1", bar=-200, max_steps=80_000),
        Task(name="tmaze", source="examples.envs:t_maze", bar=0.9, max_steps=40_000),
        Task(name="lunarlander", source="LunarLander-v3", bar=200, max_steps=500_000),
        Task(name="halfcheetah", source="HalfCheetah-v5", bar=1443, max_steps=200_000),
        Task(name="hopper", source="Hopper-v5", bar=1000, max_steps=200_000),
    )
}


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


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One seed: when the training return crossed the bar, and the greedy and sampled returns at the end."""

    task: str
    seed: int
    crossing: Crossing
    training: TrainingResult
    greedy: Evaluation
    sampled: Evaluation
    cpu_s: float

    def row(self, bar: float) -> dict[str, Any]:
        """Return the row of the table."""
        return {
            "task": self.task,
            "seed": self.seed,
            "greedy": round(self.greedy.mean, 2),
            "sampled": round(self.sampled.mean, 2),
            "passed": self.greedy.mean >= bar,
            "crossed_at_steps": self.crossing.env_steps,
            "crossed_at_s": None if self.crossing.wall_s is None else round(self.crossing.wall_s, 1),
            "env_steps": self.training.env_steps,
            "policy_env_steps": self.training.policy_env_steps,
            "wall_s": round(self.training.wall_s, 1),
            "trainer_cpu_s": round(self.cpu_s, 1),
        }


def run_seed(task: Task, seed: int, runs_dir: Path, overrides: dict[str, Any]) -> SeedResult:
    """Train one seed over real sockets and evaluate its bundle over real sockets."""
    values: dict[str, Any] = {"env_id": task.source, "max_steps": task.max_steps, "seed": seed, **overrides}
    crossing, cpu = Crossing(task.bar), time.process_time()
    run_dir = runs_dir / f"{task.name}-{seed}"
    training = train(Hyperparameters(**values), run_dir=run_dir, on_progress=crossing.on_progress)
    cpu = time.process_time() - cpu
    evaluations = []
    for deterministic in (True, False):
        with GPTPolicy(str(training.bundle), deterministic=deterministic, seed=seed) as policy:
            evaluations.append(evaluate_source(policy, task.source, episodes=EVALUATION_EPISODES, seed=EVALUATION_SEED))
    greedy, sampled = evaluations
    return SeedResult(
        task=task.name, seed=seed, crossing=crossing, training=training, greedy=greedy, sampled=sampled, cpu_s=cpu
    )


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
