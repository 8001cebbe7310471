"""The way to a policy server by WebSocket."""

from __future__ import annotations

import contextlib
import time
from typing import Final
from urllib.parse import quote

import msgspec

from agentgpt_remote._version import __version__
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import (
    AgentGPTError,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    ProtocolError,
    ProtocolMismatch,
    RemoteTimeout,
)
from agentgpt_remote.policy import wire

RUN_HINT: Final = "start one with `agentgpt run BUNDLE --port PORT`"
_RETRY_S = 0.05
_SMALL_BYTES = 16_384
_CONNECT_TIMEOUT_S = 10.0


class WebSocketChannel:
    """A connection that is opened again where it was lost; with each one the server begins a new session.

    Args:
        url: where the server listens, ``ws://``, ``wss://``, ``http://`` or ``https://``.
        token: its token, or ``None``.
        behavior: whose policy is to act, where the server has several.

    Attributes:
        url: as above.
        max_body_bytes: largest message that the server takes.
    """

    max_body_bytes = 64 * 1024 * 1024

    def __init__(self, url: str, token: str | None, behavior: str | None = None) -> None:
        self.url, self._token = url, token
        self._path = "/act" if behavior is None else f"/behaviors/{quote(behavior, safe='')}/act"
        self._connection: WebSocketConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether the last session may still be there."""
        return self._connection is not None and self._connection.fileno() != -1

    def open(self, deadline: float, *, patient: bool = False) -> wire.Welcome:
        """Connect and greet.

        Args:
            deadline: on the monotonic clock, in seconds.
            patient: try again until then where nothing listens, as while a server is being restarted.

        Raises:
            HostUnreachable: nothing listens there in time.
            AuthError: the token is missing or wrong.
            ProtocolMismatch: the server speaks another version, or is another service.
            ConfigError: it has no policy of the behaviour, or those of several and none is named.
        """
        while True:
            try:
                return self._open(deadline)
            except (HostUnreachable, ConnectionLost):
                if not patient or time.monotonic() + _RETRY_S >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def _open(self, deadline: float) -> wire.Welcome:
        left = max(0.001, min(deadline - time.monotonic(), _CONNECT_TIMEOUT_S))
        try:
            connection = WebSocketConnection.connect(
                self.url, token=self._token, path=self._path, connect_timeout_s=left, hint=RUN_HINT
            )
        except ProtocolMismatch as error:
            told = str(error).partition(wire.NO_BEHAVIOR)
            if told[1]:  # it is a policy server, which says what it has
                raise ConfigError(f"{self.url}: {told[1]}{told[2]}") from error
            raise
        try:
            connection.send(wire.encode(wire.Hello(protocol=wire.PROTOCOL_VERSION, version=__version__)))
            welcome = msgspec.msgpack.decode(connection.recv(_left(deadline)), type=wire.Welcome)
            wire.check_version(welcome.protocol, welcome.version, "server")
        except msgspec.MsgspecError as error:
            connection.close()
            raise ProtocolError(f"{self.url} does not greet as a policy server: {error}") from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return welcome

    def exchange(self, message: bytes, timeout_s: float) -> wire.Message:
        """Return the reply to a message.

        Raises:
            ConnectionLost: the connection has ended.
            RemoteTimeout: there was no reply in time; the connection is closed, since it may still come.
        """
        if self._connection is None:
            raise ConnectionLost(f"the connection to {self.url} has ended")
        try:
            # A small message always fits into the kernel's buffers, whatever the server does.
            self._connection.send(message, timeout_s if len(message) > _SMALL_BYTES else None)
            return self._connection.recv(timeout_s)
        except (AgentGPTError, KeyboardInterrupt):
            self.drop()
            raise

    def drop(self) -> None:
        """Close the connection, which ends the session."""
        if self._connection is not None:
            with contextlib.suppress(ConnectionLost):  # it is gone already
                self._connection.close()
            self._connection = None

    close = drop


def _left(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        RemoteTimeout: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise RemoteTimeout("the policy server did not greet in time")
    return left
