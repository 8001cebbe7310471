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
import numpy as np
from gymnasium.spaces import MultiBinary
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agentgpt_remote.errors import AgentGPTError, AuthError, InvalidAction
from agentgpt_remote.handshake import Open, Opened
from agentgpt_remote.jsonable import from_json, info_to_json, to_json
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Envelope, Kind, join_message, parse_envelope
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.openapi import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    OPERATIONS,
    SECRET_HEADER,
    ErrorDetail,
    MadeSession,
    MakeRequest,
    Problem,
    RenderReply,
    ResetReply,
    ResetRequest,
    SessionInfo,
    Spaces,
    StepReply,
    StepRequest,
    describe,
)
from agentgpt_remote.server.rendering import frames_of
from agentgpt_remote.server.sessions import Session, SessionTable
from agentgpt_remote.serving import Receive, Scope, Send
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import make_codec

_logger = logging.getLogger("agentgpt_remote.server")
IDLE_TIMEOUT_S: Final = 300.0
_ON_LOOP_BELOW_BYTES: Final = 65_536  # what is larger is converted in a thread, and health checks go on
_STATUS: Final = {
    "AuthError": 403,
    "CapacityReached": 429,
    "ClosedEnvironmentError": 409,
    "ConfigError": 409,
    "InvalidAction": 409,
    "NameNotFound": 404,
    "RemoteTimeout": 504,
    "ResetNeeded": 409,
}
_OWN_ORIGIN: Final = "agentgpt_remote"

_T = TypeVar("_T")
_Asked = TypeVar("_Asked", bound=msgspec.Struct)
_Numbered = TypeVar("_Numbered", ResetRequest, StepRequest)
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


