"""Who is let in to a server: ASGI middleware that looks at the token before anything else is done.

Tokens are compared in constant time before a WebSocket upgrade is accepted, and an address may try only so many.
Without a token, only this machine's own programs are let in: a request that a web page of another origin sends,
or that reaches loopback under a foreign host name, is refused.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from agentgpt_remote.attempts import AttemptLimiter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_VARIABLE: Final = "AGENTGPT_TOKEN"
TOO_MANY: Final = 429
_logger = logging.getLogger("agentgpt_remote.serving")


class Refusal(NamedTuple):
    """Why a request is not let in.

    Attributes:
        status: HTTP status to answer with.
        reason: one line for people, without a secret.
        is_guess: whether it showed a token that may have been guessed.
    """

    status: int
    reason: str
    is_guess: bool = False


class Admission:
    """ASGI middleware that lets a request in, or refuses it; a subclass says which.

    Args:
        app: the application behind it.
        open_paths: paths answered without a token (health checks).

    Attributes:
        refused: how many requests were refused, by HTTP status.
    """

    def __init__(self, app: ASGIApp, open_paths: tuple[str, ...] = ("/health", "/ping")) -> None:
        self._app = app
        self._open_paths = open_paths
        self._limiter = AttemptLimiter()
        self.refused: dict[int, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 401, 403 or 429."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = None if scope["path"] in self._open_paths else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        self.refused[refusal.status] = self.refused.get(refusal.status, 0) + 1
        log = _logger.info if refusal.status == TOO_MANY else _logger.warning  # who is limited has been told of before
        client = scope.get("client")
        log("refused status=%d path=%s peer=%s reason=%s", refusal.status, scope["path"], client, refusal.reason)
        await refuse(scope, receive, send, refusal.status, refusal.reason)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if not self.has_tokens:
            return _local_refusal(headers)
        given = headers.get(b"authorization", b"")
        address = str((scope.get("client") or ("",))[0])
        wait_s = self._limiter.wait_s(address, given)
        if wait_s:
            reason = f"too many wrong tokens from this address: try again in {math.ceil(wait_s)} s, with the right one"
            return Refusal(TOO_MANY, reason)
        refusal = self.judge(scope["path"], given)
        if refusal is None:
            self._limiter.accepted(given)
        elif refusal.is_guess and given:
            self._limiter.failed(address)
        return refusal

    @property
    def has_tokens(self) -> bool:
        """Whether a token is asked for."""
        raise NotImplementedError

    def judge(self, path: str, given: bytes) -> Refusal | None:
        """Return why what was given as ``Authorization`` is not good for a path, or ``None`` where it is."""
        raise NotImplementedError


class TokenAuth(Admission):
    """Lets a request in only with the right bearer token.

    Args:
        app: the application behind it.
        token: the token expected in ``Authorization: Bearer ...``; ``None`` lets in local programs only.
        open_paths: paths answered without a token (health checks).
    """

    def __init__(self, app: ASGIApp, token: str | None, open_paths: tuple[str, ...] = ("/health", "/ping")) -> None:
        super().__init__(app, open_paths)
        self._expected = None if token is None else f"Bearer {token}".encode()

    @property
    def has_tokens(self) -> bool:
        """Whether a token is asked for."""
        return self._expected is not None

    def judge(self, path: str, given: bytes) -> Refusal | None:
        """Return why it is not good, or ``None`` where it is."""
        del path
        if self._expected is not None and hmac.compare_digest(given, self._expected):
            return None
        what = "the token is wrong" if given else "a token is required"
        reason = f"{what}: pass token=, --token or {TOKEN_VARIABLE} with the token of this server"
        return Refusal(401, reason, is_guess=True)


def _local_refusal(headers: dict[bytes, bytes]) -> Refusal | None:
    """Return why a request does not come from one of this machine's own programs."""
    name = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname or ""
    if not _is_loopback_name(name):
        return Refusal(403, f"host name {name!r} is not this machine's loopback: start the server with a token")
    origin = headers.get(b"origin")
    if origin is not None and urlsplit(origin.decode("latin-1")).netloc.encode("latin-1") != headers.get(b"host"):
        return Refusal(403, "requests from other web origins are refused: start the server with a token")
    return None


def _is_loopback_name(name: str) -> bool:
    """Tell whether a Host header names loopback itself; never by a lookup, which its sender may control."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


class NotFound:
    """ASGI application that answers 404 and says what is served here.

    A WebSocket that a router merely denies gets 403, which a client must take for a wrong token.

    Args:
        reason: what this server is, and where to ask.
        status: HTTP status to answer with.
    """

    def __init__(self, reason: str, status: int = 404) -> None:
        self._reason, self._status = reason, status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request."""
        await refuse(scope, receive, send, self._status, self._reason)


def upgrade_required(path: str) -> NotFound:
    """Return the application that answers a plain HTTP request where a WebSocket is served."""
    return NotFound(f"{path} is a WebSocket, and this request asks for no upgrade", status=426)


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    """Answer with an HTTP error, for a WebSocket before the upgrade."""
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    prefix = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
            return
        prefix = "websocket.http.response"
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": body})
