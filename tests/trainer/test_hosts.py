"""Hosts that leave, return, stall and appear during a run, over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.server.serve import serve
from agentgpt_remote.serving import BackgroundServer
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.lag import PolicyLag
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.reporting import Progress
from agentgpt_remote.trainer.results import TrainingResult
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.wrappers.local_host import LocalHost
from tests.support import wait_until
from tests.wrappers.bad_network import cutting_proxy

SMALL: dict[str, Any] = {
    "use_tensorboard": False,
    "rollout_steps": 256,
    "d_model": 32,
    "num_heads": 2,
    "max_input_states": 4,
    "chunk_steps": 16,
    "torch_threads": 1,
    "max_steps": 10**6,
}
ECHO = "tests.trainer.tiny_envs:echo"
DEADLINE_S = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def host_at(port: int, source: str = ECHO, num_envs: int = 4) -> BackgroundServer:
    return serve(source, port=port, num_envs=num_envs, block=False, resume_window_s=1.0)


class Script:
    """Goes through steps during a run: each is waited for, then done; the run ends after the last."""

    def __init__(self, *steps: tuple[Callable[[Progress], bool], Callable[[], object]]) -> None:
        self._steps = list(steps)
        self.stop = threading.Event()
        self.seen: list[Progress] = []
        self._deadline = time.monotonic() + DEADLINE_S

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if self._steps and self._steps[0][0](progress):
            self._steps.pop(0)[1]()
        if not self._steps or time.monotonic() > self._deadline:
            self.stop.set()

    def run(self, run_dir: Path, hosts: dict[str, EnvHost], **values: Any) -> TrainingResult:
        hyperparameters = Hyperparameters(env_hosts=hosts, **{**SMALL, **values})
        result = train(hyperparameters, run_dir=run_dir, on_progress=self, stop_event=self.stop)
        assert not self._steps, f"{len(self._steps)} steps did not come within {DEADLINE_S:g} s"
        return result


def lanes(count: int) -> Callable[[Progress], bool]:
    return lambda progress: progress.metrics["remote/lanes"] == count


@contextlib.contextmanager
def closing(*servers: BackgroundServer) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.close)
        yield


def test_host_that_returns_and_host_that_appears_late_are_trained_on(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    servers = {index: host_at(ports[index]) for index in (0, 1)}
    hosts = {
        f"h{index}": EnvHost(env_endpoint=f"ws://127.0.0.1:{port}", num_agents=4) for index, port in enumerate(ports)
    }

    def leave() -> None:
        servers.pop(1).close()

    def come(index: int) -> None:
        servers[index] = host_at(ports[index])

    script = Script(
        (lanes(2), leave),
        (lanes(1), lambda: come(1)),
        (lanes(2), lambda: come(2)),
        (lanes(3), lambda: None),
        (lanes(3), lambda: None),
    )
    try:
        script.run(tmp_path, hosts)
    finally:
        for server in servers.values():
            server.close()
    returns = [value for row in read_metrics(tmp_path / "metrics.jsonl") if (value := row["rollout/fresh_return"])]
    assert all(0 < value < 24 for value in returns), "an episode was joined across the loss"
    lengths = {row["rollout/episode_length"] for row in read_metrics(tmp_path / "metrics.jsonl")} - {None}
    assert lengths == {8.0}, "an episode was joined across the loss"


def test_connection_that_is_cut_resumes_without_losing_a_step(tmp_path: Path) -> None:
    with closing(server := host_at(0)), cutting_proxy(server.url, lambda _: None) as proxy:
        script = Script(*[(lanes(1), proxy.cut_all)] * 3, (lanes(1), lambda: None))
        script.run(tmp_path, {"host": EnvHost(env_endpoint=proxy.url, num_agents=4)})
        assert proxy.connections >= 4
    lengths = {row["rollout/episode_length"] for row in read_metrics(tmp_path / "metrics.jsonl")} - {None}
    assert lengths == {8.0}


def stall_one_of_two(run_dir: Path, updates: int, pause_s: float) -> list[Progress]:
    """Stop a host's process for a while, and return what was reported meanwhile."""
    with LocalHost(ECHO) as steady, LocalHost(ECHO) as stalled:
        hosts = {name: EnvHost(env_endpoint=host.url, num_agents=4) for name, host in (("a", steady), ("b", stalled))}
        marks: list[int] = []
        began: list[float] = []

        def stall() -> None:
            os.kill(stalled.pid, signal.SIGSTOP)
            marks.append(len(script.seen))
            began.append(time.monotonic())

        def goes_on(_: Progress) -> bool:
            return len(script.seen) >= marks[0] + updates and time.monotonic() - began[0] > pause_s

        def go_on() -> None:
            marks.append(len(script.seen))
            os.kill(stalled.pid, signal.SIGCONT)

        script = Script((lanes(2), stall), (goes_on, go_on), (lanes(2), lambda: None))
        hyperparameters = Hyperparameters(env_hosts=hosts, **SMALL, step_timeout_s=2.0)
        tokens = {steady.url: steady.token, stalled.url: stalled.token}
        try:
            train(hyperparameters, run_dir=run_dir, token=tokens, on_progress=script, stop_event=script.stop)
        finally:
            os.kill(stalled.pid, signal.SIGCONT)
        return script.seen[marks[0] : marks[1]]


