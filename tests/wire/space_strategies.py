"""Generated spaces of every kind, in any nest."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple
from hypothesis import strategies as st

_INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]
_DTYPES = [*_INTEGERS, "bool", "float16", "float32", "float64", ">f8", ">i2"]
_shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
_full_shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3)


@st.composite
def _boxes(draw: st.DrawFn) -> Box:
    dtype, shape = np.dtype(draw(st.sampled_from(_DTYPES))), draw(_shapes)
    size = int(np.prod(shape, dtype=np.int64))
    limits = {"b": (0, 1), "u": (0, 100)}.get(dtype.kind, (-100, 100))
    pairs = draw(st.lists(st.tuples(st.integers(*limits), st.integers(*limits)), min_size=size, max_size=size))
    low, high = (np.array([side(pair) for pair in pairs], np.float64).reshape(shape) for side in (min, max))
    if dtype.kind in "fi":
        low[np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool).reshape(shape)] = -np.inf
        high[np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool).reshape(shape)] = np.inf
    if dtype.kind != "f" and np.isfinite(low).all() and np.isfinite(high).all():
        low, high = low.astype(dtype), high.astype(dtype)
    if dtype.kind == "f":
        low, high = low.astype(dtype), high.astype(dtype)
    elif dtype.itemsize == 8:  # Gymnasium casts infinities of arrays through float64, beyond the type's range
        low, high = np.nan_to_num(low, neginf=-100), np.nan_to_num(high, posinf=100)
    return Box(low, high, shape, dtype=dtype)


@st.composite
def _discretes(draw: st.DrawFn) -> Discrete[Any]:
    dtype = np.dtype(draw(st.sampled_from(_INTEGERS)))
    start = draw(st.integers(0 if dtype.kind == "u" else -50, 50))
    return Discrete(draw(st.integers(1, 50)), start=start, dtype=dtype.type)


@st.composite
def _multi_discretes(draw: st.DrawFn) -> MultiDiscrete[Any]:
    dtype, shape = np.dtype(draw(st.sampled_from(_INTEGERS))), draw(_full_shapes)
    size = int(np.prod(shape))
    counts = draw(st.lists(st.integers(1, 50), min_size=size, max_size=size))
    starts = draw(st.lists(st.integers(0 if dtype.kind == "u" else -50, 50), min_size=size, max_size=size))
    nvec, start = np.array(counts, dtype).reshape(shape), np.array(starts, dtype).reshape(shape)
    return MultiDiscrete(nvec, dtype=dtype.type, start=start)


@st.composite
def _texts(draw: st.DrawFn) -> Text:
    charset = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
    shortest = draw(st.integers(0, 3))
    kind = draw(st.sampled_from([str, frozenset]))
    return Text(shortest + draw(st.integers(0, 4)), min_length=shortest, charset=kind(charset))


_leaves: st.SearchStrategy[gym.Space[Any]] = st.one_of(
    _boxes(),
    _discretes(),
    _multi_discretes(),
    st.integers(1, 5).map(MultiBinary),
    _full_shapes.map(MultiBinary),
    _texts(),
)
_keys = st.text(st.characters(codec="utf-8"), max_size=4) | st.integers(-9, 9)


def _graphs(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Graph]:
    return st.builds(Graph, parts, st.none() | parts)


def _nests(parts: st.SearchStrategy[gym.Space[Any]]) -> st.SearchStrategy[gym.Space[Any]]:
    members = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        members.map(Tuple),
        members.map(OneOf),
        st.dictionaries(_keys, parts, min_size=1, max_size=3).map(Dict),  # type: ignore[arg-type]
        st.builds(lambda pairs: Dict(pairs, sort_keys=False), st.dictionaries(_keys, parts, min_size=1, max_size=3)),
        st.builds(Sequence, parts, stack=st.booleans()),
    )


# A graph's sample holds up to ten nodes and ninety edges, so that graphs of graphs grow beyond a test's time.
generated_spaces = st.recursive(_leaves | _graphs(st.recursive(_leaves, _nests, max_leaves=2)), _nests, max_leaves=5)
