"""Spaces as JSON: exact both ways, readable in a bundle's ``config.json`` and in a handshake.

Dispatch is by exact type through a registry, so that another space is one more entry. A subclass is
refused rather than sent as its base: its ``sample`` and ``contains`` would be lost on the way.

Example:
    >>> from gymnasium.spaces import Discrete
    >>> space_to_dict(Discrete(3, start=-1))
    {'type': 'Discrete', 'n': 3, 'start': -1, 'dtype': 'int64'}
    >>> space_from_dict({"type": "Discrete", "n": 3, "start": -1, "dtype": "int64"})
    Discrete(3, start=-1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from agentgpt_remote.errors import UnsupportedSpace

SpaceDict = dict[str, Any]
_Writer = Callable[[Any, str], SpaceDict]
_Reader = Callable[[Mapping[str, Any], str], gym.Space[Any]]


def space_to_dict(space: gym.Space[Any], where: str = "space") -> SpaceDict:
    """Describe a space with values that JSON and msgpack can hold.

    Args:
        space: a Box, Discrete, MultiDiscrete or MultiBinary, or Dict and Tuple of them to any depth.
        where: what the space is to the reader of an error, such as ``observation``.

    Returns:
        The description; :func:`space_from_dict` rebuilds an equal space from it. Bounds that are the same
        everywhere are one number; unbounded sides are ``"inf"`` and ``"-inf"``.

    Raises:
        UnsupportedSpace: a space of another type, named with its place, such as ``observation["camera"]``.
    """
    codec = _CODECS.get(type(space))
    if codec is None:
        supported = ", ".join(kind.__name__ for kind in _CODECS)
        raise UnsupportedSpace(
            f"{where} is a {type(space).__module__}.{type(space).__qualname__}, which can't be sent: "
            f"expected one of {supported} (not a subclass). Convert it with a gymnasium wrapper on the host"
        )
    return codec[0](space, where)


def space_from_dict(description: Mapping[str, Any], where: str = "space") -> gym.Space[Any]:
    """Rebuild a space from its description.

    Args:
        description: as :func:`space_to_dict` returned it.
        where: what the space is to the reader of an error.

    Returns:
        A space equal to the one described, with a random generator of its own.

    Raises:
        UnsupportedSpace: the description is malformed or names a type that this version does not know.
    """
    kind = description.get("type") if isinstance(description, Mapping) else None
    for space_type, (_, read) in _CODECS.items():
        if space_type.__name__ == kind:
            try:
                return read(description, where)
            except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
                if isinstance(error, UnsupportedSpace):
                    raise
                raise UnsupportedSpace(f"{where} is not a valid description of a {kind}: {error!r}") from error
    raise UnsupportedSpace(f"{where} has type {kind!r}, which this version does not know: upgrade agentgpt-remote")


def _dtype_name(dtype: Any) -> str:
    dtype = np.dtype(dtype)
    return str(dtype.name if dtype.isnative else dtype.str)


def _bounds_to_json(values: np.ndarray, bounded: np.ndarray, infinity: str) -> Any:
    """Return bounds as one value where they are uniform, else as nested lists."""
    if not values.size:
        return 0
    if (values == values.flat[0]).all() and (bounded == bounded.flat[0]).all():  # images have millions of bounds
        values, bounded = values.ravel()[:1], bounded.ravel()[:1]
        shape: tuple[int, ...] = ()
    else:
        shape = values.shape
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:  # JSON has no longer floats than 64 bits
        items = [np.format_float_scientific(value, unique=True) for value in values.ravel()]
    else:
        items = values.ravel().tolist()
    items = [item if finite else infinity for item, finite in zip(items, bounded.ravel().tolist(), strict=True)]
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape).tolist()


def _bounds_from_json(
    value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], infinity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds and where they are finite, both of ``shape``."""
    if not isinstance(value, list):
        bound = dtype.type(_unbounded(dtype, infinity) if value == infinity else value)
        return np.full(shape, bound, dtype=dtype), np.full(shape, value != infinity)
    given = np.broadcast_to(np.array(value, dtype=object), shape)
    values, bounded = np.empty(shape, dtype=dtype), np.ones(shape, dtype=np.bool_)
    for index in np.ndindex(shape):
        item = given[index]
        if item == infinity:
            bounded[index] = False
            item = _unbounded(dtype, infinity)
        values[index] = dtype.type(item)
    return values, bounded


def _unbounded(dtype: np.dtype[Any], infinity: str) -> Any:
    if dtype.kind == "f":
        return float(infinity)
    limits = np.iinfo(dtype)
    return limits.min if infinity == "-inf" else limits.max


