"""An accepted WebSocket as a channel of binary messages, handled as they arrive on the event loop.

A server's own way (a task that awaits a queue) costs more than a small step of an environment takes. Here a
message that can be answered at once is answered from within the event loop's read, and a large one is received
straight into its own memory.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from agentgpt_remote.errors import ConnectionLost, ProtocolError, RemoteTimeout
from agentgpt_remote.frames import (
    BINARY,
    CLOSE,
    MESSAGE_TOO_BIG,
    NO_MASK,
    PING,
    PONG,
    PROTOCOL_ERROR,
    Buffer,
    FrameReader,
    FrameTooLarge,
    Message,
    frame_header,
    load_mask,
    masked_header,
)
from agentgpt_remote.processes import yield_processor
from agentgpt_remote.protocol import PartedReply, Reply
from agentgpt_remote.tls import is_local

NORMAL: Final = 1000
_LINGER_S = 2.0
_DISCARD_BYTES = 65536
_MASK_BYTES = 65536

Handler = Callable[[Message], "Reply | asyncio.Future[Reply]"]


class Channel(asyncio.BufferedProtocol):
    """Binary messages over an accepted WebSocket.

    Args:
        transport: the connection, after the opening handshake.
        peer: what the client is called in errors.
        max_frame_bytes: largest message accepted, in bytes.
        on_lost: called when the connection is gone.
        turns: whose turn it is, where several clients ask at once.
        received: bytes that arrived before, at most a chunk of the reader.
        dialled: whether this end dialled: then what it sends is masked, and what it receives is not (RFC 6455,
            section 5.3).
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        peer: str,
        max_frame_bytes: int,
        on_lost: Callable[[Exception | None], None],
        turns: Turns,
        *,
        received: bytes = b"",
        dialled: bool = False,
    ) -> None:
        self._transport = transport
        self._dialled = dialled
        # A mask keeps a payload from looking like HTTP to what reads it on its way, and costs a copy.
        self._apply_mask = load_mask() if dialled and _is_readable_on_its_way(transport) else None
        self._reader = FrameReader(peer, max_frame_bytes, self._control, from_client=not dialled)
        self._reader.preload(received)
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._turns = turns
        self._waits_for_turn = False
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._awaited: asyncio.Future[Message] | None = None
        self._handle: Handler | None = None
        self._ended: Callable[[], bool] = bool
        self._reply: asyncio.Future[Reply] | None = None
        self._writable = True
        self._closing = False
        self._poll = BusyPoll(self._loop)
        # No message is handled before the last reply is on its way: it may be made of memory that the next one changes.
        transport.set_write_buffer_limits(high=1, low=0)  # with TLS, a limit of 0 is reached by an empty buffer
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()

    async def receive(self, timeout_s: float) -> Message:
        """Return the next message, before :meth:`serve` is called.

        Raises:
            RemoteTimeout: none arrived in time.
            ConnectionLost: the client has gone.
        """
        self._awaited = self._loop.create_future()
        self._go_on()
        try:
            return await asyncio.wait_for(self._awaited, timeout_s)
        except TimeoutError as error:
            raise RemoteTimeout(f"no message within {timeout_s:g} s") from error
        finally:
            self._awaited = None

    async def serve(self, handle: Handler, ended: Callable[[], bool]) -> None:
        """Answer each message until the connection is gone.

        Args:
            handle: returns the reply to a message, or the future of it; no other message is handled before that.
                A ``ProtocolError`` closes the connection.
            ended: tells, after a reply, whether it was the last.
        """
        self._handle, self._ended = handle, ended
        self._go_on()
        await asyncio.shield(self._lost)
        if self._reply is not None:  # it is kept for the client that resumes
            await asyncio.wait([self._reply])

    def send(self, data: Buffer) -> None:
        """Send one message; it is dropped where the connection is gone."""
        self._send_frame(BINARY, data)

    def _send_frame(self, opcode: int, data: Buffer) -> None:
        if self._transport.is_closing():
            return
        if not self._dialled:
            self._transport.write(frame_header(opcode, len(data)) + data)
        elif self._apply_mask is None:
            self._transport.write(masked_header(opcode, len(data)) + NO_MASK + data)
        else:
            mask = os.urandom(4)
            self._transport.write(masked_header(opcode, len(data)) + mask + self._apply_mask(data, mask))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say why, and close the connection once the client has; a second call does nothing.

        Closing it at once would reset it where the client has sent more, and what was said here would be lost.
        """
        if self._closing:
            return
        self._closing = True
        self._send_frame(CLOSE, code.to_bytes(2, "big") + reason.encode()[:120].decode("utf-8", "ignore").encode())
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._loop.call_later(_LINGER_S, self._transport.close)

    async def ended(self) -> None:
        """Wait until the connection is gone, which it is soon after :meth:`close`."""
        await asyncio.shield(self._lost)

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def get_buffer(self, _: int) -> memoryview | bytearray:
        """Return where the event loop is to receive."""
        return bytearray(_DISCARD_BYTES) if self._closing else self._reader.target()

    def buffer_updated(self, count: int) -> None:
        """Take note of what was received."""
        if not self._closing:
            self._reader.filled(count)
            self._pump()
            if self._waits_for_turn and not self._reader.target():
                self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Stop handling messages: the client does not take the replies."""
        self._writable = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """Wake who waits for a message or for the end."""
        self._closing = True
        self._on_lost(error)
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_exception(ConnectionLost("the client closed the connection"))
        if not self._lost.done():
            self._lost.set_result(None)

    def _pump(self) -> None:
        """Handle the messages that are whole."""
        try:
            while self._writable and self._reply is None and not self._closing and not self._waits_for_turn:
                if self._handle is None and (self._awaited is None or self._awaited.done()):
                    break
                message = self._reader.next_message()
                if message is None:
                    return
                if self._handle is None:
                    self._awaited.set_result(message)  # type: ignore[union-attr]
                elif self._turns.is_free_for(self):
                    self._answer(message)
                else:
                    self._waits_for_turn = True
                    self._turns.queue(self, message)
                    return
        except FrameTooLarge as error:
            self.close(MESSAGE_TOO_BIG, str(error))
        except ProtocolError as error:
            self.close(PROTOCOL_ERROR, str(error))
        if not self._closing:
            self._transport.pause_reading()

    def take_turn(self, message: Message) -> None:
        """Answer the message that was queued."""
        self._waits_for_turn = False
        if self._closing:
            return
        try:
            self._answer(message)
        except ProtocolError as error:
            self.close(PROTOCOL_ERROR, str(error))
        self._go_on()

    def _answer(self, message: Message) -> None:
        arrived = time.perf_counter()
        reply = self._handle(message)  # type: ignore[misc]
        if isinstance(reply, bytes | PartedReply):
            self._deliver(reply)
            self._poll.replied(arrived)
        else:
            self._reply = reply
            reply.add_done_callback(self._on_reply)

    def _deliver(self, reply: Reply) -> None:
        if isinstance(reply, bytes):
            self._send_frame(BINARY, reply)
        elif not self._transport.is_closing():
            self._transport.writelines(self._framed(reply))
        if self._ended():
            self.close()

    def _framed(self, reply: PartedReply) -> Iterable[Buffer]:
        """Return the frame of a large reply, in parts."""
        if not self._dialled:
            return (frame_header(BINARY, reply.nbytes), *reply.parts)
        if self._apply_mask is None:
            return (masked_header(BINARY, reply.nbytes) + NO_MASK, *reply.parts)
        mask = os.urandom(4)
        parts: list[Buffer] = [masked_header(BINARY, reply.nbytes) + mask]
        sent = 0
        for part in reply.parts:
            view = memoryview(part)
            for start in range(0, len(view), _MASK_BYTES):  # masking what fits into the cache takes a tenth of the time
                shift = sent % 4
                piece = view[start : start + _MASK_BYTES]
                parts.append(self._apply_mask(piece, mask[shift:] + mask[:shift]))
                sent += len(piece)
        return parts

    def _on_reply(self, reply: asyncio.Future[Reply]) -> None:
        self._reply = None
        error = asyncio.CancelledError() if reply.cancelled() else reply.exception()
        if error is not None:
            self.close(PROTOCOL_ERROR, str(error))
            return
        self._deliver(reply.result())
        self._go_on()

    def _go_on(self) -> None:
        if self._writable and self._reply is None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._pump()

    def _control(self, opcode: int, payload: Message) -> None:
        if opcode == PING:
            self._send_frame(PONG, payload)
        elif opcode == CLOSE:
            self._send_frame(CLOSE, payload[:2])
            self._closing = True
            self._transport.close()


