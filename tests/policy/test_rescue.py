"""Servers that forget, end and come back: the actions are those that there would have been."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agentgpt_remote import errors
from agentgpt_remote.policy.client import RemoteSource
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy
from tests.policy.conftest import SPACES
from tests.policy.sagemaker_stand_in import SageMakerStandIn
from tests.wrappers.bad_network import CuttingProxy, port_of

IDS = ["a", "b", "c"]
STREAM = np.random.default_rng(0).normal(size=(24, 3, 3))


class SwallowingProxy(CuttingProxy):
    """Cuts a connection when a request for actions comes, before the server has seen it."""

    cut_requests = False

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        is_request = target.getpeername()[1] == self._port and not data.startswith(b"GET") and len(data) > 100
        return not (self.cut_requests and is_request) and super()._pass_on(data, target)


class Restartable:
    """A policy server in a process of its own that can be killed, and started again at the same address."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self.server = LocalPolicyServer(bundle)
        self._port = int(self.server.url.rpartition(":")[2])

    def kill(self) -> None:
        os.kill(self.server._process.pid, signal.SIGKILL)
        self.server.close()

    def start(self) -> None:
        self.server = LocalPolicyServer(self._bundle, port=self._port, token=self.server.token)


@pytest.fixture
def restartable(bundles: dict[str, Path]) -> Iterator[Restartable]:
    server = Restartable(bundles["smooth"])
    yield server
    server.server.close()


def test_actions_after_a_restart_equal_those_without(restartable: Restartable, bundles: dict[str, Path]) -> None:
    with (
        GPTPolicy(restartable.server.url, token=restartable.server.token, deterministic=False, seed=4) as policy,
        GPTPolicy(bundles["smooth"], deterministic=False, seed=4) as local,
    ):
        policy.set_control_value(control_value=0.8)
        local.set_control_value(control_value=0.8)
        for step, batch in enumerate(STREAM):
            if step in (3, 15):
                restartable.kill()
            if step == 3:
                restartable.start()
            elif step == 15:  # it comes back only while the call waits
                threading.Timer(0.3, restartable.start).start()
            ended = ["b"] if step in (3, 10) else None
            ids = IDS if step % 5 else ["c", "a"]
            if step == 10:
                ids = IDS
            actions = policy.select_action(ids, batch[: len(ids)], ended)
            np.testing.assert_allclose(actions, local.select_action(ids, batch[: len(ids)], ended), atol=1e-5)
        assert policy.get_agent_ids() == local.get_agent_ids()
        assert policy.status()["server"]["restored"] >= 5


def test_server_that_is_killed_in_the_middle_of_a_call(restartable: Restartable, bundles: dict[str, Path]) -> None:
    with (
        GPTPolicy(restartable.server.url, token=restartable.server.token) as policy,
        GPTPolicy(bundles["smooth"]) as local,
    ):
        for step, batch in enumerate(STREAM[:6]):
            if step == 3:
                os.kill(restartable.server._process.pid, signal.SIGSTOP)  # it takes the request, and answers nothing

                def replace() -> None:
                    restartable.kill()
                    restartable.start()

                threading.Timer(0.3, replace).start()
            actions = policy.select_action(IDS, batch)
            np.testing.assert_allclose(actions, local.select_action(IDS, batch), atol=1e-5)


def test_server_that_stays_away_is_a_clear_error_in_time(restartable: Restartable) -> None:
    with GPTPolicy(restartable.server.url, token=restartable.server.token, timeout_s=1.0) as policy:
        first = policy.select_action(IDS, STREAM[0])
        restartable.kill()
        begun = time.monotonic()
        with pytest.raises(errors.ConnectionLost, match="nothing listens"):
            policy.select_action(IDS, STREAM[1])
        assert time.monotonic() - begun < 2
        assert policy.get_agent_ids() == IDS
        restartable.start()
        assert not np.allclose(policy.select_action(IDS, STREAM[1]), first)


