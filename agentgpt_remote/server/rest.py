"""The REST interface: JSON over HTTP for curl and other languages, over the same sessions as the WebSocket.

A request becomes a message of the session protocol (``protocol.py``) that its session handles as one of a
WebSocket's, and the reply becomes JSON. What a REST session lacks is a connection whose end would tell that its
client is gone: it ends when no request came for a while.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agentgpt_remote.admission import Receive, Scope, Send
from agentgpt_remote.errors import AgentGPTError, AuthError, ConfigError
from agentgpt_remote.handshake import Open
from agentgpt_remote.packing import pack_value
from agentgpt_remote.server.openapi import OPERATIONS, describe
from agentgpt_remote.server.rest_messages import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    SECRET_HEADER,
    ErrorDetail,
    MadeSession,
    MakeRequest,
    ResetRequest,
    StepRequest,
)
from agentgpt_remote.server.rest_session import (
    Refusal,
    RestSession,
    converted,
    json_response,
    no_session,
    refusal,
    whole,
)
from agentgpt_remote.server.sessions import SessionTable

_logger = logging.getLogger("agentgpt_remote.server")
IDLE_TIMEOUT_S: Final = 300.0
_BODY_TIMEOUT_S: Final = 60.0
_Asked = TypeVar("_Asked", bound=msgspec.Struct)
_Handler = Callable[[Request], Awaitable[Response]]


def rest_routes(table: SessionTable, idle_timeout_s: float = IDLE_TIMEOUT_S) -> list[Route]:
    """Return the routes of the REST interface.

    Args:
        table: the host's sessions.
        idle_timeout_s: how long a session is kept without a request, in seconds.
    """
    api = RestApi(table, idle_timeout_s)
    paths: dict[str, dict[str, _Handler]] = {"/openapi.json": {"GET": api.openapi}}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = getattr(api, operation.name)
    return [
        *(Route(path, _Endpoint(handlers)) for path, handlers in paths.items()),
        Route("/v1/{_:path}", _Endpoint({})),
    ]


class _Endpoint:
    """An ASGI application that answers the methods of one path; one without any is not found."""

    def __init__(self, handlers: dict[str, _Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._handler(request)(request)
        except (Refusal, AgentGPTError) as error:
            response = refusal(error).response()
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server gives up what still runs when it ends; nobody else cancels
            message = "the host is shutting down: the environment's answer did not come in time"
            response = Refusal(503, ErrorDetail(type="ConnectionLost", message=message)).response()
        await response(scope, receive, send)

    def _handler(self, request: Request) -> _Handler:
        handler = self._handlers.get(request.method)
        if handler is not None:
            return handler
        if not self._handlers:
            message = f"nothing is served at {request.url.path}: see /openapi.json"
            raise Refusal(404, ErrorDetail(type="NotFound", message=message))
        allowed = ", ".join(self._handlers)
        message = f"{request.method} is not for {request.url.path}: expected {allowed}"
        raise Refusal(405, ErrorDetail(type="MethodNotAllowed", message=message), {"allow": allowed})


class RestApi:
    """The handlers, one for each operation of ``openapi.OPERATIONS``, and the sessions that they know.

    Args:
        table: the host's sessions.
        idle_timeout_s: how long a session is kept without a request, in seconds.
    """

    def __init__(self, table: SessionTable, idle_timeout_s: float) -> None:
        self._table = table
        self._idle_timeout_s = idle_timeout_s
        self._sessions: dict[str, RestSession] = {}
        self._description = describe()

    async def openapi(self, _: Request) -> Response:
        """Return the OpenAPI description."""
        return json_response(self._description)

    async def make(self, request: Request) -> Response:
        """Open a session."""
        asked = await self._read(request, MakeRequest)
        message = Open(
            source=asked.source,
            num_envs=whole(asked.num_envs),
            autoreset_mode=asked.autoreset_mode,
            render_mode=asked.render_mode,
            kwargs=pack_value(asked.kwargs),
        )
        try:
            session = await self._table.open(message)
        except Exception as error:
            arguments = bool(asked.kwargs) or asked.render_mode is not None
            raise refusal(error, arguments=arguments) from error
        try:
            made = RestSession(session, self._table.source.name, self._idle_timeout_s)
            _check_render_mode(asked.render_mode, made.info.metadata.get("render_modes"))
        except AgentGPTError:
            self._table.end(session)
            raise
        self._sessions[session.session_id] = made
        self._release(made)
        fields = msgspec.structs.asdict(made.info)
        return json_response(MadeSession(**fields, secret=session.secret), 201)

    async def inspect(self, request: Request) -> Response:
        """Return what a session holds."""
        async with self._session(request) as session:
            return json_response(session.info)

    async def spaces(self, request: Request) -> Response:
        """Return the spaces of a session."""
        async with self._session(request) as session:
            return json_response(session.info.spaces)

    async def reset(self, request: Request) -> Response:
        """Reset the environments of a session."""
        async with self._session(request) as session:
            return await session.numbered(await self._read(request, ResetRequest), session.reset)

    async def step(self, request: Request) -> Response:
        """Step the environments of a session."""
        async with self._session(request) as session:
            return await session.numbered(await self._read(request, StepRequest), session.step)

    async def render(self, request: Request) -> Response:
        """Render the environments of a session."""
        async with self._session(request) as session, session.lock:
            return await session.render()

    async def close(self, request: Request) -> Response:
        """End a session."""
        async with self._session(request) as session, session.lock:
            return await session.close()

    async def _read(self, request: Request, kind: type[_Asked]) -> _Asked:
        """Return the body of a request.

        Raises:
            Refusal: it is too large, too slow, not JSON, or not of that kind.
        """
        limit = min(self._table.limits.max_frame_bytes, MAX_BODY_BYTES)
        try:
            body = await asyncio.wait_for(_limited_body(request, limit), _BODY_TIMEOUT_S)
        except TimeoutError as error:
            message = f"the body did not arrive within {_BODY_TIMEOUT_S:g} s: send it at once"
            raise Refusal(408, ErrorDetail(type="RemoteTimeout", message=message), {"connection": "close"}) from error
        content_type = request.headers.get("content-type", "")
        if body and content_type.partition(";")[0].strip().lower() != "application/json":
            message = f"the content type is {content_type!r}: expected application/json"
            raise Refusal(415, ErrorDetail(type="UnsupportedMediaType", message=message))
        return await converted(len(body), lambda: _parse(body or b"{}", kind))

    @asynccontextmanager
    async def _session(self, request: Request) -> AsyncIterator[RestSession]:
        """Find the session that a request is about, and keep it while the request is in flight.

        Raises:
            Refusal: it does not exist, or the secret is missing or wrong.
        """
        secret = request.headers.get(SECRET_HEADER)
        if secret is None:
            raise AuthError(f"the header {SECRET_HEADER} is missing: send the secret that make answered")
        session_id = request.path_params["session_id"]
        session = self._sessions.get(session_id)
        if session is None or session.session.ended:
            raise no_session(session_id)
        if not hmac.compare_digest(session.session.secret.encode(), secret.encode()):
            raise AuthError(f"the secret of session {session_id} is wrong: another client made it")
        session.users += 1
        if session.reaper is not None:
            session.reaper.cancel()
        try:
            yield session
        finally:
            session.users -= 1
            self._release(session)

    def _release(self, session: RestSession) -> None:
        """Begin to count a session's idle time where no request is in flight, or end it where it has ended."""
        if session.session.ended:
            self._end(session)
        elif not session.users:
            session.reaper = asyncio.get_running_loop().call_later(self._idle_timeout_s, self._end, session)

    def _end(self, session: RestSession) -> None:
        if not session.session.ended:
            _logger.info("session idle session=%s after_s=%g", session.info.session_id, self._idle_timeout_s)
        self._sessions.pop(session.info.session_id, None)
        self._table.end(session.session)


def _check_render_mode(mode: str | None, known: Any) -> None:
    """Refuse a mode that the environment does not declare: Gymnasium makes it all the same, and render raises."""
    if mode is None or not known or not isinstance(known, list):
        return
    if mode not in known and mode.removesuffix("_list") not in known:
        raise ConfigError(f"unknown render_mode {mode!r}: expected one of {known}, or null")


async def _limited_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            message = f"the body is over the limit of {limit} bytes: use fewer environments, or the WebSocket"
            raise Refusal(413, ErrorDetail(type="BodyTooLarge", message=message), {"connection": "close"})
    return bytes(body)


def _parse(body: bytes, kind: type[_Asked]) -> _Asked:
    try:
        asked = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(422, ErrorDetail(type="InvalidRequest", message=f"the body does not fit: {error}")) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, ErrorDetail(type="InvalidJson", message=f"the body is not JSON: {error}")) from error
    level: list[Any] = [msgspec.structs.astuple(asked)]
    for _ in range(MAX_DEPTH):
        children = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        level = [item for item in children if isinstance(item, list | dict)]
        if not level:
            return asked
    message = f"the body is nested deeper than {MAX_DEPTH} levels"
    raise Refusal(400, ErrorDetail(type="InvalidJson", message=message))
