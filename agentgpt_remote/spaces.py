"""Spaces as JSON: exact both ways, readable in a bundle's ``config.json`` and in a handshake.

Dispatch is by exact type through a registry, so that another space is one more entry. A subclass is
refused rather than sent as its base: its ``sample`` and ``contains`` would be lost on the way.

A space that stands in several places, as the same object, is described in each of them, from the second
on with ``same_as``: its number among the different spaces, counted as they are completed. Such places share a
random generator, without which samples of equal seeds would differ.

Example:
    >>> from gymnasium.spaces import Discrete
    >>> space_to_dict(Discrete(3, start=-1))
    {'type': 'Discrete', 'n': 3, 'start': -1, 'dtype': 'int64'}
    >>> space_from_dict({"type": "Discrete", "n": 3, "start": -1, "dtype": "int64"})
    Discrete(3, start=-1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from agentgpt_remote.errors import UnsupportedSpace

SpaceDict = dict[str, Any]
_MAX_DEPTH: Final = 64  # Python's recursion limit leaves no room for many more in ``sample`` and ``deepcopy``
_MAX_NUMBERS: Final = 2**27  # 4,096 stacks of four 84x84 images have 116 million
_MAX_INT: Final = 2**63 - 1


def space_to_dict(space: gym.Space[Any], where: str = "space") -> SpaceDict:
    """Describe a space with values that JSON and msgpack can hold.

    Args:
        space: any of Gymnasium's own spaces.
        where: what the space is to the reader of an error, such as ``observation``.

    Returns:
        The description; :func:`space_from_dict` rebuilds an equal space from it, whose samples are equal for equal
        seeds. Bounds are one number where they are the same everywhere, and lack the leading axes along which they
        are; unbounded sides are ``"inf"`` and ``"-inf"``.

    Raises:
        UnsupportedSpace: a space of another type, named with its place, such as ``observation["camera"]``; or one
            nested more than 64 deep, or of more than 2**27 numbers.
    """
    return _describe(space, _Place(where))


def space_from_dict(description: Mapping[str, Any], where: str = "space") -> gym.Space[Any]:
    """Rebuild a space from its description.

    Args:
        description: as :func:`space_to_dict` returned it.
        where: what the space is to the reader of an error.

    Returns:
        A space equal to the one described, with a random generator of its own.

    Raises:
        UnsupportedSpace: the description is malformed, describes a space beyond the limits of :func:`space_to_dict`,
            or names a type that this version does not know.
    """
    return _rebuild(description, _Place(where))


@dataclass
class _Walk:
    """What the places of one space share: how large it may still become, and its different parts so far."""

    numbers_left: int = _MAX_NUMBERS
    written: dict[int, int] = field(default_factory=dict)
    read: list[gym.Space[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """A place in a space, as an error shows it, and how many copies of what stands there Gymnasium makes."""

    name: str
    depth: int = 0
    copies: int = 1
    walk: _Walk = field(default_factory=_Walk)

    def inside(self, name: str, copies: int = 1) -> _Place:
        return replace(self, name=f"{self.name}{name}", depth=self.depth + 1, copies=self.copies * copies)

    def enter(self, numbers: int) -> None:
        """Take room for a space that holds so many numbers.

        Raises:
            UnsupportedSpace: the whole is too deep or too large.
        """
        if self.depth > _MAX_DEPTH:
            raise UnsupportedSpace(f"{self.name} is nested too deep: expected at most {_MAX_DEPTH} levels")
        self.walk.numbers_left -= self.copies * numbers
        if self.walk.numbers_left < 0:
            raise UnsupportedSpace(f"{self.name} is too large: expected at most {_MAX_NUMBERS} numbers in all spaces")


_Writer = Callable[[Any, _Place], SpaceDict]
_Reader = Callable[[Mapping[str, Any], _Place], gym.Space[Any]]


def _describe(space: gym.Space[Any], place: _Place) -> SpaceDict:
    codec = _CODECS.get(type(space))
    if codec is None:
        supported = ", ".join(kind.__name__ for kind in _CODECS)
        raise UnsupportedSpace(
            f"{place.name} is a {type(space).__module__}.{type(space).__qualname__}, which can't be sent: "
            f"expected one of {supported} (not a subclass). Convert it with a gymnasium wrapper on the host"
        )
    place.enter(1)
    description = codec[0](space, place)
    written = place.walk.written
    if id(space) in written:
        return description | {"same_as": written[id(space)]}
    written[id(space)] = len(written)
    return description


def _rebuild(description: Mapping[str, Any], place: _Place) -> gym.Space[Any]:
    kind = description.get("type") if isinstance(description, Mapping) else None
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        shown = f"type {kind!r:.60}, which this version does not know"
        raise UnsupportedSpace(f"{place.name} has {shown}: upgrade agentgpt-remote")
    place.enter(1)
    try:
        space = reader(description, place)
        if "same_as" not in description:
            place.walk.read.append(space)
            return space
        first: gym.Space[Any] = place.walk.read[description["same_as"]]
        if first != space:
            raise ValueError(f"it is said to be the same as {first}")
    except UnsupportedSpace:
        raise
    except _MALFORMED as error:
        raise UnsupportedSpace(f"{place.name} is no {kind} to Gymnasium {gym.__version__}: {error!r:.300}") from error
    return first


_MALFORMED: Final = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    SyntaxError,
    MemoryError,
    RecursionError,
)


def _dtype_name(dtype: Any) -> str:
    dtype = np.dtype(dtype)
    return str(dtype.name if dtype.isnative else dtype.str)


def _dtype_of(description: Mapping[str, Any]) -> np.dtype[Any]:
    name = description["dtype"]
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in "biuf":
        raise ValueError(f"its dtype is {name!r}")
    return dtype


def _without_repetition(values: np.ndarray) -> np.ndarray:
    """Return the values without the leading axes along which they are the same, to the bit."""
    while values.ndim and values.size:  # images have millions of bounds
        if not (values == values[:1]).all():
            break
        if values.dtype.kind == "f" and not (np.signbit(values) == np.signbit(values[:1])).all():
            break
        values = values[0]
    return values


def _bounds_to_json(values: np.ndarray, bounded: np.ndarray, infinity: str) -> Any:
    """Return bounds as one value where they are uniform, else as nested lists."""
    if not values.size:
        return 0
    values, bounded = _without_repetition(values), _without_repetition(bounded)
    if values.ndim != bounded.ndim:  # an integer Box keeps an infinite bound as its type's extreme
        values, bounded = np.broadcast_arrays(values, bounded)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:  # JSON has no longer floats than 64 bits
        items = [np.format_float_scientific(value, unique=True) for value in values.ravel()]
    else:
        items = values.ravel().tolist()
    items = [item if finite else infinity for item, finite in zip(items, bounded.ravel().tolist(), strict=True)]
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(values.shape).tolist()


def _bounds_from_json(value: Any, dtype: np.dtype[Any], infinity: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds and where they are finite; leading axes may lack."""
    given = np.array(value, dtype=object)
    items = given.ravel().tolist()
    bounded = np.array([item != infinity for item in items], dtype=np.bool_)
    unbounded = _unbounded(dtype, infinity)
    values = [dtype.type(item if finite else unbounded) for item, finite in zip(items, bounded, strict=True)]
    return np.array(values, dtype=dtype).reshape(given.shape), bounded.reshape(given.shape)


