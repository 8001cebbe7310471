"""Actions, steps and resets survive their messages exactly, whatever their spaces and infos."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, GraphInstance, MultiBinary, OneOf, Sequence, Text, Tuple
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgpt_remote.errors import InvalidAction, NotSendable, ProtocolError
from agentgpt_remote.packing import pack_value
from agentgpt_remote.protocol import Envelope, Kind, join_message, parse_envelope
from agentgpt_remote.steps import IRREGULAR, EnvCodec, Payload, VectorCodec
from tests.wire.equality import exactly_equal
from tests.wire.space_strategies import generated_spaces
from tests.wire.spaces_samples import SAMPLED_SPACES

NUM_ENVS = 3
INFOS: list[dict[str, Any]] = [
    {},
    {"text": "so", "nothing": None, "deep": {"array": np.arange(3), "list": [1, (2.5, True)], "deeper": {"": {}}}},
    {"scalar": np.float32(0.1), "flag": np.bool_(True), "name": np.str_("a"), "when": np.datetime64("2024-05-06")},
    {"ordered": OrderedDict(z=1, a={2: "two"}), "nan": np.array([np.nan, -0.0])},
]


def _message(payload: Payload) -> Envelope:
    parts, flags, extras = payload
    return parse_envelope(bytearray(join_message(Kind.STEP, 1, parts, flags=flags, extras=extras)))


def _check_one(space: gym.Space[Any], info: dict[str, Any]) -> None:
    codec, other = EnvCodec(space, space), EnvCodec(space, space)
    space.seed(1)
    for _ in range(3):
        value = space.sample()
        step = (value, 0.5, True, False, info)
        assert exactly_equal(other.decode_step(_message(codec.encode_step(step))), step)
        assert exactly_equal(other.decode_reset(_message(codec.encode_reset((value, info)))), (value, info))
        assert exactly_equal(other.decode_actions(_message(codec.encode_actions(value))), value)


def _batches(space: gym.Space[Any], n: int) -> list[Any]:
    """Return a batch as a vector environment's observations, and one as a sample of its action space."""
    space.seed(1)
    batched = batch_space(space, n)
    batched.seed(2)
    return [concatenate(space, [space.sample() for _ in range(n)], create_empty_array(space, n)), batched.sample()]


def _check_batch(space: gym.Space[Any], infos: dict[str, Any], n: int) -> None:
    codec, other = VectorCodec(space, space, n), VectorCodec(space, space, n)
    flags = np.arange(n) % 2 == 0
    for values in _batches(space, n):
        step = (values, np.arange(n) * 0.1, flags, ~flags, infos)
        assert exactly_equal(other.decode_step(_message(codec.encode_step(step))), step)
        assert exactly_equal(other.decode_reset(_message(codec.encode_reset((values, infos)))), (values, infos))
        assert exactly_equal(other.decode_actions(_message(codec.encode_actions(values))), values)


@pytest.mark.parametrize("space", SAMPLED_SPACES, ids=str)
def test_values_of_every_space_are_exact(space: gym.Space[Any]) -> None:
    _check_one(space, INFOS[1])


@pytest.mark.parametrize("n", [1, 2, NUM_ENVS])
@pytest.mark.parametrize("space", SAMPLED_SPACES, ids=str)
def test_batches_of_every_space_are_exact(space: gym.Space[Any], n: int) -> None:
    _check_batch(space, INFOS[1], n)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(generated_spaces, st.sampled_from(INFOS), st.integers(1, NUM_ENVS))
def test_values_of_any_space_are_exact(space: gym.Space[Any], info: dict[str, Any], n: int) -> None:
    _check_one(space, info)
    _check_batch(space, info, n)


