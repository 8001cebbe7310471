"""Errors of a run, told with where it stood and what is left of it."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.trainer.checkpoint import Checkpoints

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def check_losses(metrics: Mapping[str, float | None]) -> None:
    """Check that every loss of an update is a number.

    Raises:
        TrainingFailed: one is not; names it.
    """
    for name, value in metrics.items():
        if name.endswith("loss") and value is not None and not math.isfinite(value):
            raise TrainingFailed(f"{name} is {value}: lower lr_init, or check the environment's numbers")


@contextmanager
def failing_update(env_steps: int, checkpoints: Checkpoints) -> Iterator[None]:
    """Have the failure of an update say when it came and which checkpoint is the last good one."""
    try:
        yield
    except TrainingFailed as error:
        paths = checkpoints.paths()
        kept = f"the last good checkpoint is {paths[-1]}" if paths else "there was no checkpoint yet"
        raise TrainingFailed(f"the update at env step {env_steps} failed: {error}; {kept}") from error


@contextmanager
def failing_disk(run_dir: Path) -> Iterator[None]:
    """Have a disk that is full or not writable end a run with a clear error."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise TrainingFailed(
            f"could not write to {run_dir}: {error}; its checkpoints are whole, free some space and continue "
            "with --resume"
        ) from error
