"""Spaces survive JSON exactly."""

from __future__ import annotations

import json
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from agentgpt_remote.errors import UnsupportedSpace
from agentgpt_remote.spaces import space_from_dict, space_to_dict
from tests.wire.spaces_samples import SPACES


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    assert np.asarray(one).dtype == np.asarray(other).dtype
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_survives_json(space: gym.Space[Any]) -> None:
    restored = space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))
    assert restored == space
    assert type(restored) is type(space)
    assert restored.dtype == space.dtype
    assert str(restored) == str(space)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_restored_space_samples_the_same(space: gym.Space[Any]) -> None:
    restored = space_from_dict(space_to_dict(space))
    space.seed(3)
    restored.seed(3)
    if isinstance(space, Box) and space.dtype in (np.uint64, np.longdouble):  # Gymnasium can't sample them
        assert isinstance(restored, Box)
        assert np.array_equal(space.low, restored.low)
        assert np.array_equal(space.high, restored.high)
        return
    for _ in range(5):
        assert _equal(space.sample(), restored.sample())


def test_uniform_bounds_collapse_to_one_number() -> None:
    assert space_to_dict(Box(0, 255, (84, 84, 4), dtype=np.uint8)) == {
        "type": "Box",
        "dtype": "uint8",
        "shape": [84, 84, 4],
        "low": 0,
        "high": 255,
    }


def test_millions_of_uniform_bounds_take_no_time() -> None:
    space = Box(0, 255, (64, 210, 160, 3), dtype=np.uint8)
    before = time.monotonic()
    restored = space_from_dict(space_to_dict(space))
    assert time.monotonic() - before < 2.0
    assert restored == space


def test_infinite_integer_bounds_stay_infinite() -> None:
    restored = space_from_dict(space_to_dict(Box(-np.inf, np.inf, (2,), dtype=np.int64)))
    assert isinstance(restored, Box)
    assert not restored.is_bounded("below")
    assert not restored.is_bounded("above")


class _OddBox(Box):
    """A subclass, whose behaviour could not be rebuilt on the other side."""


@pytest.mark.parametrize("leaf", [_OddBox(-1, 1, (2,)), Text(4)], ids=["subclass", "text"])
def test_unsupported_space_names_type_and_place(leaf: gym.Space[Any]) -> None:
    space = Dict({"body": Tuple((Discrete(2), leaf))})
    with pytest.raises(UnsupportedSpace, match=rf'observation\["body"\]\[1\] is a .*{type(leaf).__name__}'):
        space_to_dict(space, "observation")


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"type": "Quaternion"},
        {"type": "Box", "dtype": "float32"},
        {"type": "Box", "dtype": "object", "shape": [2], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 1, 2], "high": 1},
        {"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
        {"type": "Dict", "spaces": {"a": 1}},
        ["Box"],
    ],
)
def test_malformed_description_is_refused(description: Any) -> None:
    with pytest.raises(UnsupportedSpace, match="action"):
        space_from_dict(description, "action")