def _unbounded(dtype: np.dtype[Any], infinity: str) -> Any:
    if dtype.kind == "f":
        return float(infinity)
    if dtype.kind == "b":
        return infinity == "inf"
    limits = np.iinfo(dtype)
    return limits.min if infinity == "-inf" else limits.max


def _box_to_dict(space: spaces.Box, place: _Place) -> SpaceDict:
    place.enter(space.low.size)
    return {
        "type": "Box",
        "dtype": _dtype_name(space.dtype),
        "shape": list(space.shape),
        "low": _bounds_to_json(space.low, space.bounded_below, "-inf"),
        "high": _bounds_to_json(space.high, space.bounded_above, "inf"),
    }


def _box_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.Box:
    dtype, shape = _dtype_of(description), tuple(description["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"its shape is {shape!r:.60}")
    place.enter(math.prod(shape))
    low, below = _bounds_from_json(description["low"], dtype, "-inf")
    high, above = _bounds_from_json(description["high"], dtype, "inf")
    box = spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape=shape, dtype=dtype)
    # An integer Box keeps an infinite bound as its type's extreme and remembers here that it was infinite;
    # sampling depends on it.
    box.bounded_below, box.bounded_above = np.broadcast_to(below, shape).copy(), np.broadcast_to(above, shape).copy()
    return box


def _discrete_to_dict(space: spaces.Discrete[Any], _: _Place) -> SpaceDict:
    return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": _dtype_name(space.dtype)}


def _discrete_from_dict(description: Mapping[str, Any], _: _Place) -> spaces.Discrete[Any]:
    n, start, dtype = description["n"], description["start"], _dtype_of(description)
    if dtype == np.int64:  # releases of Gymnasium that know no other have no such argument
        return spaces.Discrete(n, start=start)
    return spaces.Discrete(n, start=start, dtype=dtype)


def _multi_discrete_to_dict(space: spaces.MultiDiscrete[Any], _: _Place) -> SpaceDict:
    return {
        "type": "MultiDiscrete",
        "nvec": space.nvec.tolist(),
        "start": space.start.tolist(),
        "dtype": _dtype_name(space.dtype),
    }


def _multi_discrete_from_dict(description: Mapping[str, Any], _: _Place) -> spaces.MultiDiscrete[Any]:
    dtype = _dtype_of(description)
    nvec, start = np.array(description["nvec"], dtype=dtype), np.array(description["start"], dtype=dtype)
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


def _multi_binary_to_dict(space: spaces.MultiBinary, place: _Place) -> SpaceDict:
    place.enter(math.prod(space.shape))
    return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


def _multi_binary_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.MultiBinary:
    space = spaces.MultiBinary(description["n"])
    place.enter(math.prod(space.shape))
    return space


def _text_to_dict(space: spaces.Text, place: _Place) -> SpaceDict:
    characters = list(space.character_list)  # sampling depends on their order
    if space.max_length > _MAX_INT or not all(len(one) == 1 and _is_unicode(one) for one in characters):
        raise UnsupportedSpace(
            f"{place.name} is {space!r:.300}, which can't be sent: expected single Unicode characters without "
            f"surrogates, and at most {_MAX_INT} of them"
        )
    return {
        "type": "Text",
        "min_length": space.min_length,
        "max_length": space.max_length,
        "charset": "".join(characters),
    }


def _text_from_dict(description: Mapping[str, Any], _: _Place) -> spaces.Text:
    charset = description["charset"]
    if not isinstance(charset, str):
        raise TypeError(f"its charset is a {type(charset).__name__}")
    return spaces.Text(description["max_length"], min_length=description["min_length"], charset=charset)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in text)