class _Refusal(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, error: ErrorDetail, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status, self.error, self.headers = status, error, headers

    def response(self) -> Response:
        return _json_response(Problem(error=self.error), self.status, self.headers)


def _refusal(error: BaseException | dict[str, str], *, arguments: bool = False) -> _Refusal:
    """Return the refusal for an error or its fields; ``arguments`` tells that the client's may be why."""
    if isinstance(error, _Refusal):
        return error
    fields = error if isinstance(error, dict) else error_to_dict(error)
    unknown = 409 if arguments and fields["origin"] != _OWN_ORIGIN else 500
    status = unknown if fields["origin"] == "env" else _STATUS.get(fields["type"], unknown)
    traceback = fields["traceback"] if status == 500 and fields["traceback"] else None
    return _Refusal(status, ErrorDetail(type=fields["type"], message=fields["message"], traceback=traceback))


def _json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


class _Endpoint:
    """An ASGI application that answers the methods of one path; one without any is not found."""

    def __init__(self, handlers: dict[str, _Handler]) -> None:
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._handler(request)(request)
        except (_Refusal, AgentGPTError) as error:
            response = _refusal(error).response()
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _handler(self, request: Request) -> _Handler:
        handler = self._handlers.get(request.method)
        if handler is not None:
            return handler
        if not self._handlers:
            message = f"nothing is served at {request.url.path}: see /openapi.json"
            raise _Refusal(404, ErrorDetail(type="NotFound", message=message))
        allowed = ", ".join(self._handlers)
        message = f"{request.method} is not for {request.url.path}: expected {allowed}"
        raise _Refusal(405, ErrorDetail(type="MethodNotAllowed", message=message), {"allow": allowed})


class _RestSession:
    """A session, and what a client of it would hold: its numbering, its codec and its last answer.

    Attributes:
        info: what the client is told.
        lock: held while a request is executed.
        users: requests in flight.
        reaper: ends the session when it is idle.
    """

    def __init__(self, session: Session, source: str, idle_timeout_s: float) -> None:
        opened = session.opened()
        self.session = session
        self.lock = asyncio.Lock()
        self.users = 0
        self.reaper: asyncio.TimerHandle | None = None
        self.info = _session_info(opened, source, idle_timeout_s)
        self._num_envs = opened.num_envs
        self._asked = 0
        self._dropped: list[str] = []
        self._action_space = space_from_dict(opened.batched_action_space or opened.action_space)
        observation_space, action_space = map(space_from_dict, (opened.observation_space, opened.action_space))
        self._codec = make_codec(observation_space, action_space, opened.num_envs, self._dropped.extend)
        self._last: tuple[msgspec.Struct, Response] | None = None

    async def numbered(self, asked: _Numbered, execute: Callable[[_Numbered], Awaitable[Response]]) -> Response:
        """Execute a request, or answer it once more where it is the last one again.

        Raises:
            _Refusal: its number is not the next, or it was not executed.
            InvalidAction: it does not fit the environment, and was not executed.
        """
        async with self.lock:
            next_sequence = self.info.next_sequence
            if asked.sequence is not None and asked.sequence != next_sequence:
                if self._last is not None and asked.sequence == next_sequence - 1 and asked == self._last[0]:
                    return self._last[1]
                message = f"sequence {asked.sequence} is not the next: expected {next_sequence}, or the last request"
                raise _Refusal(409, ErrorDetail(type="WrongSequence", message=message))
            try:
                response = await execute(asked)
            except (_Refusal, AgentGPTError) as error:
                if self.info.next_sequence == next_sequence:
                    raise
                refusal = _refusal(error)
                refusal.error.next_sequence = self.info.next_sequence
                response = refusal.response()
            self._last = (asked, response)
            return response

    async def reset(self, asked: ResetRequest) -> Response:
        """Reset the environments."""
        seed, options = self._reset_arguments(asked)
        arguments = asked.seed is not None or bool(asked.options)
        envelope = await self._execute(Kind.RESET, [], extras=pack_value([seed, options]), arguments=arguments)
        observation, info = self._codec.decode_reset(envelope)
        return await self._answer(len(envelope.data), ResetReply, info, observation=observation)

    def _reset_arguments(self, asked: ResetRequest) -> tuple[Any, dict[str, Any] | None]:
        seed, options, count = _whole(asked.seed), asked.options, self._num_envs
        if isinstance(seed, list) and len(seed) != count:
            expected = "one number" if count is None else f"one number, or a list of {count}"
            raise InvalidAction(f"seed is a list of {len(seed)}: expected {expected}")
        if options and count is not None and "reset_mask" in options:
            mask = from_json(MultiBinary(count), options["reset_mask"], "options['reset_mask']", InvalidAction)
            options = {**options, "reset_mask": mask.astype(np.bool_)}
        return seed, options

    async def step(self, asked: StepRequest) -> Response:
        """Step the environments."""
        action = from_json(self._action_space, asked.action, "action", InvalidAction)
        parts, flags, extras = self._codec.encode_actions(action)
        envelope = await self._execute(Kind.STEP, parts, flags=flags, extras=extras)
        observation, reward, terminated, truncated, info = self._codec.decode_step(envelope)
        values = {"observation": observation, "reward": reward, "terminated": terminated, "truncated": truncated}
        return await self._answer(len(envelope.data), StepReply, info, **values)

    async def _execute(self, kind: Kind, parts: list[Any], *, arguments: bool = False, **options: Any) -> Envelope:
        """Have a numbered request executed; its number is used up also where the environment raises."""
        self._dropped.clear()
        self.info.next_sequence += 1
        return await self.ask(kind, parts, arguments=arguments, **options)

    async def ask(self, kind: Kind, parts: list[Any], *, arguments: bool = False, **options: Any) -> Envelope:
        """Return the session's reply to a request; call it with the lock held.

        Raises:
            _Refusal: the session has ended, or the reply is an error.
        """
        if self.session.ended:
            raise _no_session(self.info.session_id)
        self._asked += 1
        reply = self.session.handle(join_message(kind, self._asked, parts, aux=self._asked - 1, **options))
        envelope = parse_envelope(reply if isinstance(reply, bytes) else await asyncio.shield(reply))
        if envelope.kind == Kind.ERROR:
            raise _refusal(unpack_value(envelope.extras_data), arguments=arguments)
        return envelope

    async def _answer(
        self, size: int, kind: type[ResetReply | StepReply], info: dict[str, Any], **values: Any
    ) -> Response:
        dropped, next_sequence = list(self._dropped), self.info.next_sequence

        def convert() -> Response:
            held, left_out = info_to_json(info)
            fields = {name: to_json(value) for name, value in values.items()}
            return _json_response(
                kind(**fields, info=held, dropped_info=dropped + left_out, next_sequence=next_sequence)
            )

        return await _converted(size, convert)


async def _converted(size: int, convert: Callable[[], _T]) -> _T:
    """Return what ``convert`` returns; a conversion of many bytes leaves the event loop to others."""
    return convert() if size < _ON_LOOP_BELOW_BYTES else await asyncio.to_thread(convert)


def _session_info(opened: Opened, source: str, idle_timeout_s: float) -> SessionInfo:
    return SessionInfo(
        session_id=opened.session_id,
        source=source,
        num_envs=opened.num_envs,
        render_mode=opened.render_mode,
        metadata=info_to_json(unpack_value(opened.metadata))[0],
        spec=to_json(opened.spec),
        spaces=Spaces(
            observation_space=opened.observation_space,
            action_space=opened.action_space,
            batched_observation_space=opened.batched_observation_space,
            batched_action_space=opened.batched_action_space,
        ),
        next_sequence=1,
        idle_timeout_s=idle_timeout_s,
    )


class RestApi:
    """The handlers, one for each operation of ``openapi.OPERATIONS``, and the sessions that they know.

    Args:
        table: the host's sessions.
        idle_timeout_s: how long a session is kept without a request, in seconds.
    """

    def __init__(self, table: SessionTable, idle_timeout_s: float) -> None:
        self._table = table
        self._idle_timeout_s = idle_timeout_s
        self._sessions: dict[str, _RestSession] = {}
        self._description = describe()

    async def openapi(self, _: Request) -> Response:
        """Return the OpenAPI description."""
        return _json_response(self._description)

    async def make(self, request: Request) -> Response:
        """Open a session."""
        asked = await self._read(request, MakeRequest)
        message = Open(
            source=asked.source,
            num_envs=_whole(asked.num_envs),
            autoreset_mode=asked.autoreset_mode,
            render_mode=asked.render_mode,
            kwargs=pack_value(asked.kwargs),
        )
        try:
            session = await self._table.open(message)
        except Exception as error:
            arguments = bool(asked.kwargs or asked.render_mode)
            raise _refusal(error, arguments=arguments) from error
        try:
            made = _RestSession(session, self._table.source.name, self._idle_timeout_s)
        except AgentGPTError:
            self._table.end(session)
            raise
        self._sessions[session.session_id] = made
        self._release(made)
        fields = msgspec.structs.asdict(made.info)
        return _json_response(MadeSession(**fields, secret=session.secret), 201)

    async def inspect(self, request: Request) -> Response:
        """Return what a session holds."""
        async with self._session(request) as session:
            return _json_response(session.info)

    async def spaces(self, request: Request) -> Response:
        """Return the spaces of a session."""
        async with self._session(request) as session:
            return _json_response(session.info.spaces)

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
            envelope = await session.ask(Kind.RENDER, [])
            rendered = unpack_value(envelope.extras_data)
            frames = await _converted(len(envelope.data), lambda: frames_of(rendered))
            return _json_response(RenderReply(frames=frames))

    async def close(self, request: Request) -> Response:
        """End a session."""
        async with self._session(request) as session, session.lock:
            await session.ask(Kind.CLOSE, [])
            return Response(status_code=204)

    async def _read(self, request: Request, kind: type[_Asked]) -> _Asked:
        """Return the body of a request.

        Raises:
            _Refusal: it is too large, not JSON, or not of that kind.
        """
        limit = min(self._table.limits.max_frame_bytes, MAX_BODY_BYTES)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                message = f"the body is over the limit of {limit} bytes: use fewer environments, or the WebSocket"
                raise _Refusal(413, ErrorDetail(type="BodyTooLarge", message=message), {"connection": "close"})
        content_type = request.headers.get("content-type", "")
        if body and content_type.partition(";")[0].strip().lower() != "application/json":
            message = f"the content type is {content_type!r}: expected application/json"
            raise _Refusal(415, ErrorDetail(type="UnsupportedMediaType", message=message))
        return await _converted(len(body), lambda: _parse(bytes(body) or b"{}", kind))

    @asynccontextmanager
    async def _session(self, request: Request) -> AsyncIterator[_RestSession]:
        """Find the session that a request is about, and keep it while the request is in flight.

        Raises:
            _Refusal: it does not exist, or the secret is missing or wrong.
        """
        secret = request.headers.get(SECRET_HEADER)
        if secret is None:
            raise AuthError(f"the header {SECRET_HEADER} is missing: send the secret that make answered")
        session_id = request.path_params["session_id"]
        session = self._sessions.get(session_id)
        if session is None or session.session.ended:
            raise _no_session(session_id)
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

    def _release(self, session: _RestSession) -> None:
        """Begin to count a session's idle time where no request is in flight, or end it where it has ended."""
        if session.session.ended:
            self._end(session)
        elif not session.users:
            session.reaper = asyncio.get_running_loop().call_later(self._idle_timeout_s, self._end, session)

    def _end(self, session: _RestSession) -> None:
        if not session.session.ended:
            _logger.info("session idle session=%s after_s=%g", session.info.session_id, self._idle_timeout_s)
        self._sessions.pop(session.info.session_id, None)
        self._table.end(session.session)


def _whole(number: Any) -> Any:
    """Return whole floats, or a list of them, as integers."""
    if isinstance(number, list):
        return [_whole(item) for item in number]
    return None if number is None else int(number)


def _no_session(session_id: str) -> _Refusal:
    message = f"there is no session {session_id!r}: it was closed, was idle for too long, or its environment hung"
    return _Refusal(404, ErrorDetail(type="UnknownSession", message=message))


def _parse(body: bytes, kind: type[_Asked]) -> _Asked:
    try:
        asked = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _Refusal(422, ErrorDetail(type="InvalidRequest", message=f"the body does not fit: {error}")) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refusal(400, ErrorDetail(type="InvalidJson", message=f"the body is not JSON: {error}")) from error
    level: list[Any] = [msgspec.structs.astuple(asked)]
    for _ in range(MAX_DEPTH):
        children = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        level = [item for item in children if isinstance(item, list | dict)]
        if not level:
            return asked
    message = f"the body is nested deeper than {MAX_DEPTH} levels"
    raise _Refusal(400, ErrorDetail(type="InvalidJson", message=message))
