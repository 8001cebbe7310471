"""Whole runs over real sockets, in real processes, some of which are killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentgpt_remote.errors import HostUnreachable, RemoteEnvError, TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.processes import ChildProcess
from agentgpt_remote.server.serve import serve
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.reporting import Progress
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.support import is_running, wait_until

SMALL: dict[str, Any] = {
    "use_tensorboard": False,
    "rollout_steps": 256,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "num_envs": 8,
}


def start_trainer(run_dir: Path, **values: Any) -> ChildProcess:
    run_dir.mkdir(exist_ok=True)
    hyperparameters = Hyperparameters(**{"env_id": "CartPole-v1", **SMALL, **values})
    payload = {"run_dir": str(run_dir), "hyperparameters": hyperparameters.to_dict()}
    return ChildProcess.start(["-m", "agentgpt_remote.trainer"], json.dumps(payload).encode())


def steps_of(run_dir: Path) -> list[int]:
    return [row["env_steps"] for row in read_metrics(run_dir / "metrics.jsonl")]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_cartpole_learns_over_a_socket_and_its_bundle_acts(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(env_id="CartPole-v1", max_steps=8_000, lanes_per_host=2)
    result = train(hyperparameters, run_dir=tmp_path)
    assert result.episode_return is not None
    assert result.episode_return > 55
    assert result.env_steps <= 8_000
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert rows[-1]["remote/lanes"] == 2
    assert rows[-1]["remote/round_trip_ms"] > 0
    with GPTPolicy(str(result.bundle)) as policy:
        evaluation = evaluate_source(policy, "CartPole-v1", episodes=10, seed=1)
    assert evaluation.episodes == 10
    assert evaluation.mean > 55
    assert evaluation.env_steps >= evaluation.episode_length * 10


def test_killed_trainer_resumes_from_its_last_checkpoint_in_one_piece(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    child = start_trainer(run_dir, max_steps=10**6, checkpoint_interval_s=0.2)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=3)
    wait_until(lambda: len(checkpoints.paths()) >= 3, 90.0, "three checkpoints")
    hosts = children_of(child.pid)
    assert len(hosts) == 1
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10.0)
    child.close()
    wait_until(lambda: not any(map(is_running, hosts)), 90.0, "end of the orphaned host")
    state = checkpoints.load_last()
    assert state is not None
    saved = state["env_steps"]
    before = [step for step in steps_of(run_dir) if step <= saved]
    bundle_steps = load_bundle(run_dir / "policy").provenance["env_steps"]
    assert 0 < bundle_steps <= saved

    with start_trainer(run_dir, max_steps=saved + 2000, resume_training=True) as again:
        assert again.wait(90.0) == 0, again.log_tail()
    steps = steps_of(run_dir)
    assert steps[: len(before)] == before
    assert before[-1] == saved
    assert steps == sorted(set(steps))
    assert saved < steps[len(before)] < saved + 600
    result = json.loads((run_dir / "result.json").read_text())
    assert saved + 1900 < result["env_steps"] <= saved + 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_with_checkpoint_and_bundle(tmp_path: Path, number: signal.Signals) -> None:
    with start_trainer(tmp_path, max_steps=10**6) as child:
        wait_until(lambda: len(steps_of(tmp_path)) >= 3, 90.0, "third update")
        os.kill(child.pid, number)
        assert child.wait(30.0) == 0, child.log_tail()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stopped"]
    assert Checkpoints(tmp_path / "checkpoints", keep=3).paths()[-1].stem == f"step-{result['env_steps']:012d}"
    assert load_bundle(tmp_path / "policy").provenance["env_steps"] == result["env_steps"]


def test_lost_host_is_dropped_and_the_last_one_ends_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentgpt_remote.trainer")
    with LocalHost("CartPole-v1") as first, LocalHost("CartPole-v1") as second:
        lanes: list[float | None] = []

        def on_progress(progress: Progress) -> None:
            lanes.append(progress.metrics["remote/lanes"])
            if len(lanes) == 2:
                first.close()
            if len(lanes) >= 6:
                second.close()

        first_envs = RemoteVectorEnv(url=first.url, token=first.token, num_envs=4, resume_window_s=1.0)
        second_envs = RemoteVectorEnv(url=second.url, token=second.token, num_envs=4, resume_window_s=1.0)
        with first_envs, second_envs, pytest.raises(TrainingFailed, match=r"no environment is left.*--resume"):
            train(
                Hyperparameters(max_steps=10**6, **SMALL),
                run_dir=tmp_path,
                envs=[first_envs, second_envs],
                on_progress=on_progress,
            )
    assert lanes[:2] == [2, 2]
    assert lanes[-1] == 1
    assert "envs[0]" in caplog.text
    assert Checkpoints(tmp_path / "checkpoints", keep=3).paths()
    assert load_bundle(tmp_path / "policy").provenance["env_steps"] == steps_of(tmp_path)[-1]


def test_killed_trainer_resumes_on_a_host_that_is_full_of_its_sessions(tmp_path: Path) -> None:
    with serve("CartPole-v1", port=0, num_envs=8, resume_window_s=3.0, block=False) as host:
        values = {"env_id": None, "env_hosts": {"host": EnvHost(env_endpoint=host.url)}, "max_steps": 10**6}
        with start_trainer(tmp_path / "run", **values) as process:
            wait_until(lambda: len(steps_of(tmp_path / "run")) >= 3, 90.0, "metrics")
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
        resumed = Hyperparameters(**{**SMALL, **values, "max_steps": 3000, "resume_training": True})
        began = time.monotonic()
        result = train(resumed, run_dir=tmp_path / "run")
    assert time.monotonic() - began > 1.0, "the host was not full"
    assert 2900 <= result.env_steps <= 3000
    assert steps_of(tmp_path / "run") == sorted(set(steps_of(tmp_path / "run")))


def test_stop_while_the_host_is_away_ends_soon_with_a_bundle(tmp_path: Path) -> None:
    stop = threading.Event()
    with LocalHost("CartPole-v1") as host:

        def on_progress(progress: Progress) -> None:
            if progress.env_steps > 500 and host.running:
                os.kill(host.pid, signal.SIGKILL)
                threading.Timer(1.0, stop.set).start()

        began = time.monotonic()
        hyperparameters = Hyperparameters(**{**SMALL, "max_steps": 10**6})
        result = train(
            hyperparameters,
            run_dir=tmp_path,
            envs=[host.url],
            token=host.token,
            on_progress=on_progress,
            stop_event=stop,
        )
    assert result.stopped
    assert time.monotonic() - began < 40.0, "it waited for the host's resume window"
    assert load_bundle(tmp_path / "policy").provenance["env_steps"] == result.env_steps


def test_env_hosts_of_different_speed_are_trained_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalHost("CartPole-v1", num_envs=4) as host:
        monkeypatch.setenv("AGENTGPT_TOKEN", host.token)
        hosts = {
            "all": EnvHost(env_endpoint=host.url, num_agents=None),
            "gone": EnvHost(env_endpoint="ws://127.0.0.1:9", num_agents=2),
        }
        result = train(Hyperparameters(env_hosts=hosts, max_steps=1500, lanes_per_host=2, **SMALL), run_dir=tmp_path)
    assert result.env_steps > 1400
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_agents"] == 4
    assert config["lanes"] == ["all/0", "all/1"]
    assert host.token not in (tmp_path / "config.json").read_text()


def test_nothing_listens_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match="agentgpt serve"):
        train(Hyperparameters(**SMALL), run_dir=tmp_path, envs=["ws://127.0.0.1:9"])


def test_child_reports_its_error(tmp_path: Path) -> None:
    with start_trainer(tmp_path, env_id="CartPole-v7") as child:
        assert child.wait(60.0) == 1
        assert "VersionNotFound" in child.log_tail()
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["type"] == "VersionNotFound"
    assert not (tmp_path / "result.json").exists()


def test_environment_that_raises_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    with LocalHost("tests.trainer.tiny_envs:fragile") as host:
        envs = RemoteVectorEnv(url=host.url, token=host.token, num_envs=2)
        with envs, pytest.raises(TrainingFailed) as caught:
            train(Hyperparameters(max_steps=10_000, **SMALL), run_dir=tmp_path, envs=[envs])
    assert isinstance(caught.value.__cause__, RemoteEnvError)
    assert "wheel came off" in str(caught.value)
