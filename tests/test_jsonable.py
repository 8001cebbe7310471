"""Values of every space through JSON and back, and what JSON can't hold."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, GraphInstance, MultiBinary, MultiDiscrete, OneOf, Text, Tuple
from gymnasium.spaces import Sequence as SequenceSpace
from gymnasium.vector.utils import batch_space

from agentgpt_remote.errors import InvalidAction, InvalidObservation, NotSendable
from agentgpt_remote.jsonable import cast_exactly, from_json, info_to_json, to_json
from tests.wire.equality import exactly_equal
from tests.wire.spaces_samples import SPACES

VARIABLE: list[gym.Space[Any]] = [
    Text(6),
    SequenceSpace(Box(-1, 1, (2,))),
    SequenceSpace(Dict({"a": Box(-1, 1, (2,)), "b": Discrete(3)}), stack=True),
    SequenceSpace(Tuple((Text(3), Box(-1, 1, (2,)))), stack=True),
    Graph(Box(-1, 1, (2,)), Discrete(3)),
    Graph(Discrete(5), None),
    OneOf([Discrete(3), Text(4), Box(-1, 1, (2,))]),
    Dict({"deep": Tuple((OneOf([MultiBinary(2), Graph(Discrete(2), Box(-1, 1, (1,)))]), SequenceSpace(Text(2))))}),
]
FINITE = [space for space in SPACES if "float128" not in repr(space) and "longdouble" not in repr(space)]


def _through_json(space: gym.Space[Any], value: Any) -> Any:
    return from_json(space, msgspec.json.decode(msgspec.json.encode(to_json(value))), "action", InvalidAction)


@pytest.mark.parametrize("space", [*FINITE, *VARIABLE], ids=repr)
def test_value_survives_json_to_the_bit(space: gym.Space[Any]) -> None:
    for seed in range(5):
        space.seed(seed)
        value = space.sample()
        assert exactly_equal(_through_json(space, value), value)


@pytest.mark.parametrize(
    "space", [Box(-1, 1, (3,)), Discrete(3), Dict({"a": Discrete(2), "t": Text(3)}), *VARIABLE[4:7]]
)
def test_batch_survives_json_to_the_bit(space: gym.Space[Any]) -> None:
    batched = batch_space(space, 3)
    batched.seed(1)
    value = batched.sample()
    assert exactly_equal(_through_json(batched, value), value)


def test_floats_that_are_not_finite_are_words() -> None:
    value = np.array([np.nan, np.inf, -np.inf, 0.1], np.float32)
    assert to_json(value) == ["NaN", "Infinity", "-Infinity", float(np.float32(0.1))]
    assert [to_json(number) for number in (np.nan, -np.inf, np.float64("inf"))] == ["NaN", "-Infinity", "Infinity"]
    assert exactly_equal(_through_json(Box(-1, 1, (4,)), value), value)


def test_integers_of_64_bits_survive() -> None:
    unsigned = np.array([2**64 - 1, 1, 2**63], np.uint64)
    assert exactly_equal(_through_json(Box(0, 2**64 - 1, (3,), np.uint64), unsigned), unsigned)
    signed = np.array([-(2**63), 2**63 - 1], np.int64)
    assert exactly_equal(_through_json(Box(-(2**63), 2**63 - 1, (2,), np.int64), signed), signed)


def test_graph_is_an_object() -> None:
    graph = GraphInstance(np.zeros((2, 1), np.float32), np.array([1]), np.array([[0, 1]], np.int32))
    assert to_json(graph) == {"nodes": [[0.0], [0.0]], "edges": [1], "edge_links": [[0, 1]]}


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (Discrete(2), "left", r"action is 'left': expected numbers of shape \(\)"),
        (Discrete(2), None, "action is None"),
        (Discrete(2), 0.5, "dtype float64, which can't be cast safely: expected int64"),
        (Discrete(2), [0], r"shape \(1,\): expected \(\)"),
        (Discrete(2), 2**70, "expected numbers"),
        (Discrete(3, dtype=np.int32), 2**40, "int32 can't hold"),
        (Box(-1, 1, (2,)), [0.0, 1e300], "float32 can't hold"),
        (Box(-1, 1, (2,)), [0.0, "inf"], "expected numbers"),
        (Box(0, 9, (2,), np.int8), [0, "NaN"], "expected numbers"),
        (Box(-1, 1, (2, 2)), [[0.0], [0.0, 1.0]], "rows of different lengths"),
        (Box(-1, 1, (2,)), [], r"shape \(0,\): expected \(2,\)"),
        (Box(0, 2**64 - 1, (2,), np.uint64), [2**63, 0.5], "can't be cast"),
        (MultiDiscrete([2, 3]), {"a": 1}, "expected numbers"),
        (Dict({"a": Discrete(2)}), {"b": 1}, r"expected an object with \['a'\]"),
        (Dict({"a": Tuple((Discrete(2),))}), {"a": [None]}, r"action\['a'\]\[0\] is None"),
        (Tuple((Discrete(2),)), [1, 2], "expected a list of 1"),
        (Text(3), 5, "expected a string"),
        (SequenceSpace(Discrete(2)), 5, "expected a list"),
        (SequenceSpace(Dict({"a": Discrete(2)}), stack=True), {"b": [1]}, "expected a list"),
        (SequenceSpace(Tuple((Discrete(2), Discrete(2))), stack=True), [[1, 1], [1]], r"shape \(1,\): expected \(2,\)"),
        (OneOf([Discrete(2)]), [1, 0], r"action\[0\] is 1: expected an index of 0 to 0"),
        (OneOf([Discrete(2)]), [True, 0], r"action\[0\] is True"),
        (OneOf([Discrete(2)]), 0, "expected a list of 2"),
        (Graph(Discrete(2), None), {"nodes": [1]}, "expected an object"),
        (Graph(Discrete(2), None), {"nodes": [1], "edges": [1], "edge_links": []}, "holds edges"),
        (Graph(Discrete(2), Discrete(2)), {"nodes": [1], "edges": [1], "edge_links": [[0]]}, r"expected \(1, 2\)"),
        (Graph(Discrete(2), Discrete(2)), {"nodes": [1], "edges": None, "edge_links": [[0, 0]]}, "holds edges"),
    ],
)
def test_json_that_does_not_fit_names_place_and_expectation(space: gym.Space[Any], value: Any, message: str) -> None:
    with pytest.raises(InvalidAction, match=message):
        from_json(space, value, "action", InvalidAction)


def test_error_is_of_the_class_asked_for() -> None:
    with pytest.raises(InvalidObservation, match="camera"):
        from_json(Box(0, 1, (2,)), "x", "camera", InvalidObservation)
    with pytest.raises(InvalidObservation, match="int8 can't hold"):
        cast_exactly(np.array([300]), np.dtype(np.int8), "camera", InvalidObservation)


def test_info_is_converted_where_that_is_natural_and_named_where_not() -> None:
    info = {
        "array": np.arange(3),
        "words": np.array(["a", "b"]),
        "objects": np.array([None, {"x": np.float32(0.5)}], dtype=object),
        "deep": {1: (np.bool_(True), np.longdouble(0.5))},
        "set": {3},
        "big": 2**80,
        "bytes": b"x",
        "_bytes": np.array([True]),
        "complex": [1j],
        "date": np.datetime64("2026-01-01"),
        "ambiguous": {1: "a", "1": "b"},
        "keys": {(1, 2): 3},
        "object": object(),
    }
    held, dropped = info_to_json(info)
    assert held == {
        "array": [0, 1, 2],
        "words": ["a", "b"],
        "objects": [None, {"x": 0.5}],
        "deep": {"1": [True, 0.5]},
        "set": [3],
    }
    assert dropped == ["big", "bytes", "complex", "date", "ambiguous", "keys", "object"]
    assert msgspec.json.decode(msgspec.json.encode(held)) == held


def test_unsendable_value_is_named_by_type() -> None:
    with pytest.raises(NotSendable, match="type bytes"):
        to_json([b"x"])