def _is_readable_on_its_way(transport: asyncio.Transport) -> bool:
    """Tell whether a proxy between here and the peer can read what is sent."""
    return transport.get_extra_info("ssl_object") is None and not is_local(transport.get_extra_info("socket"))


class Turns:
    """Gives clients that ask at once their turns in the order in which they asked.

    Answered within the reads of one pass of the event loop, those at its end would come too late for the next pass
    with what they ask then, time and again. A client that is alone is answered at once.
    """

    _ALONE_AFTER_S: Final = 0.001

    def __init__(self) -> None:
        self._queue: deque[tuple[Channel, Message]] = deque()
        self._latest: Channel | None = None
        self._latest_at = 0.0

    def is_free_for(self, channel: Channel) -> bool:
        """Tell whether nobody else has asked lately."""
        now = time.perf_counter()
        is_free = not self._queue and (self._latest is channel or now - self._latest_at > self._ALONE_AFTER_S)
        self._latest, self._latest_at = channel, now
        return is_free

    def queue(self, channel: Channel, message: Message) -> None:
        """Have the channel answer the message when those before it are answered."""
        self._queue.append((channel, message))
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        channel, message = self._queue[0]
        try:
            channel.take_turn(message)
        finally:
            self._queue.popleft()
            if self._queue:
                asyncio.get_running_loop().call_soon(self._next)


