"""A session from the client's side: requests and replies, over connections that may drop."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentgpt_remote.connection import DEFAULT_CONNECT_TIMEOUT_S, WebSocketConnection
from agentgpt_remote.errors import (
    AgentGPTError,
    ConnectionLost,
    HostUnreachable,
    ProtocolError,
    RemoteTimeout,
    check_seconds,
)
from agentgpt_remote.frames import Message
from agentgpt_remote.handshake import (
    FromHost,
    Open,
    Opened,
    Refused,
    Resume,
    Resumed,
    decode_from_host,
    encode_handshake,
    versions,
)
from agentgpt_remote.packing import unpack_value
from agentgpt_remote.protocol import ClientSession, Envelope, Kind
from agentgpt_remote.remote_errors import error_from_dict

SESSION_PATH = "/session"
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0
_DROPS_IN_A_ROW = 5
_CLOSE_TIMEOUT_S = 5.0
_OPEN_TIMEOUT_S = 600.0

_logger = logging.getLogger("agentgpt_remote.client")


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long a client waits, in seconds.

    Attributes:
        connect_s: for a connection and its handshake.
        request_s: for the reply to one request.
        resume_s: to get back to a host after the connection dropped; ``None`` for as long as the host keeps the
            session.
        spin_s: how long to poll for a reply before sleeping until it arrives.

    Raises:
        ConfigError: one of them is not a number of seconds, or out of range.
    """

    connect_s: float = DEFAULT_CONNECT_TIMEOUT_S
    request_s: float = 300.0
    resume_s: float | None = None
    spin_s: float = 0.0

    def __post_init__(self) -> None:
        check_seconds("spin_wait", self.spin_s, zero=True)
        check_seconds("connect_timeout_s", self.connect_s)
        check_seconds("request_timeout_s", self.request_s)
        if self.resume_s is not None:
            check_seconds("resume_window_s", self.resume_s, zero=True)


