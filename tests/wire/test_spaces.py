"""Spaces survive JSON exactly."""

from __future__ import annotations

import json
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, OneOf, Sequence, Text, Tuple
from gymnasium.vector.utils import batch_space
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgpt_remote.errors import UnsupportedSpace
from agentgpt_remote.spaces import space_from_dict, space_to_dict
from tests.wire.equality import exactly_equal
from tests.wire.space_strategies import generated_spaces
from tests.wire.spaces_samples import SAMPLED_SPACES, SPACES, UNSAMPLED_SPACES


def _through_json(space: gym.Space[Any]) -> gym.Space[Any]:
    return space_from_dict(json.loads(json.dumps(space_to_dict(space), allow_nan=False)))


def _sample_equally(one: gym.Space[Any], other: gym.Space[Any]) -> bool:
    one.seed(3)
    other.seed(3)
    return all(exactly_equal(one.sample(), other.sample()) for _ in range(5))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_survives_json(space: gym.Space[Any]) -> None:
    restored = _through_json(space)
    assert restored == space
    assert type(restored) is type(space)
    assert restored.dtype == space.dtype
    assert str(restored) == str(space)
    assert space_to_dict(restored) == space_to_dict(space)


@pytest.mark.parametrize("space", SAMPLED_SPACES, ids=str)
def test_restored_space_samples_the_same(space: gym.Space[Any]) -> None:
    restored = _through_json(space)
    assert _sample_equally(space, restored)
    assert _sample_equally(batch_space(space, 3), batch_space(restored, 3))


@pytest.mark.parametrize("space", UNSAMPLED_SPACES, ids=str)
def test_restored_bounds_are_equal(space: Box) -> None:
    restored = _through_json(space)
    assert isinstance(restored, Box)
    for one, other in ((restored.low, space.low), (restored.high, space.high)):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(generated_spaces)
def test_any_space_survives_json_and_samples_the_same(space: gym.Space[Any]) -> None:
    restored = _through_json(space)
    assert restored == space
    assert str(restored) == str(space)
    assert _sample_equally(space, restored)


def test_places_of_one_space_share_their_samples() -> None:
    wheel, name = Box(-1, 1, (2,)), Text(4)
    space = Dict({"left": wheel, "right": wheel, "deep": Tuple((name, Sequence(wheel), Graph(wheel, None), name))})
    restored = _through_json(space)
    assert isinstance(restored, Dict)
    assert restored["left"] is restored["right"]
    assert _sample_equally(space, restored)


def test_charset_keeps_its_order() -> None:
    restored = _through_json(Text(5, charset="zebra"))
    assert isinstance(restored, Text)
    assert restored.character_list == tuple("zebra")


def test_bounds_that_repeat_along_leading_axes_are_written_once() -> None:
    low = np.array([-1.0, -0.0, 0.0], np.float32)
    description = space_to_dict(batch_space(Box(low, 1.0), 1000))
    assert (description["low"], description["high"]) == ([-1.0, -0.0, 0.0], 1.0)


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


class _OwnSpace(gym.Space[Any]):
    """A space of the user's own."""


@pytest.mark.parametrize("leaf", [_OddBox(-1, 1, (2,)), _OwnSpace()], ids=["subclass", "own"])
@pytest.mark.parametrize(
    ("nest", "place"),
    [
        (lambda leaf: leaf, ""),
        (lambda leaf: Dict({"body": Tuple((Discrete(2), leaf))}), r'\["body"\]\[1\]'),
        (lambda leaf: Sequence(OneOf([leaf])), r"\.feature_space\[0\]"),
        (lambda leaf: Graph(leaf, None), r"\.node_space"),
        (lambda leaf: Graph(Discrete(2), Dict({1: leaf})), r"\.edge_space\[1\]"),
    ],
)
def test_unsupported_space_names_type_and_place(leaf: gym.Space[Any], nest: Any, place: str) -> None:
    with pytest.raises(UnsupportedSpace, match=rf"^observation{place} is a .*{type(leaf).__name__}.*expected one of"):
        space_to_dict(nest(leaf), "observation")


def _nested(space: gym.Space[Any], depth: int) -> gym.Space[Any]:
    for _ in range(depth):
        space = Tuple((space,))
    return space


