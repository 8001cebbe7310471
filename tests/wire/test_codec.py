"""Values survive the wire exactly: raw layouts and packed values."""

from __future__ import annotations

import contextlib
import enum
import math
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import msgspec
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, GraphInstance, MultiBinary, Tuple
from gymnasium.vector.utils import batch_space
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import (
    array_shapes,
    arrays,
    byte_string_dtypes,
    nested_dtypes,
    scalar_dtypes,
    unicode_string_dtypes,
)

from agentgpt_remote.codec import DOES_NOT_FIT, NUMPY_SCALARS, PYTHON_INTS, Layout, pack_info, pack_value, unpack_value
from agentgpt_remote.errors import NotSendable, ProtocolError
from tests.wire.equality import exactly_equal
from tests.wire.spaces_samples import ARRAY_SPACES, EMPTY_SPACES, NESTED_SPACES, PACKED_SPACES

FIXED = [space for space in ARRAY_SPACES + NESTED_SPACES + EMPTY_SPACES if space.dtype != np.dtype(">f4")]


@pytest.mark.parametrize("space", FIXED, ids=str)
def test_layout_round_trips_one_value(space: gym.Space[Any]) -> None:
    layout = Layout(space)
    buffer = bytearray(layout.nbytes(1) + 16)
    for seed in range(3):
        space.seed(seed)
        value = space.sample()
        kind = layout.encode_one(value, buffer, 16)
        assert kind in (NUMPY_SCALARS, PYTHON_INTS)
        assert exactly_equal(layout.decode_one(buffer, 16, kind), value)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("space", FIXED, ids=str)
def test_layout_round_trips_a_batch(space: gym.Space[Any], n: int) -> None:
    layout, batched = Layout(space), batch_space(space, n)
    batched.seed(n)
    value = batched.sample()
    buffer = bytearray(layout.nbytes(n))
    assert layout.encode_batch(value, n, buffer, 0)
    restored = layout.decode_batch(buffer, 0, n)
    buffer[:] = bytes(len(buffer))
    assert exactly_equal(restored, value)
    assert exactly_equal(layout.decode_batch(memoryview(buffer), 0, n, copy=True).__class__, value.__class__)


def test_decoded_arrays_are_writable_and_aligned() -> None:
    space = Dict({"image": Box(0, 255, (84, 84, 4), dtype=np.uint8), "speed": Box(-1, 1, (3,), dtype=np.float64)})
    layout = Layout(space)
    buffer = bytearray(layout.nbytes(2))
    for array in layout.decode_batch(buffer, 0, 2).values():
        assert array.flags.writeable
        assert array.flags.aligned


def test_nan_infinities_and_negative_zero_keep_their_bits() -> None:
    layout = Layout(Box(-np.inf, np.inf, (5,), dtype=np.float64))
    value = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    value.view(np.uint64)[0] |= 1  # a payload in the nan
    buffer = bytearray(layout.nbytes(1))
    assert layout.encode_one(value, buffer, 0) == NUMPY_SCALARS
    assert layout.decode_one(buffer, 0).tobytes() == value.tobytes()


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_discrete_keeps_its_python_type(value: Any) -> None:
    layout = Layout(Discrete(5))
    buffer = bytearray(layout.nbytes(1))
    kind = layout.encode_one(value, buffer, 0)
    assert type(layout.decode_one(buffer, 0, kind)) is type(value)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (Box(-1, 1, (2,)), np.zeros(2)),
        (Box(-1, 1, (2,)), np.zeros((1, 2), np.float32)),
        (Box(-1, 1, (2,)), [0.0, 0.0]),
        (Box(-1, 1, ()), np.float32(0.5)),
        (Discrete(2), True),
        (Discrete(2), np.int32(1)),
        (Discrete(2), 2**70),
        (Tuple((Discrete(2), Discrete(2))), (1, np.int64(1))),
        (Tuple((Discrete(2),)), [1]),
        (Dict({"a": Discrete(2)}), {"a": 1, "b": 2}),
        (Dict({"a": Discrete(2)}), OrderedDict(a=1)),
    ],
)
def test_value_that_is_not_exactly_of_the_space_does_not_fit(space: gym.Space[Any], value: Any) -> None:
    layout = Layout(space)
    assert layout.encode_one(value, bytearray(64), 0) == DOES_NOT_FIT
    assert exactly_equal(unpack_value(pack_value(value)), value)