class _Collecting(VectorEnv[Any, Any, Any]):
    """Puts infos of single environments together, as every vector environment does."""

    num_envs = NUM_ENVS

    def collect(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        collected: dict[str, Any] = {}
        for index, info in enumerate(infos):
            collected = self._add_info(collected, info, index)
        return collected


@pytest.mark.parametrize("space", SAMPLED_SPACES, ids=str)
def test_infos_of_a_vector_are_exact(space: gym.Space[Any]) -> None:
    finals = [{"final_obs": space.sample(), "final_info": info, "lives": index} for index, info in enumerate(INFOS)]
    infos = _Collecting().collect([finals[1], {}, finals[2]])
    assert {"final_info", "_final_info", "final_obs", "_final_obs", "lives", "_lives"} == infos.keys()
    _check_batch(Discrete(3), infos, NUM_ENVS)
    older = np.empty(NUM_ENVS, dtype=object)
    older[0], older[2] = space.sample(), {"count": np.int64(3), "last": space.sample()}
    _check_batch(Discrete(3), {"final_obs": older, "_final_obs": np.array([True, False, True])}, NUM_ENVS)


class _Thing:
    pass


def test_info_that_cannot_be_sent_is_left_out_with_one_warning_for_each_place() -> None:
    space = Discrete(2)
    codec, other = EnvCodec(space, space), EnvCodec(space, space)
    info = {"x": 1, "thing": _Thing(), "deep": {"y": (2,), "thing": _Thing()}}
    kept = {"x": 1, "deep": {"y": (2,)}}
    with pytest.warns(UserWarning, match="is left out") as caught:
        assert exactly_equal(other.decode_reset(_message(codec.encode_reset((1, info)))), (1, kept))
    texts = [str(warning.message) for warning in caught]
    assert [text.partition(" is")[0] for text in texts] == ["info['thing']", "info['deep']['thing']"]
    assert all("test_steps._Thing can't be sent: expected numbers" in text for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (1, "irregular"):
            step = (value, 0.5, False, False, info)
            assert exactly_equal(other.decode_step(_message(codec.encode_step(step))), (*step[:4], kept))


def test_info_left_out_is_told_to_who_asks() -> None:
    told: dict[str, str] = {}
    space = Text(3)
    codec = VectorCodec(space, space, 1, told.update)
    infos = {"thing": np.array([_Thing()], object), "_thing": np.ones(1, bool)}
    assert codec.decode_reset(_message(codec.encode_reset((("a",), infos)))) == (("a",), {})
    assert list(told) == ["thing"]


@pytest.mark.parametrize("codec", [EnvCodec(Discrete(2), Discrete(2)), VectorCodec(Discrete(2), Discrete(2), 1)])
def test_observation_that_cannot_be_sent_is_an_error_that_says_so(codec: EnvCodec | VectorCodec) -> None:
    with pytest.raises(NotSendable, match=r"the observation or the reward can't be sent: .*_Thing"):
        codec.encode_reset((_Thing(), {}))


@pytest.mark.parametrize("value", [None, [1], [1, 2, {}], [[1], b"", {}], [[1, 2, 3, 4], pack_value({}), ["a"]]])
def test_malformed_reply_is_a_protocol_error(value: Any) -> None:
    for codec in (EnvCodec(Text(3), Text(3)), VectorCodec(Text(3), Text(3), 1)):
        with pytest.raises(ProtocolError):
            codec.decode_step(_message(([], IRREGULAR, pack_value(value))))


@pytest.mark.parametrize("space", SAMPLED_SPACES, ids=str)
def test_actions_of_another_number_are_refused(space: gym.Space[Any]) -> None:
    codec = VectorCodec(space, space, NUM_ENVS)
    for n in (NUM_ENVS - 1, NUM_ENVS + 1):
        for actions in _batches(space, n):
            with pytest.raises(InvalidAction, match=rf"holds {n} values, expected one for each of {NUM_ENVS}"):
                codec.encode_actions(actions)


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (Text(3), "abcd", "actions holds 4 values"),
        (Text(3), None, "actions holds a single value"),
        (Graph(Discrete(2), None), (GraphInstance(np.zeros(3), None, None),), "actions holds 1 values"),
        (Dict({"a": Text(3), "b": Discrete(2)}), {"a": ("a",), "b": np.zeros(3)}, r"actions\['a'\] holds 1 values"),
        (Tuple((Text(3), MultiBinary(1))), (("a",) * 3, np.zeros((2, 1))), r"actions\[1\] holds 2 values"),
        (OneOf([Discrete(2)]), (0, 1), "actions holds 2 values"),
        (Sequence(Discrete(2)), ((), (1,)), "actions holds 2 values"),
        (Sequence(Box(0, 1, (2,)), stack=True), np.zeros((2, 2)), "actions holds 2 values"),
    ],
)
def test_actions_that_are_not_one_for_each_name_their_place(space: gym.Space[Any], actions: Any, message: str) -> None:
    with pytest.raises(InvalidAction, match=message):
        VectorCodec(space, space, NUM_ENVS).encode_actions(actions)


def test_actions_stay_as_the_caller_has_them() -> None:
    space = Dict({"name": Text(3), "graph": Graph(Box(-1, 1, (2,)), Discrete(2))})
    actions = batch_space(space, NUM_ENVS).sample()
    before = copy.deepcopy(actions)
    codec = VectorCodec(space, space, NUM_ENVS)
    arrived = codec.decode_actions(_message(codec.encode_actions(actions)))
    assert exactly_equal(actions, before)
    batched = batch_space(space, NUM_ENVS)
    for one, other in zip(iterate(batched, arrived), iterate(batched, before), strict=True):
        assert exactly_equal(one, other)
        one["graph"].nodes[:] = 7  # arrays of a message are writable
