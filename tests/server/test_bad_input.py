"""What clients do wrong is a clear error to them, and changes nothing for anybody else."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import httpx
import msgspec
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import CapacityReached, ConfigError, ConnectionLost, InvalidAction, ProtocolError
from agentgpt_remote.frames import TEXT
from agentgpt_remote.handshake import Open, Opened, Refused, Resume, decode_from_host, encode_handshake
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.processes import ChildProcess
from agentgpt_remote.protocol import Kind, join_message, parse_envelope
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.server.host_process import start_host
from tests.support import wait_until
from tests.wire.equality import exactly_equal

MAX_SESSIONS, MAX_ENVS, MAX_FRAME_BYTES = 3, 6, 50_000


@pytest.fixture(scope="module")
def host() -> Iterator[ChildProcess]:
    with start_host(
        "tests.wrappers.env_ids:make_any",
        num_envs=MAX_ENVS,
        max_sessions=MAX_SESSIONS,
        max_frame_bytes=MAX_FRAME_BYTES,
        resume_window_s=0.2,
    ) as process:
        yield process


@pytest.fixture
def url(host: ChildProcess) -> Iterator[str]:
    """Give the host's URL to a test, while another client's environment steps before and after it."""
    address: str = host.ready["url"]
    health = address.replace("ws://", "http://") + "/health"
    wait_until(lambda: httpx.get(health).json()["sessions"] == 0, what="the end of earlier tests' sessions")
    with gym.make("CartPole-v1") as twin:
        with RemoteEnv(url=address, env_id="CartPole-v1") as other:
            assert exactly_equal(other.reset(seed=3), twin.reset(seed=3))
            yield address
            for action in (0, 1, 1):
                assert exactly_equal(other.step(action), twin.step(action))
        assert host.poll() is None


def _open(url: str, **request: Any) -> WebSocketConnection:
    connection = WebSocketConnection.connect(url, path="/session")
    request.setdefault("kwargs", pack_value({"env_id": "CartPole-v1"}))
    connection.send(encode_handshake(Open(**request)))
    assert isinstance(decode_from_host(connection.recv(5.0)), Opened)
    return connection


def _refusal(url: str, request: Open | Resume) -> dict[str, Any]:
    with WebSocketConnection.connect(url, path="/session") as connection:
        connection.send(encode_handshake(request))
        answer = decode_from_host(connection.recv(5.0))
    assert isinstance(answer, Refused)
    return answer.error


def test_request_over_the_frame_limit_is_refused_before_it_is_sent(url: str) -> None:
    with RemoteEnv(url=url, env_id="CartPole-v1") as env:
        with pytest.raises(ProtocolError, match=rf"request of \d+ bytes .* limit of {MAX_FRAME_BYTES}"):
            env.reset(options={"blob": bytes(MAX_FRAME_BYTES)})
        assert env.reset(seed=0)[0].shape == (4,)


def test_reply_over_the_frame_limit_is_an_error_that_names_it(url: str) -> None:
    with RemoteEnv(url=url, env_id="CartPole-v1", render_mode="rgb_array") as env:
        env.reset(seed=0)
        with pytest.raises(ProtocolError, match=rf"reply of \d+ bytes .* limit of {MAX_FRAME_BYTES}.*max_frame_bytes"):
            env.render()
        assert env.step(0)[1] == 1.0


def test_frame_over_the_limit_of_a_client_that_does_not_care_ends_its_connection(url: str) -> None:
    with _open(url) as connection:
        connection.send(bytes(MAX_FRAME_BYTES + 1))
        with pytest.raises((ProtocolError, ConnectionLost)):
            connection.recv(5.0)


@pytest.mark.parametrize(
    ("kind", "parts", "extras", "message"),
    [
        (99, [], b"", "unknown request 99"),
        (0, [], b"", "unknown request 0"),
        (Kind.ERROR, [], b"", "unknown request 255"),
        (Kind.STEP, [b"\0" * 3], b"", "layout"),
        (Kind.RESET, [], b"", "must hold 2 values"),
        (Kind.RESET, [], pack_value([1, None, 2]), "must hold 2 values"),
        (Kind.RESET, [], b"\xc1", "damaged"),
        (Kind.CALL, [], pack_value("step"), "must hold 4 values"),
        (Kind.CALL, [], pack_value(["call", "_np_random", [], {}]), "public names"),
    ],
)
def test_request_of_the_wrong_layout_is_an_error_reply_and_the_session_goes_on(
    kind: int, parts: list[bytes], extras: bytes, message: str, url: str
) -> None:
    with _open(url) as connection:
        connection.send(join_message(kind, 1, parts, extras=extras))
        reply = parse_envelope(connection.recv(5.0))
        assert reply.kind == Kind.ERROR
        assert message in unpack_value(reply.extras_data)["message"]
        connection.send(join_message(Kind.RESET, 2, [], extras=pack_value([1, None])))
        assert parse_envelope(connection.recv(5.0)).kind == Kind.RESET


def test_array_larger_than_its_message_takes_no_memory(url: str) -> None:
    token, shape = b"<f8", struct.pack("<BQ", 1, 2**34)
    array = msgspec.msgpack.Ext(1, len(token).to_bytes(2, "little") + token + shape)
    with _open(url) as connection:
        connection.send(join_message(Kind.RESET, 1, [], extras=msgspec.msgpack.encode([array, None])))
        reply = unpack_value(parse_envelope(connection.recv(5.0)).extras_data)
    assert f"an array of shape ({2**34},) and dtype float64 has 0 bytes" in reply["message"]


@pytest.mark.parametrize("data", [b"", b"AGPT", join_message(Kind.STEP, 5, []), join_message(Kind.STEP, 0, [])])
def test_message_out_of_order_or_without_a_header_ends_the_connection_with_the_reason(data: bytes, url: str) -> None:
    with _open(url) as connection:
        connection.send(data)
        with pytest.raises(ConnectionLost, match=r"code 1002\) (a message of|request)"):
            connection.recv(5.0)


def test_text_instead_of_a_message_ends_the_connection_with_the_reason(url: str) -> None:
    with _open(url) as connection:
        connection._send_frame(TEXT, b"{}")
        with pytest.raises(ConnectionLost, match="expected a binary message"):
            connection.recv(5.0)


@pytest.mark.parametrize("action", [np.array([0, 1]), "left", None, 1.5, np.float32(1.0), {"a": 1}, 2**70])
def test_action_of_the_wrong_shape_or_dtype_names_the_space(action: Any, url: str) -> None:
    with RemoteEnv(url=url, env_id="CartPole-v1") as env, gym.make("CartPole-v1") as twin:
        assert exactly_equal(env.reset(seed=0), twin.reset(seed=0))
        with pytest.raises(InvalidAction, match=r"outside the action space Discrete\(2\)"):
            env.step(action)
        assert exactly_equal(env.step(1), twin.step(1))


@pytest.mark.parametrize(
    "actions", [np.zeros((2, 1), np.int64), np.zeros(3, np.int64), np.array(1), [0], {"a": np.zeros(2)}, None]
)
def test_actions_of_the_wrong_shape_say_what_was_expected(actions: Any, url: str) -> None:
    with RemoteVectorEnv(url=url, num_envs=2, env_id="CartPole-v1") as envs:
        envs.reset(seed=0)
        with pytest.raises(InvalidAction, match=r"expected one for each of 2 environments|outside the action space"):
            envs.step(actions)
        assert envs.step(np.array([0, 1]))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("actions", [np.array([0.5, 0.5]), np.array(["a", "b"]), np.array([0, 7])])
def test_actions_of_the_wrong_dtype_or_value_name_the_space(actions: Any, url: str) -> None:
    with RemoteVectorEnv(url=url, num_envs=2, env_id="CartPole-v1") as envs:
        envs.reset(seed=0)
        with pytest.raises(InvalidAction, match="outside the action space"):
            envs.step(actions)


def test_step_before_reset_is_reset_needed(url: str) -> None:
    with RemoteEnv(url=url, env_id="CartPole-v1") as env:
        with pytest.raises(ResetNeeded):
            env.step(0)
        with pytest.raises(ResetNeeded):
            env.render()
    with RemoteVectorEnv(url=url, num_envs=2, env_id="CartPole-v1") as envs:
        with pytest.raises(ResetNeeded):
            envs.step(np.array([0, 1]))
        envs.reset(seed=0)
        assert envs.step(np.array([0, 1]))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("make", [RemoteEnv, lambda **kwargs: RemoteVectorEnv(num_envs=2, **kwargs)])
def test_use_after_close_is_named(make: Callable[..., Any], url: str) -> None:
    env = make(url=url, env_id="CartPole-v1")
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(np.array([0, 0])), env.render, lambda: env.call("state")):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            use()


def test_step_after_close_of_a_client_that_goes_on_is_a_lost_connection(url: str) -> None:
    with _open(url) as connection:
        connection.send(join_message(Kind.CLOSE, 1, []))
        assert parse_envelope(connection.recv(5.0)).kind == Kind.CLOSE
        with pytest.raises(ConnectionLost):  # noqa: PT012 - the connection may end before or after it is sent
            connection.send(join_message(Kind.STEP, 2, [bytes(16)]))
            connection.recv(5.0)


@pytest.mark.parametrize("secret", ["", "wrong", "ä"])
def test_session_of_another_client_is_refused_without_its_secret(secret: str, url: str) -> None:
    with WebSocketConnection.connect(url, path="/session") as owner:
        owner.send(encode_handshake(Open(kwargs=pack_value({"env_id": "CartPole-v1"}))))
        opened = decode_from_host(owner.recv(5.0))
        assert isinstance(opened, Opened)
        error = _refusal(url, Resume.of(opened.session_id, secret, 1))
        assert "belongs to another client" in error["message"]
        owner.send(join_message(Kind.RESET, 1, [], extras=pack_value([1, None])))
        assert parse_envelope(owner.recv(5.0)).kind == Kind.RESET


@pytest.mark.parametrize("num_envs", [0, -1, 2.5, "many", True])
def test_number_of_envs_out_of_range_is_refused_by_name(num_envs: Any, url: str) -> None:
    with pytest.raises(ConfigError, match=r"num_envs=.* is out of range: expected an integer of at least 1"):
        RemoteVectorEnv(url=url, num_envs=num_envs, env_id="CartPole-v1")


@pytest.mark.parametrize("num_envs", [-1, -(2**40)])
def test_host_refuses_a_number_of_envs_out_of_range_itself(num_envs: int, url: str) -> None:
    error = _refusal(url, Open(num_envs=num_envs))
    assert error["type"] == "ConfigError"
    assert f"num_envs={num_envs} is out of range" in error["message"]


@pytest.mark.parametrize("num_envs", [MAX_ENVS + 1, 2**40, 2**63 - 1])
def test_more_envs_than_the_host_offers_name_its_limit(num_envs: int, url: str) -> None:
    with pytest.raises(CapacityReached, match=rf"asked for {num_envs} .* num_envs={MAX_ENVS}, 1 of them in use"):
        RemoteVectorEnv(url=url, num_envs=num_envs, env_id="CartPole-v1")


@pytest.mark.parametrize("urls", [1, 2])
@pytest.mark.parametrize("num_envs", [2**30, 2**63 - 1])
def test_number_of_envs_that_no_host_holds_is_refused_by_one_without_a_limit(
    num_envs: int, urls: int, serve_here: ServeFunction
) -> None:
    hosts = [serve_here("CartPole-v1").url for _ in range(urls)]
    with pytest.raises(CapacityReached, match=rf"asked for {num_envs} environments: .* 1048576.* Ask for fewer"):
        RemoteVectorEnv(url=hosts, num_envs=num_envs)
    RemoteVectorEnv(url=hosts, num_envs=2).close()


def test_host_at_its_session_limit_names_it(url: str) -> None:
    with (
        RemoteEnv(url=url, env_id="CartPole-v1") as env,
        RemoteEnv(url=url, env_id="CartPole-v1"),
        pytest.raises(CapacityReached, match=f"max_sessions={MAX_SESSIONS}"),
    ):
        RemoteEnv(url=url, env_id="CartPole-v1")
    with pytest.raises(ClosedEnvironmentError):
        env.step(0)