def test_batch_of_the_wrong_size_does_not_fit() -> None:
    assert not Layout(MultiBinary(2)).encode_batch(np.zeros((3, 2), np.int8), 2, bytearray(64), 0)


@pytest.mark.parametrize("space", [*PACKED_SPACES, Box(-1, 1, (2,), dtype=np.dtype(">f4"))], ids=str)
def test_nothing_fits_a_space_without_fixed_layout(space: gym.Space[Any]) -> None:
    layout = Layout(space)
    assert not layout.is_fixed
    assert (layout.leaves, layout.nbytes(3)) == ((), 0)
    assert layout.encode_one(space.sample(), bytearray(64), 0) == DOES_NOT_FIT
    assert not layout.encode_batch(batch_space(space, 3).sample(), 3, bytearray(64), 0)
    with pytest.raises(ProtocolError, match="no fixed layout"):
        layout.decode_one(bytes(64), 0)
    with pytest.raises(ProtocolError, match="no fixed layout"):
        layout.decode_batch(bytes(64), 0, 3)


VALUES: list[Any] = [
    None,
    True,
    2**64,
    -(2**63) - 1,
    -(2**200),
    0.1,
    math.inf,
    -0.0,
    1 - 2j,
    "Grüße",
    b"\x00\xff",
    bytearray(b"ab"),
    (1, (2, [3, ()])),
    {"a": {"b": {}}, "c": []},
    {1: "a", (2, 3): None, None: 1.5},
    {1, 2},
    frozenset({"x"}),
    OrderedDict([("z", 1), ("a", 2)]),
    np.float64(0.1),
    np.float32(0.1),
    np.int8(-3),
    np.bool_(True),
    np.str_("text"),
    np.str_(""),
    np.str_("zeros\0\0"),
    np.str_("\ud800"),
    np.bytes_(b"ab"),
    np.bytes_(b"ab\0"),
    np.bytes_(b""),
    np.void(b"ab\0"),
    np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", ">f8", (2,))])[0],
    np.datetime64("2024-05-06T07:08:09.123456789"),
    np.timedelta64(3, "D"),
    np.complex64(1j),
    np.longdouble("0.1"),
    np.float16(0.3),
    np.arange(6, dtype=np.int32).reshape(2, 3).T,
    np.array(3.0),
    np.zeros((0, 3), np.uint8),
    np.array([1, 2], dtype=">i4"),
    np.array(["a", "längst"]),
    np.array([True, False]),
    np.array([None, {"a": np.float32(1)}, np.zeros(2), (1,), "s"], dtype=object),
    np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
    np.array(["2024-01-01"], dtype="M8[D]"),
    np.array(None, dtype=object),
    GraphInstance(np.zeros((2, 3), np.float32), np.array([1]), np.array([[0, 1]], np.int32)),
    GraphInstance(np.arange(2), None, None),
    (GraphInstance({"a": (np.zeros(2),)}, None, None), GraphInstance((), (), np.zeros((0, 2), np.int64))),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_packed_value_round_trips(value: Any) -> None:
    assert exactly_equal(unpack_value(pack_value({"key": [value]})), {"key": [value]})


def test_unpacked_arrays_are_writable_and_own_their_memory() -> None:
    array = unpack_value(bytes(pack_value(np.arange(3))))
    array[0] = 7
    assert array.flags.owndata


_ARRAYS = arrays(
    scalar_dtypes() | nested_dtypes(unicode_string_dtypes(max_len=3) | byte_string_dtypes(max_len=3)),
    array_shapes(min_dims=0, min_side=0, max_side=3),
)
JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | _ARRAYS
    | _ARRAYS.filter(lambda array: array.size).map(lambda array: array.ravel()[0]),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSONISH)
def test_any_nested_value_round_trips(value: Any) -> None:
    assert exactly_equal(unpack_value(pack_value(value)), value)


@given(st.binary(max_size=64))
def test_random_bytes_are_a_value_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert exactly_equal(unpack_value(pack_value(unpack_value(data))), unpack_value(data))


