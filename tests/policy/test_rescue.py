"""Servers that forget, end and come back: the actions are those that there would have been."""

from __future__ import annotations

import os
import signal
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

IDS = ["a", "b", "c"]
STREAM = np.random.default_rng(0).normal(size=(24, 3, 3))


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