def test_stalled_host_does_not_hold_up_the_other_and_returns(tmp_path: Path) -> None:
    meanwhile = stall_one_of_two(tmp_path, updates=10, pause_s=3.0)
    waits = [later.wall_s - sooner.wall_s for sooner, later in itertools.pairwise(meanwhile)]
    assert max(waits) < 1.5, "an update waited for the host that stalled"
    assert meanwhile[-1].metrics["remote/lanes"] == 1


@pytest.mark.slow
def test_host_that_stalls_for_half_a_minute_does_not_hold_up_the_other(tmp_path: Path) -> None:
    meanwhile = stall_one_of_two(tmp_path, updates=10, pause_s=30.0)
    waits = [later.wall_s - sooner.wall_s for sooner, later in itertools.pairwise(meanwhile)]
    assert max(waits) < 1.5


def test_last_host_that_returns_in_time_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    servers = [host_at(port)]

    def restart() -> None:
        servers.pop().close()
        threading.Timer(2.0, lambda: servers.append(host_at(port))).start()

    script = Script((lanes(1), restart), (lanes(1), lambda: None))
    script.run(tmp_path, {"host": EnvHost(env_endpoint=f"ws://127.0.0.1:{port}", num_agents=4)}, host_wait_s=30.0)
    servers.pop().close()


def test_last_host_that_does_not_return_ends_the_run_in_time(tmp_path: Path) -> None:
    server = host_at(0)
    script = Script((lanes(1), server.close), (lambda _: False, lambda: None))
    began = time.monotonic()
    with pytest.raises(TrainingFailed, match=r"no environment is left: lost host/0.*--resume"):
        script.run(tmp_path, {"host": EnvHost(env_endpoint=server.url, num_agents=4)}, host_wait_s=1.0)
    assert time.monotonic() - began < 25.0
    assert list((tmp_path / "checkpoints").glob("step-*.pt"))


def test_host_that_appears_with_another_environment_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "agentgpt_remote.trainer")
    port, others = free_port(), []
    with closing(server := host_at(0)):
        hosts = {
            "right": EnvHost(env_endpoint=server.url, num_agents=4),
            "wrong": EnvHost(env_endpoint=f"ws://127.0.0.1:{port}", num_agents=2),
        }
        script = Script(
            (lanes(1), lambda: others.append(host_at(port, "CartPole-v1"))),
            (lambda _: "left out for good" in caplog.text, lambda: None),
        )
        script.run(tmp_path, hosts)
        others.pop().close()
    assert "wrong/0 has single_observation_space" in caplog.text


@pytest.mark.slow
def test_run_with_failing_hosts_learns_as_well_as_the_undisturbed_one(tmp_path: Path) -> None:
    """Random play returns 12, the optimum 24; see test_loop for the bar."""
    ports = [free_port() for _ in range(2)]
    servers = [host_at(port) for port in ports]
    hosts = {f"h{port}": EnvHost(env_endpoint=f"ws://127.0.0.1:{port}", num_agents=4) for port in ports}
    values = {**SMALL, "max_steps": 8000, "lr_init": 2e-3, "replay_ratio": 8}
    finals = []
    for disturbed in (False, True):

        def on_progress(progress: Progress, disturbed: bool = disturbed) -> None:
            if disturbed and progress.metrics["remote/lanes"] == 2 and len(finals) == 1 and progress.env_steps < 5000:
                servers.pop().close()
                threading.Timer(0.5, lambda: servers.append(host_at(ports[1]))).start()

        hyperparameters = Hyperparameters(env_hosts=hosts, **values)
        result = train(hyperparameters, run_dir=tmp_path / str(disturbed), on_progress=on_progress)
        assert result.episode_return is not None
        finals.append(result.episode_return)
    for server in servers:
        server.close()
    assert min(finals) > 17
    assert abs(finals[0] - finals[1]) < 3


