"""Values of a space as JSON and back, and whatever else JSON can hold without a loss of meaning.

An array is nested lists, a Dict space's value an object, a Tuple's a list, a Sequence's a list of its items (or,
stacked, of the items' stacked parts), a Graph's an object with ``nodes``, ``edges`` and ``edge_links``, a OneOf's
a list of index and value. JSON has no NaN and no infinities: they are the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, which ``Number()`` of JavaScript, ``float()`` of Python and ``double.Parse`` of C# read.

Example:
    >>> to_json({"speed": np.array([0.5, np.nan]), "lives": (3, None)})
    {'speed': [0.5, 'NaN'], 'lives': [3, None]}
    >>> from_json(spaces.Box(-np.inf, np.inf, (2,)), [0.5, "Infinity"], "action", InvalidAction)
    array([0.5, inf], dtype=float32)
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidAction, InvalidObservation, NotSendable

BadValue = type[InvalidAction] | type[InvalidObservation]

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any) -> Any:
    """Return a value in types that JSON has.

    Args:
        value: a value of any space, or ``None``, bool, int of 64 bits, float, str, numpy array or scalar of them,
            or list, tuple, set, and dict with keys of str or int.

    Returns:
        The value with lists for arrays, tuples and sets, and strings for keys and for floats that are not finite.
        Floats of more than 64 bits are rounded.

    Raises:
        NotSendable: JSON has nothing for it, or for a value inside it.
    """
    if isinstance(value, np.ndarray):
        return _array_to_json(value)
    if isinstance(value, np.generic):
        return to_json(float(value) if value.dtype.kind == "f" else value.item())
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _word(value)
    if isinstance(value, int) and _MIN_INT <= value <= _MAX_INT:
        return value
    if isinstance(value, spaces.GraphInstance):
        return to_json(value._asdict())
    if isinstance(value, dict) and all(isinstance(key, str | int | np.integer) for key in value):
        result = {str(key): to_json(item) for key, item in value.items()}
        if len(result) == len(value):
            return result
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    raise NotSendable(f"JSON has nothing for {shorten(value)} of type {type(value).__name__}")


def info_to_json(info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what of an info JSON can hold, and the keys left out of it; their ``_key`` masks go with them.

    Raises:
        NotSendable: it is no dict.
    """
    if not isinstance(info, dict):  # what a sloppy environment returns
        raise NotSendable(f"the info is {shorten(info)}: expected a dict")
    held: dict[str, Any] = {}
    dropped, ambiguous = [], []
    for key, value in info.items():
        if str(key) in held:  # 1 beside "1"
            ambiguous.append(repr(key))
            continue
        try:
            held[str(key)] = to_json(value)
        except (NotSendable, RecursionError):
            dropped.append(str(key))
    for key in dropped:
        held.pop(f"_{key}", None)
    return held, dropped + ambiguous


def _array_to_json(array: NDArray[Any]) -> Any:
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "f" and np.isfinite(array).all():
        return array.tolist()
    return to_json(array.tolist())


