"""The thin WebSocket client against a real Starlette server and against misbehaving sockets."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.server import ServerProtocol

from agentgpt_remote.connection import WebSocketConnection, wait_readable
from agentgpt_remote.errors import (
    AuthError,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    ProtocolError,
    ProtocolMismatch,
    RemoteTimeout,
)
from agentgpt_remote.serving import BackgroundServer, ServerOptions

TOKEN = "a-secret-token"


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            data = await websocket.receive_bytes()
            if data == b"close":
                await websocket.close(4000, "as asked")
                return
            await websocket.send_bytes(data)
    except WebSocketDisconnect:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[BackgroundServer]:
    app = Starlette(routes=[WebSocketRoute("/echo", _echo)])
    with BackgroundServer(app, ServerOptions(port=0, token=TOKEN, max_frame_bytes=1 << 22)) as running:
        yield running


def _connect(server: BackgroundServer, **options: object) -> WebSocketConnection:
    return WebSocketConnection.connect(server.url, token=TOKEN, path="/echo", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 65537, 100_000, 3_000_000])
def test_connection_echoes_messages_of_every_length(server: BackgroundServer, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with _connect(server) as connection:
        for _ in range(3):
            connection.send(data)
            received = connection.recv(10.0)
            assert bytes(received) == data
            assert not memoryview(received).readonly


def test_connection_keeps_messages_apart(server: BackgroundServer) -> None:
    sizes = [1, 70_000, 5, 0, 40_000, 40_000, 200_000, 3]
    with _connect(server) as connection:
        for size in sizes:
            connection.send(bytes([size % 251]) * size)
        received = [connection.recv(10.0) for _ in sizes]
    assert [(len(data), set(data)) for data in received] == [(size, {size % 251} if size else set()) for size in sizes]


def test_connection_ready_tells_when_a_message_is_whole(server: BackgroundServer) -> None:
    with _connect(server) as connection:
        assert not connection.ready()
        connection.send(b"x" * 100_000)
        deadline = time.monotonic() + 10.0
        while not connection.ready():
            assert time.monotonic() < deadline
            wait_readable([connection], 1.0)
        assert connection.recv(0.001) == b"x" * 100_000


def test_connection_recv_times_out_and_goes_on(server: BackgroundServer) -> None:
    with _connect(server) as connection:
        start = time.monotonic()
        with pytest.raises(RemoteTimeout, match=r"within 0\.05 s"):
            connection.recv(0.05)
        assert time.monotonic() - start < 5.0
        connection.send(b"later")
        assert connection.recv(10.0) == b"later"


def test_connection_closed_by_the_server_is_lost(server: BackgroundServer) -> None:
    with _connect(server) as connection:
        connection.send(b"close")
        with pytest.raises(ConnectionLost, match=r"4000\) as asked"):
            connection.recv(10.0)


def _send_and_receive(connection: WebSocketConnection, data: bytes) -> None:
    connection.send(data)
    connection.recv(10.0)


def test_connection_over_the_servers_limit_ends(server: BackgroundServer) -> None:
    with _connect(server) as connection, pytest.raises((ProtocolError, ConnectionLost)):
        _send_and_receive(connection, bytes((1 << 22) + 1))
    with _connect(server) as connection:
        connection.send(b"others go on")
        assert connection.recv(10.0) == b"others go on"


def test_connection_refuses_messages_over_its_own_limit(server: BackgroundServer) -> None:
    with _connect(server, max_frame_bytes=1000) as connection:
        connection.send(bytes(1001))
        with pytest.raises(ProtocolError, match="limit of 1000"):
            connection.recv(10.0)


def test_connection_close_is_idempotent(server: BackgroundServer) -> None:
    connection = _connect(server)
    connection.close()
    connection.close()
    assert connection.fileno() == -1


@pytest.mark.parametrize("token", [None, "wrong"])
def test_wrong_token_is_an_auth_error_that_does_not_show_it(server: BackgroundServer, token: str | None) -> None:
    with pytest.raises(AuthError, match="AGENTGPT_TOKEN") as refused:
        WebSocketConnection.connect(server.url, token=token, path="/echo")
    assert "wrong" not in str(refused.value).replace("the token is wrong", "")


def test_nothing_listening_is_unreachable_and_says_what_to_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(HostUnreachable, match=r"nothing listens at .*agentgpt serve"):
        WebSocketConnection.connect(url)


def test_path_that_does_not_exist_is_another_service(server: BackgroundServer) -> None:
    with pytest.raises((ProtocolMismatch, AuthError)):
        WebSocketConnection.connect(server.url, token=TOKEN, path="/elsewhere")


@pytest.mark.parametrize("url", ["ftp://x", "wss://", "ws://", "ws://user:secret@host", "ws://host:99999"])
def test_url_that_cannot_be_used_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        WebSocketConnection.connect(url)


def _serve_socket(talk: Callable[[socket.socket], None]) -> str:
    """Run ``talk`` on the first connection, in a thread; return the URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with listener, listener.accept()[0] as peer:
            talk(peer)

    threading.Thread(target=accept, daemon=True).start()
    return f"ws://127.0.0.1:{listener.getsockname()[1]}"


