"""Metrics beyond metrics.jsonl: what arrives, what is kept secret, what happens without the library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.scrubbing import without_secrets
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.reporting import Reporter
from tests.trainer.test_loop import SMALL
from tests.trainer.tiny_envs import Echo

SECRET = "hunter2-hunter2"


class FakeWandb(types.ModuleType):
    """Notes what it is given."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.finished = 0
        self.refuses = False

    def Settings(self, **values: Any) -> dict[str, Any]:
        return values

    def init(self, **values: Any) -> FakeWandb:
        if self.refuses:
            raise self.errors.Error("not logged in")
        self.inits.append(values)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def run(run_dir: Path, **values: Any) -> None:
    envs = SyncVectorEnv([Echo] * 8)
    try:
        train(Hyperparameters(use_tensorboard=False, **{**SMALL, **values}), run_dir=run_dir, envs=[envs])
    finally:
        envs.close()


def test_wandb_gets_the_rows_of_metrics_jsonl(tmp_path: Path, wandb: FakeWandb) -> None:
    run(tmp_path / "x", max_steps=600, wandb_project="cats")
    rows = list(read_metrics(tmp_path / "x" / "metrics.jsonl"))
    assert wandb.rows == [{name: value for name, value in row.items() if value is not None} for row in rows]
    (init,) = wandb.inits
    assert (init["project"], init["name"], wandb.finished) == ("cats", "x", 1)
    assert init["config"]["max_steps"] == 600
    assert init["settings"]["x_disable_meta"], "the command line may hold a token"
    run(tmp_path / "x", max_steps=1200, wandb_project="cats", resume_training=True)
    assert wandb.inits[1]["id"] == init["id"], "a resumed run goes on with its curve"


def test_wandb_is_never_told_a_secret(tmp_path: Path, wandb: FakeWandb) -> None:
    hyperparameters = Hyperparameters(
        env_hosts={"lab": EnvHost(env_endpoint=f"ws://me:{SECRET}@sim-7:8000/x?token={SECRET}")},
        env_kwargs={"api_key": SECRET, "nested": {"Password": SECRET, "level": 3}},
        wandb_project="cats",
        use_tensorboard=False,
    )
    Reporter(tmp_path, hyperparameters.resolve("cpu"), resumed_at=None).close()
    told = json.dumps(wandb.inits, default=str)
    assert SECRET not in told
    assert "ws://sim-7:8000/x" in told
    assert without_secrets({"level": 3, "names": ["a"]}) == {"level": 3, "names": ["a"]}


def test_wandb_that_refuses_says_what_to_do(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.refuses = True
    with pytest.raises(ConfigError, match=r"wandb_project='cats'.*not logged in.*wandb login"):
        run(tmp_path / "x", wandb_project="cats")
    assert not (tmp_path / "x" / "metrics.jsonl").exists()


def test_wandb_missing_is_an_error_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(DependencyNotInstalled, match=r"wandb is not installed.*agentgpt-remote\[wandb\]"):
        run(tmp_path / "x", wandb_project="cats")
    assert not (tmp_path / "x").exists()


def test_tensorboard_missing_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level("WARNING", "agentgpt_remote.trainer"):
        reporter = Reporter(tmp_path, Hyperparameters(), resumed_at=None)
    reporter.write(1, {"train/entropy": 1.0})
    reporter.close()
    reporter.close()
    assert "tensorboard is not installed" in caplog.text
    assert [row["train/entropy"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1.0]


REAL = """
import sys
from gymnasium.vector import SyncVectorEnv
from agentgpt_remote import Hyperparameters
from agentgpt_remote.trainer.loop import train
from tests.trainer.tiny_envs import Echo

hyperparameters = Hyperparameters(
    max_steps=600, rollout_steps=256, d_model=32, num_layers=1, wandb_project="cats", use_tensorboard=False,
    env_kwargs={"api_key": sys.argv[2]},
)
envs = SyncVectorEnv([Echo] * 8)
train(hyperparameters, run_dir=sys.argv[1], envs=[envs])
envs.close()
"""


def test_real_wandb_offline_writes_a_run_without_secrets(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    words = [sys.executable, "-c", REAL, str(tmp_path / "x"), SECRET]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "x" / "wandb").glob("offline-run-*/*.wandb")
    data = written.read_bytes()
    assert b"rollout/episode_return" in data
    assert b"max_steps" in data
    everything = b"".join(
        path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file() and "wandb" in path.parts
    )
    assert SECRET.encode() not in everything
