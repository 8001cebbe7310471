"""How a run ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run_dir: the run's folder.
        bundle: folder of the trained policy.
        env_steps: environment steps of the run, those before a resume included.
        wall_s: seconds of training, those before a resume included.
        episodes: finished episodes.
        episode_return: mean return of the last 20 training episodes (sampled actions); None before the first.
        policy_env_steps: environment steps after which the bundle's weights were taken.
        stopped: ended before ``max_steps``, by a signal or the stop event.
    """

    run_dir: Path
    bundle: Path
    env_steps: int
    wall_s: float
    episodes: int
    episode_return: float | None
    policy_env_steps: int
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"run_dir": str(self.run_dir), "bundle": str(self.bundle)}
