from __future__ import annotations

import math
from pathlib import Path

from agentgpt_remote.metrics import MetricsWriter, read_metrics


def test_metrics_writer_appends_readable_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(10, {"train/entropy": 0.5, "train/policy_loss": math.nan})
        assert list(read_metrics(path)) == [{"env_steps": 10, "train/entropy": 0.5, "train/policy_loss": None}]


def test_metrics_writer_resumes_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for steps in (10, 20, 30):
            writer.write(steps, {"value": steps})
    with path.open("a") as file:
        file.write('{"env_steps": 40, "val')
    with MetricsWriter(path, keep_until=20) as writer:
        writer.write(25, {"value": -1})
    assert [row["env_steps"] for row in read_metrics(path)] == [10, 20, 25]


def test_read_metrics_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path / "none.jsonl")) == []
