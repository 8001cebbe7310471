"""A host over real sockets: health, slow and hanging environments, bad messages, many sessions."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import (
    AuthError,
    ConfigError,
    ConnectionLost,
    PortInUse,
    ProtocolMismatch,
    RemoteTimeout,
)
from agentgpt_remote.handshake import MAGIC, Open, Opened, Refused, decode_from_host, encode_handshake
from agentgpt_remote.packing import unpack_value
from agentgpt_remote.protocol import ClientSession, Kind, join_message, parse_envelope
from agentgpt_remote.server import serve
from agentgpt_remote.serving import BackgroundServer
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.support import wait_until
from tests.wrappers.doomed_envs import HANG
from tests.wrappers.odd_envs import BoundEnv, CountingEnv, EmptyEnv, LateEnv, LoopingEnv, SlowEnv, StuckEnv


def _health(server: BackgroundServer) -> dict[str, Any]:
    fields: dict[str, Any] = httpx.get(server.url.replace("ws://", "http://") + "/health").json()
    return fields


def test_health_tells_what_is_served(serve_here: ServeFunction) -> None:
    server = serve_here("CartPole-v1", num_envs=4)
    with RemoteVectorEnv(url=server.url, num_envs=3):
        fields = _health(server)
    assert fields["status"] == "ok"
    assert fields["source"] == "CartPole-v1"
    assert (fields["sessions"], fields["envs"], fields["num_envs"]) == (1, 3, 4)
    assert {"version", "protocol"} <= fields.keys()


def test_health_and_other_sessions_go_on_while_an_env_steps(serve_here: ServeFunction) -> None:
    server = serve_here(SlowEnv)
    with RemoteVectorEnv(url=server.url, seconds=1.5) as slow, RemoteEnv(url=server.url, seconds=0.0) as quick:
        slow.reset()
        quick.reset()
        slow.step_async(np.array([0]))
        start = time.monotonic()
        for _ in range(20):
            quick.step(0)
        assert _health(server)["sessions"] == 2
        assert time.monotonic() - start < 1.4
        assert not slow.reply_ready
        slow.step_wait()


def test_env_that_becomes_slow_leaves_the_event_loop(serve_here: ServeFunction) -> None:
    server = serve_here(SlowEnv)
    with RemoteVectorEnv(url=server.url, seconds=0.0) as envs:
        envs.reset()
        for _ in range(50):  # measured to be cheap: steps on the loop
            envs.step(np.array([0]))
        envs.set_attr("seconds", 0.05)
        envs.step(np.array([0]))  # the one slow step on the loop
        envs.set_attr("seconds", 1.5)
        envs.step_async(np.array([0]))
        start = time.monotonic()
        assert _health(server)["status"] == "ok"
        assert time.monotonic() - start < 1.2
        envs.step_wait()


def test_env_that_hangs_ends_its_session_only(serve_here: ServeFunction) -> None:
    server = serve_here(StuckEnv, step_timeout_s=0.3)
    with RemoteEnv(url=server.url) as other, RemoteEnv(url=server.url) as env:
        env.reset()
        with pytest.raises(RemoteTimeout, match=r"longer than step_timeout_s=0\.3"):
            env.step(0)
        with pytest.raises(ConnectionLost):
            env.step(0)
        assert other.reset()[0][0] == 1.0


def test_many_sessions_step_at_once(serve_here: ServeFunction) -> None:
    server = serve_here(CountingEnv)
    results: list[list[float]] = []

    def client(length: int) -> None:
        with RemoteEnv(url=server.url, length=1000) as env:
            env.reset()
            results.append([float(env.step(0)[0][1]) for _ in range(length)])

    threads = [threading.Thread(target=client, args=(100 + n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(len, results)) == [100 + n for n in range(8)]
    assert all(result == [float(i + 1) for i in range(len(result))] for result in results)
    wait_until(lambda: _health(server)["sessions"] == 0)


def _open(server: BackgroundServer) -> WebSocketConnection:
    connection = WebSocketConnection.connect(server.url, path="/session")
    connection.send(encode_handshake(Open()))
    assert isinstance(decode_from_host(connection.recv(5.0)), Opened)
    return connection


def _ask(server: BackgroundServer, first: bytes) -> Refused:
    with WebSocketConnection.connect(server.url, path="/session") as connection:
        connection.send(first)
        answer = connection.recv(5.0)
    body = msgspec.msgpack.decode(memoryview(answer)[4:])
    assert bytes(answer[:4]) == MAGIC
    refused = Refused(**{key: value for key, value in body.items() if key != "message"})
    assert _health(server)["sessions"] == 0
    return refused


def test_client_of_another_version_is_told_both_versions(serve_here: ServeFunction) -> None:
    server = serve_here(CountingEnv)
    refused = _ask(server, encode_handshake(Open(protocol=99, versions={"agentgpt-remote": "9.9.9"})))
    assert refused.error["type"] == "ProtocolMismatch"
    for part in ("protocol 99", "9.9.9", "protocol 1", "upgrade the host"):
        assert part in refused.error["message"]


def test_host_of_another_version_is_named_to_the_user() -> None:
    answer = encode_handshake(Refused(protocol=0, versions={"agentgpt-remote": "0.0.1"}, error={}))
    with pytest.raises(
        ProtocolMismatch, match=r"host speaks protocol 0 .*0\.0\.1.*client protocol 1.*upgrade the host"
    ):
        decode_from_host(answer)


@pytest.mark.parametrize(
    "first", [b"", b"hello", MAGIC, MAGIC + b"\xc1", MAGIC + msgspec.msgpack.encode([1]), b"{}" * 1000]
)
def test_first_message_that_is_no_handshake_is_refused(first: bytes, serve_here: ServeFunction) -> None:
    assert _ask(serve_here(CountingEnv), first).error["type"] in ("ProtocolMismatch", "ProtocolError")


@pytest.mark.parametrize(
    ("change", "type_name"),
    [
        ({"num_envs": -3}, "ConfigError"),
        ({"num_envs": 2, "autoreset_mode": "Sometimes"}, "ConfigError"),
        ({"kwargs": b"\xc1"}, "ProtocolError"),
        ({"kwargs": msgspec.msgpack.encode({1: 2})}, "ProtocolError"),
        ({"source": "Pendulum-v1"}, "NameNotFound"),
    ],
)
def test_request_that_makes_no_sense_is_refused(
    change: dict[str, Any], type_name: str, serve_here: ServeFunction
) -> None:
    assert _ask(serve_here(CountingEnv), encode_handshake(Open(**change))).error["type"] == type_name


def test_repeated_request_is_answered_and_not_executed_twice(serve_here: ServeFunction) -> None:
    with _open(serve_here(CountingEnv)) as connection:
        requests = ClientSession()
        reset = requests.request(Kind.RESET, [], extras=msgspec.msgpack.encode([None, None]))
        step = requests.request(Kind.STEP, [(1).to_bytes(8, "little"), bytes(8)])
        connection.send(reset)
        first = bytes(connection.recv(5.0))
        for _ in range(3):
            connection.send(reset)
            assert bytes(connection.recv(5.0)) == first
        replies = []
        for _ in range(3):
            connection.send(step)
            replies.append(bytes(connection.recv(5.0)))
        assert len(set(replies)) == 1
        assert parse_envelope(replies[0]).kind == Kind.STEP


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        join_message(Kind.STEP, 7, []),
        join_message(Kind.STEP, 0, []),
        join_message(Kind.STEP, 1, [])[:-3] + b"\xff\xff\xff",
    ],
    ids=["empty", "short", "gap", "zero", "padding"],
)
def test_malformed_message_ends_at_most_its_connection(data: bytes, serve_here: ServeFunction) -> None:
    server = serve_here(CountingEnv)
    with RemoteEnv(url=server.url) as other:
        other.reset()
        with _open(server) as connection:
            connection.send(data)
            with contextlib.suppress(ConnectionLost):
                assert parse_envelope(connection.recv(5.0)).kind == Kind.ERROR
        assert other.step(0)[0][1] == 1.0


@pytest.mark.parametrize(
    ("kind", "parts", "extras", "message"),
    [
        (Kind.STEP, [b"\0" * 3], b"", "layout"),
        (Kind.STEP, [], b"", "layout"),
        (Kind.RESET, [], b"", "must hold 2 values"),
        (Kind.RESET, [], b"\xc1", "damaged"),
        (Kind.CALL, [], msgspec.msgpack.encode(["call", "_secret", [], {}]), "public names"),
        (99, [], b"", "unknown request 99"),
    ],
)
def test_request_of_the_wrong_layout_is_an_error_reply_and_the_session_goes_on(
    kind: int, parts: list[bytes], extras: bytes, message: str, serve_here: ServeFunction
) -> None:
    with _open(serve_here(CountingEnv)) as connection:
        connection.send(join_message(kind, 1, parts, extras=extras))
        reply = parse_envelope(connection.recv(5.0))
        assert reply.kind == Kind.ERROR
        assert message in unpack_value(reply.extras_data)["message"]
        connection.send(join_message(Kind.RESET, 2, [], extras=msgspec.msgpack.encode([1, None])))
        assert parse_envelope(connection.recv(5.0)).kind == Kind.RESET


def test_mutated_messages_harm_neither_host_nor_other_sessions(serve_here: ServeFunction) -> None:
    rng = random.Random(1)
    server = serve_here(CountingEnv)
    good = [
        encode_handshake(Open()),
        join_message(Kind.RESET, 1, [], extras=msgspec.msgpack.encode([3, {"a": [1]}])),
        join_message(Kind.STEP, 2, [bytes(16)]),
    ]
    with RemoteEnv(url=server.url, length=10**6) as other:
        other.reset()
        for count in range(1, 150):
            with WebSocketConnection.connect(server.url, path="/session") as connection:
                for data in good:
                    mutated = bytearray(data)
                    for _ in range(rng.randrange(3)):
                        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
                    try:
                        connection.send(mutated)
                        connection.recv(5.0)
                    except ConnectionLost:
                        break
            assert other.step(0)[0][1] == count
        assert _health(server)["status"] == "ok"


def test_text_message_closes_the_connection(serve_here: ServeFunction) -> None:
    with _open(serve_here(CountingEnv)) as connection:
        connection._send_frame(1, b"hello")
        with pytest.raises(ConnectionLost, match="binary"):
            connection.recv(5.0)


def test_serve_names_a_port_in_use_and_starts_nothing(serve_here: ServeFunction) -> None:
    port = int(serve_here(CountingEnv).url.rpartition(":")[2])
    with pytest.raises(PortInUse, match=str(port)):
        serve(CountingEnv, port=port, block=False)


def test_serve_refuses_other_addresses_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    with pytest.raises(AuthError, match="without a token"):
        serve(CountingEnv, host="0.0.0.0", port=0, block=False)


@pytest.mark.parametrize("option", ["num_envs", "max_sessions", "max_frame_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_serve_refuses_limits_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        serve(CountingEnv, port=0, block=False, **{option: value})


def test_close_ends_sessions_and_their_envs() -> None:
    closed = threading.Event()

    class Closing(CountingEnv):
        def close(self) -> None:
            closed.set()

    urls: list[str] = []
    server = serve(Closing, port=0, block=False, on_ready=urls.append)
    assert urls == [server.url]
    env = RemoteEnv(url=server.url, resume_window_s=0.2)
    env.reset()
    server.close()
    assert closed.is_set()
    with pytest.raises(ConnectionLost):
        env.step(0)
    env.close()


def test_env_that_hangs_on_the_event_loop_is_interrupted() -> None:
    options = "'tests.wrappers.doomed_envs:DoomedEnv', step_timeout_s=1.0, port=0, on_ready=print"
    serving = f"from agentgpt_remote import serve; serve({options})"
    with subprocess.Popen([sys.executable, "-uc", serving], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with RemoteEnv(url=url) as env, RemoteEnv(url=url) as other:
            env.reset()
            other.reset()
            for _ in range(20):  # so that it counts as cheap
                env.step(0)
            with pytest.raises(RemoteTimeout, match=r"longer than step_timeout_s=1"):
                env.step(HANG)
            assert other.step(0)[0].tolist() == [1, 1, 0]
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("kind", [LoopingEnv, BoundEnv])
@pytest.mark.parametrize("num_envs", [None, 2])
def test_env_that_needs_an_event_loop_or_a_thread_of_its_own_steps_on(
    kind: Any, num_envs: int | None, serve_here: ServeFunction
) -> None:
    url = serve_here(kind, workers=0).url
    env: Any = RemoteEnv(url=url) if num_envs is None else RemoteVectorEnv(url=url, num_envs=num_envs)
    with env:
        for _ in range(3):
            env.reset()
            for _ in range(20):  # so that it counts as cheap
                env.step(env.action_space.sample())


def test_vector_whose_observations_have_an_axis_of_no_length_steps(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(EmptyEnv).url, num_envs=3) as envs:
        envs.reset()
        assert envs.step(np.zeros(3, np.int64))[0].shape == (3, 2, 0)


def test_env_that_is_made_after_its_client_gave_up_is_closed(serve_here: ServeFunction) -> None:
    url = serve_here(LateEnv, step_timeout_s=0.1, workers=0).url
    with pytest.raises(RemoteTimeout, match="constructor took longer"):
        RemoteEnv(url=url)
    LateEnv.event.set()
    assert LateEnv.closed.wait(10.0)
    RemoteEnv(url=url).close()
