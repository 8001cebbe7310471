"""Metrics of a run as JSON lines: one object a line, appended and flushed, readable while it grows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from agentgpt_remote.files import replacing


class MetricsWriter:
    """Append metrics to a ``metrics.jsonl``.

    Args:
        path: the file; made if it is missing.
        keep_until: when given, lines with ``env_steps`` beyond it are dropped first, together with a
            line cut short by a crash, so that a resumed run's curve is in one piece.
    """

    def __init__(self, path: Path, *, keep_until: int | None = None) -> None:
        if keep_until is not None and path.exists():
            _truncate(path, keep_until)
        self._file = path.open("a", encoding="utf-8")

    def write(self, env_steps: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append one line.

        Args:
            env_steps: environment steps of the run so far.
            values: metric name to value; NaN and infinities are written as null.
        """
        row = {"env_steps": env_steps} | {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a ``metrics.jsonl``; a line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _truncate(path: Path, keep_until: int) -> None:
    kept = [row for row in read_metrics(path) if row["env_steps"] <= keep_until]
    with replacing(path) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in kept)


def _finite(value: float | int | str | None) -> float | int | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
