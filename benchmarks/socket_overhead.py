"""What the socket costs: the same training with environments in this process and over a socket.

Usage, from the repository's root: ``python -m benchmarks.socket_overhead [--seeds 3] [--env-id CartPole-v1]``.
In process the same number of environments steps in lanes of the same sizes. The bar: the run in process
takes at least 0.8 of the run over the socket.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym

from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.results import TrainingResult
from benchmarks.common import parse_overrides, parser, print_table, write_report


def run_once(where: str, env_id: str, values: dict[str, Any]) -> TrainingResult:
    """Train once and return how long it took."""
    with tempfile.TemporaryDirectory() as scratch:
        if where == "socket":
            return train(Hyperparameters(env_id=env_id, **values), run_dir=Path(scratch))
        hyperparameters = Hyperparameters(**values)
        lanes = hyperparameters.lanes_per_host or 1
        made = [gym.make_vec(env_id, num_envs=hyperparameters.envs_per_host // lanes) for _ in range(lanes)]
        try:
            return train(hyperparameters, run_dir=Path(scratch), envs=made)
        finally:
            for envs in made:
                envs.close()


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--env-id", default="CartPole-v1")
    options.add_argument("--steps", type=int, default=60_000)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    times: dict[str, list[float]] = {"in process": [], "socket": []}
    for seed in range(arguments.seeds or 3):
        for where in times:
            values = {"max_steps": arguments.steps, "seed": seed, **parse_overrides(arguments.set)}
            result = run_once(where, arguments.env_id, values)
            times[where].append(result.wall_s)
            rows.append(
                {"where": where, "seed": seed, "env_steps": result.env_steps, "wall_s": round(result.wall_s, 2)}
            )
            print(rows[-1], flush=True)
    medians = {where: statistics.median(values) for where, values in times.items()}
    ratio = medians["in process"] / medians["socket"]
    print()
    print_table(rows)
    print(f"medians: {medians}; in process / socket {ratio:.2f} (bar: at least 0.8)")
    write_report(arguments.json, {"benchmark": "socket_overhead", "rows": rows, "medians_s": medians, "ratio": ratio})
    return 0 if ratio >= 0.8 else 1


if __name__ == "__main__":
    raise SystemExit(main())