@given(st.integers(0, 13), st.binary(max_size=40))
def test_random_extensions_are_a_value_or_a_protocol_error(code: int, data: bytes) -> None:
    packed = msgspec.msgpack.encode([msgspec.msgpack.Ext(code, data)])
    with contextlib.suppress(ProtocolError):
        assert isinstance(unpack_value(packed), list)


class _Thing:
    pass


class _Point(NamedTuple):
    x: int


class _Color(enum.IntEnum):
    RED = 1


@dataclass
class _Record:
    x: int = 1


class _Meters(np.float64):
    pass


UNSENDABLE: list[Any] = [
    _Thing(),
    lambda: 1,
    range(3),
    _Point(1),
    _Color.RED,
    _Record(),
    _Meters(1.0),
    defaultdict(int),
    Counter("a"),
    torch.zeros(2),
    np.array([_Thing()], dtype=object),
    np.array([_Color.RED], dtype=object),
    np.ma.masked_array([1, 2], [True, False]),
    np.rec.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
    np.rec.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")])[0],
    np.asarray(np.rec.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")])),
    "\ud800",
]


@pytest.mark.parametrize("value", UNSENDABLE, ids=lambda value: type(value).__name__)
def test_value_that_would_need_code_is_refused(value: Any) -> None:
    with pytest.raises(NotSendable, match="can't be sent"):
        pack_value({"deep": [value]})


def test_value_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotSendable):
        pack_value(endless)


@pytest.mark.parametrize("value", UNSENDABLE, ids=lambda value: type(value).__name__)
def test_pack_info_leaves_out_what_cannot_be_sent_with_its_mask(value: Any) -> None:
    info = {"env": [value], "_env": np.ones(1, bool), "x": 1, "_private": 2}
    data, told = pack_info(info)
    assert list(told) == ["env"]
    assert told["env"].startswith("info['env'] is left out: ")
    assert unpack_value(data) == {"x": 1, "_private": 2}


def test_pack_info_leaves_out_only_the_part_of_a_nest() -> None:
    mask = np.ones(2, bool)
    camera = {"driver": _Thing(), "_driver": mask, "frames": 3, "lens": OrderedDict(glass=_Thing(), zoom=2.5)}
    data, told = pack_info({"camera": camera, "_camera": mask, "_driver": 7, _Color.RED: 1, 5: {"a": _Thing()}})
    assert list(told) == ["camera.driver", "camera.lens.glass", "<tests.wire.test_codec._Color>", "5.a"]
    assert told["camera.lens.glass"].startswith("info['camera']['lens']['glass'] is left out: a tests.")
    kept = {"frames": 3, "lens": OrderedDict(zoom=2.5)}
    assert exactly_equal(unpack_value(data), {"camera": kept, "_camera": mask, "_driver": 7, 5: {}})


def test_pack_info_keeps_what_is_no_mask_beside_what_is_left_out() -> None:
    data, _ = pack_info({"env": _Thing(), "_env": "a name"})
    assert unpack_value(data) == {"_env": "a name"}


def test_pack_info_sends_a_dict_of_another_class_as_a_plain_one_and_says_so() -> None:
    data, told = pack_info(defaultdict(int, lives=defaultdict(int, left=3), thing=_Thing()))
    assert exactly_equal(unpack_value(data), {"lives": {"left": 3}})
    assert list(told) == ["info", "lives", "thing"]
    assert told["lives"] == "info['lives'] is a collections.defaultdict, and arrives as a plain dict"


def test_pack_info_of_an_info_that_contains_itself_ends() -> None:
    info: dict[str, Any] = {"x": 1}
    info["self"] = {"info": info}
    data, told = pack_info(info)
    assert exactly_equal(unpack_value(data), {"x": 1, "self": {}})
    assert list(told) == ["self.info"]


def test_pack_info_that_is_no_dict_is_left_out_whole() -> None:
    data, told = pack_info(_Thing())
    assert unpack_value(data) == {}
    assert list(told) == ["info"]


def test_pack_info_of_sendable_values_leaves_nothing_out() -> None:
    data, told = pack_info({"x": np.float32(1)})
    assert told == {}
    assert exactly_equal(unpack_value(data), {"x": np.float32(1)})
