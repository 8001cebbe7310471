"""A thin, blocking WebSocket client: one system call to send a message, one to receive a small one.

The opening handshake goes through ``websockets``' sans-I/O protocol; afterwards frames are ours (``frames.py``).
Received messages are writable memory that belongs to the caller. A timeout leaves the connection whole: a
half-received message is completed by the next call.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Final, Self

from agentgpt_remote.errors import AuthError, ConnectionLost, HostUnreachable, ProtocolError, RemoteTimeout
from agentgpt_remote.frames import (
    BINARY,
    CLOSE,
    MESSAGE_TOO_BIG,
    PING,
    PONG,
    Buffer,
    FrameReader,
    Message,
    load_mask,
    masked_header,
)
from agentgpt_remote.processes import yield_processor
from agentgpt_remote.tls import TlsSocket, Trust, encrypt
from agentgpt_remote.upgrade import parse_url, upgrade

DEFAULT_CONNECT_TIMEOUT_S = 10.0
DEFAULT_MAX_FRAME_BYTES = 256 * 1024 * 1024
_SEND_TIMEOUT_S = 60.0
# Dead peers are found by the kernel, which answers for a busy process too.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6), ("TCP_USER_TIMEOUT", 90_000))


class WebSocketConnection:
    """A connection to a WebSocket server; not safe for use by several threads at once.

    Attributes:
        url: where it is connected.
    """

    def __init__(self, sock: socket.socket, url: str, max_frame_bytes: int, spin_s: float = 0.0) -> None:
        self.url = url
        self._socket = sock
        self._apply_mask = load_mask()
        self._reader = FrameReader(url, max_frame_bytes, self._control, from_client=False)
        self._receive_timeout_s = -1.0
        self._spin_s = spin_s
        self._masks = b""
        self._mask_at = 0

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        path: str = "",
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        spin_s: float = 0.0,
        hint: str = "start one with `agentgpt serve SOURCE --port PORT`",
    ) -> WebSocketConnection:
        """Connect and upgrade to WebSocket.

        Args:
            url: ``ws://host:port`` or ``http://host:port``, with TLS ``wss://`` or ``https://``.
            token: sent as ``Authorization: Bearer``.
            path: path of the endpoint, appended to the URL's own.
            connect_timeout_s: deadline of connection and handshake together, in seconds.
            headers: further request headers.
            max_frame_bytes: largest message accepted, in bytes.
            spin_s: how long to poll for a message before sleeping until one arrives, in seconds.
            hint: what to do where nothing listens; part of the error.

        Raises:
            ConfigError: the URL has no host or an unknown scheme.
            HostUnreachable: nothing accepted the connection in time.
            AuthError: the server refused the token, its certificate is not trusted, or the token would travel
                unencrypted to another machine.
            ProtocolMismatch: what listens there is another service.
        """
        host, port, uri = parse_url(url, path)
        deadline = time.monotonic() + connect_timeout_s
        sock = open_socket(url, host, port, connect_timeout_s, hint)
        try:
            sock = secure(sock, uri.startswith("wss:"), host, url, hint, sends_secret=token is not None)
            authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
            rest = upgrade(sock, uri, {**(headers or {}), **authorization}, deadline, url, hint)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        connection = cls(sock, url, max_frame_bytes, spin_s)
        connection._reader.preload(rest)
        return connection

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select``; -1 once closed."""
        return self._socket.fileno()

    def send(self, data: Buffer, timeout_s: float | None = None) -> None:
        """Send one binary message.

        Args:
            data: the message.
            timeout_s: how long the other end may take nothing, in seconds, for this message and those after it; None
                leaves it as it is, at first a minute.

        Raises:
            ConnectionLost: the connection has ended, or took nothing for that long.
        """
        if timeout_s is not None:
            self._set_send_timeout(timeout_s)
        self._send_frame(BINARY, data)

    def _send_frame(self, opcode: int, data: Buffer) -> None:
        mask = self._next_mask()
        try:
            self._socket.sendall(masked_header(opcode, len(data)) + mask + self._apply_mask(data, mask))
        except OSError as error:
            raise self._lost(error) from error

    def _next_mask(self) -> bytes:
        """Return four unpredictable bytes (RFC 6455, section 5.3)."""
        if self._mask_at == len(self._masks):
            self._masks, self._mask_at = os.urandom(1024), 0
        self._mask_at += 4
        return self._masks[self._mask_at - 4 : self._mask_at]

    def recv(self, timeout_s: float) -> Message:
        """Return the next binary message, in memory of its own.

        Args:
            timeout_s: deadline in seconds.

        Raises:
            RemoteTimeout: none arrived in time.
            ConnectionLost: the connection ended.
            ProtocolError: the server broke the WebSocket protocol or exceeded the frame limit.
        """
        reader = self._reader
        message = reader.next_message() if reader.may_have_message else None
        if message is None and self._spin_s:
            message = self._spin()
        if message is None:
            if timeout_s != self._receive_timeout_s:
                self._set_receive_timeout(timeout_s)
            message = self._receive(timeout_s)
        return message

    def _spin(self) -> Message | None:
        """Poll for a message: waking a thread that sleeps takes longer than a small step."""
        deadline = time.perf_counter() + self._spin_s
        while time.perf_counter() < deadline:
            if self._fill(socket.MSG_DONTWAIT):
                message = self._reader.next_message()
                if message is not None:
                    return message
            yield_processor()
        return None

    def _receive(self, timeout_s: float) -> Message:
        """Receive until a message is whole."""
        reader = self._reader
        if self._fill(0):
            message = reader.next_message()
            if message is not None:
                return message
            deadline = time.monotonic() + timeout_s
            while self._fill(0) and time.monotonic() < deadline:
                message = reader.next_message()
                if message is not None:
                    return message
        raise RemoteTimeout(f"no message from {self.url} within {timeout_s:g} s")

    @property
    def has_decrypted(self) -> bool:
        """Whether bytes have been decrypted and not been taken, of which ``select`` knows nothing."""
        return isinstance(self._socket, TlsSocket) and self._socket.pending() > 0

    def has_message(self) -> bool:
        """Tell whether a whole message has been received and not been taken; raises as :meth:`ready`."""
        return self._reader.may_have_message and self._reader.has_message()

    def ready(self) -> bool:
        """Tell, without waiting, whether a whole message can be received.

        Raises:
            ConnectionLost: the connection ended.
            ProtocolError: as for :meth:`recv`.
        """
        while not self._reader.has_message():
            if not self._fill(socket.MSG_DONTWAIT):
                return False
        return True

    def _set_receive_timeout(self, timeout_s: float) -> None:
        # A timeout of the kernel costs no system call per message, unlike Python's own.
        try:
            if isinstance(self._socket, TlsSocket):  # which does not heed the kernel's
                self._socket.settimeout(timeout_s)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout_s))
        except OSError as error:
            raise self._lost(error) from error
        self._receive_timeout_s = timeout_s

    def _set_send_timeout(self, timeout_s: float) -> None:
        try:
            if isinstance(self._socket, TlsSocket):
                self._socket.settimeout(timeout_s)
                self._receive_timeout_s = -1.0  # it has one for both ways
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))
        except OSError as error:
            raise self._lost(error) from error

    def _fill(self, flags: int) -> bool:
        """Receive some bytes; return whether there were any."""
        try:
            count = self._socket.recv_into(self._reader.target(), 0, flags)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost(error) from error
        if count == 0:
            raise ConnectionLost(f"{self.url} closed the connection")
        self._reader.filled(count)
        return True

    def _control(self, opcode: int, payload: Message) -> None:
        if opcode == PING:
            self._send_frame(PONG, payload)
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            reason = bytes(payload[2:]).decode("utf-8", "replace")
            with contextlib.suppress(ConnectionLost):  # it is ending anyway
                self._send_frame(CLOSE, payload[:2])
            if code == MESSAGE_TOO_BIG:
                raise ProtocolError(f"a message was over the frame limit of {self.url}: {reason}")
            raise ConnectionLost(f"{self.url} closed the connection (code {code}) {reason}".rstrip())

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.url} ended: {error.strerror or error}")

    def close(self) -> None:
        """Say goodbye and close the socket; a second call does nothing."""
        if self._socket.fileno() == -1:
            return
        with contextlib.suppress(OSError, ConnectionLost):  # the peer may be gone already
            self._send_frame(CLOSE, struct.pack("!H", 1000))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_readable(connections: Iterable[WebSocketConnection], timeout_s: float) -> list[WebSocketConnection]:
    """Return the connections on which bytes have arrived, waiting up to ``timeout_s`` seconds for the first."""
    poll = select.poll()
    by_descriptor = {connection.fileno(): connection for connection in connections}
    decrypted = [connection for connection in by_descriptor.values() if connection.has_decrypted]
    if decrypted:
        return decrypted
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(max(0.0, timeout_s * 1000.0))]


