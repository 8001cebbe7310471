"""Any value of an info, exactly: msgpack with extension types, never pickle.

What arrives is what was sent: numpy arrays keep dtype and shape, numpy scalars (``str_`` and ``datetime64``
too) stay numpy scalars, tuples stay tuples, ``nan`` keeps its bits. A value of any other type is refused
with its place rather than turned into a string: named tuples other than Gymnasium's ``GraphInstance``, enums,
dataclasses, tensors, masked arrays, and subclasses of what can be sent would need their class on the other
side. In an info, such a value is left out and told; a dict of another class arrives as a plain dict, and
is told as well.

Example:
    >>> unpack_value(pack_value({"lives": (3, None), "score": 1 + 2j}))
    {'lives': (3, None), 'score': (1+2j)}
"""

from __future__ import annotations

import ast
import functools
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import numpy as np
from gymnasium.spaces import GraphInstance

from agentgpt_remote.errors import NotSendable, ProtocolError

_ARRAY, _SCALAR, _TUPLE, _COMPLEX, _BIG_INT, _SET, _FROZENSET, _MAP, _OBJECTS, _BYTEARRAY, _ORDERED = range(1, 12)
_GRAPH = 12
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_DIMENSIONS = 64
_MAX_PRUNED_DEPTH = 32
_Ext = msgspec.msgpack.Ext
_encode = msgspec.msgpack.Encoder().encode


def pack_value(value: Any) -> bytes:
    """Return the bytes of a value.

    Args:
        value: ``None``, bool, int of any size, float, complex, str, bytes, bytearray, numpy array (of objects
            too) or scalar, or list, tuple, set, frozenset, dict, OrderedDict and ``GraphInstance`` of them.

    Raises:
        NotSendable: the value, or one inside it, has another type; the text names its place.
    """
    try:
        return _encode(_prepared(value))
    except NotSendable:
        raise
    except (RecursionError, UnicodeEncodeError, ValueError, OverflowError) as error:
        raise NotSendable(f"a {type(value).__name__} can't be sent: {error}") from error


def unpack_value(data: bytes | bytearray | memoryview) -> Any:
    """Return the value that :func:`pack_value` was given; its arrays are writable and own their memory.

    Raises:
        ProtocolError: the bytes are damaged.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, SyntaxError, IndexError) as error:
        raise ProtocolError(f"a packed value is damaged: {error}") from error
    except (RecursionError, struct.error, OverflowError, MemoryError) as error:
        raise ProtocolError(f"a packed value is damaged: {type(error).__name__}") from error


def pack_info(info: Any) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of an info, and what is told of the parts that can't be sent.

    Of nested dicts, only the parts that can't be sent are left out, each together with its mask, the ``_key`` of a
    vector env's infos. A dict of another class is sent as a plain one.

    Returns:
        The bytes, and a sentence for each of those places, such as ``camera.driver``.
    """
    try:
        return pack_value(info), {}
    except NotSendable as error:
        told: dict[str, str] = {}
        if isinstance(info, dict):
            return pack_value(_sendable_part(info, (), (), told)), told
        return pack_value({}), {"info": f"info is left out: {error}"}


def _sendable_part(
    info: dict[Any, Any], path: tuple[str, ...], parents: tuple[int, ...], told: dict[str, str]
) -> dict[Any, Any]:
    parents = (*parents, id(info))
    kept = OrderedDict[Any, Any]() if type(info) is OrderedDict else dict[Any, Any]()
    if type(info) not in (dict, OrderedDict):
        told[".".join(path) or "info"] = f"{_shown(path)} is a {_name(info)}, and arrives as a plain dict"
    masks = set()
    for key, value in info.items():
        try:
            pack_value([key, value])
        except NotSendable as error:
            is_plain = type(key) in (str, int)
            inside = (*path, str(key) if is_plain else f"<{_name(key)}>")
            is_endless = id(value) in parents or len(parents) == _MAX_PRUNED_DEPTH
            if isinstance(value, dict) and is_plain and not is_endless:
                kept[key] = _sendable_part(value, inside, parents, told)
            else:
                told[".".join(inside)] = f"{_shown(inside)} is left out: {error}"
                masks.add(f"_{key}")
        else:
            kept[key] = value
    for mask in masks & kept.keys():
        if isinstance(kept[mask], np.ndarray) and kept[mask].dtype == np.bool_:
            del kept[mask]
    return kept


