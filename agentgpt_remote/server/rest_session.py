"""A session as its REST client would hold it: requests in JSON's types in, responses out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from gymnasium.spaces import MultiBinary
from starlette.responses import Response

from agentgpt_remote.errors import AgentGPTError, ConfigError, InvalidAction
from agentgpt_remote.handshake import Opened
from agentgpt_remote.jsonable import from_json, info_to_json, to_json
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Envelope, Kind, join_message, own_reply, parse_envelope
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.rendering import frames_of
from agentgpt_remote.server.rest_messages import (
    ErrorDetail,
    Problem,
    RenderReply,
    ResetReply,
    ResetRequest,
    SessionInfo,
    Spaces,
    StepReply,
    StepRequest,
)
from agentgpt_remote.server.sessions import Session
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import make_codec

_ON_LOOP_BELOW_BYTES: Final = 65_536  # what is larger is converted in a thread, and health checks go on
_STATUS: Final = {
    "AuthError": 403,
    "CapacityReached": 429,
    "ClosedEnvironmentError": 409,
    "ConfigError": 409,
    "InvalidAction": 409,
    "InvalidArgument": 409,
    "NameNotFound": 404,
    "RemoteTimeout": 504,
    "ResetNeeded": 409,
}
_OWN_ORIGIN: Final = "agentgpt_remote"

_T = TypeVar("_T")
_Numbered = TypeVar("_Numbered", ResetRequest, StepRequest)


class Refusal(Exception):
    """A request is answered with an error: its HTTP status, what it tells, and further headers."""

    def __init__(self, status: int, error: ErrorDetail, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status, self.error, self.headers = status, error, headers

    def response(self) -> Response:
        """Return the answer."""
        return json_response(Problem(error=self.error), self.status, self.headers)


def refusal(error: BaseException | dict[str, str], *, arguments: bool = False) -> Refusal:
    """Return the refusal for an error or its fields.

    Args:
        error: what was raised, or its fields as ``error_to_dict`` returns them.
        arguments: whether the request carried arguments for the environment, which are then why it raised.
    """
    if isinstance(error, Refusal):
        return error
    fields = error if isinstance(error, dict) else error_to_dict(error)
    unknown = 409 if arguments and fields["origin"] != _OWN_ORIGIN else 500
    status = unknown if fields["origin"] == "env" else _STATUS.get(fields["type"], unknown)
    traceback = fields["traceback"] if fields["origin"] == "env" else None
    return Refusal(status, ErrorDetail(type=fields["type"], message=fields["message"], traceback=traceback))


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a structure, or other JSON, as its body."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


class RestSession:
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
            Refusal: its number is not the next, or it was not executed.
            InvalidAction: it does not fit the environment, and was not executed.
        """
        async with self.lock:
            next_sequence = self.info.next_sequence
            if asked.sequence is not None and asked.sequence != next_sequence:
                if self._last is not None and asked.sequence == next_sequence - 1 and asked == self._last[0]:
                    return self._last[1]
                message = (
                    f"sequence {asked.sequence:.0f} is out of order: expected {next_sequence} for a new request, "
                    f"or {next_sequence - 1} with the last one once more"
                )
                raise Refusal(409, ErrorDetail(type="WrongSequence", message=message))
            try:
                response = await execute(asked)
            except (Refusal, AgentGPTError) as error:
                if self.info.next_sequence == next_sequence:
                    raise
                refused = refusal(error)
                refused.error.next_sequence = self.info.next_sequence
                response = refused.response()
            self._last = (asked, response)
            return response

    async def reset(self, asked: ResetRequest) -> Response:
        """Reset the environments."""
        seed, options = self._reset_arguments(asked)
        extras = pack_value([seed, options])
        envelope = await self._execute(Kind.RESET, [], extras=extras, arguments=bool(options))
        observation, info = self._codec.decode_reset(envelope)
        return await self._answer(len(envelope.data), ResetReply, info, observation=observation)

    def _reset_arguments(self, asked: ResetRequest) -> tuple[Any, dict[str, Any] | None]:
        seed, options, count = whole(asked.seed), asked.options, self._num_envs
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

    async def render(self) -> Response:
        """Render the environments; call it with the lock held.

        Raises:
            ConfigError: they were made to render nothing.
        """
        if self.info.render_mode is None:
            raise ConfigError('render_mode is null: make the environment with one, such as "rgb_array"')
        envelope = await self._ask(Kind.RENDER, [])
        rendered = unpack_value(envelope.extras_data)
        frames = await converted(len(envelope.data), lambda: frames_of(rendered))
        return json_response(RenderReply(frames=frames))

    async def close(self) -> Response:
        """Close the environments, which ends the session; call it with the lock held."""
        await self._ask(Kind.CLOSE, [])
        return Response(status_code=204)

    async def _execute(self, kind: Kind, parts: list[Any], *, arguments: bool = False, **options: Any) -> Envelope:
        """Have a numbered request executed; its number is used up also where the environment raises."""
        self._dropped.clear()
        self.info.next_sequence += 1
        return await self._ask(kind, parts, arguments=arguments, **options)

    async def _ask(self, kind: Kind, parts: list[Any], *, arguments: bool = False, **options: Any) -> Envelope:
        """Return the session's reply to a request.

        Raises:
            Refusal: the session has ended, or the reply is an error.
        """
        if self.session.ended:
            raise no_session(self.info.session_id)
        self._asked += 1
        reply = self.session.handle(join_message(kind, self._asked, parts, aux=self._asked - 1, **options))
        if isinstance(reply, asyncio.Future):
            reply = await asyncio.shield(reply)
        envelope = parse_envelope(own_reply(reply))
        if envelope.kind == Kind.ERROR:
            raise refusal(unpack_value(envelope.extras_data), arguments=arguments)
        return envelope

    async def _answer(
        self, size: int, kind: type[ResetReply | StepReply], info: dict[str, Any], **values: Any
    ) -> Response:
        dropped, next_sequence = list(self._dropped), self.info.next_sequence

        def convert() -> Response:
            held, left_out = info_to_json(info)
            fields = {name: to_json(value) for name, value in values.items()}
            return json_response(
                kind(**fields, info=held, dropped_info=dropped + left_out, next_sequence=next_sequence)
            )

        return await converted(size, convert)


async def converted(size: int, convert: Callable[[], _T]) -> _T:
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


def no_session(session_id: str) -> Refusal:
    """Return the refusal for a session that does not exist (any more)."""
    message = f"there is no session {session_id!r}: it was closed, was idle for too long, or its environment hung"
    return Refusal(404, ErrorDetail(type="UnknownSession", message=message))


def whole(number: Any) -> Any:
    """Return whole floats, or a list of them, as integers."""
    if isinstance(number, list):
        return [whole(item) for item in number]
    return None if number is None else int(number)
