"""A thin, blocking WebSocket client: one system call to send a message, one to receive a small one.

The opening handshake goes through ``websockets``' sans-I/O protocol; afterwards frames are read and
written here (RFC 6455, sections 5.2 to 5.5), without compression. Received messages are fresh, writable
memory that belongs to the caller. A timeout leaves the connection whole: a half-received message is
completed by the next call.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

import numpy as np

from agentgpt_remote.errors import ConnectionLost, HostUnreachable, ProtocolError, RemoteTimeout
from agentgpt_remote.upgrade import parse_url, upgrade

DEFAULT_CONNECT_TIMEOUT_S = 10.0
DEFAULT_MAX_FRAME_BYTES = 256 * 1024 * 1024
_SEND_TIMEOUT_S = 60.0
_CHUNK_BYTES = 65536
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED, _OPCODE = 0x80, 0x80, 0x0F
# Dead peers are found by the kernel, which answers for a busy process too.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6), ("TCP_USER_TIMEOUT", 90_000))

Message = bytearray | memoryview


class WebSocketConnection:
    """A connection to a WebSocket server; not safe for use by several threads at once.

    Attributes:
        url: where it is connected.
    """

    def __init__(self, sock: socket.socket, url: str, max_frame_bytes: int) -> None:
        from websockets.frames import apply_mask  # type: ignore[attr-defined]

        self.url = url
        self._socket = sock
        self._apply_mask = apply_mask
        self._max_frame_bytes = max_frame_bytes
        self._chunk = bytearray(_CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._start = self._end = 0
        self._large: memoryview | None = None  # a message larger than the chunk, while it arrives
        self._large_header = 0
        self._large_filled = 0
        self._fragments: list[Message] = []
        self._fragments_bytes = 0
        self._message: Message | None = None
        self._receive_timeout_s = -1.0
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
        hint: str = "start one with `agentgpt serve SOURCE --port PORT`",
    ) -> WebSocketConnection:
        """Connect and upgrade to WebSocket.

        Args:
            url: ``ws://host:port`` or ``http://host:port``.
            token: sent as ``Authorization: Bearer``.
            path: path of the endpoint, appended to the URL's own.
            connect_timeout_s: deadline of connection and handshake together, in seconds.
            headers: further request headers.
            max_frame_bytes: largest message accepted, in bytes.
            hint: what to do where nothing listens; part of the error.

        Raises:
            ConfigError: the URL has no host or an unknown scheme.
            HostUnreachable: nothing accepted the connection in time.
            AuthError: the server refused the token.
            ProtocolMismatch: what listens there is another service.
        """
        host, port, uri = parse_url(url, path)
        deadline = time.monotonic() + connect_timeout_s
        try:
            sock = socket.create_connection((host, port), timeout=connect_timeout_s)
        except OSError as error:
            reason = "did not answer in time" if isinstance(error, TimeoutError) else f"{error.strerror or error}"
            raise HostUnreachable(f"nothing listens at {url} ({reason}): {hint}") from error
        try:
            _tune(sock)
            authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
            rest = upgrade(sock, uri, {**(headers or {}), **authorization}, deadline, url, hint)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        connection = cls(sock, url, max_frame_bytes)
        connection._view[: len(rest)] = rest
        connection._end = len(rest)
        return connection

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select``; -1 once closed."""
        return self._socket.fileno()

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one binary message.

        Raises:
            ConnectionLost: the connection has ended, or takes nothing for a minute.
        """
        self._send_frame(_BINARY, data)

    def _send_frame(self, opcode: int, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        if size < 126:
            header = bytes((_FINAL | opcode, _MASKED | size))
        elif size < 65536:
            header = struct.pack("!BBH", _FINAL | opcode, _MASKED | 126, size)
        else:
            header = struct.pack("!BBQ", _FINAL | opcode, _MASKED | 127, size)
        mask = self._next_mask()
        try:
            self._socket.sendall(b"".join((header, mask, self._apply_mask(data, mask))))
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
        if self._message is None and (self._start == self._end or not self._parse()):
            if timeout_s != self._receive_timeout_s:
                self._set_receive_timeout(timeout_s)
            self._receive(timeout_s)
        message, self._message = self._message, None
        if message is None:
            raise ProtocolError("no message after a complete frame")
        return message

    def _receive(self, timeout_s: float) -> None:
        """Receive until a message is whole."""
        if self._fill(0):
            if self._parse():
                return
            deadline = time.monotonic() + timeout_s
            while self._fill(0) and time.monotonic() < deadline:
                if self._parse():
                    return
        raise RemoteTimeout(f"no message from {self.url} within {timeout_s:g} s")

    def ready(self) -> bool:
        """Tell, without waiting, whether a whole message can be received.

        Raises:
            ConnectionLost: the connection ended.
            ProtocolError: as for :meth:`recv`.
        """
        while self._message is None and not self._parse():
            if not self._fill(socket.MSG_DONTWAIT):
                return False
        return True

    def _set_receive_timeout(self, timeout_s: float) -> None:
        # A timeout of the kernel costs no system call per message, unlike Python's own.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout_s))
        except OSError as error:
            raise self._lost(error) from error
        self._receive_timeout_s = timeout_s

    def _fill(self, flags: int) -> bool:
        """Receive some bytes; return whether there were any."""
        if self._large is not None:
            target = self._large[self._large_filled :]
        else:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._end == _CHUNK_BYTES:
                self._view[: self._end - self._start] = bytes(self._view[self._start : self._end])
                self._start, self._end = 0, self._end - self._start
            target = self._view[self._end :]
        try:
            count = self._socket.recv_into(target, 0, flags)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost(error) from error
        if count == 0:
            raise ConnectionLost(f"{self.url} closed the connection")
        if self._large is not None:
            self._large_filled += count
        else:
            self._end += count
        return True

    def _parse(self) -> bool:
        """Take frames out of the buffer until a message is whole; return whether one is."""
        while self._message is None:
            if self._large is not None:
                if self._large_filled < len(self._large):
                    return False
                payload, self._large = self._large, None
                self._accept(self._large_header, payload)
                continue
            frame = self._parse_header()
            if frame is None:
                return False
            header, start, size = frame
            available = self._end - start
            if available >= size:
                self._start = start + size
                self._accept(header, bytearray(self._view[start : start + size]))
            elif size > _CHUNK_BYTES // 2:
                memory: Any = np.empty(size, np.uint8)  # not zeroed, unlike a bytearray
                self._large = memoryview(memory)
                self._large[:available] = self._view[start : self._end]
                self._large_header, self._large_filled = header, available
                self._start = self._end = 0
                return False
            else:
                return False
        return True

    def _parse_header(self) -> tuple[int, int, int] | None:
        """Return first byte, start and size of the payload of the next frame, if its header is here."""
        start, available = self._start, self._end - self._start
        if available < 2:
            return None
        header, size = self._chunk[start], self._chunk[start + 1]
        if size & _MASKED:
            raise ProtocolError(f"{self.url} sent a masked frame")
        if size < 126:
            return header, start + 2, size
        width = 4 if size == 126 else 10
        if available < width:
            return None
        size = int.from_bytes(self._view[start + 2 : start + width], "big")
        if size + self._fragments_bytes > self._max_frame_bytes:
            raise ProtocolError(
                f"{self.url} sent a message of {size} bytes, over this client's limit of {self._max_frame_bytes}"
            )
        return header, start + width, size

    def _accept(self, header: int, payload: Message) -> None:
        opcode, final = header & _OPCODE, header & _FINAL
        if opcode == _PING:
            self._send_frame(_PONG, payload)
        elif opcode == _CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            reason = bytes(payload[2:]).decode("utf-8", "replace")
            with contextlib.suppress(ConnectionLost):  # it is ending anyway
                self._send_frame(_CLOSE, payload[:2])
            if code == 1009:
                raise ProtocolError(f"a message was over the frame limit of {self.url}: {reason}")
            raise ConnectionLost(f"{self.url} closed the connection (code {code}) {reason}".rstrip())
        elif opcode == _BINARY and final and not self._fragments:
            self._message = payload
        elif opcode in (_BINARY, _CONTINUATION) and (opcode == _CONTINUATION) == bool(self._fragments):
            self._fragments.append(payload)
            self._fragments_bytes += len(payload)
            if final:
                self._message, self._fragments = bytearray().join(self._fragments), []
                self._fragments_bytes = 0
        elif opcode != _PONG:
            raise ProtocolError(f"{self.url} sent a frame with opcode {opcode}, expected a binary message")

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.url} ended: {error.strerror or error}")

    def close(self) -> None:
        """Say goodbye and close the socket; a second call does nothing."""
        if self._socket.fileno() == -1:
            return
        with contextlib.suppress(OSError, ConnectionLost):  # the peer may be gone already
            self._send_frame(_CLOSE, struct.pack("!H", 1000))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_readable(connections: Iterable[WebSocketConnection], timeout_s: float) -> None:
    """Wait until a byte arrives on one of the connections, or ``timeout_s`` has passed."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection.fileno(), select.POLLIN)
    poll.poll(max(0.0, timeout_s * 1000.0))


def _tune(sock: socket.socket) -> None:
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
