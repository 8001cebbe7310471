"""Images in observations: which leaves are images, and how they lie in memory, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
MIN_SIDE = 16
_LARGE_SIDE = 48  # images with no shorter side are reduced by four at once
_SMALL_MAP = 6  # maps no larger than this are flattened


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

    @property
    def is_large(self) -> bool:
        """Whether the first convolution reduces the image by four, with kernels of 8 instead of 3."""
        return min(self.height, self.width) >= _LARGE_SIDE

    def convolution_strides(self) -> list[tuple[int, int]]:
        """Return the strides of the CNN's convolutions."""
        shapes = self._maps()
        first = (4, 4) if self.is_large else _stride(shapes[0])
        return [first, *(_stride(shape) for shape in shapes[1:-1])]

    @property
    def map_shape(self) -> tuple[int, int]:
        """Rows and columns of the map after the last convolution."""
        return self._maps()[-1]

    def _maps(self) -> list[tuple[int, int]]:
        """Return the shapes of the image and of the maps after each convolution."""
        shape = (self.height, self.width)
        shapes = [shape, (shape[0] // 4, shape[1] // 4) if self.is_large else _halved(shape)]
        while max(shapes[-1]) > _SMALL_MAP:
            shapes.append(_halved(shapes[-1]))
        return shapes


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


def _stride(shape: tuple[int, int]) -> tuple[int, int]:
    return (2 if shape[0] > _SMALL_MAP else 1, 2 if shape[1] > _SMALL_MAP else 1)


def _halved(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape after a convolution of size 3 with padding 1 and :func:`_stride`."""
    strides = _stride(shape)
    return (-(-shape[0] // strides[0]), -(-shape[1] // strides[1]))
