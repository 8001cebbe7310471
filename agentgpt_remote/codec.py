"""Values of a space as raw buffers, in a layout that both sides derive from the space.

A layout is the list of a space's leaves, depth first; the buffer of ``n`` values holds each leaf's array
of shape ``(n, *leaf.shape)`` in C order, at offsets aligned to 16 bytes. Nothing is named or described in
the buffer. A value that does not match the space exactly (another dtype, shape or container) does not
fit, and the caller sends it with :func:`pack_value` instead: it is never cast. A space that holds a Text,
Sequence, Graph or OneOf has no fixed layout: nothing fits, and everything is packed. Dicts of a fixed layout
arrive with their keys in the order of the space.

Example:
    >>> import numpy as np
    >>> from gymnasium.spaces import Box
    >>> layout = Layout(Box(-1, 1, (2,)))
    >>> data = bytearray(layout.nbytes(3))
    >>> layout.encode_batch(np.ones((3, 2), np.float32), 3, data, 0)
    True
    >>> layout.decode_batch(data, 0, 3).shape
    (3, 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from agentgpt_remote.errors import ProtocolError
from agentgpt_remote.packing import pack_info, pack_value, unpack_value

__all__ = [
    "DOES_NOT_FIT",
    "NUMPY_SCALARS",
    "PYTHON_INTS",
    "Layout",
    "Leaf",
    "Rows",
    "pack_info",
    "pack_value",
    "unpack_value",
]

Buffer = bytes | bytearray | memoryview
DOES_NOT_FIT, NUMPY_SCALARS, PYTHON_INTS = -1, 0, 1
_ALIGNMENT = 16
_PADDING: Final = tuple(bytes(n) for n in range(_ALIGNMENT))
# Above this a decoded array is a view of the message's own memory; below, a copy is cheaper to keep.
_COPY_BELOW_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of a layout.

    Attributes:
        path: keys and indices that lead to it from the space's root.
        dtype: its dtype.
        shape: shape of one value.
        is_scalar: whether one value is a number rather than an array (a Discrete space).
    """

    path: tuple[str | int, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_scalar: bool

    @property
    def nbytes(self) -> int:
        """Size of one value in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Rows(list[np.ndarray]):
    """A batch of a space of one leaf as an array for each value, all contiguous; it is encoded as if stacked."""


class Layout:
    """The raw layout of a space's values.

    Args:
        space: the space of one value.

    Attributes:
        leaves: its arrays, in the order of the buffer.
        is_fixed: whether the space has such a layout; if not, no value fits.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        leaves: list[Leaf] = []
        self.is_fixed = _is_fixed(space)
        self._flatten, self._build = _compile(space, (), leaves) if self.is_fixed else (_fits_nothing, _build_nothing)
        self.leaves = tuple(leaves)
        self._single = leaves[0] if self.is_fixed and type(space) in _LEAF_SPACES else None
        self._single_padding = _PADDING[-self._single.nbytes % _ALIGNMENT] if self._single is not None else b""
        self._single_size = math.prod(self._single.shape) if self._single is not None else 0
        self._plans: dict[int, tuple[tuple[tuple[Leaf, int, int], ...], int]] = {}

    def _plan(self, n: int) -> tuple[tuple[tuple[Leaf, int, int], ...], int]:
        """Return leaf, offset and padding after it for each leaf, and the size of the buffer."""
        plan = self._plans.get(n)
        if plan is None:
            entries, offset = [], 0
            for leaf in self.leaves:
                size = n * leaf.nbytes
                padding = -size % _ALIGNMENT
                entries.append((leaf, offset, padding))
                offset += size + padding
            plan = self._plans[n] = (tuple(entries), offset)
        return plan

    def nbytes(self, n: int) -> int:
        """Return the size of a buffer of ``n`` values, in bytes."""
        return self._plan(n)[1]

    def batch_parts(self, value: Any, n: int, parts: list[Any]) -> bool:
        """Append the buffers that make up a batch; their concatenation is the encoding.

        Args:
            value: array of shape ``(n, ...)``, nested dict and tuple of them, or :class:`Rows`.
            n: number of values.
            parts: receives the buffers; some of them may be the arrays themselves.

        Returns:
            Whether the value fits the layout; if not, ``parts`` is to be thrown away.
        """
        if type(value) is Rows:
            parts += value
            parts.append(_PADDING[self._plan(n)[0][0][2]])
            return len(value) == n
        flat: list[Any] = []
        if not self._flatten(value, flat):
            return False
        for array, (leaf, _, padding) in zip(flat, self._plan(n)[0], strict=True):
            if type(array) is not np.ndarray or array.dtype != leaf.dtype or array.shape != (n, *leaf.shape):
                return False
            parts.append(array if array.flags.c_contiguous else array.tobytes())
            if padding:
                parts.append(_PADDING[padding])
        return True

    def one_parts(self, value: Any, parts: list[Any]) -> int:
        """Append the buffers that make up one value.

        Returns:
            ``DOES_NOT_FIT``, or how its Discrete leaves are to be read back: ``NUMPY_SCALARS`` or ``PYTHON_INTS``.
        """
        leaf = self._single
        if leaf is not None:  # most observations and actions; the general way takes three times as long
            if leaf.is_scalar:
                kind, data = _scalar_bytes(value, leaf.dtype)
                parts.append(data + self._single_padding)
                return kind
            if type(value) is not np.ndarray or value.dtype != leaf.dtype or value.shape != leaf.shape:
                return DOES_NOT_FIT
            parts.append(value.tobytes() if value.nbytes < _COPY_BELOW_BYTES else np.ascontiguousarray(value))
            if self._single_padding:
                parts.append(self._single_padding)
            return NUMPY_SCALARS
        flat: list[Any] = []
        if not self._flatten(value, flat):
            return DOES_NOT_FIT
        scalars = DOES_NOT_FIT
        for item, (leaf, _, padding) in zip(flat, self._plan(1)[0], strict=True):
            if leaf.is_scalar:
                kind, data = _scalar_bytes(item, leaf.dtype)
                if kind == DOES_NOT_FIT or scalars not in (DOES_NOT_FIT, kind):
                    return DOES_NOT_FIT
                scalars = kind
                parts.append(data)
            elif type(item) is not np.ndarray or item.dtype != leaf.dtype or item.shape != leaf.shape:
                return DOES_NOT_FIT
            else:
                parts.append(item if item.flags.c_contiguous else item.tobytes())
            if padding:
                parts.append(_PADDING[padding])
        return max(scalars, NUMPY_SCALARS)

    def encode_batch(self, value: Any, n: int, buffer: bytearray | memoryview, offset: int) -> bool:
        """Write a batch into ``buffer`` at ``offset``; return whether it fits the layout."""
        parts: list[Any] = []
        if not self.batch_parts(value, n, parts):
            return False
        buffer[offset : offset + self.nbytes(n)] = b"".join(parts)
        return True

    def encode_one(self, value: Any, buffer: bytearray | memoryview, offset: int) -> int:
        """Write one value into ``buffer`` at ``offset``; return what :meth:`one_parts` returns."""
        parts: list[Any] = []
        kind = self.one_parts(value, parts)
        if kind != DOES_NOT_FIT:
            buffer[offset : offset + self.nbytes(1)] = b"".join(parts)
        return kind

    def decode_batch(self, buffer: Buffer, offset: int, n: int, *, copy: bool | None = None) -> Any:
        """Return a batch as the batched space would hold it: (nested dict and tuple of) arrays ``(n, ...)``.

        Args:
            buffer: the message; writable where ``copy`` is not ``True``.
            offset: where the batch begins, in bytes.
            n: number of values.
            copy: whether arrays own their memory; by default small ones do and large ones view ``buffer``.

        Raises:
            ProtocolError: the space has no fixed layout.
        """
        arrays = []
        for leaf, start, _ in self._plan(n)[0]:
            count = n * math.prod(leaf.shape)
            array = np.frombuffer(buffer, leaf.dtype, count, offset + start).reshape((n, *leaf.shape))
            arrays.append(array.copy() if _must_copy(copy, array) else array)
        return arrays[0] if self._single is not None else self._build(iter(arrays))

    def decode_one(self, buffer: Buffer, offset: int, scalars: int = NUMPY_SCALARS, *, copy: bool | None = None) -> Any:
        """Return one value.

        Args:
            buffer: the message; writable where ``copy`` is not ``True``.
            offset: where the value begins, in bytes.
            scalars: what :meth:`one_parts` returned.
            copy: as for :meth:`decode_batch`.

        Raises:
            ProtocolError: the space has no fixed layout.
        """
        if self._single is not None:
            return self._decode_single(self._single, buffer, offset, scalars, copy)
        values: list[Any] = []
        for leaf, start, _ in self._plan(1)[0]:
            if leaf.is_scalar:
                scalar = np.frombuffer(buffer, leaf.dtype, 1, offset + start)[0]
                values.append(int(scalar) if scalars == PYTHON_INTS else scalar)
                continue
            array = np.frombuffer(buffer, leaf.dtype, math.prod(leaf.shape), offset + start).reshape(leaf.shape)
            values.append(array.copy() if _must_copy(copy, array) else array)
        return self._build(iter(values))

    def _decode_single(self, leaf: Leaf, buffer: Buffer, offset: int, scalars: int, copy: bool | None) -> Any:
        if leaf.is_scalar:
            if scalars == PYTHON_INTS:
                size = leaf.dtype.itemsize
                return int.from_bytes(buffer[offset : offset + size], "little", signed=leaf.dtype.kind == "i")
            return np.frombuffer(buffer, leaf.dtype, 1, offset)[0]
        array = np.frombuffer(buffer, leaf.dtype, self._single_size, offset)
        if len(leaf.shape) != 1:
            array = array.reshape(leaf.shape)
        return array.copy() if _must_copy(copy, array) else array


def _must_copy(copy: bool | None, array: np.ndarray) -> bool:
    return array.nbytes < _COPY_BELOW_BYTES if copy is None else copy


def _scalar_bytes(item: Any, dtype: np.dtype[Any]) -> tuple[int, bytes]:
    if type(item) is int:
        try:
            return PYTHON_INTS, item.to_bytes(dtype.itemsize, "little", signed=dtype.kind == "i")
        except OverflowError:
            return DOES_NOT_FIT, b""
    if isinstance(item, np.generic) and item.dtype == dtype:
        return NUMPY_SCALARS, item.tobytes()
    return DOES_NOT_FIT, b""


_LEAF_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_Flatten = Callable[[Any, list[Any]], bool]
_Build = Callable[[Any], Any]


def _is_fixed(space: gym.Space[Any]) -> bool:
    if type(space) is spaces.Dict:
        return all(map(_is_fixed, space.spaces.values()))
    if type(space) is spaces.Tuple:
        return all(map(_is_fixed, space.spaces))
    return type(space) in _LEAF_SPACES and np.dtype(space.dtype).isnative


def _fits_nothing(_: Any, __: list[Any]) -> bool:
    return False


def _build_nothing(_: Any) -> Any:
    raise ProtocolError("raw values came for a space that has no fixed layout, expected them packed")


def _compile(space: gym.Space[Any], path: tuple[str | int, ...], leaves: list[Leaf]) -> tuple[_Flatten, _Build]:
    """Append the leaves of a space that is fixed; return how to take a value apart and put it together."""
    if isinstance(space, spaces.Dict):
        keys = tuple(space.spaces)
        children = [_compile(space.spaces[key], (*path, key), leaves) for key in keys]
        return _dict_functions(keys, children)
    if isinstance(space, spaces.Tuple):
        return _tuple_functions([_compile(item, (*path, i), leaves) for i, item in enumerate(space.spaces)])
    is_scalar = isinstance(space, spaces.Discrete)
    shape = () if is_scalar else tuple(space.shape or ())
    leaves.append(Leaf(path=path, dtype=np.dtype(space.dtype), shape=shape, is_scalar=is_scalar))
    return _flatten_leaf, next


def _flatten_leaf(value: Any, out: list[Any]) -> bool:
    out.append(value)
    return True


def _dict_functions(keys: Sequence[Any], children: list[tuple[_Flatten, _Build]]) -> tuple[_Flatten, _Build]:
    pairs = [(key, flatten) for key, (flatten, _) in zip(keys, children, strict=True)]
    builders = [(key, build) for key, (_, build) in zip(keys, children, strict=True)]
    key_set = set(keys)

    def flatten_dict(value: Any, out: list[Any]) -> bool:
        return (
            type(value) is dict and value.keys() == key_set and all(flatten(value[key], out) for key, flatten in pairs)
        )

    def build_dict(values: Any) -> Any:
        return {key: build(values) for key, build in builders}

    return flatten_dict, build_dict


def _tuple_functions(children: list[tuple[_Flatten, _Build]]) -> tuple[_Flatten, _Build]:
    flattens, builders = [child[0] for child in children], [child[1] for child in children]

    def flatten_tuple(value: Any, out: list[Any]) -> bool:
        if type(value) is not tuple or len(value) != len(flattens):
            return False
        return all(flatten(item, out) for item, flatten in zip(value, flattens, strict=True))

    def build_tuple(values: Any) -> Any:
        return tuple(build(values) for build in builders)

    return flatten_tuple, build_tuple