def _shown(path: tuple[str, ...]) -> str:
    return "info" + "".join(f"[{name!r}]" for name in path)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _prepared(value: Any) -> Any:
    """Return ``value`` in types that msgpack has, and extensions for the rest."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    writer = _WRITERS.get(kind)
    if writer is not None:
        return writer(value)
    raise NotSendable(
        f"a {_name(value)} can't be sent: expected numbers, strings, numpy arrays, or lists, tuples and dicts of them"
    )


def _prepared_int(value: int) -> Any:
    if _MIN_INT <= value <= _MAX_INT:
        return value
    return _Ext(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _prepared_list(value: Iterable[Any]) -> list[Any]:
    return [_prepared(item) for item in value]


def _prepared_dict(value: dict[Any, Any]) -> Any:
    plain = {}
    for key, item in value.items():
        if type(key) is not str:
            return _Ext(_MAP, _pairs(value))
        try:
            plain[key] = _prepared(item)
        except NotSendable as error:
            raise NotSendable(f"[{key!r}]: {error}") from None
    return plain


def _pairs(value: dict[Any, Any]) -> bytes:
    return _encode([[_prepared(key), _prepared(item)] for key, item in value.items()])


@functools.lru_cache(maxsize=256)
def _dtype_token(dtype: np.dtype[Any], is_record: bool) -> bytes:
    text = dtype.str if dtype.names is None else repr(np.lib.format.dtype_to_descr(dtype))
    token = text.encode("ascii", "backslashreplace")
    is_plain = not dtype.hasobject and dtype.kind != "T"
    # Extensions of numpy call their types plain bytes here, and a record array's dtype equals its plain one.
    if not is_plain or _dtype_of(token) != dtype or is_record:
        raise NotSendable(f"a numpy value of dtype {dtype} can't be sent")
    return len(token).to_bytes(2, "little") + token


def _prepared_array(value: np.ndarray) -> Any:
    if value.dtype.kind == "O":
        content = [list(value.shape), _prepared_list(value.ravel().tolist())]
        return _Ext(_OBJECTS, _encode(content))
    shape = struct.pack(f"<B{value.ndim}Q", value.ndim, *value.shape)
    return _Ext(_ARRAY, b"".join((_dtype_token(value.dtype, value.dtype.type is np.record), shape, value.tobytes())))


def _prepared_scalar(value: np.generic) -> Any:
    dtype = value.dtype
    raw = value.tobytes()[: dtype.itemsize]  # numpy gives one character for an empty string
    return _Ext(_SCALAR, _dtype_token(dtype, False) + raw)


@functools.lru_cache(maxsize=256)
def _dtype_of(token: bytes) -> np.dtype[Any]:
    text = token.decode("ascii")
    dtype = np.lib.format.descr_to_dtype(ast.literal_eval(text)) if text.startswith("[") else np.dtype(text)
    if dtype.hasobject:
        raise ProtocolError(f"refusing a numpy value of dtype {text!r}")
    return dtype


def _read_dtype(data: memoryview) -> tuple[np.dtype[Any], int]:
    end = 2 + int.from_bytes(data[:2], "little")
    return _dtype_of(bytes(data[2:end])), end


def _read_array(data: memoryview) -> np.ndarray:
    dtype, start = _read_dtype(data)
    ndim = data[start]
    if ndim > _MAX_DIMENSIONS:
        raise ProtocolError(f"an array has {ndim} dimensions")
    shape = struct.unpack_from(f"<{ndim}Q", data, start + 1)
    raw = data[start + 1 + 8 * ndim :]
    if raw.nbytes != dtype.itemsize * math.prod(shape):  # or a few bytes would take any amount of memory
        raise ProtocolError(f"an array of shape {shape} and dtype {dtype} has {raw.nbytes} bytes")
    if not raw.nbytes:
        return np.ndarray(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape).copy()


def _read_scalar(data: memoryview) -> Any:
    dtype, start = _read_dtype(data)
    raw = bytes(data[start:])
    if len(raw) != dtype.itemsize:
        raise ProtocolError(f"a numpy scalar of dtype {dtype} has {len(raw)} bytes")
    if dtype.kind == "S":  # an array's element would lack the zeros at its end
        return np.bytes_(raw)
    if dtype.kind == "U":
        return np.str_(raw.decode("utf-32-le" if dtype.str[0] == "<" else "utf-32-be", "surrogatepass"))
    return np.ndarray((), dtype, bytearray(raw))[()]


def _read_objects(data: memoryview) -> np.ndarray:
    shape, items = _decoder.decode(data)
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array.reshape(shape)


def _read_map(data: memoryview) -> dict[Any, Any]:
    return dict(_decoder.decode(data))


def _read_extension(code: int, data: memoryview) -> Any:
    reader = _READERS.get(code)
    if reader is None:
        raise ProtocolError(f"a packed value has an unknown extension {code}")
    return reader(data)


_decoder = msgspec.msgpack.Decoder(ext_hook=_read_extension)
_PLAIN: Final = frozenset((type(None), bool, float, str, bytes))
_WRITERS: Final[dict[type[Any], Callable[[Any], Any]]] = {
    int: _prepared_int,
    list: _prepared_list,
    dict: _prepared_dict,
    np.ndarray: _prepared_array,
    tuple: lambda value: _Ext(_TUPLE, _encode(_prepared_list(value))),
    complex: lambda value: _Ext(_COMPLEX, struct.pack("<dd", value.real, value.imag)),
    set: lambda value: _Ext(_SET, _encode(_prepared_list(value))),
    frozenset: lambda value: _Ext(_FROZENSET, _encode(_prepared_list(value))),
    bytearray: lambda value: _Ext(_BYTEARRAY, bytes(value)),
    OrderedDict: lambda value: _Ext(_ORDERED, _pairs(value)),
    GraphInstance: lambda value: _Ext(_GRAPH, _encode(_prepared_list(value))),
    **{kind: _prepared_scalar for kind in np.sctypeDict.values() if kind is not np.object_},
}
_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    _ARRAY: _read_array,
    _SCALAR: _read_scalar,
    _TUPLE: lambda data: tuple(_decoder.decode(data)),
    _COMPLEX: lambda data: complex(*struct.unpack("<dd", data)),
    _BIG_INT: lambda data: int.from_bytes(data, "little", signed=True),
    _SET: lambda data: set(_decoder.decode(data)),
    _FROZENSET: lambda data: frozenset(_decoder.decode(data)),
    _MAP: _read_map,
    _OBJECTS: _read_objects,
    _BYTEARRAY: lambda data: bytearray(data),
    _ORDERED: lambda data: OrderedDict(_read_map(data)),
    _GRAPH: lambda data: GraphInstance(*_decoder.decode(data)),
}
