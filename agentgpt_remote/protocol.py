"""The session protocol, without I/O: bytes in, events out, the same whoever dialled.

After the handshake (``handshake.py``) each message has a fixed header of 32 bytes, little endian::

    kind u8 | flags u8 | group u16 | extras u32 | sequence u64 | aux u64 | 8 bytes of padding

then raw buffers (``steps.py``) and, from offset ``extras`` (0: none), a packed value.
``aux`` of a request is the highest sequence number whose reply has arrived; of a reply, the nanoseconds
that the environment took. Requests of a session are numbered from 1 and executed in that order. A repeated
request is answered from the kept reply and never executed again, so a client may resume after a dropped
connection by sending its unanswered requests once more.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from agentgpt_remote.errors import ProtocolError

HEADER: Final = struct.Struct("<BBHIQQ8x")
HEADER_BYTES: Final = HEADER.size
_MAX_KEPT_REPLIES = 64

_JOIN_BELOW_BYTES = 16_384

Buffer = bytes | bytearray | memoryview


class PartedReply(NamedTuple):
    """A large reply in parts, some of which may be an environment's own memory.

    Attributes:
        nbytes: size of all parts together, in bytes.
        parts: what to send, one after the other.
    """

    nbytes: int
    parts: tuple[Buffer, ...]


Reply = bytes | PartedReply


class Kind(IntEnum):
    """What a message asks for; its reply has the same kind."""

    RESET = 1
    STEP = 2
    RENDER = 3
    CALL = 4
    CLOSE = 5
    ERROR = 255


@dataclass(slots=True)
class Envelope:
    """A received message after the handshake: its header's fields, and the whole of its bytes."""

    kind: int
    flags: int
    group: int
    extras: int
    sequence: int
    aux: int
    data: Buffer

    @property
    def extras_data(self) -> memoryview:
        """The packed value behind the raw buffers; empty where there is none."""
        return memoryview(self.data)[self.extras :] if self.extras else memoryview(b"")