def open_socket(url: str, host: str, port: int, timeout_s: float, hint: str) -> socket.socket:
    """Return a socket that is connected to a server, with the timeout set.

    Raises:
        HostUnreachable: nothing accepted the connection in time.
    """
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        reason = "did not answer in time" if isinstance(error, TimeoutError) else f"{error.strerror or error}"
        raise HostUnreachable(f"nothing listens at {url} ({reason}): {hint}") from error
    try:
        tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def secure(sock: socket.socket, with_tls: bool, host: str, url: str, hint: str, *, sends_secret: bool) -> socket.socket:
    """Return the socket with TLS over it, or as it is where it may be used without.

    Raises:
        AuthError: the certificate is not trusted, or a secret would travel unencrypted to another machine.
        HostUnreachable: the connection ended.
        ProtocolMismatch: the server does not speak TLS.
    """
    if not with_tls:
        if sends_secret:
            Trust.of_environment().check_plaintext(sock, url)
        return sock
    try:
        return encrypt(sock, host, url)
    except AuthError:
        raise
    except OSError as error:
        raise HostUnreachable(f"{url} closed the connection during the handshake: {hint}") from error


def tune(sock: socket.socket) -> None:
    """Have a connected socket send small messages at once, and the kernel find peers that are gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_SEND_TIMEOUT_S))


def _timeval(seconds: float) -> bytes:
    whole, micro = divmod(max(1, int(min(seconds, 1e8) * 1e6)), 1_000_000)
    return struct.pack("@ll", whole, micro)
