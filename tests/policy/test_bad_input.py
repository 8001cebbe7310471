"""What is refused, and how: the same from a folder and from a server, with nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gymnasium import spaces

from agentgpt_remote import errors, serve
from agentgpt_remote._version import __version__
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.bundle import load_bundle, save_bundle
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.invocations import Invocations
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.observations import batch_observations
from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy
from agentgpt_remote.policy.websocket_channel import WebSocketChannel
from tests.policy.conftest import Open, make_smooth_model
from tests.support import is_running, wait_until

ROWS = np.zeros((2, 4), np.float32)
IDS = ["a", "b", "c"]
STREAM = np.random.default_rng(0).normal(size=(8, 3, 3))
SESSION = "X-Amzn-SageMaker-Session-Id"


def _with(value: float) -> np.ndarray:
    batch = STREAM[3].copy()
    batch[1, 2] = value
    return batch


# What is called wrongly, with the error and what its text must name: the value, whose it is, and what was expected.
REFUSED: dict[str, tuple[Callable[[GPTPolicy], object], type[Exception], str]] = {
    "shape": (
        lambda policy: policy.select_action(IDS, np.zeros((3, 5))),
        errors.InvalidObservation,
        r"observation has shape \(3, 5\): expected \(3, 3\)",
    ),
    "shape of one of a list": (
        lambda policy: policy.select_action(IDS, [np.zeros(3), np.zeros(2), np.zeros(3)]),
        errors.InvalidObservation,
        r"observation has rows of different shapes: expected an array of shape \(3, 3\)",
    ),
    "number of observations": (
        lambda policy: policy.select_action(IDS, np.zeros((2, 3))),
        errors.InvalidObservation,
        "got 2 observations for 3 agents",
    ),
    "dtype": (
        lambda policy: policy.select_action(IDS, np.full((3, 3), "fast")),
        errors.InvalidObservation,
        "observation has dtype <U4, which can't be cast safely: expected float64",
    ),
    "complex numbers": (
        lambda policy: policy.select_action(IDS, np.zeros((3, 3), np.complex64)),
        errors.InvalidObservation,
        "dtype complex64, which can't be cast safely: expected float64",
    ),
    "NaN": (
        lambda policy: policy.select_action(IDS, _with(np.nan)),
        errors.InvalidObservation,
        "observation of agent 'b' holds nan: expected finite numbers",
    ),
    "infinity": (
        lambda policy: policy.select_action(IDS, _with(-np.inf)),
        errors.InvalidObservation,
        "observation of agent 'b' holds -inf: expected finite numbers",
    ),
    "NaN to predict": (
        lambda policy: policy.predict(_with(np.nan)),
        errors.InvalidObservation,
        "holds nan: expected finite numbers",
    ),
    "NaN beside an agent that ends and one that joins": (
        lambda policy: policy.select_action(["a", "b", "d"], _with(np.nan), ["c"]),
        errors.InvalidObservation,
        "observation of agent 'b' holds nan",
    ),
    "unknown agent that ended": (
        lambda policy: policy.select_action(IDS, STREAM[3], ["b", "stranger"]),
        errors.UnknownAgent,
        "agent 'stranger' is not known to this policy; it holds 3 agents",
    ),
    "unknown agent to terminate": (
        lambda policy: policy.terminate_agents(["a", "stranger"]),
        errors.UnknownAgent,
        "agent 'stranger' is not known",
    ),
    "unknown agent to control": (
        lambda policy: policy.set_control_value(["a", "stranger"], 0.0),
        errors.UnknownAgent,
        "agent 'stranger' is not known",
    ),
    "unknown agent's control value": (
        lambda policy: policy.get_control_value(["a", "stranger"]),
        errors.UnknownAgent,
        "agent 'stranger' is not known",
    ),
    "duplicate ids": (
        lambda policy: policy.select_action(["a", "b", "a"], STREAM[3]),
        errors.UnknownAgent,
        "agent_ids holds 'a' twice: expected different ids",
    ),
    "duplicate ids that ended": (
        lambda policy: policy.select_action(IDS, STREAM[3], ["b", "b"]),
        errors.UnknownAgent,
        "terminated_agent_ids holds 'b' twice: expected different ids",
    ),
    "duplicate ids to terminate": (
        lambda policy: policy.terminate_agents(["b", "b"]),
        errors.UnknownAgent,
        "agent_ids holds 'b' twice",
    ),
    "control value above 1": (
        lambda policy: policy.set_control_value(control_value=1.5),
        errors.ConfigError,
        r"control_value=1\.5: expected a number from 0 to 1",
    ),
    "control value below 0 of one agent": (
        lambda policy: policy.set_control_value(["b"], -0.5),
        errors.ConfigError,
        r"control_value=-0\.5: expected a number from 0 to 1",
    ),
    "control value that is NaN": (
        lambda policy: policy.set_control_value(control_value=float("nan")),
        errors.ConfigError,
        "control_value=nan: expected a number from 0 to 1",
    ),
    "num_input_states above the maximum": (
        lambda policy: policy.set_num_input_states(5),
        errors.ConfigError,
        "num_input_states=5: expected an integer from 1 to 4",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_call_is_named_and_no_agent_notices(open_policy: Open, what: str) -> None:
    call, error, message = REFUSED[what]
    policy, undisturbed = (open_policy("smooth", deterministic=False, seed=7) for _ in range(2))
    for step, batch in enumerate(STREAM):
        if step == 3:
            with pytest.raises(error, match=message):
                call(policy)
            assert policy.get_agent_ids() == IDS
            assert policy.status()["agents"] == undisturbed.status()["agents"]
            assert policy.get_num_input_states() == 4
        expected = undisturbed.select_action(IDS, batch)
        np.testing.assert_allclose(policy.select_action(IDS, batch), expected, rtol=1e-6, atol=1e-6)


def test_nan_inside_an_observation_is_named_by_its_place(open_policy: Open) -> None:
    policy = open_policy("nested")
    observation = policy.sample_observation()
    observation["pose"][1, 2] = np.nan
    with pytest.raises(errors.InvalidObservation, match=r"observation\['pose'\] of agent 'agent' holds nan"):
        policy(observation)
    pixels = open_policy("images")
    frame = pixels.sample_observation()
    with pytest.raises(errors.InvalidObservation, match=r"observation\['camera'\] has dtype float64.*expected uint8"):
        pixels(frame | {"camera": frame["camera"] / 255})


def _frame(ids: list[str], batch: np.ndarray, request_id: int = 9, **options: Any) -> bytes:
    """Return a request for actions as a client of another make may send it."""
    tail = wire.encode(wire.Agents(ids, [], options.pop("starting", [])))
    padding = bytes(-batch.nbytes % 16)
    return wire.pack_frame(wire.ACT, wire.DETERMINISTIC, request_id, len(ids), [batch, padding], tail, **options)


# What the server must refuse by itself.
RAW: dict[str, tuple[bytes, type[Exception], str]] = {
    "NaN": (_frame(IDS, _with(np.nan)), errors.InvalidObservation, "observation of agent 'b' holds nan"),
    "duplicate ids": (_frame(["a", "b", "a"], STREAM[3]), errors.UnknownAgent, "agent_ids holds 'a' twice"),
    "long id": (_frame(["x" * 300], STREAM[3][:1]), errors.UnknownAgent, "expected a text of at most 256 bytes"),
    "shape": (_frame(IDS, np.zeros((3, 4))), errors.ProtocolError, "96 bytes of observations for 3 agents"),
    "dtype": (_frame(IDS, np.zeros((3, 3), np.float32)), errors.ProtocolError, "48 bytes of observations for 3 agents"),
    "window": (
        _frame(IDS, STREAM[3], num_input_states=9),
        errors.ConfigError,
        "num_input_states=9: expected 1 to 4",
    ),
    "kind": (wire.pack_frame(77, 0, 9, 0, ()), errors.ProtocolError, "a message of kind 77: expected"),
    "tail": (wire.pack_frame(wire.ACT, 0, 9, 1, (), b"\xc1"), errors.ProtocolError, "MessagePack"),
    "length": (b"abc", errors.ProtocolError, "a message of 3 bytes: expected at least 32"),
}


@pytest.mark.parametrize("what", RAW)
def test_server_refuses_by_itself_and_no_agent_notices(
    served: dict[str, str], bundles: dict[str, Path], what: str
) -> None:
    bad, error, text = RAW[what]
    channel = WebSocketChannel(served["smooth"], None)
    channel.open(time.monotonic() + 10)
    with (
        contextlib.closing(channel),
        GPTPolicy(bundles["smooth"]) as reference,
        GPTPolicy(served["smooth"]) as other,
    ):
        for step, batch in enumerate(STREAM):
            if step == 3:
                with pytest.raises(error, match=re.escape(text)):
                    wire.raise_failure(wire.unpack_frame(channel.exchange(bad, 10)))
            message = _frame(IDS, batch, 100 + step, starting=[] if step else IDS)
            reply = wire.unpack_frame(channel.exchange(message, 10))
            assert reply.kind == wire.ACTIONS
            actions = np.frombuffer(reply.message, np.float32, 6, wire.RAW_OFFSET).reshape(3, 2)
            expected = reference.select_action(IDS, batch)
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(other.select_action(IDS, batch), expected, rtol=1e-5, atol=1e-5)


JSON: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"observations": [[1, 2]] * 3}, r"observation has shape \(2,\): expected \(3,\)"),
    "dtype": ({"observations": [[1, 2, 3], [1, "x", 3], [1, 2, 3]]}, "expected numbers of shape"),
    "NaN": (
        {"observations": [[1, 2, 3], [1, "NaN", 3], [1, 2, 3]]},
        "observation of agent 'b' holds nan: expected finite numbers",
    ),
    "a number that is too large": ({"observations": [[1e400, 2, 3]] * 3}, "the body is not a request|finite"),
    "number of observations": ({"observations": [[1, 2, 3]]}, "got 1 observations for 3 agents"),
    "duplicate ids": ({"agent_ids": ["a", "b", "a"]}, "agent_ids holds 'a' twice"),
    "unknown agent": ({"terminated_agent_ids": ["b", "stranger"]}, "agent 'stranger' is not known"),
    "control value": ({"control_value": 1.5}, r"control_value=1\.5: expected a number from 0 to 1"),
    "control value of one agent": ({"control_value": [1, -1, 1]}, "control_value=.*expected a number from 0 to 1"),
    "control values too few": ({"control_value": [1]}, "one for each of 3 agents"),
    "num_input_states": ({"num_input_states": 5}, "num_input_states=5: expected 1 to 4"),
    "unknown field": ({"observation": [1]}, "unknown field `observation`"),
}


@pytest.mark.parametrize("what", [*JSON, "a body over the limit"])
def test_json_is_refused_and_no_agent_notices(served: dict[str, str], bundles: dict[str, Path], what: str) -> None:
    url = served["smooth"].replace("ws://", "http://") + "/invocations"
    session = {SESSION: "NEW_SESSION"}
    with GPTPolicy(bundles["smooth"]) as reference, httpx.Client(timeout=30) as client:
        for step, batch in enumerate(STREAM):
            body = {"observations": batch.tolist(), "agent_ids": IDS}
            if step == 3 and what in JSON:
                changes, message = JSON[what]
                refused = client.post(url, content=json.dumps(body | changes), headers=session)
                assert refused.status_code == 400
                assert re.search(message, refused.json()["error"])
            elif step == 3:
                refused = client.post(url, content=b" " * (Invocations.max_body_bytes + 1), headers=session)
                assert refused.status_code == 413
                assert refused.json()["error"] == "the body is over the limit of 6291456 bytes"
            answer = client.post(url, json=body, headers=session)
            session_id = answer.headers.get("X-Amzn-SageMaker-New-Session-Id", session[SESSION])
            session = {SESSION: session_id.partition(";")[0]}
            actions, expected = answer.json()["actions"], reference.select_action(IDS, batch)
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-5)


def test_request_over_the_limit_is_named_and_no_agent_notices(served: dict[str, str], bundles: dict[str, Path]) -> None:
    """The limit of a frame, before it is sent and where a client sends it nevertheless."""
    with GPTPolicy(served["images"]) as policy, GPTPolicy(bundles["images"]) as reference:
        streams = [reference.sample_observation(2) for _ in range(4)]
        for step, batch in enumerate(streams):
            if step == 2:
                count = 47_000
                many = {"camera": np.zeros((count, 20, 24, 3), np.uint8), "speed": np.zeros((count, 2), np.float32)}
                with pytest.raises(errors.InvalidObservation, match=r"limit of 67108864 of ws://.*fewer agents"):
                    policy.select_action([str(index) for index in range(count)], many)
                assert policy.get_agent_ids() == ["a", "b"]
                channel = WebSocketChannel(served["images"], None)
                channel.open(time.monotonic() + 10)
                with pytest.raises(errors.ProtocolError, match=r"over the frame limit of ws://.*67108864"):
                    channel.exchange(bytes(channel.max_body_bytes + 1), 10)
            expected = reference.select_action(["a", "b"], batch)
            assert policy.select_action(["a", "b"], batch).tolist() == expected.tolist()
        assert policy.status()["server"]["restored"] == 0


def _newer(folder: Path, **change: Any) -> Path:
    """Return a bundle as a later version might write it."""
    save_bundle(folder, make_smooth_model(), provenance={})
    config = json.loads((folder / "config.json").read_text()) | {"format_version": 2, "agentgpt_remote": "9.0"}
    left_out = [name for name, value in change.items() if value is None]
    config = {name: value for name, value in (config | change).items() if name not in left_out}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


NEWER = (
    rf"bundle format 2 \(written by agentgpt-remote 9\.0\), .* {re.escape(__version__)}, .*: upgrade agentgpt-remote"
)


@pytest.mark.parametrize("change", [{}, {"observation_space": None}, {"model": {"kind": "of the future"}}])
@pytest.mark.parametrize("engine", ["auto", "eager", "onnx"])
def test_bundle_of_a_newer_format_says_what_to_upgrade(tmp_path: Path, engine: Any, change: dict[str, Any]) -> None:
    with pytest.raises(errors.BundleError, match=NEWER):
        GPTPolicy(_newer(tmp_path, **change), engine=engine)


def test_server_of_a_newer_bundle_says_what_to_upgrade(tmp_path: Path) -> None:
    _newer(tmp_path)
    with pytest.raises(errors.BundleError, match=NEWER):
        LocalPolicyServer(tmp_path)
    with pytest.raises(errors.BundleError, match=NEWER):
        serve_policy(tmp_path, port=0, block=False)
    command = [sys.executable, "-m", "agentgpt_remote", "run", str(tmp_path), "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert re.search(NEWER, run.stderr)
    assert "Traceback" not in run.stderr


def test_newer_bundle_that_comes_while_another_is_served_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_bundle(tmp_path, make_smooth_model(), provenance={})
    options = PolicyServerOptions(watch=True, watch_interval_s=0.05)
    with serve_policy(tmp_path, port=0, block=False, options=options) as server, GPTPolicy(server.url) as policy:
        policy.select_action(IDS, STREAM[0])
        _newer(tmp_path)
        wait_until(lambda: re.search(NEWER, caplog.text) is not None, what="a warning")
        policy.select_action(IDS, STREAM[1])
        assert policy.status(["a"])["agents"]["a"]["steps"] == 2
        assert policy.status()["server"]["restored"] == 0


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
