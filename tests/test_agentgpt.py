"""Training in a child process and acting with the result, end to end over real sockets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agentgpt_remote import (
    AgentGPT,
    EnvHost,
    EnvLauncher,
    GPTPolicy,
    Hyperparameters,
    RemoteEnv,
    RemoteVectorEnv,
    errors,
)
from tests.support import is_running, wait_until

SMALL: dict[str, Any] = {"num_layers": 1, "d_model": 32, "max_steps": 600, "rollout_steps": 256, "num_envs": 4}


class Corridor(gym.Env[np.ndarray, int]):
    """Ten steps; the second action is right."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return np.full(1, self._steps / 10, np.float32), float(action == 1), self._steps == 10, False, {}


def test_train_on_local_writes_a_run_and_a_policy(tmp_path: Path) -> None:
    run = AgentGPT.train_on_local(Hyperparameters(env_id="CartPole-v1", **SMALL), runs_dir=tmp_path)
    status = run.wait(120)
    assert (status.state, run.run_id) == ("completed", "CartPole-v1")
    assert 590 <= status.env_steps <= 600
    assert status.episode_return is not None
    assert run.status() == status
    steps = [row["env_steps"] for row in run.metrics()]
    assert steps == sorted(steps)
    saved = json.loads((run.run_dir / "config.json").read_text())["hyperparameters"]
    assert (saved["num_layers"], saved["d_model"], saved["max_steps"]) == (1, 32, 600)
    assert (run.run_dir / "learning_curve.png").stat().st_size > 1000
    assert list((run.run_dir / "tensorboard").glob("events.*"))
    with run.policy() as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)
    with AgentGPT.run_on_local(run.run_dir / "policy") as served:
        assert served(np.zeros(4, np.float32)) in (0, 1)


def test_train_on_local_learns_from_what_a_user_has(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(**SMALL)
    with (
        RemoteEnv(lambda: Corridor()) as by_factory,
        RemoteEnv(Corridor()) as by_instance,
        RemoteVectorEnv(Corridor, num_envs=2) as vector,
        EnvLauncher.launch_on_local_with_ip(Corridor, port=0, num_envs=3) as launched,
    ):
        for index, env in enumerate([by_factory, by_instance, vector, launched.url]):
            run = AgentGPT.train_on_local(hyperparameters, env, run_id=f"run-{index}", runs_dir=tmp_path)
            assert run.wait(120).state == "completed", env
        run = AgentGPT.train_on_local(hyperparameters, [vector, launched.url], run_id="both", runs_dir=tmp_path)
        assert run.wait(120).state == "completed"
        lanes = json.loads((run.run_dir / "config.json").read_text())["lanes"]
        assert len({name.partition("/")[0] for name in lanes}) == 2


def test_train_on_local_stops_with_a_usable_bundle_and_resumes(tmp_path: Path) -> None:
    fields = SMALL | {"env_id": "CartPole-v1", "max_steps": 1_000_000}
    run = AgentGPT.train_on_local(Hyperparameters(**fields), run_id="long", runs_dir=tmp_path)
    wait_until(lambda: run.status().env_steps >= 1000, 60.0)
    with pytest.raises(errors.RemoteTimeout, match="still trains"):
        run.wait(0.1)
    status = run.stop()
    assert status.state == "stopped"
    with run.policy() as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)
    again = Hyperparameters(**fields | {"max_steps": status.env_steps + 500, "resume_training": True})
    resumed = AgentGPT.train_on_local(again, run_id="long", runs_dir=tmp_path).wait(120)
    assert resumed.state == "completed"
    assert status.env_steps + 400 <= resumed.env_steps <= status.env_steps + 500


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_training_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "from agentgpt_remote import AgentGPT, Hyperparameters\n"
        "run = AgentGPT.train_on_local(Hyperparameters(env_id='CartPole-v1', max_steps=10**7), "
        f"run_id='orphan', runs_dir={str(tmp_path)!r})\n"
        "print(run._process.pid, flush=True)\n"
        "run.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: (tmp_path / "orphan" / "metrics.jsonl").exists(), 60.0)
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    wait_until(lambda: not is_running(pid), 60.0)
    with GPTPolicy(tmp_path / "orphan" / "policy") as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)


def test_failed_training_raises_the_trainers_error(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(env_hosts={"gone": EnvHost(env_endpoint="ws://127.0.0.1:9")}, **SMALL)
    run = AgentGPT.train_on_local(hyperparameters, runs_dir=tmp_path)
    with pytest.raises(errors.HostUnreachable, match=r"nothing listens at ws://127\.0\.0\.1:9"):
        run.wait(60)
    assert run.status().state == "failed"


def test_train_on_local_refuses_a_run_id_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    with pytest.raises(errors.RunExists, match=r"taken exists.*--resume"):
        AgentGPT.train_on_local(Hyperparameters(env_id="CartPole-v1"), run_id="taken", runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("env", "run_id", "message"),
    [
        (None, None, "no environment is named"),
        ([], None, "at least one"),
        (gym.make("CartPole-v1"), None, "lives in this process"),
        ("ws://127.0.0.1:9", "a/b", "without slashes"),
    ],
)
def test_train_on_local_refuses_what_cannot_work(tmp_path: Path, env: Any, run_id: str | None, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        AgentGPT.train_on_local(Hyperparameters(), env, run_id=run_id, runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_run_on_local_of_a_missing_bundle_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleError, match="no policy bundle"):
        AgentGPT.run_on_local(tmp_path)
