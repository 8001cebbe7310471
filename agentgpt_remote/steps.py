"""Actions, steps and resets of a session as messages: raw buffers, and a packed value only where one is needed.

A reply to a step holds the observation's raw layout, then rewards (float64) and, for vector envs,
terminations and truncations (one byte each). Infos ride behind as a packed value and cost nothing when
empty. What does not match the spaces exactly (a Python list as an action, a float32 reward), and what has no
fixed layout (Text, Sequence, Graph and OneOf, in any nest), rides in the packed value as a whole, so that
nothing is ever cast. Where parts of an info can't be sent, the packed value holds a sentence for each.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from typing import Any, Final, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from agentgpt_remote.codec import DOES_NOT_FIT, NUMPY_SCALARS, PYTHON_INTS, Layout
from agentgpt_remote.errors import InvalidAction, NotSendable, ProtocolError
from agentgpt_remote.packing import pack_info, pack_value, unpack_value
from agentgpt_remote.protocol import HEADER_BYTES, Envelope

TERMINATED: Final = 1
TRUNCATED: Final = 2
INTS: Final = 4  # Discrete values are Python ints, not numpy scalars
IRREGULAR: Final = 8  # the packed value holds everything
DROPPED: Final = 16  # the packed value also tells what of the infos could not be sent
_REWARD_SHIFT: Final = 6
_REWARD_TYPES: Final[tuple[type[Any], ...]] = (float, np.float64, int, np.float32)
_REWARD_BITS: Final = {kind: index << _REWARD_SHIFT for index, kind in enumerate(_REWARD_TYPES)}
_REWARD: Final = struct.Struct("<d")
_MAX_EXACT_INT: Final = 2**53

DroppedCallback = Callable[[dict[str, str]], None]
Payload = tuple[list[Any], int, bytes]  # raw buffers, flags, packed value


class StepCodec(Protocol):
    """Both ends' view of what a session's messages hold."""

    def encode_actions(self, actions: Any) -> Payload:
        """Return the payload of a step request."""

    def decode_actions(self, envelope: Envelope) -> Any:
        """Return the actions of a step request."""

    def encode_step(self, step: tuple[Any, Any, Any, Any, Any]) -> Payload:
        """Return the payload of the reply to a step."""

    def decode_step(self, envelope: Envelope) -> Any:
        """Return observation, reward, terminated, truncated and info."""

    def encode_reset(self, reset: tuple[Any, Any]) -> Payload:
        """Return the payload of the reply to a reset."""

    def decode_reset(self, envelope: Envelope) -> Any:
        """Return observation and info."""


class WarnOnce:
    """Warns of each part of infos that could not be sent, the first time that it is told."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, told: dict[str, str]) -> None:
        """Take what is told of an info."""
        for place, text in told.items():
            if place not in self._warned:
                self._warned.add(place)
                warnings.warn(text, stacklevel=2)


