"""What old weights cost: environment steps to the bar with actions of a policy that is thousands of steps old.

Usage, from the repository's root::

    python -m benchmarks.policy_lag [--lag 4000] [--seeds 3] [--set replay_ratio=14]

Trains ``offpolicy`` on Pendulum-v1 over sockets twice for each seed, one after the other: as it is, and acting with the
weights of ``--lag`` environment steps ago, as a trainer does whose hosts are slow to send and to receive. The ratio is
that of the median environment steps at which the training return (mean of the last 20 episodes) crosses -200; a run
that never does counts with all its steps.
"""

from __future__ import annotations

import copy
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from agentgpt_remote.trainer import loop
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.session import TrainingSession
from benchmarks.common import Crossing, parse_overrides, parser, print_table, write_report

BAR = -200.0
RATIO_BAR = 1.25


class LaggingSession(TrainingSession):
    """Acts with the weights of some environment steps ago.

    Attributes:
        steps_behind: how many, of all sessions.
        measured: steps between the moments at which the acting weights and the newest were made, at each refresh.
    """

    steps_behind = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.acting = self.collector.model = copy.deepcopy(self.model)
        self.measured: list[int] = []
        self._made: deque[tuple[int, dict[str, torch.Tensor]]] = deque()

    def _refresh_acting(self) -> None:
        now = self.collector.env_steps
        self._made.append((now, {name: value.clone() for name, value in self.model.state_dict().items()}))
        while len(self._made) > 1 and now - self._made[1][0] >= self.steps_behind:
            self._made.popleft()
        made_at, weights = self._made[0]
        if now - made_at >= self.steps_behind:
            self.acting.load_state_dict(weights)
            self.measured.append(now - made_at)
        self.rebuild_cache()


def steps_to_bar(seed: int, lag: int, max_steps: int, overrides: Mapping[str, Any]) -> int:
    """Train once; return the environment steps at which the training return crossed the bar, or all of them."""
    stop = threading.Event()
    crossing = Crossing(BAR, stop.set)
    defaults = {"env_id": "Pendulum-v1", "algorithm": "offpolicy", "max_steps": max_steps, "seed": seed}
    hyperparameters = Hyperparameters(**{**defaults, "eval_interval_steps": 0, **overrides})
    session = type("Session", (LaggingSession,), {"steps_behind": lag})
    with tempfile.TemporaryDirectory() as scratch, patch.object(loop, "TrainingSession", session):
        run_dir = Path(scratch) / "run"
        loop.train(hyperparameters, run_dir=run_dir, on_progress=crossing.on_progress, stop_event=stop)
    return crossing.env_steps or max_steps


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__ or "")
    made.add_argument("--lag", type=int, default=4000, help="environment steps")
    made.add_argument("--max-steps", type=int, default=40_000, help="of each run")
    told = made.parse_args(arguments)
    torch.set_num_threads(1)
    overrides = parse_overrides(told.set)
    steps: dict[int, list[int]] = {0: [], told.lag: []}
    for seed in range(told.seeds or 3):
        for lag, crossed in steps.items():
            crossed.append(steps_to_bar(seed, lag, told.max_steps, overrides))
            print({"seed": seed, "lag": lag, "steps_to_bar": crossed[-1]}, flush=True)
    fresh, old = median(steps[0]), median(steps[told.lag])
    row = {"lag": told.lag, "steps": fresh, "steps_with_lag": old, "ratio": round(old / fresh, 2), "bar": RATIO_BAR}
    print()
    print_table([row])
    write_report(told.json, {"benchmark": "policy_lag", "rows": [row], "steps": steps})
    return 0 if old / fresh <= RATIO_BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