def _endless() -> gym.Space[Any]:
    space = Dict({"a": Discrete(2)})
    space.spaces["self"] = space
    return space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (_nested(Discrete(2), 65), "nested too deep"),
        (_endless(), "nested too deep"),
        (Text(2, charset="a\ud800"), "without surrogates"),
        (Text(2**63), "at most"),
        (Dict({"\ud800": Discrete(2)}), "key of this kind"),
        (Dict({2**64: Discrete(2)}), "key of this kind"),  # type: ignore[dict-item]
        (Dict({(1, 2): Discrete(2)}), "key of this kind"),  # type: ignore[dict-item]
        (MultiBinary([2**20, 2**20]), "too large"),
    ],
)
def test_space_beyond_the_wire_is_refused(space: gym.Space[Any], message: str) -> None:
    with pytest.raises(UnsupportedSpace, match=message):
        space_to_dict(space)


def test_space_nested_as_deep_as_allowed_can_be_used() -> None:
    restored = _through_json(_nested(Text(3), 64))
    assert restored.sample() in restored
    assert batch_space(restored, 2).sample() is not None


def _deep_description(depth: int, kind: str) -> dict[str, Any]:
    description: dict[str, Any] = {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
    for _ in range(depth):
        wrappers: dict[str, dict[str, Any]] = {
            "Tuple": {"spaces": [description]},
            "Dict": {"spaces": [["a", description]]},
            "Sequence": {"feature_space": description, "stack": True},
            "Graph": {"node_space": description, "edge_space": None},
        }
        description = {"type": kind, **wrappers[kind]}
    return description


@pytest.mark.parametrize("kind", ["Tuple", "Dict", "Sequence", "Graph"])
@pytest.mark.parametrize("depth", [60, 500, 100_000])
def test_hostile_nesting_is_refused_at_once(kind: str, depth: int) -> None:
    if depth == 60 and kind in ("Tuple", "Dict"):
        assert space_from_dict(_deep_description(depth, kind)) is not None
        return
    with pytest.raises(UnsupportedSpace, match=r"too deep|too large"):
        space_from_dict(_deep_description(depth, kind))


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
        {"type": "Dict", "spaces": [[["a"], {"type": "MultiBinary", "n": 2}]]},
        {"type": "Box", "dtype": "float32", "shape": [2**40], "low": 0, "high": 1},
        {"type": "Box", "dtype": "uint8", "shape": [2**62, 2**62], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [-1], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [1.5], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [1] * 70, "low": 0, "high": 1},
        {"type": "Box", "dtype": "(9999,9999)f4", "shape": [], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, [1]], "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": None, "high": 1},
        {"type": "Box", "dtype": "int8", "shape": [2], "low": 0, "high": 300},
        {"type": "Tuple", "spaces": [{"type": "MultiBinary", "n": 2**25}] * 5},
        {"type": "Sequence", "stack": True, "feature_space": {"type": "MultiBinary", "n": 2**27}},
        {"type": "MultiBinary", "n": [2**40, 2**40]},
        {"type": "MultiBinary", "n": "ab"},
        {"type": "Discrete", "n": 2**70, "start": 0, "dtype": "int64"},
        {"type": "Discrete", "n": 3, "start": 0, "dtype": "float64"},
        {"type": "MultiDiscrete", "nvec": [[1, 2], [3]], "start": [1], "dtype": "int64"},
        {"type": "Text", "min_length": 2, "max_length": 1, "charset": "ab"},
        {"type": "Text", "min_length": 0, "max_length": 1, "charset": ["ab"]},
        {"type": "OneOf", "spaces": []},
        {"type": "Graph", "node_space": None, "edge_space": None},
        {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64", "same_as": 0},
        {"type": ["Box"]},
        ["Box"],
    ],
)
def test_malformed_description_is_refused(description: Any) -> None:
    with pytest.raises(UnsupportedSpace, match="action"):
        space_from_dict(description, "action")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=5,
)


def _replaced(description: Any, steps: list[int], value: Any) -> Any:
    """Return a description with ``value`` in the place that the steps lead to."""
    if not steps or not isinstance(description, (dict, list)) or not description:
        return value
    items = list(description.items() if isinstance(description, dict) else enumerate(description))
    key, part = items[steps[0] % len(items)]
    changed = [(name, _replaced(part, steps[1:], value) if name == key else old) for name, old in items]
    return dict(changed) if isinstance(description, dict) else [item for _, item in changed]


@pytest.mark.filterwarnings("ignore")  # numpy's, about odd names of dtypes
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SPACES), st.lists(st.integers(0, 9), min_size=1, max_size=6), _JSON)
def test_damaged_description_is_a_space_or_unsupported(space: gym.Space[Any], steps: list[int], value: Any) -> None:
    try:
        restored = space_from_dict(_replaced(space_to_dict(space), steps, value))
    except UnsupportedSpace:
        return
    assert isinstance(restored, gym.Space)
