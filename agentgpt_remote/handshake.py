"""The first message each way: versions, spaces, limits, and the key to resume.

It is ``AGPT`` and a msgpack map that holds ``protocol``, in every version of the protocol, so that a
mismatch is told rather than suffered.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final, Literal, TypeVar

import msgspec

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import ProtocolError, ProtocolMismatch

PROTOCOL_VERSION: Final = 1
MAGIC: Final = b"AGPT"
MAX_ENVS: Final = 2**20  # of one session, whatever the host offers

Buffer = bytes | bytearray | memoryview


def versions() -> dict[str, str]:
    """Return the versions that decide whether two sides compute the same."""
    import platform

    import gymnasium
    import numpy

    return {
        "agentgpt-remote": __version__,
        "gymnasium": gymnasium.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a host allows: the largest message in bytes, and how long a lost session is kept in seconds."""

    max_frame_bytes: int
    resume_window_s: float


class Open(msgspec.Struct, kw_only=True, tag="open", tag_field="message"):
    """Ask for a session: a single env, or a vector env where ``num_envs`` is given (0: as many as the host says).

    With ``agents`` it is one of environments of many agents (``agent_codec.py``).
    """

    protocol: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    source: str | None = None
    num_envs: int | None = None
    autoreset_mode: str | None = None
    render_mode: str | None = None
    kwargs: bytes = b""
    agents: bool = False


class Resume(msgspec.Struct, kw_only=True, tag="resume", tag_field="message"):
    """Ask to go on with a session whose connection was lost; ``proof`` shows that the secret is known."""

    protocol: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    session_id: str
    attempt: int
    proof: bytes

    @classmethod
    def of(cls, session_id: str, secret: str, attempt: int) -> Resume:
        """Return the message of an attempt; each is good once, and only upwards."""
        return cls(session_id=session_id, attempt=attempt, proof=resume_proof(session_id, secret, attempt))


def resume_proof(session_id: str, secret: str, attempt: int) -> bytes:
    """Return what shows that the sender of a resume message knows the session's secret (RFC 2104)."""
    return hmac.digest(secret.encode(), f"{session_id} {attempt}".encode(), hashlib.sha256)


class Opened(msgspec.Struct, kw_only=True, tag="opened", tag_field="message"):
    """The session and its environments; spaces as ``space_to_dict`` describes them.

    A session of many agents tells its ``behaviors`` and the ids that are known beforehand, and no other spaces.
    """

    protocol: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    session_id: str
    secret: str
    num_envs: int | None
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    batched_observation_space: dict[str, Any] | None = None
    batched_action_space: dict[str, Any] | None = None
    metadata: bytes
    render_mode: str | None
    spec: dict[str, Any] | None
    limits: Limits
    behaviors: list[dict[str, Any]] | None = None
    agent_ids: list[str] = []


class Resumed(msgspec.Struct, kw_only=True, tag="resumed", tag_field="message"):
    """The session goes on; ``executed`` is the last sequence number that the host has executed."""

    protocol: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    executed: int


class Refused(msgspec.Struct, kw_only=True, tag="refused", tag_field="message"):
    """No session, and the error that says why (``remote_errors.py``)."""

    protocol: int = PROTOCOL_VERSION
    versions: dict[str, str] = {}
    error: dict[str, Any]


FromClient = Open | Resume
FromHost = Opened | Resumed | Refused
_T = TypeVar("_T")
_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(Open | Resume)
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(Opened | Resumed | Refused)
_encoder = msgspec.msgpack.Encoder()


def encode_handshake(message: FromClient | FromHost) -> bytes:
    """Return the bytes of a handshake message."""
    return MAGIC + _encoder.encode(message)


def decode_from_client(data: Buffer) -> FromClient:
    """Read the first message of a connection, on the host.

    Raises:
        ProtocolMismatch: the client speaks another version.
        ProtocolError: it is not a handshake.
    """
    return _decode(data, "client", _from_client)


def decode_from_host(data: Buffer) -> FromHost:
    """Read the host's answer to a handshake; raises as :func:`decode_from_client`."""
    return _decode(data, "host", _from_host)


def _decode(data: Buffer, peer: Literal["client", "host"], decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    if bytes(data[:4]) != MAGIC:
        raise ProtocolMismatch(f"the {peer} does not speak the agentgpt session protocol: upgrade it, or check the URL")
    body = memoryview(data)[4:]
    try:
        fields = msgspec.msgpack.decode(body)
        version = fields["protocol"]
        if version != PROTOCOL_VERSION:
            raise _mismatch(peer, version, fields.get("versions"))
        return decoder.decode(body)
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"the {peer} sent a malformed handshake: {error}") from error


def _mismatch(peer: Literal["client", "host"], version: object, peer_versions: object) -> ProtocolMismatch:
    package = peer_versions.get("agentgpt-remote", "unknown") if isinstance(peer_versions, dict) else "unknown"
    here = "client" if peer == "host" else "host"
    older = here if isinstance(version, int) and version > PROTOCOL_VERSION else peer
    return ProtocolMismatch(
        f"the {peer} speaks protocol {version!r} (agentgpt-remote {package}), the {here} protocol {PROTOCOL_VERSION} "
        f"(agentgpt-remote {__version__}): upgrade the {older} with `pip install --upgrade agentgpt-remote`"
    )