class SessionTransport:
    """An open session on a host.

    Args:
        url: where the host listens.
        token: its token; kept here only, never shown.
        request: what to open.
        timeouts: how long to wait.
        why_gone: tells why the host will not be back, or returns ``None`` while it may; for a host of one's own.

    Attributes:
        url: where the host listens.
        opened: the host's answer to the handshake.
        host_ns: how long the host's environment took for the latest reply, in nanoseconds.

    Raises:
        HostUnreachable: nothing listens there.
        AuthError: the token is missing or wrong.
        ProtocolMismatch: the host speaks another version, or is another service.
        Exception: the host refused the session: ``CapacityReached``, ``NameNotFound``, or ``RemoteEnvError`` where
            the environment's constructor raised.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        request: Open,
        timeouts: Timeouts,
        why_gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.url = url
        self._why_gone = why_gone
        self._owner = os.getpid()
        self.host_ns = 0
        self._token = token
        self._timeouts = timeouts
        self._session = ClientSession()
        self._connection: WebSocketConnection | None = None
        self._ended: str | None = None
        self._resumes = 0
        connection = self._connect(timeouts.connect_s)
        try:
            answer = self._exchange(connection, request, max(timeouts.request_s, _OPEN_TIMEOUT_S))
            if not isinstance(answer, Opened):
                raise ProtocolError(f"{url} answered {type(answer).__name__} to a request to open a session")
        except BaseException:
            connection.close()
            raise
        self.opened = answer
        self._connection = connection

    def __repr__(self) -> str:
        return f"SessionTransport({self.url!r})"

    def _connect(self, timeout_s: float) -> WebSocketConnection:
        return WebSocketConnection.connect(
            self.url,
            token=self._token,
            path=SESSION_PATH,
            connect_timeout_s=timeout_s,
            spin_s=self._timeouts.spin_s,
        )

    def _exchange(self, connection: WebSocketConnection, message: Open | Resume, timeout_s: float) -> FromHost:
        message.versions = versions()
        connection.send(encode_handshake(message))
        answer = decode_from_host(connection.recv(timeout_s))
        if isinstance(answer, Refused):
            raise error_from_dict(answer.error)
        return answer

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 while there is no connection."""
        return -1 if self._connection is None else self._connection.fileno()

    @property
    def connection(self) -> WebSocketConnection | None:
        """The connection, ``None`` after it dropped and until the next call resumes it."""
        return self._connection

    def send(self, kind: Kind, parts: Sequence[Any] = (), *, flags: int = 0, extras: bytes = b"") -> None:
        """Send a request; where the connection is down it is sent when the session resumes.

        Raises:
            ConnectionLost: the session has ended, or belongs to the process that this one was forked from.
            ProtocolError: the request is larger than the host accepts.
        """
        if self._ended is not None:
            raise ConnectionLost(self._ended)
        if os.getpid() != self._owner:  # its requests would be numbered as the owner's, and answered with their replies
            raise ConnectionLost(
                f"the session on {self.url} belongs to process {self._owner}, of which this one is a fork: "
                "make the environment in the process that uses it"
            )
        data = self._session.request(kind, list(parts), flags=flags, extras=extras)
        if len(data) > self.opened.limits.max_frame_bytes:
            self._session.withdraw()
            raise ProtocolError(
                f"a request of {len(data)} bytes is over the host's frame limit of "
                f"{self.opened.limits.max_frame_bytes}: start the host with a larger max_frame_bytes"
            )
        if self._connection is not None:
            try:
                self._connection.send(data)
            except ConnectionLost:
                self._drop()

    def receive(self, timeout_s: float | None = None) -> Envelope:
        """Return the reply to the latest request, resuming the session where that is needed.

        Replies to earlier ones, which were given up, are thrown away.

        Args:
            timeout_s: deadline in seconds; the request timeout by default.

        Raises:
            RemoteTimeout: no reply in time; it may still be received later.
            ConnectionLost: the session could not be resumed, or drops whenever it is.
            Exception: what the environment or the host raised.
        """
        timeout_s = self._timeouts.request_s if timeout_s is None else timeout_s
        drops, start = 0, time.monotonic()
        while True:
            connection = self._connection or self._resume()
            try:
                envelope = self._session.receive(connection.recv(timeout_s))
            except ConnectionLost as error:
                _logger.info("connection lost url=%s reason=%s", self.url, error)
                self._drop()
                drops += 1
                self._pause(drops, time.monotonic() - start, timeout_s, error)
                continue
            except RemoteTimeout as error:
                raise RemoteTimeout(
                    f"no reply from {self.url} within {timeout_s:g} s: the environment is slow or hangs. "
                    "Wait longer with request_timeout_s= (or step_timeout_s= of the host, where a worker of it runs it)"
                ) from error
            except ProtocolError as error:
                self._end(str(error))
                raise
            if envelope is not None and not self._session.has_pending:
                return self._checked(envelope)

    def _pause(self, drops: int, spent_s: float, timeout_s: float, error: ConnectionLost) -> None:
        """Wait before resuming where one request makes the connection drop again and again, and not for ever."""
        if drops < _DROPS_IN_A_ROW:
            return
        if spent_s > timeout_s:
            self._end(f"the connection to {self.url} dropped {drops} times while one reply was awaited: {error}")
            raise ConnectionLost(self._ended) from error
        time.sleep(min(_FIRST_BACKOFF_S * (drops - _DROPS_IN_A_ROW + 1), _MAX_BACKOFF_S))

    def _checked(self, envelope: Envelope) -> Envelope:
        self.host_ns = envelope.aux
        if envelope.kind == Kind.ERROR:
            raise error_from_dict(unpack_value(envelope.extras_data))
        return envelope

    def ready(self) -> bool:
        """Tell, without waiting, whether :meth:`receive` would return or raise at once."""
        return self._ready(WebSocketConnection.ready)

    def has_reply(self) -> bool:
        """Tell the same as far as it is known without looking at the connection."""
        return self._ready(WebSocketConnection.has_message)

    def _ready(self, look: Callable[[WebSocketConnection], bool]) -> bool:
        if self._connection is None:
            return True
        try:
            return look(self._connection)
        except (ConnectionLost, ProtocolError):
            self._drop()
            return True

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def give_up_when(self, why: Callable[[], str | None]) -> None:
        """Have ``why`` asked too, while the connection is down, for a reason not to try any longer."""
        before = self._why_gone
        self._why_gone = lambda: before() or why()

    def _resume(self) -> WebSocketConnection:
        """Connect again, resume the session and send what lacks a reply once more."""
        if self._ended is not None:
            raise ConnectionLost(self._ended)
        window_s = self._timeouts.resume_s
        if window_s is None:
            window_s = self.opened.limits.resume_window_s
        deadline, backoff_s = time.monotonic() + window_s, _FIRST_BACKOFF_S
        while True:
            left_s = deadline - time.monotonic()
            gone = self._why_gone()
            if gone is not None:
                self._end(gone)
                raise ConnectionLost(gone)
            try:
                return self._resume_once(max(0.1, min(left_s, self._timeouts.connect_s)))
            except (HostUnreachable, RemoteTimeout, _Dropped) as error:
                if time.monotonic() + backoff_s >= deadline:
                    self._end(f"the connection to {self.url} was lost and not back within {window_s:g} s: {error}")
                    raise ConnectionLost(self._ended) from error
                if backoff_s == _FIRST_BACKOFF_S:
                    _logger.warning("connection lost url=%s, trying to get back for %.0f s", self.url, left_s)
            except (AgentGPTError, OSError) as error:
                self._end(f"the session on {self.url} can't be resumed: {error}")
                if isinstance(error, ConnectionLost):
                    raise
                raise ConnectionLost(self._ended) from error
            time.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _resume_once(self, timeout_s: float) -> WebSocketConnection:
        connection = self._connect(timeout_s)
        try:
            self._resumes += 1
            message = Resume.of(self.opened.session_id, self.opened.secret, self._resumes)
            message.versions = versions()
            try:
                connection.send(encode_handshake(message))
                data: Message = connection.recv(timeout_s)
            except ConnectionLost as error:  # dropped again: try again, unlike a refusal
                raise _Dropped(str(error)) from error
            answer = decode_from_host(data)
            if isinstance(answer, Refused):
                raise error_from_dict(answer.error)
            if not isinstance(answer, Resumed):
                raise ProtocolError(f"{self.url} answered {type(answer).__name__} to a request to resume a session")
            try:
                for request in self._session.pending:
                    connection.send(request)
            except ConnectionLost as error:
                raise _Dropped(str(error)) from error
        except BaseException:
            connection.close()
            raise
        _logger.info("session resumed url=%s", self.url)
        self._connection = connection
        return connection

    def _end(self, reason: str) -> None:
        self._ended = reason
        self._drop()

    @property
    def ended(self) -> str | None:
        """Why the session is over and no request can be sent any more, or ``None``."""
        return self._ended

    def abandon(self, reason: str) -> None:
        """End the session without telling the host."""
        self._end(reason)

    def close(self) -> None:
        """End the session on the host, as far as it can be reached, and the connection; idempotent."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(AgentGPTError, OSError):  # a host that is gone has ended the session too
                connection.send(self._session.request(Kind.CLOSE, []))
                self._await_close(connection)
        self._end(self._ended or "the environment was closed")

    def _await_close(self, connection: WebSocketConnection) -> None:
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while True:
            envelope = self._session.receive(connection.recv(max(0.001, deadline - time.monotonic())))
            if envelope is not None and not self._session.has_pending:
                self._checked(envelope)
                return


class _Dropped(AgentGPTError):
    """The connection dropped while the session was being resumed."""