def parse_envelope(data: Buffer) -> Envelope:
    """Read the header of a message.

    Raises:
        ProtocolError: it is shorter than a header, or its extras lie outside of it.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes is shorter than its header of {HEADER_BYTES}")
    kind, flags, group, extras, sequence, aux = HEADER.unpack_from(data)
    if extras and not HEADER_BYTES <= extras <= len(data):
        raise ProtocolError(f"a message of {len(data)} bytes says that its extras begin at {extras}")
    return Envelope(kind, flags, group, extras, sequence, aux, data)


def join_message(
    kind: int, sequence: int, parts: list[Any], *, flags: int = 0, extras: bytes = b"", aux: int = 0
) -> bytes:
    """Return the bytes of a message: header, raw ``parts``, and ``extras`` behind them."""
    if not extras:
        return b"".join((HEADER.pack(kind, flags, 0, 0, sequence, aux), *parts))
    offset = HEADER_BYTES + sum(map(_nbytes, parts))
    return b"".join((HEADER.pack(kind, flags, 0, offset, sequence, aux), *parts, extras))


def make_reply(kind: int, sequence: int, parts: list[Any], *, flags: int, extras: bytes, aux: int) -> Reply:
    """Return the reply to a request: joined where that costs less than sending it in parts."""
    size = 0
    for part in parts:
        size += _nbytes(part)
    if size < _JOIN_BELOW_BYTES:
        return join_message(kind, sequence, parts, flags=flags, extras=extras, aux=aux)
    header = HEADER.pack(kind, flags, 0, HEADER_BYTES + size if extras else 0, sequence, aux)
    return PartedReply(HEADER_BYTES + size + len(extras), (header, *map(_as_buffer, parts), extras))


def own_reply(reply: Reply) -> bytes:
    """Return the bytes of a reply, in memory of their own."""
    return reply if isinstance(reply, bytes) else b"".join(reply.parts)


def reply_nbytes(reply: Reply) -> int:
    """Return the size of a reply in bytes."""
    return len(reply) if isinstance(reply, bytes) else reply.nbytes


def _nbytes(part: Any) -> int:
    return len(part) if type(part) is bytes else part.nbytes if hasattr(part, "nbytes") else len(part)


def _as_buffer(part: Any) -> Buffer:
    if not isinstance(part, np.ndarray):
        return part  # type: ignore[no-any-return]
    if part.dtype == np.uint8 and part.size:  # an image; the general way takes three times as long
        return part.data.cast("B")
    flat: Any = part.reshape(-1).view(np.uint8)
    return memoryview(flat)


class ClientSession:
    """A client's numbering: which requests still lack their reply."""

    def __init__(self) -> None:
        self._sequence = 0
        self._answered = 0
        self._pending: deque[tuple[int, bytes]] = deque()

    @property
    def pending(self) -> list[bytes]:
        """Requests without a reply, oldest first: what to send again after resuming."""
        return [data for _, data in self._pending]

    @property
    def has_pending(self) -> bool:
        """Whether a request lacks its reply."""
        return bool(self._pending)

    def request(self, kind: int, parts: list[Any], *, flags: int = 0, extras: bytes = b"") -> bytes:
        """Return the bytes of a new request, and remember them until it is answered."""
        self._sequence += 1
        data = join_message(kind, self._sequence, parts, flags=flags, extras=extras, aux=self._answered)
        self._pending.append((self._sequence, data))
        return data

    def withdraw(self) -> None:
        """Forget the latest request, which was not sent."""
        self._pending.pop()
        self._sequence -= 1

    def receive(self, data: Buffer) -> Envelope | None:
        """Return the reply to the oldest request, or ``None`` for a reply that came before.

        Raises:
            ProtocolError: the reply is malformed, or nothing was asked.
        """
        envelope = parse_envelope(data)
        if envelope.sequence <= self._answered:
            return None
        if not self._pending or envelope.sequence != self._pending[0][0]:
            raise ProtocolError(f"the host answered request {envelope.sequence}, which is not the next")
        self._pending.popleft()
        self._answered = envelope.sequence
        return envelope


class Arrival(Enum):
    """What a host must do with a request that arrived."""

    EXECUTE = "execute"
    ANSWERED = "answered"
    EXECUTING = "executing"


class HostSession:
    """A host's numbering: executes each request once and keeps replies until they are known to have arrived."""

    def __init__(self) -> None:
        self.executed = 0
        self._executing = 0
        self._replies: deque[tuple[int, Reply]] = deque(maxlen=_MAX_KEPT_REPLIES)

    def receive(self, envelope: Envelope) -> Arrival:
        """Tell what to do with a request; ``EXECUTE`` obliges to call :meth:`answer`.

        Raises:
            ProtocolError: a request is missing before it.
        """
        replies = self._replies
        while replies and replies[0][0] <= envelope.aux:
            replies.popleft()
        sequence = envelope.sequence
        if sequence == self.executed + 1:
            if self._executing == sequence:
                return Arrival.EXECUTING
            self._executing = sequence
            if replies:  # executing changes the memory that the latest may be made of
                replies[-1] = (replies[-1][0], own_reply(replies[-1][1]))
            return Arrival.EXECUTE
        if sequence > self.executed:
            raise ProtocolError(f"request {sequence} arrived, expected {self.executed + 1}")
        return Arrival.ANSWERED

    def answer(self, sequence: int, reply: Reply) -> Reply:
        """Keep and return the reply to the request that was executed."""
        self.executed = sequence
        self._replies.append((sequence, reply))
        return reply

    def kept_reply(self, sequence: int) -> Reply:
        """Return the reply to an executed request once more.

        Raises:
            ProtocolError: the client said that it has that reply.
        """
        for kept, reply in self._replies:
            if kept == sequence:
                return reply
        raise ProtocolError(f"request {sequence} was answered, and its reply was received")
