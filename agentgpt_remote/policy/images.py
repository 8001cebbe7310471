"""Images in observations: which leaves are images, and how they lie in memory, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
MIN_SIDE = 16


@dataclass(frozen=True, eq=False)
class ImageLeaf:
    """One image inside an observation.

    Attributes:
        path: keys and indices that lead to it from the root.
        channels: 1 for an image without an axis for them.
        height: rows.
        width: columns.
        channels_last: the last axis holds the channels, as (H, W, C) or (H, W); else (C, H, W).
        columns: where its bytes lie among the pixels of the observation.
    """

    path: tuple[str | int, ...]
    channels: int
    height: int
    width: int
    channels_last: bool
    columns: slice


def is_image(space: spaces.Space[Any]) -> bool:
    """Tell whether a space holds images: a Box of uint8, (H, W), (H, W, C) or (C, H, W), with sides of 16 or more."""
    if type(space) is not spaces.Box or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    _, height, width, _ = _geometry(space.shape)
    return min(height, width) >= MIN_SIDE


def _geometry(shape: tuple[int, ...]) -> tuple[int, int, int, bool]:
    """Return channels, height, width and whether channels come last: the shorter of the outer axes holds them."""
    if len(shape) == 2:
        return 1, shape[0], shape[1], True
    first, middle, last = shape
    return (last, first, middle, True) if last <= first else (first, middle, last, False)


def image_leaf(path: tuple[str | int, ...], space: spaces.Space[Any], start: int) -> ImageLeaf:
    """Return the description of an image whose bytes begin at ``start``."""
    shape = space.shape or ()
    channels, height, width, last = _geometry(shape)
    return ImageLeaf(path, channels, height, width, last, slice(start, start + channels * height * width))
