"""The opening handshake of a WebSocket client, with errors that tell what listens there instead."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentgpt_remote.errors import AgentGPTError, AuthError, ConfigError, HostUnreachable, ProtocolMismatch

if TYPE_CHECKING:
    from websockets.http11 import Response

_quiet_logger = logging.getLogger("agentgpt_remote.upgrade")
_quiet_logger.setLevel(logging.INFO)  # at DEBUG, websockets logs request headers, and one of them is the token
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_GATEWAY_ERRORS = (502, 503, 504)  # the host may be back in a moment, as after a connection that was refused
UPGRADE_REQUIRED = 426
_TOO_MANY = 429


def parse_url(url: str, path: str) -> tuple[str, int, str]:
    """Return host, port and the full URI of a server's endpoint.

    Raises:
        ConfigError: the URL has no host, an unknown scheme, or holds credentials.
    """
    if not isinstance(url, str):
        raise ConfigError(f"can't connect to {url!r}: expected a text such as ws://HOST:PORT")
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
    except ValueError as error:
        raise ConfigError(f"can't connect to {url!r}: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError(f"can't connect to {url!r}: expected ws://HOST:PORT, http://HOST:PORT, wss:// or https://")
    if parts.username or parts.password:
        raise ConfigError("a URL must not hold credentials: pass token= or set AGENTGPT_TOKEN")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise ConfigError(f"can't connect to {url!r}: {error}") from error
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    query = f"?{parts.query}" if parts.query else ""
    scheme = "wss" if parts.scheme in ("wss", "https") else "ws"
    return parts.hostname, port, f"{scheme}://{name}:{port}{parts.path.rstrip('/')}{path or '/'}{query}"


class Handshake:
    """The opening handshake of a WebSocket client, without I/O.

    Args:
        uri: URI to ask for.
        headers: request headers to add.
        url: how the server is called in errors.
        hint: what to do where nothing answers.
    """

    def __init__(self, uri: str, headers: Mapping[str, str], url: str, hint: str) -> None:
        from websockets.client import ClientProtocol
        from websockets.uri import parse_uri

        self._url, self._hint = url, hint
        self._received = b""
        self._protocol = ClientProtocol(parse_uri(uri), max_size=None, logger=_quiet_logger)
        request = self._protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)

    def request(self) -> bytes:
        """Return the bytes to send."""
        return b"".join(self._protocol.data_to_send())

    def receive(self, data: bytes) -> bytes | None:
        """Take received bytes; none stand for the end of the connection.

        Returns:
            Bytes that came after the handshake, or ``None`` while it is not complete.

        Raises:
            HostUnreachable: the connection ended early, or a gateway misses the server.
            AuthError: the server refused the token.
            ProtocolMismatch: what listens there is another service.
        """
        from websockets.http11 import Response

        protocol = self._protocol
        head, leftover = _split_head(self._received, data)
        self._received += data
        protocol.receive_data(head) if data else protocol.receive_eof()
        if leftover and not protocol.events and protocol.handshake_exc is None:
            protocol.receive_data(leftover)  # the body of a refusal
        response = next((event for event in protocol.events_received() if isinstance(event, Response)), None)
        if response is None and protocol.handshake_exc is None:
            return None
        if response is None:
            raise self._cut_short()
        if protocol.handshake_exc is not None:
            raise _refused(response, self._url)
        return leftover

    def _cut_short(self) -> Exception:
        received = self._received
        if b"HTTP/".startswith(received[:5]) and b"\r\n\r\n" not in received:
            return HostUnreachable(f"{self._url} closed the connection during the handshake: {self._hint}")
        return ProtocolMismatch(f"{self._url} is not an agentgpt server: {self._protocol.handshake_exc}")

    def failure(self, error: OSError) -> HostUnreachable:
        """Return the error to raise where the connection failed meanwhile."""
        reason = "the handshake timed out" if isinstance(error, TimeoutError) else f"{error.strerror or error}"
        return HostUnreachable(f"no WebSocket server answers at {self._url} ({reason}): {self._hint}")


def upgrade(sock: socket.socket, uri: str, headers: Mapping[str, str], deadline: float, url: str, hint: str) -> bytes:
    """Do the opening handshake on a connected socket.

    Args:
        sock: the socket; its timeout is changed.
        uri: URI to ask for.
        headers: request headers to add.
        deadline: when to give up, on the monotonic clock, in seconds.
        url: how the server is called in errors.
        hint: what to do where nothing answers.

    Returns:
        Bytes that came after the handshake.

    Raises:
        HostUnreachable: no answer in time.
        AuthError: the server refused the token.
        ProtocolMismatch: what listens there is another service.
    """
    handshake = Handshake(uri, headers, url, hint)
    try:
        sock.sendall(handshake.request())
        leftover: bytes | None = None
        while leftover is None:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            leftover = handshake.receive(sock.recv(65536))
    except AgentGPTError:
        raise
    except OSError as error:
        raise handshake.failure(error) from error
    return leftover


def _split_head(received: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Split ``data`` behind the end of the HTTP head, unless the head ended before."""
    if b"\r\n\r\n" in received:
        return data, b""
    end = (received + data).find(b"\r\n\r\n")
    if end < 0:
        return data, b""
    cut = end + 4 - len(received)
    return data[:cut], data[cut:]


def _refused(response: Response, url: str) -> Exception:
    reason = response.reason_phrase
    with contextlib.suppress(ValueError, TypeError, AttributeError, UnicodeDecodeError):  # any server may answer
        reason = str(json.loads(bytes(response.body or b""))["error"])
    if response.status_code in (401, 403):
        return AuthError(f"{url} refused the connection: {reason}")
    if response.status_code in _GATEWAY_ERRORS:
        return HostUnreachable(
            f"a gateway at {url} can't reach the host: it answered HTTP {response.status_code} {reason}"
        )
    if response.status_code == _TOO_MANY:
        return HostUnreachable(f"{url} refused the connection for a while: {reason}")
    if response.status_code in (UPGRADE_REQUIRED, 200):
        return ProtocolMismatch(
            f"{url} answered HTTP {response.status_code} to a WebSocket upgrade ({reason}): a proxy in between may "
            "have removed it; have it pass on the headers Upgrade and Connection, or use wss://"
        )
    return ProtocolMismatch(f"{url} is not an agentgpt server: it answered HTTP {response.status_code} {reason}")