@contextlib.contextmanager
def cartpole_host(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a host process of its own at a port."""
    command = [sys.executable, "-m", "agentgpt_remote", "serve", "CartPole-v1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listens(port), timeout_s=30.0)
            yield process
        finally:
            process.kill()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def cartpole_return(run_dir: Path, *, disturbed: bool) -> float:
    """Train on three host processes; return what the policy then gets greedily.

    Where it is disturbed, one is killed for good, one is stopped for 30 s, and one is killed and comes back.
    """
    ports = [free_port() for _ in range(3)]
    hosts = {f"h{port}": EnvHost(env_endpoint=f"ws://127.0.0.1:{port}", num_agents=8) for port in ports}
    lanes_seen: list[float] = []
    with contextlib.ExitStack() as stack:
        killed, stalled, returning = (stack.enter_context(cartpole_host(port)) for port in ports)

        def return_() -> None:
            returning.kill()
            returning.wait()
            stack.enter_context(cartpole_host(ports[2]))

        def stall() -> None:
            os.kill(stalled.pid, signal.SIGSTOP)
            threading.Timer(30.0, os.kill, (stalled.pid, signal.SIGCONT)).start()

        events = [(8000, stall), (12_000, return_), (16_000, killed.kill)] if disturbed else []

        def on_progress(progress: Progress) -> None:
            lanes_seen.append(progress.metrics["remote/lanes"])
            if events and progress.env_steps > events[0][0]:
                events.pop(0)[1]()

        hyperparameters = Hyperparameters(
            env_hosts=hosts, max_steps=150_000, use_tensorboard=False, step_timeout_s=5.0, eval_interval_steps=0
        )
        result = train(hyperparameters, run_dir=run_dir, on_progress=on_progress)
    assert not events
    assert (min(lanes_seen), lanes_seen[-1]) == ((1, 2) if disturbed else (3, 3))
    with GPTPolicy(str(result.bundle)) as policy:
        return evaluate_source(policy, "CartPole-v1", episodes=20).mean


@pytest.mark.slow
def test_cartpole_is_solved_while_hosts_are_killed_stalled_for_half_a_minute_and_return(tmp_path: Path) -> None:
    calm, disturbed = (cartpole_return(tmp_path / str(each), disturbed=each) for each in (False, True))
    assert min(calm, disturbed) >= 475
    assert abs(calm - disturbed) < 25


def test_policy_lag_is_logged(tmp_path: Path) -> None:
    with closing(server := host_at(0)):
        script = Script(*[(lanes(2), lambda: None)] * 3)
        script.run(tmp_path, {"host": EnvHost(env_endpoint=server.url, num_agents=4)}, lanes_per_host=2)
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    # A step that was in flight during an update was chosen by the weights before it.
    assert {row["rollout/policy_lag_updates_max"] for row in rows} <= {0.0, 1.0}
    assert all(row["rollout/policy_lag_steps_max"] < 600 for row in rows)


def test_policy_lag_counts_updates_and_steps_of_decisions() -> None:
    store, lag = StreamStore(2, capacity=8, obs_width=1, action_width=1), PolicyLag()
    lag.renewed(1, 100)
    lag.renewed(2, 250)
    both, no = slice(0, 2), np.zeros(2, np.bool_)
    for version in (0, 1, 2, 2):
        store.open(both, np.zeros((2, 1)), no)
        store.act(both, np.zeros((2, 1)), np.zeros(2), version)
        store.complete(both, np.zeros(2), no, no, np.array([True, False]))
    metrics = lag.metrics(store, store.trained, store.position, 2)
    assert metrics == {
        "rollout/policy_lag_updates": 0.75,
        "rollout/policy_lag_updates_max": 2.0,
        "rollout/policy_lag_steps": 100.0,
        "rollout/policy_lag_steps_max": 250.0,
    }