class _Infos:
    """Infos behind the raw buffers; tells of the parts that the host could not send, or warns once for each."""

    def __init__(self, on_dropped: DroppedCallback | None) -> None:
        self._on_dropped = on_dropped or WarnOnce()
        self._passed_on: dict[str, str] = {}

    def tell(self, callback: DroppedCallback) -> None:
        self._on_dropped = callback

    def pass_on(self, told: dict[str, str]) -> None:
        self._passed_on |= told

    def _pack(self, info: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        data, told = pack_info(info)
        if self._passed_on:
            told, self._passed_on = {**self._passed_on, **told}, {}
        return data, told

    def encode(self, info: dict[str, Any]) -> tuple[int, bytes]:
        if not info and not self._passed_on:
            return 0, b""
        data, told = self._pack(info)
        return (DROPPED, pack_value([data, told])) if told else (0, data)

    def decode(self, envelope: Envelope) -> dict[str, Any]:
        if not envelope.extras:
            return {}
        if envelope.flags & DROPPED:
            data, told = _unpack(envelope, 2)
            self._on_dropped(_checked(told))
            info = unpack_value(data)
        else:
            info = unpack_value(envelope.extras_data)
        if type(info) is not dict:
            raise ProtocolError(f"an info is a {type(info).__name__}, expected a dict")
        return info

    def encode_irregular(self, values: tuple[Any, ...]) -> Payload:
        """Return the payload of a reply as a whole.

        Raises:
            NotSendable: what is beside the info holds a value that can't be sent.
        """
        *rest, info = values
        data, told = self._pack(info)
        try:
            return [], IRREGULAR, pack_value([rest, data, told])
        except NotSendable as error:
            raise NotSendable(f"the observation or the reward can't be sent: {error}") from error

    def decode_irregular(self, envelope: Envelope, count: int) -> tuple[Any, ...]:
        rest, data, told = _unpack(envelope, 3)
        if type(rest) is not list or len(rest) != count - 1:
            raise ProtocolError(f"a reply does not hold {count} values")
        self._on_dropped(_checked(told))
        return (*rest, unpack_value(data))


def _checked(told: Any) -> dict[str, str]:
    if type(told) is not dict:
        raise ProtocolError(f"what is told of an info is a {type(told).__name__}, expected a dict")
    return told


def _unpack(envelope: Envelope, count: int) -> list[Any]:
    values = unpack_value(envelope.extras_data)
    if type(values) is not list or len(values) != count:
        raise ProtocolError(f"a packed value does not hold {count} parts")
    return values


class _Codec:
    """What the codecs of single and of vector environments share."""

    _infos: _Infos

    def tell_dropped(self, callback: DroppedCallback) -> None:
        """Have ``callback`` told the parts of received infos that could not be sent, instead of a warning."""
        self._infos.tell(callback)

    def pass_on_dropped(self, told: dict[str, str]) -> None:
        """Tell, with the next info that is encoded, what could not be sent to this process either."""
        self._infos.pass_on(told)


class EnvCodec(_Codec):
    """Messages of a single environment.

    Args:
        observation_space: its observation space.
        action_space: its action space.
        on_dropped: is told the parts of infos that the host could not send, with a sentence each, instead of a warning.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        on_dropped: DroppedCallback | None = None,
    ) -> None:
        self._observations, self._actions = Layout(observation_space), Layout(action_space)
        self._reward_at = HEADER_BYTES + self._observations.nbytes(1)
        self._infos = _Infos(on_dropped)

    def encode_actions(self, actions: Any) -> Payload:
        """Return the payload of a step request.

        Raises:
            InvalidAction: the action is of a type that can't be sent.
        """
        parts: list[Any] = []
        kind = self._actions.one_parts(actions, parts)
        if kind != DOES_NOT_FIT:
            return parts, INTS if kind == PYTHON_INTS else 0, b""
        return [], IRREGULAR, _pack_action(actions)

    def decode_actions(self, envelope: Envelope) -> Any:
        """Return the action of a step request."""
        if envelope.flags & IRREGULAR:
            return unpack_value(envelope.extras_data)
        return self._actions.decode_one(envelope.data, HEADER_BYTES, _scalars(envelope), copy=True)

    def encode_step(self, step: tuple[Any, Any, Any, Any, Any]) -> Payload:
        """Return the payload of the reply to a step; the flags of the env become Python bools."""
        observation, reward, terminated, truncated, info = step
        parts: list[Any] = []
        scalars = self._observations.one_parts(observation, parts)
        reward_bits = _REWARD_BITS.get(type(reward), -1)
        exact = type(reward) is not int or -_MAX_EXACT_INT <= reward <= _MAX_EXACT_INT
        if scalars == DOES_NOT_FIT or reward_bits < 0 or not exact or type(info) is not dict:
            return self._infos.encode_irregular((observation, reward, bool(terminated), bool(truncated), info))
        parts.append(_REWARD.pack(reward))
        flags, extras = self._infos.encode(info)
        flags |= reward_bits | (INTS if scalars == PYTHON_INTS else 0)
        if terminated:
            flags |= TERMINATED
        if truncated:
            flags |= TRUNCATED
        return parts, flags, extras

    def decode_step(self, envelope: Envelope) -> Any:
        """Return observation, reward, terminated, truncated and info."""
        flags = envelope.flags
        if flags & IRREGULAR:
            return self._infos.decode_irregular(envelope, 5)
        observation = self._observations.decode_one(envelope.data, HEADER_BYTES, _scalars(envelope))
        reward: Any = _REWARD.unpack_from(envelope.data, self._reward_at)[0]
        reward_type = flags >> _REWARD_SHIFT
        if reward_type:
            reward = _REWARD_TYPES[reward_type](reward)
        info = self._infos.decode(envelope) if envelope.extras else {}
        return observation, reward, bool(flags & TERMINATED), bool(flags & TRUNCATED), info

    def encode_reset(self, reset: tuple[Any, Any]) -> Payload:
        """Return the payload of the reply to a reset."""
        observation, info = reset
        parts: list[Any] = []
        scalars = self._observations.one_parts(observation, parts)
        if scalars == DOES_NOT_FIT or type(info) is not dict:
            return self._infos.encode_irregular(reset)
        flags, extras = self._infos.encode(info)
        return parts, flags | (INTS if scalars == PYTHON_INTS else 0), extras

    def decode_reset(self, envelope: Envelope) -> Any:
        """Return observation and info."""
        if envelope.flags & IRREGULAR:
            return self._infos.decode_irregular(envelope, 2)
        observation = self._observations.decode_one(envelope.data, HEADER_BYTES, _scalars(envelope))
        return observation, self._infos.decode(envelope)


class VectorCodec(_Codec):
    """Messages of a vector environment: one each way for all its environments.

    Args:
        single_observation_space: observation space of one environment.
        single_action_space: action space of one environment.
        num_envs: how many there are.
        on_dropped: as for :class:`EnvCodec`.
    """

    def __init__(
        self,
        single_observation_space: gym.Space[Any],
        single_action_space: gym.Space[Any],
        num_envs: int,
        on_dropped: DroppedCallback | None = None,
    ) -> None:
        self._observations, self._actions = Layout(single_observation_space), Layout(single_action_space)
        self._action_space = single_action_space
        self._n = num_envs
        self._rewards_at = HEADER_BYTES + self._observations.nbytes(num_envs)
        self._infos = _Infos(on_dropped)

    def encode_actions(self, actions: Any) -> Payload:
        """Return the payload of a step request.

        Raises:
            InvalidAction: there is not one action for each environment, or one is of a type that can't be sent.
        """
        parts: list[Any] = []
        if self._actions.batch_parts(actions, self._n, parts):
            return parts, 0, b""
        check_count(self._action_space, actions, self._n)
        return [], IRREGULAR, _pack_action(actions)

    def decode_actions(self, envelope: Envelope) -> Any:
        """Return the batched actions of a step request."""
        if envelope.flags & IRREGULAR:
            return unpack_value(envelope.extras_data)
        return self._actions.decode_batch(envelope.data, HEADER_BYTES, self._n, copy=True)

    def encode_step(self, step: tuple[Any, Any, Any, Any, Any]) -> Payload:
        """Return the payload of the reply to a step."""
        observations, rewards, terminations, truncations, infos = step
        parts: list[Any] = []
        fits = (
            self._observations.batch_parts(observations, self._n, parts)
            and self._is(rewards, np.float64)
            and self._is(terminations, np.bool_)
            and self._is(truncations, np.bool_)
            and type(infos) is dict
        )
        if not fits:
            return self._infos.encode_irregular(step)
        parts += (rewards.tobytes(), terminations.tobytes(), truncations.tobytes())
        flags, extras = self._infos.encode(infos)
        return parts, flags, extras

    def _is(self, array: Any, dtype: type[np.generic]) -> bool:
        return type(array) is np.ndarray and array.dtype == dtype and array.shape == (self._n,)

    def decode_step(self, envelope: Envelope) -> Any:
        """Return observations, rewards, terminations, truncations and infos."""
        if envelope.flags & IRREGULAR:
            return self._infos.decode_irregular(envelope, 5)
        n, data, start = self._n, envelope.data, self._rewards_at
        observations = self._observations.decode_batch(data, HEADER_BYTES, n)
        rewards = np.frombuffer(data, np.float64, n, start).copy()
        terminations = np.frombuffer(data, np.bool_, n, start + 8 * n).copy()
        truncations = np.frombuffer(data, np.bool_, n, start + 9 * n).copy()
        infos = self._infos.decode(envelope) if envelope.extras else {}
        return observations, rewards, terminations, truncations, infos

    def encode_reset(self, reset: tuple[Any, Any]) -> Payload:
        """Return the payload of the reply to a reset."""
        observations, infos = reset
        parts: list[Any] = []
        if not self._observations.batch_parts(observations, self._n, parts) or type(infos) is not dict:
            return self._infos.encode_irregular(reset)
        flags, extras = self._infos.encode(infos)
        return parts, flags, extras

    def decode_reset(self, envelope: Envelope) -> Any:
        """Return observations and infos."""
        if envelope.flags & IRREGULAR:
            return self._infos.decode_irregular(envelope, 2)
        return self._observations.decode_batch(envelope.data, HEADER_BYTES, self._n), self._infos.decode(envelope)


def check_count(space: gym.Space[Any], batch: Any, n: int, where: str = "actions") -> None:
    """Check that a batch of values of ``space`` holds one for each of ``n`` environments.

    Raises:
        InvalidAction: it does not.
    """
    if isinstance(space, spaces.Dict) and isinstance(batch, dict):
        for key in batch.keys() & space.spaces.keys():
            check_count(space.spaces[key], batch[key], n, f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple) and isinstance(batch, tuple) and len(batch) == len(space.spaces):
        for index, (subspace, part) in enumerate(zip(space.spaces, batch, strict=True)):
            check_count(subspace, part, n, f"{where}[{index}]")
    else:
        is_batch = batch.ndim > 0 if isinstance(batch, np.ndarray) else hasattr(batch, "__len__")
        count = len(batch) if is_batch else None
        if count != n:
            held = "a single value" if count is None else f"{count} values"
            raise InvalidAction(f"{where} holds {held}, expected one for each of {n} environments")


def make_codec(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    num_envs: int | None,
    on_dropped: DroppedCallback | None = None,
) -> EnvCodec | VectorCodec:
    """Return the codec of a session: of a vector env where ``num_envs`` is given (spaces of one env)."""
    if num_envs is None:
        return EnvCodec(observation_space, action_space, on_dropped)
    return VectorCodec(observation_space, action_space, num_envs, on_dropped)


def _scalars(envelope: Envelope) -> int:
    return PYTHON_INTS if envelope.flags & INTS else NUMPY_SCALARS


def _pack_action(actions: Any) -> bytes:
    try:
        return pack_value(actions)
    except NotSendable as error:
        raise InvalidAction(f"the action can't be sent: {error}") from error
