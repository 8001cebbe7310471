"""Observations and actions as compact float32 vectors, without torch.

A compact vector holds, in this order, the numeric columns (Box), the binary columns (MultiBinary) and
the categorical columns (Discrete, MultiDiscrete; the index counted from 0) of all leaves of the space,
each group in the order of the leaves. The model one-hots the categories. Images in observations have no columns
there: their bytes are kept apart, as uint8.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agentgpt_remote.errors import UnsupportedSpace
from agentgpt_remote.policy.images import ImageLeaf, UInt8, image_leaf, is_image

NUMERIC, BINARY, CATEGORICAL = 0, 1, 2
Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Leaf:
    """One elementary space inside a nest.

    Attributes:
        path: keys and indices that lead to it from the root.
        space: the elementary space.
        kind: NUMERIC, BINARY or CATEGORICAL.
        sizes: number of categories of each column; empty for the other kinds.
        columns: where its values lie in the compact vector.
    """

    path: tuple[str | int, ...]
    space: spaces.Space[Any]
    kind: int
    sizes: tuple[int, ...]
    columns: slice


def _walk(space: spaces.Space[Any], path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if type(space) is spaces.Dict:
        for key, child in space.spaces.items():
            yield from _walk(child, (*path, key))
    elif type(space) is spaces.Tuple:
        for index, child in enumerate(space.spaces):
            yield from _walk(child, (*path, index))
    else:
        yield path, space


def _classify(role: str, path: tuple[str | int, ...], space: spaces.Space[Any]) -> tuple[int, int, tuple[int, ...]]:
    """Return kind, number of columns and category counts of an elementary space."""
    if type(space) is spaces.Box and space.dtype.kind in "biuf":
        return NUMERIC, int(np.prod(space.shape, dtype=np.int64)), ()
    if type(space) is spaces.MultiBinary:
        return BINARY, int(np.prod(space.shape, dtype=np.int64)), ()
    if type(space) is spaces.Discrete:
        return CATEGORICAL, 1, (int(space.n),)
    if type(space) is spaces.MultiDiscrete:
        return CATEGORICAL, int(space.nvec.size), tuple(int(n) for n in space.nvec.reshape(-1))
    where = role + "".join(f"[{key!r}]" for key in path)
    raise UnsupportedSpace(
        f"{where} is {space!r}, which can't be learned from: expected Box (numeric), Discrete, MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of them; wrap the environment to flatten or encode it"
    )


class SpaceFeatures:
    """The compact vector of a space.

    Attributes:
        space: the (nested) space.
        leaves: its elementary spaces, in order.
        width: columns of the compact vector.
        numeric_width: how many of them are numeric (the first ones).
        binary_width: how many are binary (the next ones).
        category_sizes: categories of each of the remaining columns.
    """

    role = "space"

    def __init__(self, space: spaces.Space[Any], *, without: Collection[tuple[str | int, ...]] = ()) -> None:
        """Lay out the columns.

        Args:
            space: the (nested) space.
            without: paths of leaves that have no columns.

        Raises:
            UnsupportedSpace: the space, or one inside it, can't be learned from.
        """
        self.space = space
        found = [
            (path, leaf, *_classify(self.role, path, leaf)) for path, leaf in _walk(space, ()) if path not in without
        ]
        widths = [sum(count for _, _, kind, count, _ in found if kind == group) for group in range(3)]
        self.numeric_width, self.binary_width = widths[0], widths[1]
        self.width = sum(widths)
        ends = [0, widths[0], widths[0] + widths[1]]
        leaves: list[Leaf] = []
        category_sizes: list[int] = []
        for path, leaf, kind, count, sizes in found:
            leaves.append(Leaf(path, leaf, kind, sizes, slice(ends[kind], ends[kind] + count)))
            ends[kind] += count
            category_sizes.extend(sizes)
        self.leaves = tuple(leaves)
        self.category_sizes = tuple(category_sizes)

    def encode(self, batch: Any) -> Float32:
        """Return the compact vectors of a batch of values.

        Args:
            batch: values as ``gymnasium.vector.utils.batch_space`` holds them: a nest of arrays whose first
                axis has length n.

        Returns:
            float32 array of shape (n, width); it may share memory with the batch.
        """
        if len(self.leaves) == 1:
            return self._encode_leaf(self.leaves[0], _pick(batch, self.leaves[0].path))
        parts = [self._encode_leaf(leaf, _pick(batch, leaf.path)) for leaf in self.leaves]
        if not parts:
            raise UnsupportedSpace(f"{self.role} is {self.space!r}, which is empty: there is nothing to learn from")
        out = np.empty((parts[0].shape[0], self.width), np.float32)
        for leaf, part in zip(self.leaves, parts, strict=True):
            out[:, leaf.columns] = part
        return out

    def _encode_leaf(self, leaf: Leaf, value: Any) -> Float32:
        array = np.asarray(value)
        array = array.reshape(array.shape[0], -1)
        if leaf.kind == CATEGORICAL and np.any(start := getattr(leaf.space, "start", 0)):
            array = array - np.reshape(start, -1)
        return array.astype(np.float32, copy=False)


class ObservationFeatures(SpaceFeatures):
    """The compact vector of an observation space, and the pixels of its images.

    Args:
        space: the (nested) space.
        images: keep images apart; False takes them for plain numbers.

    Attributes:
        images: the images in it, in order.
        pixel_width: bytes of all of them.
    """

    role = "observation_space"

    def __init__(self, space: spaces.Space[Any], *, images: bool = True) -> None:
        found = [(path, leaf) for path, leaf in _walk(space, ()) if images and is_image(leaf)]
        super().__init__(space, without=[path for path, _ in found])
        leaves: list[ImageLeaf] = []
        for path, leaf in found:
            leaves.append(image_leaf(path, leaf, leaves[-1].columns.stop if leaves else 0))
        self.images = tuple(leaves)
        self.pixel_width: int = leaves[-1].columns.stop if leaves else 0

    def encode(self, batch: Any) -> Float32:
        """Return the compact vectors of a batch, see the base class; of width 0 where there are only images."""
        if not self.leaves and self.images:
            return np.empty((len(_pick(batch, self.images[0].path)), 0), np.float32)
        return super().encode(batch)

    def pixels(self, batch: Any) -> UInt8 | None:
        """Return the bytes of a batch's images, uint8 of shape (n, pixel_width); None where there are none.

        The array may share memory with the batch.
        """
        if not self.images:
            return None
        parts = [np.asarray(_pick(batch, image.path)) for image in self.images]
        rows = [part.reshape(len(part), -1) for part in parts]
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


class ActionFeatures(SpaceFeatures):
    """The compact vector of an action space.

    Numeric columns are in policy units: -1 and 1 are the bounds where both are finite, else the action's own units.

    Attributes:
        bounded: bool array of shape (numeric_width,): columns with two finite bounds.
    """

    role = "action_space"

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(space)
        self._center: list[NDArray[np.float64]] = []
        self._half: list[NDArray[np.float64]] = []
        bounded = []
        for leaf in self.leaves:
            if leaf.kind != NUMERIC:
                continue
            low, high = (np.reshape(b, -1).astype(np.float64) for b in (leaf.space.low, leaf.space.high))  # type: ignore[attr-defined]
            finite = np.isfinite(low) & np.isfinite(high) & (high > low)
            bounded.append(finite)
            with np.errstate(invalid="ignore", over="ignore"):
                self._center.append(np.where(finite, low / 2 + high / 2, 0.0))
                self._half.append(np.where(finite, high / 2 - low / 2, 1.0))
        self.bounded: NDArray[np.bool_] = np.concatenate(bounded) if bounded else np.zeros(0, np.bool_)

    def encode(self, batch: Any) -> Float32:
        """Return the compact vectors of a batch of actions, float32 of shape (n, width)."""
        out = super().encode(batch)
        for leaf, center, half in self._numeric():
            out = out.copy()
            out[:, leaf.columns] = (out[:, leaf.columns] - center) / half
        return out

    def decode(self, vectors: NDArray[Any]) -> Any:
        """Return actions of the space from compact vectors.

        Args:
            vectors: float array of shape (n, width).

        Returns:
            A nest of arrays with leading axis n, of the space's own dtypes; Box values lie within the bounds.
        """
        scaled = {id(leaf): (center, half) for leaf, center, half in self._numeric()}
        values = {}
        for leaf in self.leaves:
            part = vectors[:, leaf.columns]
            if leaf.kind == NUMERIC:
                center, half = scaled[id(leaf)]
                values[leaf.path] = self._decode_box(leaf.space, part, center, half)
            else:
                values[leaf.path] = self._decode_integer(leaf.space, part)
        return self._nest(self.space, (), values)

    def _numeric(self) -> Iterator[tuple[Leaf, NDArray[np.float64], NDArray[np.float64]]]:
        numeric = [leaf for leaf in self.leaves if leaf.kind == NUMERIC]
        yield from zip(numeric, self._center, self._half, strict=True)

    @staticmethod
    def _decode_box(space: Any, part: NDArray[Any], center: Any, half: Any) -> NDArray[Any]:
        value = (part.astype(np.float64) * half + center).reshape(-1, *space.shape)
        if space.dtype.kind in "biu":  # a cast would wrap what is out of bounds
            value = np.rint(value)
            np.minimum(np.maximum(value, space.low, out=value), space.high, out=value)
        cast: NDArray[Any] = value.astype(space.dtype)  # np.clip takes far longer than the next line
        np.minimum(np.maximum(cast, space.low, out=cast), space.high, out=cast)
        return cast

    @staticmethod
    def _decode_integer(space: Any, part: NDArray[Any]) -> NDArray[Any]:
        index: NDArray[Any] = np.rint(part).astype(space.dtype)
        index = index[:, 0] if type(space) is spaces.Discrete else index.reshape(-1, *space.shape)
        start = getattr(space, "start", 0)
        if np.any(start):
            index += np.asarray(start, index.dtype)
        return index

    def _nest(self, space: Any, path: tuple[str | int, ...], values: dict[Any, Any]) -> Any:
        if type(space) is spaces.Dict:
            return {key: self._nest(child, (*path, key), values) for key, child in space.spaces.items()}
        if type(space) is spaces.Tuple:
            return tuple(self._nest(child, (*path, index), values) for index, child in enumerate(space.spaces))
        return values[path]


def _pick(batch: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        batch = batch[key]
    return batch
