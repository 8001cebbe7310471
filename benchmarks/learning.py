"""Learning bars over real sockets, with the trainer's defaults.

Usage, from the repository's root: ``python -m benchmarks.learning [cartpole masked pendulum tmaze ...]``.
Environments run in a host process of their own, as ``agentgpt train`` starts it; the bundle is evaluated
greedily and by sampling over 20 episodes each, in another host process. Evaluation steps are no part of
training: they choose nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import TASKS, parse_overrides, parser, print_table, run_seed, write_report

DEFAULT_TASKS = ["cartpole", "masked", "pendulum", "tmaze"]


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("tasks", nargs="*", metavar="TASK", help=f"which tasks; {DEFAULT_TASKS} by default")
    options.add_argument("--runs-dir", type=Path, help="keep the runs here")
    options.add_argument("--first-seed", type=int, default=0)
    arguments = options.parse_args()
    unknown = [name for name in arguments.tasks if name not in TASKS]
    if unknown:
        options.error(f"unknown task {unknown[0]!r}: expected some of {', '.join(TASKS)}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.tasks or DEFAULT_TASKS:
            task = TASKS[name]
            for seed in range(arguments.first_seed, arguments.first_seed + (arguments.seeds or task.seeds)):
                runs_dir = arguments.runs_dir or Path(scratch)
                result = run_seed(task, seed, runs_dir, parse_overrides(arguments.set))
                rows.append({"bar": task.bar, **result.row(task.bar)})
                print(rows[-1], flush=True)
    print()
    print_table(rows)
    write_report(arguments.json, {"benchmark": "learning", "rows": rows})
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