def _box_to_dict(space: spaces.Box, _: str) -> SpaceDict:
    return {
        "type": "Box",
        "dtype": _dtype_name(space.dtype),
        "shape": list(space.shape),
        "low": _bounds_to_json(space.low, space.bounded_below, "-inf"),
        "high": _bounds_to_json(space.high, space.bounded_above, "inf"),
    }


def _box_from_dict(description: Mapping[str, Any], _: str) -> spaces.Box:
    dtype, shape = np.dtype(description["dtype"]), tuple(description["shape"])
    low, below = _bounds_from_json(description["low"], shape, dtype, "-inf")
    high, above = _bounds_from_json(description["high"], shape, dtype, "inf")
    box = spaces.Box(low, high, shape=shape, dtype=dtype)
    # An integer Box keeps an infinite bound as its type's extreme and remembers here that it was infinite;
    # sampling depends on it.
    box.bounded_below, box.bounded_above = below, above
    return box


def _discrete_to_dict(space: spaces.Discrete[Any], _: str) -> SpaceDict:
    return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": _dtype_name(space.dtype)}


def _discrete_from_dict(description: Mapping[str, Any], _: str) -> spaces.Discrete[Any]:
    n, start, dtype = description["n"], description["start"], np.dtype(description["dtype"])
    if dtype == np.int64:
        return spaces.Discrete(n, start=start)
    return spaces.Discrete(n, start=start, dtype=dtype.type)


def _multi_discrete_to_dict(space: spaces.MultiDiscrete[Any], _: str) -> SpaceDict:
    return {
        "type": "MultiDiscrete",
        "nvec": space.nvec.tolist(),
        "start": space.start.tolist(),
        "dtype": _dtype_name(space.dtype),
    }


def _multi_discrete_from_dict(description: Mapping[str, Any], _: str) -> spaces.MultiDiscrete[Any]:
    dtype = np.dtype(description["dtype"])
    nvec, start = np.array(description["nvec"], dtype=dtype), np.array(description["start"], dtype=dtype)
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


def _multi_binary_to_dict(space: spaces.MultiBinary, _: str) -> SpaceDict:
    return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


def _multi_binary_from_dict(description: Mapping[str, Any], _: str) -> spaces.MultiBinary:
    return spaces.MultiBinary(description["n"])


def _dict_to_dict(space: spaces.Dict, where: str) -> SpaceDict:
    # A list of pairs: the order of the keys is part of the space, and JSON tools may sort an object's keys.
    pairs = []
    for key, subspace in space.spaces.items():
        place = f"{where}[{_shown(key)}]"
        if type(key) not in (str, int):
            raise UnsupportedSpace(f"{place}: a key of type {type(key).__name__} can't be sent, expected str or int")
        pairs.append([key, space_to_dict(subspace, place)])
    description: SpaceDict = {"type": "Dict", "spaces": pairs}
    if not getattr(space, "sort_keys", True):  # decides the order of the batched space
        description["sort_keys"] = False
    return description


def _dict_from_dict(description: Mapping[str, Any], where: str) -> spaces.Dict:
    pairs = [(key, space_from_dict(subspace, f"{where}[{_shown(key)}]")) for key, subspace in description["spaces"]]
    if description.get("sort_keys", True):
        return spaces.Dict(pairs)
    return spaces.Dict(pairs, sort_keys=False)


def _shown(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _tuple_to_dict(space: spaces.Tuple[Any], where: str) -> SpaceDict:
    return {
        "type": "Tuple",
        "spaces": [space_to_dict(subspace, f"{where}[{i}]") for i, subspace in enumerate(space.spaces)],
    }


def _tuple_from_dict(description: Mapping[str, Any], where: str) -> spaces.Tuple[Any]:
    return spaces.Tuple([space_from_dict(item, f"{where}[{i}]") for i, item in enumerate(description["spaces"])])


_CODECS: Final[dict[type[Any], tuple[_Writer, _Reader]]] = {
    spaces.Box: (_box_to_dict, _box_from_dict),
    spaces.Discrete: (_discrete_to_dict, _discrete_from_dict),
    spaces.MultiDiscrete: (_multi_discrete_to_dict, _multi_discrete_from_dict),
    spaces.MultiBinary: (_multi_binary_to_dict, _multi_binary_from_dict),
    spaces.Dict: (_dict_to_dict, _dict_from_dict),
    spaces.Tuple: (_tuple_to_dict, _tuple_from_dict),
}
