"""Messages between a policy client and a policy server, and the server's side of one client's session.

No sockets here: bytes in, bytes out. A request for actions is a fixed header, the raw observations in the
layout of the space (:class:`~agentgpt_remote.codec.Layout`), with the flag MASKED a byte per agent and category that
says whether the action is allowed, and a msgpack tail with the agent ids, which
is empty while they stay the same. The reply is built alike, with actions. Requests are numbered; one
that comes again is answered with the last reply and not executed twice.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
import numpy as np
from gymnasium import Space

from agentgpt_remote import errors
from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import AgentGPTError, InvalidObservation, ProtocolError, ProtocolMismatch, UnknownAgent
from agentgpt_remote.policy.bundle import Bundle
from agentgpt_remote.policy.engine import AgentTable, PolicyEngine
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import check_observations
from agentgpt_remote.spaces import space_to_dict

PROTOCOL_VERSION = 1
ACT, FORGET, ACTIONS, DONE, FAILED = range(1, 6)
DETERMINISTIC, MASKED = 1, 2
MAX_ID_BYTES = 256

_HEADER = struct.Struct("<BBHIII")  # kind, flags, 0, request id, agents, bytes of the tail
_encode = msgspec.msgpack.Encoder().encode
_ERRORS = {
    cls.__name__: cls
    for cls in (
        errors.InvalidObservation,
        errors.UnknownAgent,
        errors.CapacityReached,
        errors.ConfigError,
        errors.ProtocolMismatch,
        errors.ProtocolError,
    )
}


class Hello(msgspec.Struct, kw_only=True):
    """First message of a client."""

    protocol: int
    version: str
    seed: int | None = None


class Welcome(msgspec.Struct, kw_only=True):
    """First message of the server."""

    protocol: int
    version: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    action_masks: bool = False


class Agents(msgspec.Struct, array_like=True):
    """Tail of an ACT request.

    Attributes:
        ids: agents of the rows, or ``None`` for those of the last request.
        ended: agents to forget first.
    """

    ids: list[str] | None
    ended: list[str]


class Forget(msgspec.Struct, array_like=True):
    """Tail of a FORGET request: these agents, or all."""

    ids: list[str] | None


class Failure(msgspec.Struct, array_like=True):
    """Tail of a FAILED reply."""

    kind: str
    text: str


class Frame(msgspec.Struct):
    """A decoded message.

    Attributes:
        kind: ACT, FORGET, ACTIONS, DONE or FAILED.
        flags: any of DETERMINISTIC and MASKED.
        request_id: number of the request, also in its reply.
        count: agents.
        message: the whole message; raw values begin at :data:`RAW_OFFSET`.
        tail_bytes: size of the tail at its end.
    """

    kind: int
    flags: int
    request_id: int
    count: int
    message: bytes | bytearray | memoryview
    tail_bytes: int

    @property
    def tail(self) -> memoryview:
        """The msgpack tail."""
        return memoryview(self.message)[len(self.message) - self.tail_bytes :]


RAW_OFFSET = _HEADER.size


def pack_frame(kind: int, flags: int, request_id: int, count: int, parts: list[Any], tail: bytes = b"") -> bytes:
    """Return a message; ``parts`` are the buffers of the raw values."""
    return b"".join((_HEADER.pack(kind, flags, 0, request_id, count, len(tail)), *parts, tail))


def unpack_frame(message: bytes | bytearray | memoryview) -> Frame:
    """Return the parts of a message.

    Raises:
        ProtocolError: it is shorter than its header says.
    """
    if len(message) < RAW_OFFSET:
        raise ProtocolError(f"a message of {len(message)} bytes: expected at least {RAW_OFFSET}")
    kind, flags, _, request_id, count, tail_bytes = _HEADER.unpack_from(message)
    if RAW_OFFSET + tail_bytes > len(message):
        raise ProtocolError(f"a message of {len(message)} bytes announces a tail of {tail_bytes}")
    return Frame(kind, flags, request_id, count, message, tail_bytes)


def pack_failure(request_id: int, error: Exception) -> bytes:
    """Return a FAILED reply."""
    kind = type(error).__name__ if type(error).__name__ in _ERRORS else ProtocolError.__name__
    return pack_frame(FAILED, 0, request_id, 0, [], _encode(Failure(kind, str(error))))


def raise_failure(frame: Frame) -> None:
    """Raise what a FAILED reply holds, as the exception that the server raised."""
    failure = msgspec.msgpack.decode(frame.tail, type=Failure)
    raise _ERRORS.get(failure.kind, ProtocolError)(failure.text)


def check_version(protocol: int, version: str, peer: str) -> None:
    """Check the peer's protocol.

    Raises:
        ProtocolMismatch: it speaks another version; the text names both, and which side to upgrade.
    """
    if protocol != PROTOCOL_VERSION:
        older = "this side" if protocol > PROTOCOL_VERSION else f"the {peer}"
        raise ProtocolMismatch(
            f"the {peer} speaks policy protocol {protocol} (agentgpt-remote {version}), this side speaks "
            f"{PROTOCOL_VERSION} (agentgpt-remote {__version__}): upgrade agentgpt-remote on {older}"
        )


def check_ids(agent_ids: Any, what: str = "agent_ids") -> tuple[str, ...]:
    """Return agent ids as a tuple.

    Raises:
        UnknownAgent: an id is not a text, too long, or there twice.
    """
    if isinstance(agent_ids, str) or not isinstance(agent_ids, Iterable):
        raise UnknownAgent(f"{what}={agent_ids!r}: expected a list of ids, such as ['agent']")
    ids = tuple(agent_ids)
    for agent in ids:
        if not isinstance(agent, str) or not _is_short_text(agent):
            raise UnknownAgent(f"{what} holds {agent!r}: expected a text of at most {MAX_ID_BYTES} bytes in UTF-8")
    ids = tuple(map(str.__str__, ids))  # plain texts also of numpy's strings, which msgpack can't hold
    if len(set(ids)) != len(ids):
        twice = next(agent for index, agent in enumerate(ids) if agent in ids[:index])
        raise UnknownAgent(f"{what} holds {twice!r} twice: expected different ids")
    return ids


def _is_short_text(agent: str) -> bool:
    try:
        return len(agent.encode()) <= MAX_ID_BYTES
    except UnicodeEncodeError:  # a lone surrogate, which no message can carry
        return False


def check_ended(ended: tuple[str, ...], known: Collection[str]) -> None:
    """Check ids of agents that are to be forgotten.

    Raises:
        UnknownAgent: one of them is not held.
    """
    for agent in ended:
        if agent not in known:
            raise UnknownAgent(f"agent {agent!r} is not known to this policy; it holds {len(known)} agents")


class PolicySession:
    """The server's side of one client: its own agents, and the last reply.

    Args:
        engine: shared by all sessions.
        bundle: the policy.
        layouts: of the observation and of the action space.
        seed: seed of sampling.

    Attributes:
        agents: the client's agents.
    """

    def __init__(
        self, engine: PolicyEngine, bundle: Bundle, layouts: tuple[Layout, Layout], seed: int | None = None
    ) -> None:
        self.agents = AgentTable(engine, seed)
        self._space: Space[Any] = bundle.observation_space
        self._observations, self._actions = layouts
        self._masks = ActionMasks(bundle.model.actions)
        self._ids: tuple[str, ...] = ()
        self._last: tuple[int, bytes] = (-1, b"")

    def handle(self, message: bytes | bytearray | memoryview) -> bytes:
        """Return the reply to a request; a request that is wrong gets a FAILED reply and changes nothing."""
        request_id = 0
        try:
            frame = unpack_frame(message)
            request_id = frame.request_id
            if request_id == self._last[0]:
                return self._last[1]
            reply = self._execute(frame)
        except (AgentGPTError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reply = pack_failure(request_id, error)
        self._last = (request_id, reply)
        return reply

    def _execute(self, frame: Frame) -> bytes:
        if frame.kind == ACT:
            return self._act(frame)
        if frame.kind == FORGET:
            ids = msgspec.msgpack.decode(frame.tail, type=Forget).ids
            if ids is None:
                self.agents.clear()
            else:
                check_ended(tuple(ids), self.agents.held)
                self.agents.forget(ids)
            return pack_frame(DONE, 0, frame.request_id, 0, [])
        raise ProtocolError(f"a message of kind {frame.kind}: expected {ACT} (act) or {FORGET} (forget)")

    def _act(self, frame: Frame) -> bytes:
        agents = msgspec.msgpack.decode(frame.tail, type=Agents) if frame.tail_bytes else Agents(None, [])
        ids = self._ids if agents.ids is None else check_ids(agents.ids)
        raw_bytes = len(frame.message) - RAW_OFFSET - frame.tail_bytes
        obs_bytes = self._observations.nbytes(frame.count)
        mask_bytes = frame.count * self._masks.width if frame.flags & MASKED else 0
        if frame.count != len(ids) or not ids or raw_bytes != obs_bytes + mask_bytes:
            raise ProtocolError(f"{raw_bytes} bytes of observations for {frame.count} agents, of {len(ids)} ids")
        ended = tuple(agents.ended)
        check_ended(ended, self.agents.held)
        batch = self._observations.decode_batch(frame.message, RAW_OFFSET, frame.count, copy=False)
        check_observations(self._space, batch, ids)
        action_mask = None
        if mask_bytes:
            rows = np.frombuffer(frame.message, np.uint8, mask_bytes, RAW_OFFSET + obs_bytes)
            action_mask = self._masks.read(rows.reshape(frame.count, -1), ids)
        actions = self.agents.act(ids, batch, ended, bool(frame.flags & DETERMINISTIC), action_mask)
        self._ids = ids
        parts: list[Any] = []
        if not self._actions.batch_parts(actions, len(ids), parts):
            raise InvalidObservation("the policy's actions do not fit its action space")
        return pack_frame(ACTIONS, 0, frame.request_id, len(ids), parts)


def welcome(bundle: Bundle) -> bytes:
    """Return the server's first message."""
    return _encode(
        Welcome(
            protocol=PROTOCOL_VERSION,
            version=__version__,
            observation_space=space_to_dict(bundle.observation_space),
            action_space=space_to_dict(bundle.action_space),
            action_masks=True,
        )
    )