def test_server_that_ends_in_every_call_is_asked_twice_and_no_more(
    bundles: dict[str, Path], served: dict[str, str]
) -> None:
    """What goes up of each call is swallowed and the connection cut, before the server has answered."""
    with (
        contextlib.closing(SwallowingProxy(port_of(served["smooth"]), lambda _: None)) as proxy,
        GPTPolicy(bundles["smooth"]) as local,
        GPTPolicy(proxy.url, timeout_s=5.0) as policy,
        GPTPolicy(served["smooth"]) as other,
    ):
        for step, batch in enumerate(STREAM[:6]):
            if step == 3:
                before, proxy.cut_requests = proxy.connections, True
                begun = time.monotonic()
                with pytest.raises(errors.ConnectionLost, match=r"ended|closed.*asked twice, the call may be repeated"):
                    policy.select_action(IDS, batch)
                assert time.monotonic() - begun < 5
                assert proxy.connections == before + 1, "it connected once more"
                assert policy.get_agent_ids() == IDS
                proxy.cut_requests = False
            expected = local.select_action(IDS, batch)
            np.testing.assert_allclose(policy.select_action(IDS, batch), expected, atol=1e-5)
            np.testing.assert_allclose(other.select_action(IDS, batch), expected, atol=1e-5)


def test_server_that_stops_reading_a_large_request_is_an_error_in_time(bundles: dict[str, Path]) -> None:
    with (
        LocalPolicyServer(bundles["images"]) as server,
        GPTPolicy(server.url, token=server.token, timeout_s=1.0) as policy,
    ):
        count = 20_000  # 29 MB, more than the kernel takes for a process that does not read
        batch = {"camera": np.zeros((count, 20, 24, 3), np.uint8), "speed": np.zeros((count, 2), np.float32)}
        few = policy.sample_observation(2)
        policy.select_action(["0", "1"], few)
        os.kill(server._process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises((errors.ConnectionLost, errors.RemoteTimeout), match=r"within 1 s"):
                policy.select_action([str(index) for index in range(count)], batch)
            assert time.monotonic() - begun < 5
        finally:
            os.kill(server._process.pid, signal.SIGCONT)
        assert policy.get_agent_ids() == ["0", "1"]
        assert policy.select_action(["0", "1"], few).shape == (2,)


def test_sagemaker_instance_that_stalls_is_an_error_in_time(
    bundles: dict[str, Path], sagemaker: SageMakerStandIn
) -> None:
    with LocalPolicyServer(bundles["smooth"]) as server:
        sagemaker.deploy("stalling", server.url, token=server.token)
        with GPTPolicy("sagemaker://stalling", timeout_s=1.0) as policy, GPTPolicy(bundles["smooth"]) as local:
            policy.select_action(IDS, STREAM[0])
            local.select_action(IDS, STREAM[0])
            os.kill(server._process.pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                with pytest.raises(errors.RemoteTimeout, match="no reply from sagemaker://stalling within 1 s"):
                    policy.select_action(IDS, STREAM[1])
                assert time.monotonic() - begun < 2
            finally:
                os.kill(server._process.pid, signal.SIGCONT)
            np.testing.assert_allclose(
                policy.select_action(IDS, STREAM[1]), local.select_action(IDS, STREAM[1]), atol=1e-5
            )


@pytest.mark.parametrize("window", [2, 4])
def test_agents_that_others_crowd_out_come_back_as_they_were(bundles: dict[str, Path], window: int) -> None:
    options = PolicyServerOptions(max_agents=4)
    with (
        serve_policy(bundles["smooth"], port=0, block=False, options=options) as server,
        GPTPolicy(server.url) as one,
        GPTPolicy(server.url) as other,
        GPTPolicy(bundles["smooth"]) as local,
    ):
        one.set_num_input_states(window)
        local.set_num_input_states(window)
        for batch in STREAM[:8]:
            np.testing.assert_allclose(one.select_action(IDS, batch), local.select_action(IDS, batch), atol=1e-5)
            other.select_action(IDS, batch)
        assert one.status()["server"]["restored"] >= 8
        assert one.status()["server"]["dropped"] >= 16
        assert one.status()["server"]["agents"] <= 4
        with pytest.raises(errors.ConfigError, match="max_agents=5"):
            one.reset_agents(max_agents=5)


def test_more_agents_than_the_server_holds_leave_the_others_intact(bundles: dict[str, Path]) -> None:
    options = PolicyServerOptions(max_agents=2)
    with serve_policy(bundles["smooth"], port=0, block=False, options=options) as server, GPTPolicy(server.url) as one:
        with pytest.raises(errors.CapacityReached, match="3 agents at once"):
            one.select_action(IDS, STREAM[0])
        one.select_action(["a", "b"], STREAM[0][:2])
        with GPTPolicy(server.url) as other:
            other.select_action(["c", "d"], STREAM[0][:2])
        assert one.get_agent_ids() == ["a", "b"]


def test_sagemaker_session_moves_to_another_instance(bundles: dict[str, Path], sagemaker: SageMakerStandIn) -> None:
    with (
        serve_policy(bundles["smooth"], port=0, block=False) as first,
        serve_policy(bundles["smooth"], port=0, block=False) as second,
    ):
        sagemaker.deploy("moving", first.url)
        with GPTPolicy("sagemaker://moving") as policy, GPTPolicy(bundles["smooth"]) as local:
            for step, batch in enumerate(STREAM[:9]):
                if step == 3:
                    sagemaker.deploy("moving", second.url)  # scaled in: the session's instance is gone
                if step == 6:
                    first.close()
                    sagemaker.deploy("moving", first.url, second.url)
                np.testing.assert_allclose(policy.select_action(IDS, batch), local.select_action(IDS, batch), atol=1e-5)


def test_sagemaker_requests_that_arrive_twice_are_applied_once(
    bundles: dict[str, Path], served: dict[str, str], sagemaker: SageMakerStandIn
) -> None:
    sagemaker.deploy("smooth", served["smooth"])
    with GPTPolicy("sagemaker://smooth") as policy, GPTPolicy(bundles["smooth"]) as local:
        sagemaker.doubled = True
        try:
            for batch in STREAM[:6]:
                np.testing.assert_allclose(policy.select_action(IDS, batch), local.select_action(IDS, batch), atol=1e-5)
        finally:
            sagemaker.doubled = False


def test_sagemaker_endpoint_that_is_missing_or_too_small_is_named(
    served: dict[str, str], sagemaker: SageMakerStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.ConfigError, match=r"endpoint nowhere refused.*not found"):
        GPTPolicy("sagemaker://nowhere")
    sagemaker.deploy("images", served["images"])
    with GPTPolicy("sagemaker://images") as policy:
        batch = policy.sample_observation(6000)
        with pytest.raises(errors.InvalidObservation, match=r"over the limit of 6291456.*fewer agents"):
            policy.select_action([str(index) for index in range(6000)], batch)
        few = policy.select_action(["0", "1"], {key: value[:2] for key, value in batch.items()})
        assert few.shape == (2,)
    sagemaker.deploy("gone", "http://127.0.0.1:9")
    with pytest.raises(errors.ConnectionLost, match="gone"):
        GPTPolicy("sagemaker://gone", timeout_s=1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(errors.AuthError, match="credentials"):
        GPTPolicy("sagemaker://images")


@pytest.mark.parametrize("name", [*SPACES])
def test_told_steps_make_the_same_memory_for_every_space(bundles: dict[str, Path], name: str) -> None:
    with (
        serve_policy(bundles[name], port=0, block=False) as server,
        GPTPolicy(server.url, seed=1) as policy,
        GPTPolicy(bundles[name], seed=1) as local,
    ):
        for step in range(8):
            if step == 5:
                assert isinstance(policy._source, RemoteSource)
                policy._source._channel.drop()
            batch = local.sample_observation(3)
            actions = [p.select_action(IDS, batch) for p in (policy, local)]
            if name == "continuous":
                np.testing.assert_allclose(actions[0], actions[1], rtol=1e-4, atol=1e-4)
            elif name != "nested":
                assert str(actions[0]) == str(actions[1])
        assert policy.status()["server"]["restored"] == 3
