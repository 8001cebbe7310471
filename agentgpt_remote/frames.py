"""WebSocket frames without I/O (RFC 6455, sections 5.2 to 5.5): received bytes in, messages out, for either end.

Whoever owns the socket receives straight into :meth:`FrameReader.target` and says how much arrived, so that a
message is copied at most once on its way. Both ends speak without compression.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from agentgpt_remote.errors import ProtocolError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
MESSAGE_TOO_BIG: Final = 1009
_FINAL, _MASKED, _OPCODE, _RESERVED = 0x80, 0x80, 0x0F, 0x70
_MAX_CONTROL_BYTES = 125
_CHUNK_BYTES = 65536
_MAX_SPARE = 2  # a loop holds the latest observation while the next arrives

Buffer = bytes | bytearray | memoryview
Message = bytearray | memoryview
_Mask = Callable[[Any, bytes], bytes]


class FrameTooLarge(ProtocolError):
    """A message is over the frame limit."""


NO_MASK: Final = bytes(4)  # masked with it, a payload stays as it is


def load_mask() -> _Mask:
    """Return the function that masks a payload with four bytes, and unmasks it again."""
    from websockets.frames import apply_mask  # type: ignore[attr-defined]

    mask: _Mask = apply_mask
    return mask


def frame_header(opcode: int, size: int, mask_bit: int = 0) -> bytes:
    """Return the header of a frame that is a message of its own, without the mask."""
    if size < 126:
        return bytes((_FINAL | opcode, mask_bit | size))
    if size < 65536:
        return struct.pack("!BBH", _FINAL | opcode, mask_bit | 126, size)
    return struct.pack("!BBQ", _FINAL | opcode, mask_bit | 127, size)


def masked_header(opcode: int, size: int) -> bytes:
    """Return the header of a frame whose payload is masked, as all of a client's are."""
    return frame_header(opcode, size, _MASKED)


