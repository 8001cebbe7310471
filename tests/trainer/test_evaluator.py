"""Greedy returns during training, which change nothing of it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.trainer import evaluator
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import train
from tests.conftest import ServeFunction

SMALL: dict[str, Any] = {
    "use_tensorboard": False,
    "rollout_steps": 256,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "num_envs": 8,
    "max_steps": 2000,
    "checkpoint_interval_s": 1e6,
}


def learned(run_dir: Path, **values: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Train; return the metrics that do not depend on the clock, and the weights."""
    result = train(Hyperparameters(**{**SMALL, **values}), run_dir=run_dir)
    rows = [
        {name: value for name, value in row.items() if not name.startswith(("time/", "remote/"))}
        for row in read_metrics(run_dir / "metrics.jsonl")
    ]
    return rows, dict(load_bundle(result.bundle).model.state_dict())


def test_evaluation_gives_greedy_returns_and_disturbs_nothing(tmp_path: Path) -> None:
    without, weights = learned(tmp_path / "a", env_id="CartPole-v1", eval_interval_steps=0)
    rows, same = learned(tmp_path / "b", env_id="CartPole-v1", eval_interval_steps=500, eval_episodes=3)
    greedy = [row.pop("rollout/greedy_return") for row in rows if "rollout/greedy_return" in row]
    lengths = [row.pop("rollout/greedy_length") for row in rows if "rollout/greedy_length" in row]
    assert len(greedy) in (3, 4)
    assert greedy == lengths, "CartPole pays 1 a step"
    assert min(greedy) >= 8
    assert rows == without, "the same steps, the same losses"
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_evaluation_at_a_host_leaves_no_session_behind(tmp_path: Path, serve_here: ServeFunction) -> None:
    with serve_here("CartPole-v1", num_envs=12) as host:
        hosts = {"lab": EnvHost(env_endpoint=host.url, num_agents=8)}
        rows, _ = learned(tmp_path, env_hosts=hosts, eval_interval_steps=500)
        assert httpx.get(host.url.replace("ws://", "http://") + "/health").json()["envs"] == 0
    assert sum("rollout/greedy_return" in row for row in rows) >= 3


def test_full_host_is_said_once_and_training_goes_on(
    tmp_path: Path, serve_here: ServeFunction, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_here("CartPole-v1", num_envs=8) as host, caplog.at_level(logging.WARNING, "agentgpt_remote.trainer"):
        hosts = {"lab": EnvHost(env_endpoint=host.url, num_agents=8)}
        rows, _ = learned(tmp_path, env_hosts=hosts, eval_interval_steps=300)
    assert not any("rollout/greedy_return" in row for row in rows)
    assert rows[-1]["env_steps"] > 1900
    (said,) = [record.getMessage() for record in caplog.records if "no greedy evaluation" in record.getMessage()]
    assert host.url in said
    assert "eval_interval_steps=0 turns it off" in said


def test_evaluation_that_would_take_too_long_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_MAX_DECISIONS", 100)
    with caplog.at_level(logging.WARNING, "agentgpt_remote.trainer"):
        rows, _ = learned(tmp_path, env_id="Pendulum-v1", eval_interval_steps=300, max_steps=700)
    assert not any("rollout/greedy_return" in row for row in rows)
    assert "more than 300 steps" in caplog.text


def test_evaluation_ends_when_training_is_stopped(tmp_path: Path) -> None:
    stop = threading.Event()

    def on_progress(_: Any) -> None:
        stop.set()

    values = {**SMALL, "env_id": "CartPole-v1", "eval_interval_steps": 1, "max_steps": 10**6}
    result = train(Hyperparameters(**values), run_dir=tmp_path, on_progress=on_progress, stop_event=stop)
    assert result.stopped
