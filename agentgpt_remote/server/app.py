"""The host's ASGI application: ``GET /health`` and the WebSocket ``/session``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import AgentGPTError, ProtocolError
from agentgpt_remote.handshake import PROTOCOL_VERSION, Open, Refused, decode_from_client, encode_handshake, versions
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.sessions import HostLimits, Session, SessionTable, quietly
from agentgpt_remote.server.sources import EnvSource
from agentgpt_remote.serving import NotFound

_logger = logging.getLogger("agentgpt_remote.server")
_HANDSHAKE_TIMEOUT_S = 30.0
_GOING_AWAY, _PROTOCOL_ERROR, _RESUMED_ELSEWHERE = 1001, 1002, 4001

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def host_app(source: EnvSource, limits: HostLimits) -> Starlette:
    """Return the application that serves ``source`` within ``limits``."""
    table = SessionTable(source, limits)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse(
            {"status": "ok", "version": __version__, "protocol": PROTOCOL_VERSION, **table.health()},
        )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await table.close()

    routes = [
        Route("/health", health),
        WebSocketRoute("/session", SessionEndpoint(table)),
        WebSocketRoute("/{path:path}", NotFound("this is an environment host: use /session")),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class SessionEndpoint:
    """An ASGI application that connects a WebSocket to a session.

    Not a Starlette ``WebSocket``: its checks would cost a tenth of a small step.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection until it ends."""
        await receive()
        await send({"type": "websocket.accept"})
        session = await self._handshake(receive, send)
        if session is None:
            return

        async def detach() -> None:
            await quietly(send({"type": "websocket.close", "code": _RESUMED_ELSEWHERE, "reason": "resumed elsewhere"}))

        session.detach = detach
        try:
            await self._serve(session, receive, send)
        finally:
            if session.detach is detach:  # else another connection has resumed the session
                session.detach = None
                self._table.lost(session)

    async def _handshake(self, receive: Receive, send: Send) -> Session | None:
        """Return the session that the first message opens or resumes, or refuse it and return ``None``."""
        try:
            first = await asyncio.wait_for(receive(), _HANDSHAKE_TIMEOUT_S)
        except TimeoutError:
            await quietly(send({"type": "websocket.close", "code": _PROTOCOL_ERROR, "reason": "no handshake"}))
            return None
        if first["type"] != "websocket.receive":
            return None
        session: Session | None = None
        try:
            message = decode_from_client(first.get("bytes") or b"")
            if isinstance(message, Open):
                session = await self._table.open(message)
                answer = encode_handshake(session.opened())
            else:
                session = await self._table.resume(message)
                answer = encode_handshake(session.resumed())
        except Exception as error:  # noqa: BLE001 - a constructor may raise anything, and it goes to the client
            if session is not None:
                self._table.end(session)
            if not isinstance(error, AgentGPTError):
                _logger.info("session refused error=%r", error)
            await quietly(self._refuse(send, error))
            return None
        try:
            await send({"type": "websocket.send", "bytes": answer})
        except Exception:  # noqa: BLE001 - the client is gone before it learnt the session's id
            self._table.lost(session)
            return None
        return session

    async def _refuse(self, send: Send, error: Exception) -> None:
        refusal = Refused(versions=versions(), error=error_to_dict(error))
        await send({"type": "websocket.send", "bytes": encode_handshake(refusal)})
        await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, session: Session, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            data = message.get("bytes")
            if data is None:
                if message["type"] == "websocket.receive":
                    await self._close(send, _PROTOCOL_ERROR, "expected a binary message")
                return
            try:
                reply = session.handle(data)
                if type(reply) is not bytes:
                    # The connection may go while the environment steps; the reply is kept for the one that resumes.
                    reply = await asyncio.shield(reply)  # type: ignore[arg-type]
            except ProtocolError as error:
                await self._close(send, _PROTOCOL_ERROR, str(error))
                return
            try:
                await send({"type": "websocket.send", "bytes": reply})
            except Exception as error:  # noqa: BLE001 - the server's way to say that the connection is gone
                _logger.debug("reply not sent session=%s error=%r", session.session_id, error)
                return
            if session.ended:
                await self._close(send, 1000, "")
                return

    async def _close(self, send: Send, code: int, reason: str) -> None:
        await quietly(send({"type": "websocket.close", "code": code, "reason": reason[:120]}))
