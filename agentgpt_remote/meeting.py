"""What a host and a relay say to each other over the host's control connection: one msgpack map a message."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from agentgpt_remote.errors import ConfigError, ProtocolError
from agentgpt_remote.handshake import PROTOCOL_VERSION
from agentgpt_remote.tokens import ROOM_PATTERN

CONTROL_PATH: Final = "/host"
DATA_PATH: Final = "/data"
TICKET_HEADER: Final = "x-agentgpt-ticket"
MAX_CONTROL_BYTES: Final = 65536
SILENCE_TIMEOUT_S: Final = 45.0  # a relay says something every few seconds
RELAY_HINT: Final = "start one with `agentgpt relay`, or check the URL"
RESERVED_ROOMS: Final = frozenset({"health", "metrics", "status", "ping", "v1"})
_HOST_CHARACTERS = 16
HOST_PATTERN: Final = re.compile(rf"[0-9a-f]{{{_HOST_CHARACTERS}}}")


class Hello(msgspec.Struct, kw_only=True, tag="hello", tag_field="kind"):
    """A host enters a room; ``offers`` is what its health tells."""

    protocol: int = PROTOCOL_VERSION
    key: str
    name: str
    offers: dict[str, Any]


class Offers(msgspec.Struct, kw_only=True, tag="offers", tag_field="kind"):
    """What a host offers has changed."""

    offers: dict[str, Any]


class Pong(msgspec.Struct, kw_only=True, tag="pong", tag_field="kind"):
    """The answer to a ping."""

    stamp: float


class Welcome(msgspec.Struct, kw_only=True, tag="welcome", tag_field="kind"):
    """The host is in the room, under this name."""

    host: str


class Dial(msgspec.Struct, kw_only=True, tag="dial", tag_field="kind"):
    """A trainer is here: dial a data connection with this ticket."""

    ticket: str


class Ping(msgspec.Struct, kw_only=True, tag="ping", tag_field="kind"):
    """Asks for a pong with the same stamp."""

    stamp: float


FromDialler = Hello | Offers | Pong
FromRelay = Welcome | Dial | Ping
_encoder = msgspec.msgpack.Encoder()
_from_dialler: msgspec.msgpack.Decoder[FromDialler] = msgspec.msgpack.Decoder(FromDialler)
_from_relay: msgspec.msgpack.Decoder[FromRelay] = msgspec.msgpack.Decoder(FromRelay)


def encode_control(message: FromDialler | FromRelay) -> bytes:
    """Return the bytes of a control message."""
    return _encoder.encode(message)


def decode_from_dialler(data: bytes | bytearray | memoryview) -> FromDialler:
    """Read a control message of a host.

    Raises:
        ProtocolError: it is malformed.
    """
    try:
        return _from_dialler.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"the host sent a malformed control message: {error}") from error


def decode_from_relay(data: bytes | bytearray | memoryview) -> FromRelay:
    """Read a control message of a relay; raises as :func:`decode_from_dialler`."""
    try:
        return _from_relay.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"the relay sent a malformed control message: {error}") from error


def host_name(key: str) -> str:
    """Return a host's name in its room: whoever knows the key has it, and no one else."""
    return hashlib.sha256(key.encode()).hexdigest()[:_HOST_CHARACTERS]


def check_room_url(url: str) -> str:
    """Return the URL of a room at a relay, without a slash at its end.

    Raises:
        ConfigError: it names no room.
    """
    if not isinstance(url, str):
        raise ConfigError(f"can't connect to {url!r}: expected a text such as wss://RELAY/ROOM")
    room = urlsplit(url if "://" in url else f"ws://{url}").path.strip("/").rpartition("/")[2]
    if not ROOM_PATTERN.fullmatch(room) or room in RESERVED_ROOMS:
        raise ConfigError(f"{url!r} names no room at a relay: expected a URL such as wss://RELAY/ROOM")
    return url.rstrip("/")