def _dict_to_dict(space: spaces.Dict, place: _Place) -> SpaceDict:
    # A list of pairs: the order of the keys is part of the space, and JSON tools may sort an object's keys.
    pairs = []
    for key, subspace in space.spaces.items():
        inside = place.inside(f"[{_shown(key)}]")
        if not _is_key(key):
            raise UnsupportedSpace(f"{inside.name}: a key of this kind can't be sent, expected Unicode or a 64-bit int")
        pairs.append([key, _describe(subspace, inside)])
    description: SpaceDict = {"type": "Dict", "spaces": pairs}
    if not getattr(space, "sort_keys", True):  # decides the order of the batched space
        description["sort_keys"] = False
    return description


def _dict_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.Dict:
    pairs = [(key, _rebuild(subspace, place.inside(f"[{_shown(key)}]"))) for key, subspace in description["spaces"]]
    if description.get("sort_keys", True):
        return spaces.Dict(pairs)
    return spaces.Dict(pairs, sort_keys=False)


def _is_key(key: Any) -> bool:
    return _is_unicode(key) if type(key) is str else type(key) is int and abs(key) <= _MAX_INT


def _shown(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) and key.isprintable() else repr(key)


def _tuple_to_dict(space: spaces.Tuple[Any], place: _Place) -> SpaceDict:
    return {"type": "Tuple", "spaces": _describe_all(space.spaces, place)}