def _accept_upgrade(peer: socket.socket, extra: bytes = b"") -> None:
    protocol = ServerProtocol()
    events: list[object] = []
    while not events:
        protocol.receive_data(peer.recv(65536))
        events = list(protocol.events_received())
    protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]
    peer.sendall(b"".join(protocol.data_to_send()) + extra)


def test_server_of_another_kind_is_a_mismatch() -> None:
    url = _serve_socket(lambda peer: (peer.recv(65536), peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"), None)[-1])
    with pytest.raises(ProtocolMismatch, match="not an agentgpt server"):
        WebSocketConnection.connect(url, connect_timeout_s=5.0)


def test_silent_server_times_out_within_the_connect_timeout() -> None:
    done = threading.Event()
    url = _serve_socket(lambda _: (done.wait(30), None)[-1])
    start = time.monotonic()
    with pytest.raises(HostUnreachable, match="timed out"):
        WebSocketConnection.connect(url, connect_timeout_s=0.3)
    assert time.monotonic() - start < 5.0
    done.set()


def test_frames_that_arrive_with_the_handshake_byte_by_byte_or_fragmented_are_kept() -> None:
    def talk(peer: socket.socket) -> None:
        _accept_upgrade(peer, b"\x82\x05early")
        for byte in b"\x89\x02hi" + b"\x02\x02fr" + b"\x00\x02ag" + b"\x8a\x00" + b"\x80\x03men":
            peer.sendall(bytes([byte]))
        header = struct.pack("!BBQ", 0x82, 127, 200_000)
        for start in range(0, 200_000, 37_000):
            peer.sendall((header if start == 0 else b"") + b"y" * min(37_000, 200_000 - start))
        assert peer.recv(100)[:2] == b"\x8a\x82"  # the pong, masked
        peer.recv(100)

    connection = WebSocketConnection.connect(_serve_socket(talk))
    with connection:
        assert connection.recv(5.0) == b"early"
        assert connection.recv(5.0) == b"fragmen"
        assert connection.recv(5.0) == b"y" * 200_000


@pytest.mark.parametrize("frame", [b"\x81\x02hi", b"\x80\x02hi", b"\x82\x82abcdhi"], ids=["text", "orphan", "masked"])
def test_frames_against_the_protocol_are_refused(frame: bytes) -> None:
    url = _serve_socket(lambda peer: (_accept_upgrade(peer, frame), peer.recv(100), None)[-1])
    with WebSocketConnection.connect(url) as connection, pytest.raises(ProtocolError):
        connection.recv(5.0)


def test_connection_cut_in_the_middle_of_a_message_is_lost() -> None:
    url = _serve_socket(lambda peer: _accept_upgrade(peer, struct.pack("!BBQ", 0x82, 127, 200_000) + b"y" * 70_000))
    with WebSocketConnection.connect(url) as connection, pytest.raises(ConnectionLost):
        connection.recv(5.0)
