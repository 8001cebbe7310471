"""The policy server over real sockets: sessions, JSON, limits, and its child process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from agentgpt_remote import errors
from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.invocations import Invocations
from agentgpt_remote.policy.local_server import LocalPolicyServer
from agentgpt_remote.policy.server import serve_policy
from agentgpt_remote.policy.session import Layouts, PolicySession
from agentgpt_remote.serving import BackgroundServer
from tests.policy.conftest import SPACES

TOKEN = "secret-of-the-policy"


@pytest.fixture
def guarded(bundles: dict[str, Path]) -> Iterator[BackgroundServer]:
    with serve_policy(bundles["cartpole"], port=0, token=TOKEN, block=False) as server:
        yield server


def _http(url: str, path: str) -> str:
    return url.replace("ws://", "http://") + path


def test_ping_needs_no_token(guarded: BackgroundServer) -> None:
    answer = httpx.get(_http(guarded.url, "/ping"))
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


@pytest.mark.parametrize("token", [None, "wrong"])
def test_policy_server_refuses_a_wrong_token(
    guarded: BackgroundServer, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    with pytest.raises(errors.AuthError, match="token") as refused:
        GPTPolicy(guarded.url, token=token)
    assert TOKEN not in str(refused.value)
    with GPTPolicy(guarded.url, token=TOKEN) as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)
        assert TOKEN not in repr(policy)


def test_clients_have_agents_of_their_own(served: dict[str, str]) -> None:
    with GPTPolicy(served["continuous"]) as one, GPTPolicy(served["continuous"]) as other:
        observation = np.ones((1, 3))
        first = one.select_action(["a"], observation)
        one.select_action(["a"], observation)
        np.testing.assert_allclose(other.select_action(["a"], observation), first, atol=1e-6)


def test_concurrent_clients_get_what_they_would_get_alone(served: dict[str, str], bundles: dict[str, Path]) -> None:
    streams = np.random.default_rng(0).normal(size=(6, 20, 2, 3))
    results: dict[int, np.ndarray] = {}

    def play(source: str, index: int) -> np.ndarray:
        with GPTPolicy(source, deterministic=False, seed=index) as policy:
            return np.array([policy.select_action(["a", "b"], batch) for batch in streams[index]])

    threads = [
        threading.Thread(target=lambda i=index: results.update({i: play(served["continuous"], i)}))
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index in range(6):
        np.testing.assert_allclose(results[index], play(str(bundles["continuous"]), index), atol=1e-4)


def test_session_that_ends_frees_its_agents(served: dict[str, str]) -> None:
    address = _http(served["cartpole"], "/ping")
    with GPTPolicy(served["cartpole"]) as policy:
        policy(np.zeros(4, np.float32))
        assert httpx.get(address).json()["sessions"] == 1
    for _ in range(200):
        if httpx.get(address).json()["sessions"] == 0:
            break
    assert httpx.get(address).json()["sessions"] == 0


def test_nothing_listening_says_what_to_start() -> None:
    with pytest.raises(errors.HostUnreachable, match="agentgpt run"):
        GPTPolicy("ws://127.0.0.1:9", timeout_s=2)


def test_server_that_stops_is_a_clear_error(bundles: dict[str, Path]) -> None:
    server = serve_policy(bundles["cartpole"], port=0, block=False)
    policy = GPTPolicy(server.url, timeout_s=5)
    server.close()
    with pytest.raises(errors.ConnectionLost):
        policy(np.zeros(4, np.float32))
    policy.close()


def test_client_of_another_version_is_told_both(served: dict[str, str]) -> None:
    connection = WebSocketConnection.connect(served["cartpole"], path="/act")
    connection.send(msgspec.msgpack.encode(wire.Hello(protocol=99, version="9.9")))
    welcome = msgspec.msgpack.decode(connection.recv(5.0), type=wire.Welcome)
    assert (welcome.protocol, welcome.version) == (wire.PROTOCOL_VERSION, __version__)
    with connection, pytest.raises(errors.ConnectionLost, match="protocol 99"):
        connection.recv(5.0)
    with pytest.raises(errors.ProtocolMismatch, match=r"server speaks policy protocol 99.*9\.9.*upgrade.*this side"):
        wire.check_version(99, "9.9", "server")


@pytest.fixture
def session(bundles: dict[str, Path]) -> PolicySession:
    bundle = load_bundle(bundles["cartpole"])
    layouts = Layouts(Layout(bundle.observation_space), Layout(bundle.action_space))
    return PolicySession(PolicyEngine(bundle.model, max_agents=4), layouts)


def _act(request_id: int, ids: list[str], rows: int) -> bytes:
    tail = msgspec.msgpack.encode(wire.Agents(ids, [], ids))
    raw = np.ones((rows, 4), np.float32)
    return wire.pack_frame(wire.ACT, 0, request_id, len(ids), [raw], tail)


def test_repeated_request_is_answered_and_not_executed(session: PolicySession) -> None:
    message = _act(1, ["a", "b"], 2)
    reply = session.handle(message)
    assert wire.unpack_frame(reply).kind == wire.ACTIONS
    assert session.handle(message) is reply
    assert session.agents.agent_ids == ["a", "b"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"", "ProtocolError"),
        (b"\x01" * 32, "ProtocolError"),
        (wire.pack_frame(99, 0, 1, 0, []), "ProtocolError"),
        (wire.pack_frame(wire.ACT, 0, 1, 1, [b"1234"], b""), "ProtocolError"),
        (wire.pack_frame(wire.ACT, 0, 1, 1, [], b"\xff"), "ProtocolError"),
        (_act(1, ["a"], 2), "ProtocolError"),
        (_act(1, ["a", "a"], 2), "UnknownAgent"),
        (_act(1, ["a", "b", "c", "d", "e"], 5), "CapacityReached"),
    ],
)
def test_wrong_message_is_answered_with_an_error(session: PolicySession, message: bytes, kind: str) -> None:
    frame = wire.unpack_frame(session.handle(message))
    assert frame.kind == wire.FAILED
    with pytest.raises(getattr(errors, kind)):
        wire.raise_failure(frame)
    assert session.agents.agent_ids == []
    assert wire.unpack_frame(session.handle(_act(5, ["a"], 1))).kind == wire.ACTIONS


def _post(url: str, body: object, **headers: str) -> httpx.Response:
    return httpx.post(_http(url, "/invocations"), json=body, headers=headers)


@pytest.mark.parametrize("name", SPACES)
def test_invocations_act_on_json(served: dict[str, str], bundles: dict[str, Path], name: str) -> None:
    plain = {
        "cartpole": [0.5, 0, 0, -1],
        "offset": -2,
        "continuous": [1, 2, 3],
        "multi": [2, 3],
        "images": {"camera": np.zeros((20, 24, 3), int).tolist(), "speed": [0.5, -1]},
        "bits": [1, 0, 0, 1, 1, 0],
        "nested": {"pose": [[0, 0, 1], [1, 0, 0]], "mode": [2, [1, 0]]},
    }[name]
    answer = _post(served[name], {"observations": [plain, plain]}).json()
    assert answer["agent_ids"] == ["0", "1"]
    assert answer["actions"][0] == answer["actions"][1]
    if name == "cartpole":
        with GPTPolicy(bundles[name]) as policy:
            assert answer["actions"][0] == policy(np.array(plain, np.float32))


def test_invocations_session_remembers(served: dict[str, str]) -> None:
    url, body = served["continuous"], {"observations": [[1, 1, 1]], "agent_ids": ["a"]}
    opened = _post(url, body, **{"X-Amzn-SageMaker-Session-Id": "NEW_SESSION"})
    session_id, _, expires = opened.headers["X-Amzn-SageMaker-New-Session-Id"].partition("; ")
    assert expires.startswith("Expires=20")
    again = _post(url, body, **{"X-Amzn-SageMaker-Session-Id": session_id}).json()
    ended = _post(url, body | {"terminated_agent_ids": ["a"]}, **{"X-Amzn-SageMaker-Session-Id": session_id}).json()
    assert again["actions"] != opened.json()["actions"]
    assert ended["actions"] == opened.json()["actions"] == _post(url, body).json()["actions"]
    lost = _post(url, body, **{"X-Amzn-SageMaker-Session-Id": "stale"})
    assert lost.status_code == 400
    assert "NEW_SESSION" in lost.json()["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "observations"),
        ({"observations": [[1, 2, 3]]}, "shape"),
        ({"observations": [["x", 1, 2, 3]]}, "expected numbers"),
        ({"observations": [[1, [2], 3, 4]]}, "different lengths"),
        ({"observations": [[1, 2, 3, 4]], "agent_ids": ["a", "b"]}, "1 observations for 2 agents"),
        ({"observations": [[1, 2, 3, 4]], "sampled": True}, "sampled"),
        ({"observations": [[1, 2, 3, 4]], "terminated_agent_ids": ["zz"]}, "'zz' is not known"),
    ],
)
def test_invocations_refuse_what_is_wrong(served: dict[str, str], body: object, message: str) -> None:
    answer = _post(served["cartpole"], body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_invocations_refuse_a_body_over_the_limit(served: dict[str, str]) -> None:
    answer = httpx.post(_http(served["cartpole"], "/invocations"), content=b" " * (Invocations.max_body_bytes + 1))
    assert answer.status_code == 413


def test_local_policy_server_ends_with_its_policy(bundles: dict[str, Path]) -> None:
    server = LocalPolicyServer(bundles["cartpole"])
    policy = server.policy()
    assert policy(np.zeros(4, np.float32)) in (0, 1)
    assert httpx.get(_http(server.url, "/ping")).status_code == 200
    policy.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(_http(server.url, "/ping"))


def test_local_policy_server_of_a_missing_bundle_fails_clearly(tmp_path: Path) -> None:
    with pytest.raises(errors.BundleError, match="no policy bundle"):
        LocalPolicyServer(tmp_path)


@pytest.mark.parametrize("name", ["cartpole", "images"])
def test_acting_through_a_server_needs_no_torch(served: dict[str, str], name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from agentgpt_remote import GPTPolicy\n"
        "with GPTPolicy(sys.argv[1]) as policy: print(policy(policy.sample_observation()))"
    )
    run = subprocess.run([sys.executable, "-c", code, served[name]], capture_output=True, text=True, timeout=60)
    assert run.stdout.strip().isdigit(), run.stderr
