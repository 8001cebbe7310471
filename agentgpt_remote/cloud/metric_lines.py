"""Metrics as lines of a container's output, and the expressions by which SageMaker reads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "agentgpt metrics "
NUMBER = r"([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
# At most 40 may be defined; the others are in metrics.jsonl, beside the checkpoints.
DEFINED = (
    "env_steps",
    "rollout/episode_return",
    "rollout/episode_length",
    "rollout/episodes",
    "rollout/greedy_return",
    "rollout/greedy_length",
    "train/policy_loss",
    "train/value_loss",
    "train/entropy",
    "train/approx_kl",
    "train/learning_rate",
    "train/explained_variance",
    "train/gamma",
    "train/lambda",
    "time/sps",
    "time/tokens_per_s",
    "time/wall_s",
    "time/network_s",
    "time/act_s",
    "time/learn_s",
    "remote/lanes",
    "remote/lanes_away",
    "remote/round_trip_ms",
    "remote/network_ms",
)


def metric_line(values: Mapping[str, float | None]) -> str:
    """Return values as one line; those that are not finite are left out.

    >>> metric_line({"env_steps": 1024, "rollout/episode_return": 21.5, "train/entropy": None})
    'agentgpt metrics env_steps=1024 rollout/episode_return=21.5'
    """
    pairs = [f"{name}={value:.8g}" for name, value in values.items() if value is not None and math.isfinite(value)]
    return PREFIX + " ".join(pairs)


def metric_definitions() -> list[dict[str, str]]:
    """Return ``MetricDefinitions`` of a training job that match what :func:`metric_line` prints."""
    return [{"Name": name, "Regex": rf"(?:^| ){re.escape(name)}={NUMBER}"} for name in DEFINED]


def read_metric_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows in the lines of a log; other lines are left out."""
    rows = []
    for line in lines:
        _, prefix, rest = line.partition(PREFIX)
        pairs = [word.partition("=") for word in rest.split()] if prefix else []
        row = {name: number for name, equals, text in pairs if equals and (number := _number(text)) is not None}
        if "env_steps" in row:
            rows.append(row)
    return rows


def _number(text: str) -> float | int | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
