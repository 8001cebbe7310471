"""Tricky spaces that drive the parametrised tests of the wire."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

SPACES: list[gym.Space[Any]] = [
    Box(-1.0, 1.0, (3,)),
    Box(-np.inf, np.inf, (4,)),
    Box(0.1, np.inf, (2,), dtype=np.float64),
    Box(np.array([-1.5, -np.inf]), np.array([np.inf, 2.25]), dtype=np.float64),
    Box(np.array([[0.1, -3e38], [1e-45, 0]], dtype=np.float32), 3e38, (2, 2), dtype=np.float32),
    Box(-1, 1, (2,), dtype=np.float16),
    Box(-1, 1, (), dtype=np.float32),
    Box(-1, 1, (0, 3), dtype=np.float32),
    Box(np.longdouble("-0.1"), np.longdouble("0.1"), (2,), dtype=np.longdouble),
    Box(0, 255, (4, 4, 3), dtype=np.uint8),
    Box(-np.inf, np.inf, (2,), dtype=np.int64),
    Box(np.array([-(2**63), 5]), np.array([7, 2**63 - 2]), dtype=np.int64),
    Box(0, 2**64 - 1, (2,), dtype=np.uint64),
    Box(-5, 5, (2,), dtype=np.int8),
    Box(0, 1, (3,), dtype=np.bool_),
    Discrete(2),
    Discrete(5, start=-2),
    Discrete(3, dtype=np.int32),
    MultiDiscrete([2, 3, 4]),
    MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [-1, 0]])),
    MultiDiscrete([2, 300], dtype=np.int32),
    MultiBinary(4),
    MultiBinary([2, 3]),
    Dict({"b": Discrete(3), "a": Box(-1, 1, (2,))}),
    Dict(OrderedDict([("z", Discrete(3)), ("a", Dict({"deep": Tuple((MultiBinary(2), Box(0, 9, (2, 2))))}))])),
    Dict({0: Discrete(2), 1: Discrete(3)}),  # type: ignore[dict-item]
    Tuple((Discrete(32), Discrete(11), Discrete(2))),
    Tuple((Box(-1, 1, (2,)), Tuple((Discrete(2), Dict({"x": Box(0, 1, (1,), dtype=np.uint8)}))))),
    Tuple(()),
    Dict({}),
]
