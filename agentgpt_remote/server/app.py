"""The host's ASGI application: ``GET /health`` and the WebSocket ``/session``."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from agentgpt_remote._version import __version__
from agentgpt_remote.admission import NotFound, Receive, Scope, Send, upgrade_required
from agentgpt_remote.channel import Channel, Turns, channel_of
from agentgpt_remote.errors import AgentGPTError, ConnectionLost, RemoteTimeout
from agentgpt_remote.frames import PROTOCOL_ERROR
from agentgpt_remote.handshake import PROTOCOL_VERSION, Open, Refused, decode_from_client, encode_handshake, versions
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.rest import rest_routes
from agentgpt_remote.server.sessions import HostLimits, Session, SessionTable
from agentgpt_remote.server.sources import EnvSource

_logger = logging.getLogger("agentgpt_remote.server")
_HANDSHAKE_TIMEOUT_S = 30.0
_RESUMED_ELSEWHERE = 4001


def host_app(source: EnvSource, limits: HostLimits) -> Starlette:
    """Return the application that serves ``source`` within ``limits``."""
    table = SessionTable(source, limits)
    who = {"status": "ok", "version": __version__, "protocol": PROTOCOL_VERSION, "instance": secrets.token_hex(8)}

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({**who, **table.health()})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await table.close()

    routes = [
        Route("/health", health),
        WebSocketRoute("/session", SessionEndpoint(table)),
        Route("/session", upgrade_required("/session")),
        *rest_routes(table),
        WebSocketRoute("/{path:path}", NotFound("this is an environment host: use /session")),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class SessionEndpoint:
    """An ASGI application that connects a WebSocket to a session.

    Args:
        table: the host's sessions.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until it ends."""
        await receive()
        await send({"type": "websocket.accept"})
        await self.serve(channel_of(scope, self._table.limits.max_frame_bytes, self._turns))

    @property
    def turns(self) -> Turns:
        """Whose turn it is among the channels that are served here."""
        return self._turns

    async def serve(self, channel: Channel) -> None:
        """Serve a client over a channel until the connection ends."""
        session = await self._handshake(channel)
        if session is None:
            return

        def detach() -> None:
            channel.close(_RESUMED_ELSEWHERE, "resumed elsewhere")

        session.detach = detach
        try:
            await channel.serve(session.handle, lambda: session.ended)
        finally:
            if session.detach is detach:  # else another connection has resumed the session
                session.detach = None
                self._table.lost(session)

    async def _handshake(self, channel: Channel) -> Session | None:
        """Return the session that the first message opens or resumes, or refuse it and return ``None``."""
        try:
            first = await channel.receive(_HANDSHAKE_TIMEOUT_S)
        except RemoteTimeout:
            channel.close(PROTOCOL_ERROR, "no handshake")
            return None
        except ConnectionLost:
            return None
        session: Session | None = None
        try:
            message = decode_from_client(first)
            if isinstance(message, Open):
                session = await self._table.open(message)
                answer = encode_handshake(session.opened())
            else:
                session = self._table.resume(message)
                answer = encode_handshake(session.resumed())
        except Exception as error:  # noqa: BLE001 - a constructor may raise anything, and it goes to the client
            if session is not None:
                self._table.end(session)
            if not isinstance(error, AgentGPTError):
                _logger.info("session refused error=%r", error)
            channel.send(encode_handshake(Refused(versions=versions(), error=error_to_dict(error))))
            channel.close()
            return None
        channel.send(answer)
        return session
