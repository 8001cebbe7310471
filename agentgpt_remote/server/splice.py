"""Two accepted WebSockets joined to one: frames go through as they arrive, and no message is decoded or kept whole.

Both peers are clients of this server, so their frames are masked and those sent to them are not (RFC 6455, section
5.3). Of a frame only the header is read. A peer that takes bytes slowly makes the other wait, and one that does not
take or finish anything for a while is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agentgpt_remote.channel import CONNECTION
from agentgpt_remote.errors import ProtocolError
from agentgpt_remote.frames import (
    CLOSE,
    MESSAGE_TOO_BIG,
    NO_MASK,
    PROTOCOL_ERROR,
    FrameTooLarge,
    frame_header,
    load_mask,
)

_HIGH_WATER_BYTES: Final = 256 * 1024
_SLOWEST_BYTES_PER_S: Final = 65536
_MAX_CONTROL_BYTES = 125
_LINGER_S, _FLUSH_S = 1.0, 10.0
_MASK_BIT, _RESERVED, _CONTROL, _FINAL, _SIZE = 0x80, 0x70, 0x08, 0x80, 0x7F
_logger = logging.getLogger("agentgpt_remote.relay")

Piece = bytes | memoryview


@dataclass(kw_only=True, eq=False)
class Traffic:
    """What has gone through.

    Attributes:
        frames: frames in both directions.
        to_host_bytes: payload and headers sent to hosts.
        to_trainer_bytes: payload and headers sent to trainers.
    """

    frames: int = 0
    to_host_bytes: int = 0
    to_trainer_bytes: int = 0


class FrameForwarder:
    """Turns the masked frames of one peer into unmasked ones for the other, without I/O.

    Args:
        peer: what the sender is called in errors.
        max_frame_bytes: largest frame that goes through, in bytes.

    Attributes:
        frames: frames that went through.
        left: bytes of the current frame's payload that have not arrived.
        size: bytes of the current frame's payload.
    """

    def __init__(self, peer: str, max_frame_bytes: int) -> None:
        self._peer, self._max_frame_bytes = peer, max_frame_bytes
        self._apply_mask = load_mask()
        self._head = b""
        self._mask = b""
        self.left = self.size = self.frames = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self.left > 0 or bool(self._head)

    def feed(self, data: bytes) -> list[Piece]:
        """Return what to send to the other peer for the bytes that arrived.

        Raises:
            FrameTooLarge: a frame is over the limit.
            ProtocolError: the peer broke the WebSocket protocol.
        """
        pieces: list[Piece] = []
        if self._head:
            data, self._head = self._head + data, b""
        position, end = 0, len(data)
        while position < end:
            if self.left == 0:
                header = self._begin(data, position)
                if header is None:
                    self._head = data[position:]
                    break
                out, position = header
                pieces.append(out)
                if self.left == 0:
                    continue
            stop = min(end, position + self.left)
            if stop > position:
                pieces.append(self._payload(data, position, stop))
                position = stop
        return pieces

    def _begin(self, data: bytes, start: int) -> tuple[bytes, int] | None:
        """Take the header at ``start``; return that of the frame to send, and where the payload begins."""
        available = len(data) - start
        if available < 2:
            return None
        first, second = data[start], data[start + 1]
        if not second & _MASK_BIT:
            raise ProtocolError(f"{self._peer} sent a frame that is not masked")
        if first & _RESERVED:
            raise ProtocolError(f"{self._peer} sent a frame with reserved bits {first:#04x}, and compression is off")
        size = second & _SIZE
        width = 2 if size < 126 else 4 if size == 126 else 10
        if available < width + 4:
            return None
        if width > 2:
            size = int.from_bytes(data[start + 2 : start + width], "big")
        if first & _CONTROL and (size > _MAX_CONTROL_BYTES or not first & _FINAL):
            raise ProtocolError(f"{self._peer} sent a control frame of {size} bytes, expected 125 at most")
        if size > self._max_frame_bytes:
            raise FrameTooLarge(
                f"{self._peer} sent a frame of {size} bytes, over the relay's limit of {self._max_frame_bytes}"
            )
        self.left = self.size = size
        self._mask = data[start + width : start + width + 4]
        self.frames += 1
        header = frame_header(0, size)
        return bytes((first,)) + header[1:], start + width + 4

    def _payload(self, data: bytes, start: int, stop: int) -> Piece:
        mask, shift = self._mask, (self.size - self.left) % 4
        self.left -= stop - start
        if mask == NO_MASK:
            return memoryview(data)[start:stop]
        if shift:
            mask = mask[shift:] + mask[:shift]
        return self._apply_mask(memoryview(data)[start:stop], mask)


class SpliceEnd(asyncio.Protocol):
    """One of two joined connections; reads nothing until it is joined.

    Args:
        scope: of the ASGI connection, just accepted.
        peer: ``host`` or ``trainer``.
        max_frame_bytes: largest frame that goes through, in bytes.

    Attributes:
        closed: completes when the connection is gone.
    """

    def __init__(self, scope: Any, peer: str, max_frame_bytes: int) -> None:
        connection = scope["state"][CONNECTION]
        self.peer = peer
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.other: SpliceEnd | None = None
        self._transport: asyncio.Transport = connection.transport
        self._on_lost: Callable[[Exception | None], None] = connection.connection_lost
        self._forwarder = FrameForwarder(f"the {peer}", max_frame_bytes)
        self._count: Callable[[int, int], None] = lambda _frames, _bytes: None
        self._frame_since = self._blocked_since = 0.0  # 0: not in the middle of a frame, or not blocked
        self._reads = self._is_refused = False
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._transport.pause_reading()
        self._transport.set_protocol(self)

    def join(self, other: SpliceEnd, count: Callable[[int, int], None]) -> None:
        """Begin to forward to the other end; ``count`` is told frames and bytes."""
        self.other, self._count = other, count
        self._resume()
        if other.closed.done():
            self.end()

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived."""
        forwarder, other = self._forwarder, self.other
        if other is None or self._is_refused:
            return
        frames = forwarder.frames
        try:
            pieces = forwarder.feed(data)
        except FrameTooLarge as error:
            self._refuse(MESSAGE_TOO_BIG, error)
            return
        except ProtocolError as error:
            self._refuse(PROTOCOL_ERROR, error)
            return
        self._frame_since = (self._frame_since or time.monotonic()) if forwarder.mid_frame else 0.0
        if len(pieces) == 2 and len(pieces[1]) < _SLOWEST_BYTES_PER_S:
            pieces = [b"".join(pieces)]
        self._count(forwarder.frames - frames, sum(map(len, pieces)))
        other.write(pieces)

    @property
    def _forwards_frame(self) -> bool:
        """Whether a frame that is sent to this peer has begun and not ended."""
        return self.other is not None and self.other._forwarder.left > 0

    def write(self, pieces: list[Piece]) -> None:
        """Send to this peer."""
        if not self._transport.is_closing():
            self._transport.writelines(pieces)

    def pause_writing(self) -> None:
        """Have the other end wait: this peer does not take what is sent to it."""
        self._blocked_since = time.monotonic()
        if self.other is not None:
            self.other._pause()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked_since = 0.0
        if self.other is not None:
            self.other._resume()

    def _pause(self) -> None:
        if self._reads and not self._transport.is_closing():
            self._reads = False
            self._frame_since = 0.0
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._reads and not self._transport.is_closing():
            self._reads = True
            if self._forwarder.mid_frame:
                self._frame_since = time.monotonic()
            self._transport.resume_reading()

    def stalls(self, now: float, limit_s: float) -> str | None:
        """Return what the peer has not done for so long that it is to be dropped, or ``None``."""
        if self._blocked_since and now - self._blocked_since > limit_s:
            return f"has taken nothing for {limit_s:g} s"
        if self._frame_since and now - self._frame_since > limit_s + self._forwarder.size / _SLOWEST_BYTES_PER_S:
            return f"has not finished a frame of {self._forwarder.size} bytes for {limit_s:g} s"
        return None

    def _refuse(self, code: int, error: ProtocolError) -> None:
        """Tell both peers what this one did wrong, and end their connections."""
        _logger.info("dropped peer=%s reason=%s", self.peer, error)
        payload = code.to_bytes(2, "big") + str(error).encode()[:120].decode("utf-8", "ignore").encode()
        for each in (self, self.other):
            if each is not None and not each._forwards_frame:
                each.write([frame_header(CLOSE, len(payload)), payload])
        self._is_refused = True  # it is heard out for a moment: closing at once would reset what was said to it
        asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)
        if self.other is not None:
            self.other.end()

    def end(self) -> None:
        """Close the connection once what was sent has left, or soon."""
        if not self._transport.is_closing():
            self._transport.close()
            asyncio.get_running_loop().call_later(_FLUSH_S, self._transport.abort)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """End the other connection too."""
        self._on_lost(error)
        if not self.closed.done():
            self.closed.set_result(None)
        if self.other is not None:
            self.other.end()


class Pair:
    """A trainer and a host that are joined.

    Args:
        trainer: its connection.
        host: its connection.
        traffic: is told what goes through; several may be.
    """

    def __init__(self, trainer: SpliceEnd, host: SpliceEnd, *traffic: Traffic) -> None:
        self._ends = (trainer, host)

        def to_host(frames: int, count: int) -> None:
            for item in traffic:
                item.frames += frames
                item.to_host_bytes += count

        def to_trainer(frames: int, count: int) -> None:
            for item in traffic:
                item.frames += frames
                item.to_trainer_bytes += count

        trainer.join(host, to_host)
        host.join(trainer, to_trainer)

    def drop_if_stalled(self, now: float, limit_s: float) -> bool:
        """End both connections where one has done nothing for too long; return whether that was so."""
        for end in self._ends:
            stalled = end.stalls(now, limit_s)
            if stalled is not None:
                _logger.warning("session dropped: the %s %s", end.peer, stalled)
                for each in self._ends:
                    each.abort()
                return True
        return False

    def abort(self) -> None:
        """End both connections at once."""
        for end in self._ends:
            end.abort()