class FrameReader:
    """Takes messages out of the bytes of one connection.

    Args:
        peer: what the other end is called in errors.
        max_frame_bytes: largest message accepted, in bytes.
        on_control: called with opcode and payload of each ping, pong and close frame.
        from_client: whether the other end is a client, whose frames are masked.
    """

    def __init__(
        self, peer: str, max_frame_bytes: int, on_control: Callable[[int, Message], None], *, from_client: bool
    ) -> None:
        self._peer = peer
        self._max_frame_bytes = max_frame_bytes
        self._on_control = on_control
        self._unmask = load_mask() if from_client else None
        self._chunk = bytearray(_CHUNK_BYTES)
        self._view = memoryview(self._chunk)
        self._start = self._end = 0
        self._large: memoryview | None = None  # a payload larger than the chunk, while it arrives
        self._large_filled = 0
        self._large_header: tuple[int, bytes | None] = (0, None)
        self._spare: list[Any] = []
        self._fragments: bytearray | None = None  # of a message that arrives in several frames
        self._message: Message | None = None

    def preload(self, data: bytes) -> None:
        """Take bytes that arrived before there was a reader; no more than a chunk of them."""
        self._view[: len(data)] = data
        self._end = len(data)

    @property
    def may_have_message(self) -> bool:
        """Whether :meth:`next_message` could return one before more bytes arrive."""
        return self._message is not None or self._start != self._end

    def target(self) -> memoryview:
        """Return where the next bytes are to be received; never empty once :meth:`next_message` returned ``None``."""
        if self._large is not None:
            return self._large[self._large_filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _CHUNK_BYTES:
            self._view[: self._end - self._start] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, self._end - self._start
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """Take note that ``count`` bytes were received into :meth:`target`."""
        if self._large is not None:
            self._large_filled += count
        else:
            self._end += count

    def has_message(self) -> bool:
        """Take frames out of the buffer until a message is whole; return whether one is.

        Raises:
            ProtocolError: the other end broke the WebSocket protocol or exceeded the frame limit.
        """
        while self._message is None:
            if self._large is not None:
                if self._large_filled < len(self._large):
                    return False
                payload, self._large = self._large, None
                self._accept(*self._large_header, payload)
                continue
            frame = self._parse_header()
            if frame is None:
                return False
            header, mask, start, size = frame
            available = self._end - start
            if available >= size:
                self._start = start + size
                self._accept(header, mask, self._view[start : start + size])
            elif size > _CHUNK_BYTES // 2:
                self._large = self._memory(size)
                self._large[:available] = self._view[start : self._end]
                self._large_header, self._large_filled = (header, mask), available
                self._start = self._end = 0
                return False
            else:
                return False
        return True

    def next_message(self) -> Message | None:
        """Return the next whole binary message, in memory of its own, or ``None``; raises as :meth:`has_message`."""
        if self._message is None and not self.has_message():
            return None
        message, self._message = self._message, None
        return message

    def _memory(self, size: int) -> memoryview:
        """Return memory for a large message: an earlier one's where nobody holds it any more.

        Fresh memory of this size costs a page fault for every 4 KiB, which takes longer than receiving into it.
        """
        spare = self._spare
        for index in range(len(spare)):
            if len(spare[index]) == size and sys.getrefcount(spare[index]) == 2:  # the list's, and the call's
                return memoryview(spare[index])
        memory = np.empty(size, np.uint8)  # not zeroed, unlike a bytearray
        spare.append(memory)
        if len(spare) > _MAX_SPARE:
            del spare[0]
        return memoryview(memory)  # type: ignore[arg-type]

    def _parse_header(self) -> tuple[int, bytes | None, int, int] | None:
        """Return first byte, mask, start and size of the payload of the next frame, if its header is here."""
        start, available = self._start, self._end - self._start
        if available < 2:
            return None
        chunk = self._chunk
        header, size = chunk[start], chunk[start + 1]
        if (size >= _MASKED) is (self._unmask is None):
            raise ProtocolError(f"{self._peer} sent a frame that is {'' if size & _MASKED else 'not '}masked")
        size &= 0x7F
        width = 2 if size < 126 else 4 if size == 126 else 10
        payload = start + width + (0 if self._unmask is None else 4)
        if payload > self._end:
            return None
        if width > 2:
            size = int.from_bytes(self._view[start + 2 : start + width], "big")
        if size + len(self._fragments or b"") > self._max_frame_bytes:
            raise FrameTooLarge(
                f"{self._peer} sent a message of {size} bytes, over the limit of {self._max_frame_bytes} here"
            )
        return header, None if self._unmask is None else bytes(chunk[payload - 4 : payload]), payload, size

    def _accept(self, header: int, mask: bytes | None, payload: memoryview) -> None:
        """Take a whole frame whose payload may lie in the chunk."""
        data: Message
        if mask is not None and self._unmask is not None:
            data = memoryview(self._unmask(payload, mask))
        else:
            data = payload if payload.obj is not self._chunk else bytearray(payload)
        opcode, final = header & _OPCODE, header & _FINAL
        if header & _RESERVED:
            raise ProtocolError(f"{self._peer} sent a frame with reserved bits {header:#04x}, and compression is off")
        if opcode == BINARY and final and self._fragments is None:
            self._message = data
        elif opcode in (CLOSE, PING, PONG):
            if len(data) > _MAX_CONTROL_BYTES or not final:
                raise ProtocolError(f"{self._peer} sent a control frame of {len(data)} bytes, expected 125 at most")
            self._on_control(opcode, data)
        elif opcode == (BINARY if self._fragments is None else CONTINUATION):
            self._fragments = self._fragments or bytearray()
            self._fragments += data
            if final:
                self._message, self._fragments = self._fragments, None
        else:
            raise ProtocolError(f"{self._peer} sent a frame with opcode {opcode}, expected a binary message")
