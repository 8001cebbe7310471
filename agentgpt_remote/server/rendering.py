"""What an environment rendered, as frames that JSON can hold."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.jsonable import to_json
from agentgpt_remote.server.rest_messages import Frame

_COLOR_TYPE = {1: 0, 3: 2, 4: 6}  # gray, RGB, RGBA


def frames_of(rendered: Any) -> list[Frame]:
    """Return the frames in what ``render`` returned.

    Args:
        rendered: ``None``, text, an array, or a list or tuple of them.

    Raises:
        NotSendable: JSON has nothing for it.
    """
    if rendered is None:
        return []
    if isinstance(rendered, list | tuple):
        return [frame for item in rendered for frame in frames_of(item)]
    if isinstance(rendered, str):
        return [Frame(text=rendered)]
    array = np.asarray(rendered)
    if array.dtype == np.uint8 and array.ndim in (2, 3) and array.size and (array.shape[2:] or (1,))[0] in _COLOR_TYPE:
        return [Frame(png=base64.b64encode(_png(array)).decode())]
    return [Frame(array=to_json(array if array.ndim else array[None]))]


def _png(image: NDArray[np.uint8]) -> bytes:
    """Return an image of shape (height, width) or (height, width, 1, 3 or 4) as PNG."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + image[0].size), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = image.reshape(height, -1)
    color = _COLOR_TYPE[image[0, 0].size]
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
