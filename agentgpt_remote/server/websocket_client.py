"""A WebSocket client for an event loop: dials, and hands over the transport with what has arrived already."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import NamedTuple, cast

from agentgpt_remote.connection import tune
from agentgpt_remote.errors import AuthError, ConnectionLost, HostUnreachable, ProtocolError, RemoteTimeout
from agentgpt_remote.frames import BINARY, CLOSE, PING, PONG, Buffer, FrameReader, Message, load_mask, masked_header
from agentgpt_remote.tls import Trust, untrusted
from agentgpt_remote.upgrade import Handshake, parse_url

_MAX_WAITING = 256


class Dialled(NamedTuple):
    """An open WebSocket.

    Attributes:
        transport: the connection; its reading is paused.
        rest: bytes that came after the handshake.
    """

    transport: asyncio.Transport
    rest: bytes


async def dial(
    url: str, *, path: str, token: str | None, headers: dict[str, str], timeout_s: float, hint: str, trust: Trust
) -> Dialled:
    """Connect to a server and upgrade to WebSocket; see :meth:`WebSocketConnection.connect`.

    Raises:
        HostUnreachable: nothing accepted the connection in time.
        AuthError: the server refused the token, its certificate is not trusted, or the token would travel
            unencrypted to another machine.
        ProtocolMismatch: what listens there is another service.
    """
    host, port, uri = parse_url(url, path)
    with_tls = uri.startswith("wss:")
    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
    handshake = Handshake(uri, {**headers, **authorization}, url, hint)
    upgrading = _Upgrading(handshake)
    loop = asyncio.get_running_loop()
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, _ = await loop.create_connection(
                lambda: upgrading,
                host,
                port,
                ssl=trust.context() if with_tls else None,
                server_hostname=host if with_tls else None,
            )
            sock: socket.socket = transport.get_extra_info("socket")
            tune(sock)
            if with_tls:
                trust.check_pin(transport.get_extra_info("ssl_object").getpeercert(binary_form=True), url)
            elif token is not None:
                trust.check_plaintext(sock, url)
            transport.write(handshake.request())
            rest = await upgrading.done
    except TimeoutError as error:
        _abort(transport)
        raise HostUnreachable(f"nothing answers at {url} within {timeout_s:g} s: {hint}") from error
    except ssl.SSLError as error:
        _abort(transport)
        raise untrusted(error, url) from error
    except OSError as error:
        _abort(transport)
        if isinstance(error, ConnectionLost | AuthError):
            raise
        raise HostUnreachable(f"nothing listens at {url} ({error.strerror or error}): {hint}") from error
    except BaseException:
        _abort(transport)
        raise
    return Dialled(transport, rest)


def _abort(transport: asyncio.Transport | None) -> None:
    if transport is not None:
        transport.abort()


class _Upgrading(asyncio.Protocol):
    """The opening handshake; ``done`` completes with what came after it."""

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def eof_received(self) -> None:
        self._receive(b"")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            failure = OSError("the connection ended") if not isinstance(error, OSError) else error
            self.done.set_exception(self._handshake.failure(failure))
            self.done.exception()  # looked at, should nobody wait any longer

    def _receive(self, data: bytes) -> None:
        if self.done.done():
            return
        try:
            rest = self._handshake.receive(data)
        except Exception as error:  # noqa: BLE001 - raised where the handshake is awaited
            self.done.set_exception(error)
            return
        if rest is not None and self._transport is not None:
            self._transport.pause_reading()  # until whoever asked for the connection takes over
            self.done.set_result(rest)


class ControlConnection(asyncio.Protocol):
    """Binary messages of a connection that was dialled, few and small.

    Args:
        dialled: the connection.
        peer: what the other end is called in errors.
        max_frame_bytes: largest message accepted, in bytes.
    """

    def __init__(self, dialled: Dialled, peer: str, max_frame_bytes: int) -> None:
        self._transport, self._peer = dialled.transport, peer
        self._apply_mask = load_mask()
        self._reader = FrameReader(peer, max_frame_bytes, self._control, from_client=False)
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._transport.set_protocol(self)
        self.data_received(dialled.rest)
        self._transport.resume_reading()

    async def receive(self, timeout_s: float) -> Message:
        """Return the next message.

        Raises:
            RemoteTimeout: none came in time.
            ConnectionLost: the connection ended.
            ProtocolError: the other end broke the WebSocket protocol.
        """
        try:
            message = await asyncio.wait_for(self._messages.get(), timeout_s)
        except TimeoutError as error:
            raise RemoteTimeout(f"{self._peer} said nothing for {timeout_s:g} s") from error
        if isinstance(message, Exception):
            raise message
        return message

    def send(self, data: Buffer) -> None:
        """Send a message; it is dropped where the connection is gone."""
        self._send_frame(BINARY, data)

    def _send_frame(self, opcode: int, data: Buffer) -> None:
        if not self._transport.is_closing():
            mask = os.urandom(4)
            self._transport.write(masked_header(opcode, len(data)) + mask + self._apply_mask(data, mask))

    def close(self) -> None:
        """Say goodbye and close the connection."""
        self._send_frame(CLOSE, (1000).to_bytes(2, "big"))
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take in what arrived."""
        view = memoryview(data)
        try:
            while view:
                target = self._reader.target()
                count = min(len(target), len(view))
                target[:count] = view[:count]
                self._reader.filled(count)
                view = view[count:]
                while (message := self._reader.next_message()) is not None:
                    self._messages.put_nowait(message)
        except (ProtocolError, ConnectionLost) as error:
            self._messages.put_nowait(error)
            self._transport.close()
        if self._messages.qsize() > _MAX_WAITING:
            self._messages.put_nowait(ProtocolError(f"{self._peer} sends more than can be taken"))
            self._transport.abort()

    def _control(self, opcode: int, payload: Message) -> None:
        if opcode == PING:
            self._send_frame(PONG, payload)
        elif opcode == CLOSE:
            reason = bytes(payload[2:]).decode("utf-8", "replace")
            raise ConnectionLost(f"{self._peer} closed the connection: {reason or 'without a reason'}")

    def connection_lost(self, error: Exception | None) -> None:
        """Wake whoever waits for a message."""
        self._messages.put_nowait(ConnectionLost(f"the connection to {self._peer} ended: {error or 'it was closed'}"))
