"""Tricky spaces that drive the parametrised tests of the wire."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)

ARRAY_SPACES: list[gym.Space[Any]] = [
    Box(-1.0, 1.0, (3,)),
    Box(0.0, 1.0),
    Box(-np.inf, np.inf, (4,)),
    Box(-np.inf, 0.0, (2, 1)),
    Box(0.0, np.inf, (2, 2)),
    Box(0.1, np.inf, (2,), dtype=np.float64),
    Box(np.array([-10.0, 0.0]), np.array([10.0, 10.0]), dtype=np.float64),
    Box(np.array([-1.5, -np.inf]), np.array([np.inf, 2.25]), dtype=np.float64),
    Box(np.array([[0.1, -3e38], [1e-45, 0]], dtype=np.float32), 3e38, (2, 2), dtype=np.float32),
    Box(np.array([-0.0, 0.0]), 1.0, (2,), dtype=np.float64),
    Box(-1, 1, (2,), dtype=np.float16),
    Box(-1, 1, (2,), dtype=np.dtype(">f4")),
    Box(-1, 1, (), dtype=np.float32),
    Box(-1, 1, (0, 3), dtype=np.float32),
    Box(0, 255, (4, 4, 3), dtype=np.uint8),
    Box(np.tile(np.arange(3, dtype=np.uint8), (4, 2, 1)), 200, (4, 2, 3), dtype=np.uint8),
    Box(-np.inf, np.inf, (2,), dtype=np.int64),
    Box(np.array([-np.inf, -np.inf, 0, -10]), np.array([np.inf, 0, np.inf, 10]), dtype=np.int32),
    Box(np.array([-(2**63), 5]), np.array([7, 2**63 - 2]), dtype=np.int64),
    Box(-5, 5, (2,), dtype=np.int8),
    Box(0, 1, (3,), dtype=np.bool_),
    Box(np.array([0, 0, 1]), np.array([1, 0, 1]), dtype=np.bool_),
    Discrete(2),
    Discrete(5, start=-2),
    Discrete(3, dtype=np.int32),
    Discrete(4, start=1, dtype=np.uint8),
    MultiDiscrete([2, 3, 4]),
    MultiDiscrete([2, 2], start=[10, 10]),
    MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [-1, 0]])),
    MultiDiscrete([2, 300], dtype=np.int32),
    MultiDiscrete([2, 3], dtype=np.int8),
    MultiDiscrete([2, 3], dtype=np.uint16),
    MultiBinary(4),
    MultiBinary([2, 3]),
]
"""Spaces of one array or number."""

UNSAMPLED_SPACES: list[gym.Space[Any]] = [
    Box(np.longdouble("-0.1"), np.longdouble("0.1"), (2,), dtype=np.longdouble),
    Box(0, 2**64 - 1, (2,), dtype=np.uint64),
]
"""Spaces that Gymnasium can make and not sample."""

EMPTY_SPACES: list[gym.Space[Any]] = [Tuple(()), Dict({})]
"""Spaces that Gymnasium can't make a vector of."""

NESTED_SPACES: list[gym.Space[Any]] = [
    Dict({"b": Discrete(3), "a": Box(-1, 1, (2,))}),
    Dict({"b": Discrete(3), "a": Box(-1, 1, (2,))}, sort_keys=False),
    Dict(OrderedDict([("z", Discrete(3)), ("a", Dict({"deep": Tuple((MultiBinary(2), Box(0, 9, (2, 2))))}))])),
    Dict({0: Discrete(2), 1: Discrete(3)}),  # type: ignore[dict-item]
    Dict({"grüß": Discrete(2), "": MultiBinary(1)}),
    Tuple((Discrete(32), Discrete(11), Discrete(2))),
    Tuple((Discrete(5), Box(np.array([0.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64))),
    Tuple((Box(-1, 1, (2,)), Tuple((Discrete(2), Dict({"x": Box(0, 1, (1,), dtype=np.uint8)}))))),
]

PACKED_SPACES: list[gym.Space[Any]] = [
    Text(6),
    Text(6, min_length=3),
    Text(4, min_length=0, charset="zyx"),
    Text(5, charset=frozenset("äöü€🎲")),
    Sequence(Discrete(4)),
    Sequence(Box(0.0, 1.0), stack=True),
    Sequence(Text(3)),
    Sequence(Dict({"feature": Box(0, 1, (3,))})),
    Sequence(Dict({"a": Box(0, 1, (3,)), "b": Discrete(5)}), stack=True),
    Sequence(Sequence(MultiBinary(2), stack=True), stack=True),
    Sequence(Graph(Box(-100, 100, (2, 2)), Discrete(4))),
    Graph(Box(-1, 1, (2,)), None),
    Graph(Box(-100, 100, (3, 4)), Discrete(5)),
    Graph(Discrete(5), Box(-100, 100, (3, 4))),
    Graph(Discrete(3, start=-1), Discrete(4)),
    Graph(MultiDiscrete([3, 4, 2]), MultiBinary(2)),
    Graph(Dict({"one": Discrete(5), "many": MultiBinary(5)}), Box(1, 4)),
    Graph(Tuple((Box(-1, 1, (2,)), Discrete(3))), Dict({"weight": Box(0, 1, ()), "kind": Discrete(4)})),
    Graph(Text(2), None),
    OneOf([Discrete(3), Box(0.0, 1.0)]),
    OneOf([MultiBinary(2), MultiDiscrete([2, 2]), Text(3)]),
    Tuple((Graph(Box(-1, 1, (2, 1)), None), Discrete(2))),
    Tuple((Text(2), Text(3))),
    Tuple((OneOf([Discrete(2)]), Tuple((Sequence(Discrete(2)), Box(0, 1, (2,)))))),
    Dict({"name": Text(5), "camera": Box(0, 255, (4, 4, 3), dtype=np.uint8)}),
    Dict({"a": Dict({"a": Graph(Box(-1, 1, (2,)), None), "b": Box(-1, 1, (2,))}), "b": Tuple((Text(3), Discrete(2)))}),
]
"""Spaces without a fixed layout."""

SAMPLED_SPACES = ARRAY_SPACES + NESTED_SPACES + PACKED_SPACES
SPACES = SAMPLED_SPACES + UNSAMPLED_SPACES + EMPTY_SPACES