def _word(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def from_json(space: Space[Any], value: Any, where: str, bad: BadValue) -> Any:
    """Return a JSON value as the space holds it, with exact dtypes and shapes.

    Whether the value lies within the bounds of the space is not checked.

    Args:
        space: what the value belongs to.
        value: as :func:`to_json` returns it for a value of the space.
        where: what the value is to the reader of an error, such as ``action``.
        bad: class of the error.

    Raises:
        InvalidAction: a key, a length or a shape is wrong, or a number that the dtype can't hold (or
            ``InvalidObservation``, as ``bad`` says).
    """
    if isinstance(space, spaces.Dict):
        return _dict_from_json(space, value, where, bad)
    if isinstance(space, spaces.Tuple):
        items = _list(value, len(space.spaces), where, bad)
        return tuple(from_json(child, items[i], f"{where}[{i}]", bad) for i, child in enumerate(space.spaces))
    if isinstance(space, spaces.Text):
        if not isinstance(value, str):
            raise bad(f"{where} is {shorten(value)}: expected a string")
        return value
    if isinstance(space, spaces.Sequence):
        if space.stack:
            return _stack_from_json(space.feature_space, value, where, bad)
        items = _list(value, None, where, bad)
        return tuple(from_json(space.feature_space, item, f"{where}[{i}]", bad) for i, item in enumerate(items))
    if isinstance(space, spaces.Graph):
        return _graph_from_json(space, value, where, bad)
    if isinstance(space, spaces.OneOf):
        index, item = _list(value, 2, where, bad)
        if type(index) is not int or not 0 <= index < len(space.spaces):
            raise bad(f"{where}[0] is {shorten(index)}: expected an index of 0 to {len(space.spaces) - 1}")
        return np.int64(index), from_json(space.spaces[index], item, f"{where}[1]", bad)
    array = _array(tuple(space.shape or ()), np.dtype(space.dtype), value, where, bad)
    return array[()] if isinstance(space, spaces.Discrete) else array


def _dict_from_json(space: spaces.Dict, value: Any, where: str, bad: BadValue) -> dict[Any, Any]:
    names = {str(key): key for key in space.spaces}
    if not isinstance(value, dict) or value.keys() != names.keys():
        raise bad(f"{where} is {shorten(value)}: expected an object with {sorted(names)}")
    return {key: from_json(space.spaces[key], value[name], f"{where}[{name!r}]", bad) for name, key in names.items()}


def _list(value: Any, length: int | None, where: str, bad: BadValue) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise bad(f"{where} is {shorten(value)}: expected a list{'' if length is None else f' of {length}'}")
    return value


def _stack_from_json(space: Space[Any], value: Any, where: str, bad: BadValue) -> Any:
    """Return values of one space, stacked as its batched space holds them; how many is told by the first part."""
    part, first = space, value
    while isinstance(part, spaces.Dict | spaces.Tuple) and part.spaces and first:
        if isinstance(part, spaces.Dict):
            key, part = next(iter(part.spaces.items()))
            first = first.get(str(key)) if isinstance(first, dict) else None
        else:
            part, first = part.spaces[0], first[0] if isinstance(first, list) else None
    return from_json(batch_space(space, len(_list(first, None, where, bad))), value, where, bad)


def _graph_from_json(space: spaces.Graph, value: Any, where: str, bad: BadValue) -> spaces.GraphInstance:
    names = spaces.GraphInstance._fields
    if not isinstance(value, dict) or value.keys() != set(names):
        raise bad(f"{where} is {shorten(value)}: expected an object with {list(names)}")
    nodes = _stack_from_json(space.node_space, value["nodes"], f"{where}['nodes']", bad)
    if value["edges"] is None or space.edge_space is None:
        if value["edges"] is not None or value["edge_links"] is not None:
            raise bad(f"{where} holds edges: expected null for a graph without them")
        return spaces.GraphInstance(nodes, None, None)
    edges = _stack_from_json(space.edge_space, value["edges"], f"{where}['edges']", bad)
    links = _list(value["edge_links"], None, f"{where}['edge_links']", bad)
    return spaces.GraphInstance(
        nodes, edges, _array((len(links), 2), np.dtype(np.int32), links, f"{where}['edge_links']", bad)
    )


def _array(shape: tuple[int, ...], dtype: np.dtype[Any], value: Any, where: str, bad: BadValue) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.dtype.kind in "UO" and dtype.kind == "f":
            array = np.asarray(_numbers(value))
    except ValueError as error:
        raise bad(f"{where} has rows of different lengths: expected shape {shape}") from error
    if not array.size and not math.prod(shape) and array.ndim <= len(shape):  # lists tell no axis behind one of 0
        return np.empty(shape, dtype)
    if array.dtype.kind not in "biuf":
        raise bad(f"{where} is {shorten(value)}: expected numbers of shape {shape}")
    if array.shape != shape:
        raise bad(f"{where} has shape {array.shape}: expected {shape}")
    if array.dtype.kind == "f" and dtype.kind == "u" and dtype.itemsize == 8:  # what numpy makes of 2**63 beside 1
        array = np.asarray(value, dtype=object)
        if all(type(item) is int and 0 <= item <= _MAX_INT for item in array.flat):
            array = array.astype(dtype)
    return cast_exactly(array, dtype, where, bad)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def cast_exactly(array: NDArray[Any], dtype: np.dtype[Any], where: str, bad: BadValue) -> NDArray[Any]:
    """Return an array in another dtype: integers keep their value, and no finite number becomes infinite.

    Args:
        array: any numbers.
        dtype: of the result.
        where: what the array is to the reader of an error.
        bad: class of the error.

    Raises:
        InvalidObservation: the cast would lose a value (or ``InvalidAction``, as ``bad`` says).
    """
    if array.dtype == dtype:
        return array
    integers = array.dtype.kind in "biu" and dtype.kind in "biu"
    if not integers and (array.dtype.kind not in "biuf" or dtype.kind != "f"):
        raise bad(f"{where} has dtype {array.dtype}, which can't be cast safely: expected {dtype}")
    with np.errstate(over="ignore"):  # found below, and named
        cast = array.astype(dtype)
    lost = cast != array if integers else np.isfinite(array) & ~np.isfinite(cast)
    if lost.any():
        value = array[tuple(np.argwhere(lost)[0])]
        raise bad(f"{where} holds {value}, which {dtype} can't hold: expected an array of {dtype}")
    return cast


def shorten(value: Any) -> str:
    """Return the text of a value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
