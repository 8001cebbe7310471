"""What is refused, and how: the same from a folder and from a server, with nothing changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agentgpt_remote import errors, serve
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.observations import batch_observations
from tests.support import is_running

ROWS = np.zeros((2, 4), np.float32)


@pytest.fixture(params=["folder", "ws"])
def policy(request: pytest.FixtureRequest, bundles: dict[str, Path], served: dict[str, str]) -> Iterator[GPTPolicy]:
    source = bundles["cartpole"] if request.param == "folder" else served["cartpole"]
    with GPTPolicy(source, timeout_s=10) as opened:
        yield opened


@pytest.mark.parametrize("value", [300, -129])
def test_integer_that_would_wrap_is_refused(value: int) -> None:
    space = spaces.Box(-100, 100, (2,), np.int8)
    with pytest.raises(errors.InvalidObservation, match=f"holds {value}, which int8 can't hold"):
        batch_observations(space, np.array([[value, 0]]), ["a"])
    kept = batch_observations(space, np.array([[-100, 100]]), ["a"])
    assert kept.dtype == np.int8
    assert kept.tolist() == [[-100, 100]]


def test_float_that_would_overflow_is_refused(policy: GPTPolicy) -> None:
    with pytest.raises(errors.InvalidObservation, match=r"holds 1e\+300, which float32 can't hold"):
        policy(np.array([0, 1e300, 0, 0]))
    assert policy.get_num_agents() == 0


@pytest.mark.parametrize("ids", [None, 3, "ab", ["a", 3], ["a", "\ud800"], ["a", "x" * 257], ["a", "a"]])
def test_wrong_ids_are_refused_alike(policy: GPTPolicy, ids: Any) -> None:
    with pytest.raises(errors.UnknownAgent, match="agent_ids"):
        policy.select_action(ids, ROWS)
    assert policy.get_num_agents() == 0
    assert policy.select_action(["a", "b"], ROWS).shape == (2,)


def test_ids_may_be_an_array_of_texts(policy: GPTPolicy) -> None:
    ids = np.array(["a", "b"])
    policy.select_action(ids, ROWS, np.array([], dtype=str))
    policy.select_action(ids, ROWS, np.array(["b"]))
    assert set(policy.get_agent_ids()) == {"a", "b"}


def test_predict_names_what_does_not_fit(policy: GPTPolicy) -> None:
    with pytest.raises(errors.InvalidObservation, match="batch of 0"):
        policy.predict(ROWS[:0])
    with pytest.raises(errors.ConfigError, match=r"episode_start has shape \(3,\): expected \(2,\)"):
        policy.predict(ROWS, episode_start=np.zeros(3, np.bool_))


@pytest.mark.parametrize("source", ["sagemaker://", "sagemaker://a/b", "ftp://host/policy"])
def test_unknown_kind_of_source_is_named(source: str) -> None:
    with pytest.raises(errors.ConfigError, match=source):
        GPTPolicy(source)


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf"), "soon"])
def test_wrong_timeout_is_refused(bundles: dict[str, Path], timeout_s: Any) -> None:
    with pytest.raises(errors.ConfigError, match="timeout_s"):
        GPTPolicy(bundles["cartpole"], timeout_s=timeout_s)


def test_unknown_device_is_named(bundles: dict[str, Path]) -> None:
    with pytest.raises(errors.ConfigError, match="device='nonsense'"):
        load_bundle(bundles["cartpole"], device="nonsense")


def test_stalled_server_is_an_error_in_time_and_acts_on_when_it_is_back(bundles: dict[str, Path]) -> None:
    with LocalPolicyServer(bundles["cartpole"]) as server:
        pid = server._process.pid
        with (
            GPTPolicy(server.url, token=server.token, timeout_s=0.5) as policy,
            GPTPolicy(bundles["cartpole"]) as local,
        ):
            stream = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
            assert [policy(row) for row in stream[:3]] == [local(row) for row in stream[:3]]
            os.kill(pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                for _ in range(2):
                    with pytest.raises((errors.RemoteTimeout, errors.HostUnreachable), match=r"time|0\.5 s"):
                        policy(stream[3])
                assert time.monotonic() - begun < 3
            finally:
                os.kill(pid, signal.SIGCONT)
            assert [policy(row) for row in stream[3:]] == [local(row) for row in stream[3:]]


def test_client_of_another_service_is_told_so(served: dict[str, str]) -> None:
    with pytest.raises(errors.ProtocolMismatch):
        WebSocketConnection.connect(served["cartpole"], path="/session")


def test_policy_of_an_environment_host_is_told_so() -> None:
    with serve("CartPole-v1", port=0, block=False) as host:
        for url in (host.url, host.url.replace("ws://", "http://")):
            with pytest.raises(errors.ProtocolMismatch, match="404 this is an environment host"):
                GPTPolicy(url, timeout_s=10)


def test_policy_server_ends_with_a_parent_that_was_killed(bundles: dict[str, Path]) -> None:
    code = (
        "import sys, time; from agentgpt_remote.policy.local_server import LocalPolicyServer\n"
        "server = LocalPolicyServer(sys.argv[1]); print(server._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(bundles["cartpole"])], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, f"policy server {pid} outlived its parent"
        time.sleep(0.05)
    assert not is_running(pid)
