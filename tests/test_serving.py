"""Who may connect to a server, and where it may listen: over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import AuthError, ConfigError, PortInUse
from agentgpt_remote.serving import BackgroundServer, ServerOptions, is_loopback, resolve_token

TOKEN = "a-secret-token"


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.path)


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for data in websocket.iter_bytes():
        await websocket.send_bytes(data)


def _app() -> Starlette:
    return Starlette(routes=[Route("/health", _page), Route("/secret", _page), WebSocketRoute("/echo", _echo)])


@pytest.fixture
def guarded() -> Iterator[BackgroundServer]:
    with BackgroundServer(_app(), ServerOptions(port=0, token=TOKEN, max_frame_bytes=1000)) as server:
        yield server


@pytest.fixture
def local() -> Iterator[BackgroundServer]:
    with BackgroundServer(_app(), ServerOptions(port=0)) as server:
        yield server


def _http(server: BackgroundServer, path: str) -> str:
    return server.url.replace("ws://", "http://") + path


@pytest.mark.parametrize("value", [None, "Bearer wrong", f"Bearer {TOKEN}x", TOKEN])
def test_token_auth_refuses_http_without_the_token(guarded: BackgroundServer, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response = httpx.get(_http(guarded, "/secret"), headers=headers)
    assert response.status_code == 401
    assert TOKEN not in response.text
    assert "AGENTGPT_TOKEN" in response.json()["error"]


def test_token_auth_lets_the_token_in(guarded: BackgroundServer) -> None:
    assert httpx.get(_http(guarded, "/secret"), headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_token_auth_leaves_health_open(guarded: BackgroundServer) -> None:
    assert httpx.get(_http(guarded, "/health")).status_code == 200


def test_token_auth_refuses_websocket_before_the_upgrade(guarded: BackgroundServer) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(guarded.url + "/echo"):
        pytest.fail("the upgrade was accepted")
    assert refused.value.response.status_code == 401


def test_refused_websocket_is_logged_once_with_its_reason(
    guarded: BackgroundServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AuthError):
        WebSocketConnection.connect(guarded.url, token="wrong")
    guarded.close()
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("agentgpt_remote.serving", "WARNING"),
    ]
    assert "the token is wrong" in caplog.text


def test_server_closes_on_a_frame_over_the_limit(guarded: BackgroundServer) -> None:
    with connect(guarded.url + "/echo", additional_headers={"Authorization": f"Bearer {TOKEN}"}) as websocket:
        websocket.send(b"x" * 1000)
        assert websocket.recv(timeout=10) == b"x" * 1000
        websocket.send(b"x" * 1001)
        with pytest.raises(ConnectionClosedError, match="1009"):
            websocket.recv(timeout=10)


def test_local_server_refuses_a_foreign_origin(local: BackgroundServer) -> None:
    assert httpx.get(_http(local, "/secret"), headers={"Origin": "https://example.com"}).status_code == 403
    assert httpx.get(_http(local, "/secret"), headers={"Origin": _http(local, "")}).status_code == 200


def test_local_server_refuses_a_foreign_host_name(local: BackgroundServer) -> None:
    assert httpx.get(_http(local, "/secret"), headers={"Host": "rebound.example.com"}).status_code == 403
    assert httpx.get(_http(local, "/secret"), headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_server_refuses_to_listen_beyond_loopback_without_a_token(host: str) -> None:
    with pytest.raises(AuthError, match="without a token"):
        BackgroundServer(_app(), ServerOptions(host=host, port=0))


def test_server_names_a_port_in_use(local: BackgroundServer) -> None:
    port = int(local.url.rsplit(":", 1)[1])
    with pytest.raises(PortInUse, match=f"port {port} .* in use"):
        BackgroundServer(_app(), ServerOptions(port=port))


@pytest.mark.parametrize("port", [-1, 70000])
def test_server_names_a_port_out_of_range(port: int) -> None:
    with pytest.raises(ConfigError, match=str(port)):
        BackgroundServer(_app(), ServerOptions(port=port))


def test_server_close_is_idempotent_and_frees_port_and_thread() -> None:
    before = set(threading.enumerate())
    server = BackgroundServer(_app(), ServerOptions(port=0))
    port = int(server.url.rsplit(":", 1)[1])
    server.close()
    server.close()
    assert not server.running
    assert set(threading.enumerate()) <= before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_is_loopback_knows_names_and_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("", "0.0.0.0", "10.0.0.1", "no-such-host.invalid"))


def test_resolve_token_prefers_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTGPT_TOKEN", "from-environment")
    assert resolve_token("given") == "given"
    assert resolve_token(None) == "from-environment"
    monkeypatch.setenv("AGENTGPT_TOKEN", "")
    assert resolve_token(None) is None


@pytest.mark.parametrize("token", ["two words\n", "naïve", " padded"])
def test_resolve_token_refuses_what_a_header_cannot_carry(token: str) -> None:
    with pytest.raises(AuthError, match="printable ASCII") as refused:
        resolve_token(token)
    assert token.strip() not in str(refused.value)


def test_server_options_repr_hides_the_token() -> None:
    assert TOKEN not in repr(ServerOptions(token=TOKEN))