def _tuple_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.Tuple[Any]:
    return spaces.Tuple(_rebuild_all(description, place))


def _one_of_to_dict(space: spaces.OneOf[Any], place: _Place) -> SpaceDict:
    return {"type": "OneOf", "spaces": _describe_all(space.spaces, place)}


def _one_of_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.OneOf[Any]:
    return spaces.OneOf(_rebuild_all(description, place))


def _describe_all(members: Iterable[gym.Space[Any]], place: _Place) -> list[SpaceDict]:
    return [_describe(member, place.inside(f"[{index}]")) for index, member in enumerate(members)]


def _rebuild_all(description: Mapping[str, Any], place: _Place) -> list[gym.Space[Any]]:
    return [_rebuild(member, place.inside(f"[{index}]")) for index, member in enumerate(description["spaces"])]


def _sequence_to_dict(space: spaces.Sequence, place: _Place) -> SpaceDict:
    stack = bool(space.stack)
    feature = _describe(space.feature_space, place.inside(".feature_space", copies=1 + stack))
    return {"type": "Sequence", "feature_space": feature, "stack": stack}


def _sequence_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.Sequence:
    stack = bool(description["stack"])
    feature = _rebuild(description["feature_space"], place.inside(".feature_space", copies=1 + stack))
    return spaces.Sequence(feature, stack=stack)


def _graph_to_dict(space: spaces.Graph, place: _Place) -> SpaceDict:
    nodes, edges = place.inside(".node_space", copies=2), place.inside(".edge_space", copies=2)
    return {
        "type": "Graph",
        "node_space": _describe(space.node_space, nodes),
        "edge_space": None if space.edge_space is None else _describe(space.edge_space, edges),
    }


def _graph_from_dict(description: Mapping[str, Any], place: _Place) -> spaces.Graph:
    nodes, edges = description["node_space"], description["edge_space"]
    node_space = _rebuild(nodes, place.inside(".node_space", copies=2))
    edge_space = None if edges is None else _rebuild(edges, place.inside(".edge_space", copies=2))
    return spaces.Graph(node_space, edge_space)


_CODECS: Final[dict[type[Any], tuple[_Writer, _Reader]]] = {
    spaces.Box: (_box_to_dict, _box_from_dict),
    spaces.Discrete: (_discrete_to_dict, _discrete_from_dict),
    spaces.MultiDiscrete: (_multi_discrete_to_dict, _multi_discrete_from_dict),
    spaces.MultiBinary: (_multi_binary_to_dict, _multi_binary_from_dict),
    spaces.Text: (_text_to_dict, _text_from_dict),
    spaces.Dict: (_dict_to_dict, _dict_from_dict),
    spaces.Tuple: (_tuple_to_dict, _tuple_from_dict),
    spaces.OneOf: (_one_of_to_dict, _one_of_from_dict),
    spaces.Sequence: (_sequence_to_dict, _sequence_from_dict),
    spaces.Graph: (_graph_to_dict, _graph_from_dict),
}
_READERS: Final = {kind.__name__: reader for kind, (_, reader) in _CODECS.items()}
