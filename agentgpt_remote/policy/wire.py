"""Messages between a policy client and a policy server; bytes in, bytes out, without torch.

A request for actions (ACT) is a fixed header, the raw observations in the layout of the space
(:class:`~agentgpt_remote.codec.Layout`), with the flag MASKED a byte per agent and category that says whether the
action is allowed, with the flag CONTROLLED a byte per agent that says whether it acts at all, and a msgpack tail with
the agent ids, which is empty while they stay the same. The reply (ACTIONS) is built alike, with actions in the layout
of the action space, or with the flag COMPACT as float32 compact vectors. Requests are numbered; one that comes again
is answered with the last reply and not executed twice.

Nothing that the server remembers is needed twice: the seed of the draws and the number of input states come with each
request, and agents that the server does not hold any more are named in a reply LOST, after which the client tells
their last steps (RESTORE) and asks again.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from agentgpt_remote import errors
from agentgpt_remote._version import __version__
from agentgpt_remote.errors import ProtocolError, ProtocolMismatch, UnknownAgent

PROTOCOL_VERSION = 2
ACT, FORGET, ACTIONS, DONE, FAILED, LOST, RESTORE, HELLO, WELCOME, STATUS, BYE = range(1, 12)
DETERMINISTIC, MASKED, CONTROLLED, COMPACT = 1, 2, 4, 8
MAX_ID_BYTES = 256
Message = bytes | bytearray | memoryview

# kind, flags, number of input states (0: the maximum), request id, agents, bytes of the tail, seed, 8 zeros
_HEADER = struct.Struct("<BBHIIIQ8x")
encode = msgspec.msgpack.Encoder().encode
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


NO_BEHAVIOR = "no policy of behavior="  # begins what a server answers where it has none of the name


class Welcome(msgspec.Struct, kw_only=True):
    """First message of the server.

    Attributes:
        protocol: version of the messages.
        version: of the package.
        observation_space: of one agent.
        action_space: of one agent.
        image_encoder: "cnn" keeps images in observations apart, "none" takes them for numbers.
        max_input_states: the model's window.
        history_steps: last steps of an agent that its memory depends on.
        max_agents: most agents that the server holds at once.
    """

    protocol: int
    version: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    image_encoder: str = "cnn"
    max_input_states: int = 1
    history_steps: int = 1
    max_agents: int = 1


class Agents(msgspec.Struct, array_like=True):
    """Tail of an ACT request.

    Attributes:
        ids: agents of the rows, or ``None`` for those of the last request.
        ended: agents to forget first.
        starting: agents of the rows that begin an episode; all others must be known.
    """

    ids: list[str] | None
    ended: list[str]
    starting: list[str] = []


class AgentList(msgspec.Struct, array_like=True):
    """Tail of FORGET (these agents, or all) and of LOST."""

    ids: list[str] | None


class Restored(msgspec.Struct, array_like=True):
    """Tail of a RESTORE request.

    The raw part holds, for each agent in turn, float32 rows of its last steps (see
    :class:`~agentgpt_remote.policy.history.Steps`), the compact action that followed them, and its pixels.

    Attributes:
        ids: agents.
        counts: steps of each.
    """

    ids: list[str]
    counts: list[int]


class Failure(msgspec.Struct, array_like=True):
    """Tail of a FAILED reply."""

    kind: str
    text: str


class Frame(msgspec.Struct):
    """A decoded message.

    Attributes:
        kind: what it is, such as ACT.
        flags: any of DETERMINISTIC, MASKED, CONTROLLED and COMPACT.
        num_input_states: how many steps the model sees; 0 stands for the maximum.
        request_id: number of the request, also in its reply.
        count: agents.
        seed: of the draws.
        message: the whole message; raw values begin at :data:`RAW_OFFSET`.
        tail_bytes: size of the tail at its end.
    """

    kind: int
    flags: int
    num_input_states: int
    request_id: int
    count: int
    seed: int
    message: Message
    tail_bytes: int

    @property
    def tail(self) -> memoryview:
        """The msgpack tail."""
        return memoryview(self.message)[len(self.message) - self.tail_bytes :]

    @property
    def raw_bytes(self) -> int:
        """Size of the raw values."""
        return len(self.message) - RAW_OFFSET - self.tail_bytes


RAW_OFFSET = _HEADER.size


def pack_frame(
    kind: int,
    flags: int,
    request_id: int,
    count: int,
    parts: Sequence[Any],
    tail: bytes = b"",
    *,
    num_input_states: int = 0,
    seed: int = 0,
) -> bytes:
    """Return a message; ``parts`` are the buffers of the raw values."""
    header = _HEADER.pack(kind, flags, num_input_states, request_id, count, len(tail), seed)
    return b"".join((header, *parts, tail))


def unpack_frame(message: Message) -> Frame:
    """Return the parts of a message.

    Raises:
        ProtocolError: it is shorter than its header says.
    """
    if len(message) < RAW_OFFSET:
        raise ProtocolError(f"a message of {len(message)} bytes: expected at least {RAW_OFFSET}")
    kind, flags, num_input_states, request_id, count, tail_bytes, seed = _HEADER.unpack_from(message)
    if RAW_OFFSET + tail_bytes > len(message):
        raise ProtocolError(f"a message of {len(message)} bytes announces a tail of {tail_bytes}")
    return Frame(kind, flags, num_input_states, request_id, count, seed, message, tail_bytes)


def pack_failure(request_id: int, error: Exception) -> bytes:
    """Return a FAILED reply."""
    kind = type(error).__name__ if type(error).__name__ in _ERRORS else ProtocolError.__name__
    return pack_frame(FAILED, 0, request_id, 0, (), encode(Failure(kind, str(error))))


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
