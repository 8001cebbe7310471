"""Ask a server for JSON over HTTP, with the same trust and the same errors as its WebSocket."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import Any

from agentgpt_remote.connection import open_socket, secure
from agentgpt_remote.errors import AgentGPTError, AuthError, HostUnreachable, ProtocolMismatch
from agentgpt_remote.upgrade import parse_url

_MAX_BODY_BYTES = 8 * 1024 * 1024


class HttpStatus(ProtocolMismatch):
    """A server answered with an HTTP status other than 200.

    Attributes:
        status: the status.
    """

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(f"{url} answered HTTP {status} {reason}".rstrip())
        self.status = status

    def __reduce__(self) -> Any:
        """Pickle the text and the status."""
        return _rebuilt, (str(self), self.status)


def _rebuilt(text: str, status: int) -> HttpStatus:
    error = HttpStatus("", status, "")
    error.args = (text,)
    return error


def get_json(
    url: str, path: str = "", *, token: str | None = None, timeout_s: float = 10.0, hint: str = "check the URL"
) -> Any:
    """Return the JSON that a server answers with.

    Args:
        url: of the server; ``ws://`` and ``wss://`` count as ``http://`` and ``https://``.
        path: appended to the URL's own.
        token: sent as ``Authorization: Bearer``.
        timeout_s: deadline of each step of the exchange, in seconds.
        hint: what to do where nothing listens; part of the error.

    Raises:
        HostUnreachable: nothing listens there, or it did not answer in time.
        AuthError: the token is missing or wrong, or the certificate is not trusted.
        HttpStatus: another status than 200.
        ProtocolMismatch: the answer is no JSON.
    """
    host, port, uri = parse_url(url, path)
    sock = open_socket(url, host, port, timeout_s, hint)
    try:
        sock = secure(sock, uri.startswith("wss:"), host, url, hint, sends_secret=token is not None)
        with contextlib.closing(_Connection(host, port, sock)) as connection:
            return _exchange(connection, url, uri, token)
    except AgentGPTError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = "no answer in time" if isinstance(error, (TimeoutError, BlockingIOError)) else str(error)
        raise HostUnreachable(f"{url} does not answer as a server should ({reason}): {hint}") from error
    finally:
        sock.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, host: str, port: int, sock: socket.socket) -> None:
        super().__init__(host, port)
        self.sock = sock


def _exchange(connection: _Connection, url: str, uri: str, token: str | None) -> Any:
    target = "/" + uri.split("://", 1)[1].partition("/")[2]
    headers = {"Accept": "application/json", "Connection": "close"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    body = response.read(_MAX_BODY_BYTES)
    try:
        answer = json.loads(body)
    except ValueError as error:
        if response.status == 200:
            raise ProtocolMismatch(f"{url} is not an agentgpt server: its answer is no JSON") from error
        answer = None
    if response.status == 200:
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    reason = told if isinstance(told, str) else response.reason
    if response.status in (401, 403):
        raise AuthError(f"{url} refused the request: {reason}")
    if response.status in (429, 502, 503, 504):
        raise HostUnreachable(f"{url} can't be reached now: HTTP {response.status} {reason}")
    raise HttpStatus(url, response.status, reason)
