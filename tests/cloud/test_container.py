"""The training container by itself: its folders, its endings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentgpt_remote import GPTPolicy
from agentgpt_remote.cloud.container_folders import ContainerFolders
from agentgpt_remote.errors import ConfigError
from tests.support import wait_until

SMALL = {"num_envs": "4", "num_layers": "1", "d_model": "32", "rollout_steps": "256", "checkpoint_interval_s": "0.5"}
ENTRY = [sys.executable, "-m", "agentgpt_remote", "container"]


def _fill(base: Path, hyperparameters: Any, resources: Any = None) -> None:
    (base / "input" / "config").mkdir(parents=True)
    (base / "checkpoints").mkdir()
    (base / "input" / "config" / "hyperparameters.json").write_text(
        hyperparameters if isinstance(hyperparameters, str) else json.dumps(hyperparameters)
    )
    if resources is not None:
        (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources))


def _start(base: Path, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(base)} | variables
    words = [*ENTRY, "train"]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_step_that_never_returns_does_not_cost_the_policy(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    base = tmp_path / "ml"
    _fill(base, SMALL | {"env_id": "tests.cloud.hanging_env:make", "max_steps": "10000000"})
    with _start(base, HANG_WHEN=str(hang), AGENTGPT_STOP_GRACE_S="2") as process:
        checkpoints = base / "checkpoints" / "run" / "checkpoints"
        wait_until(lambda: checkpoints.exists() and len(list(checkpoints.glob("step-*.pt"))) >= 2, 60.0)
        hang.touch()
        time.sleep(1.0)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 0
        finally:
            hang.unlink()
        assert time.monotonic() - began < 10
        assert process.stdout is not None
        assert "did not end within 2 s of SIGTERM: keeping the last checkpoint" in process.stdout.read()
    with GPTPolicy(base / "model") as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.parametrize(
    ("hyperparameters", "resources", "message"),
    [
        ('{"env_id": ', None, "ConfigError: .*hyperparameters.json can't be read"),
        ({"env_id": "CartPole-v1", "max_stepz": "5"}, None, "did you mean 'max_steps'"),
        ({"env_id": "CartPole-v1", "max_steps": "many"}, None, "max_steps='many': expected JSON"),
        ({"env_id": "CartPole-v1", "max_steps": 5}, None, "max_steps is not a text"),
        ({}, None, "no environment|env_id"),
        ({"env_id": "CartPole-v1"}, {"current_host": "algo-3", "hosts": ["algo-1"]}, "algo-3.* is none of hosts"),
    ],
)
def test_what_the_container_is_told_wrongly_is_in_the_failure_file(
    tmp_path: Path, hyperparameters: Any, resources: Any, message: str
) -> None:
    _fill(tmp_path, hyperparameters, resources)
    with _start(tmp_path) as process:
        assert process.wait(60) == 1
    failure = (tmp_path / "output" / "failure").read_text()
    assert len(failure.encode()) <= 1024
    assert "Traceback" not in failure.splitlines()[0]
    assert re.search(message, failure), failure


def test_outside_of_a_container_the_entry_says_what_it_is(tmp_path: Path) -> None:
    with _start(tmp_path / "nowhere") as process:
        assert process.wait(60) == 1
        assert process.stdout is not None
        told = process.stdout.read()
    assert "this command is the entry of a container that SageMaker starts" in told
    done = subprocess.run(
        [*ENTRY, "serve"],
        env=os.environ | {"SAGEMAKER_BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "holds no policy: expected config.json and model.safetensors" in done.stderr


def test_a_failure_that_is_long_is_cut_and_the_first_stays(tmp_path: Path) -> None:
    folders = ContainerFolders(tmp_path)
    folders.write_failure("ä" * 2000)
    folders.write_failure("another")
    assert len((tmp_path / "output" / "failure").read_bytes()) == 1024
    with pytest.raises(ConfigError, match=r"hyperparameters\.json can't be read"):
        folders.hyperparameters()
    assert folders.machines().hosts == ("localhost",)