class BusyPoll:
    """Keeps an event loop awake for a moment after a reply, where the next message is likely to come within it.

    Waking an idle processor takes longer than a small step. A client that takes its time costs next to nothing:
    polling in vain is not tried again for a while.
    """

    WINDOW_S: Final = 100e-6
    _WAKING_S: Final = 100e-6  # how much later a message is seen by a loop that sleeps
    _SKIP_AFTER_MISS: Final = 64

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._replied_at = self._until = 0.0
        self._polled = self._running = False
        self._skip = 0

    def replied(self, arrived: float) -> None:
        """Take note that the message that arrived at that time was answered now (``time.perf_counter``)."""
        gap = arrived - self._replied_at
        self._replied_at = now = time.perf_counter()
        if self._polled and gap > self.WINDOW_S:
            self._skip = self._SKIP_AFTER_MISS
        self._polled = self._skip == 0 and gap < self.WINDOW_S + self._WAKING_S
        self._skip = max(0, self._skip - 1)
        if self._polled:
            self._until = now + self.WINDOW_S
            if not self._running:
                self._running = True
                self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        self._running = time.perf_counter() < self._until
        if self._running:
            yield_processor()
            self._loop.call_soon(self._poll)


def channel_of(scope: Any, max_frame_bytes: int, turns: Turns) -> Channel:
    """Take over the connection of a WebSocket that was just accepted; the server sees nothing of it from here on.

    Args:
        scope: of the ASGI connection, from a server that ``serving`` started.
        max_frame_bytes: largest message accepted, in bytes.
        turns: of all channels of this event loop.
    """
    connection = scope["state"][CONNECTION]
    return Channel(connection.transport, "the client", max_frame_bytes, connection.connection_lost, turns)


CONNECTION: Final = "agentgpt.connection"
