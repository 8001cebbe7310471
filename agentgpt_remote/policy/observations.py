"""Observations as users hand them over, checked and batched for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidObservation
from agentgpt_remote.jsonable import cast_exactly


def batch_observations(space: Space[Any], observations: Any, agent_ids: Sequence[str]) -> Any:
    """Return observations as the batched space holds them, each checked.

    Args:
        space: space of one agent's observation.
        observations: one entry per agent id: a list of single observations, or what a vector environment
            returns (an array, or a dict or tuple of arrays, with a leading axis of that length).
        agent_ids: whose they are; named in errors.

    Raises:
        InvalidObservation: a wrong number, shape, key, dtype, a category out of range, or a value that is not finite.
    """
    if isinstance(observations, list | np.ndarray) and len(observations) != len(agent_ids):
        raise InvalidObservation(f"got {len(observations)} observations for {len(agent_ids)} agents: expected one each")
    batch = _batch(space, observations, len(agent_ids), "observation")
    check_observations(space, batch, agent_ids)
    return batch


def _batch(space: Space[Any], value: Any, n: int, where: str) -> Any:
    if isinstance(space, spaces.Dict):
        if isinstance(value, dict):
            _check_keys(space, value, where)
            return {key: _batch(child, value[key], n, f"{where}[{key!r}]") for key, child in space.spaces.items()}
        rows = _rows(value, n, where, dict, "a dict")
        for row in rows:
            _check_keys(space, row, where)
        return {
            key: _batch(child, [row[key] for row in rows], n, f"{where}[{key!r}]")
            for key, child in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        if isinstance(value, tuple):
            _check_length(space, value, where)
            return tuple(_batch(child, value[i], n, f"{where}[{i}]") for i, child in enumerate(space.spaces))
        rows = _rows(value, n, where, tuple, "a tuple")
        for row in rows:
            _check_length(space, row, where)
        return tuple(
            _batch(child, [row[i] for row in rows], n, f"{where}[{i}]") for i, child in enumerate(space.spaces)
        )
    return _array(space, value, n, where)


def _rows(value: Any, n: int, where: str, kind: type, noun: str) -> Any:
    if isinstance(value, list | np.ndarray) and len(value) == n and all(isinstance(row, kind) for row in value):
        return value
    raise InvalidObservation(
        f"{where} is a {type(value).__name__}: expected {noun} of batched values, or a list of {n}"
    )


def _check_keys(space: spaces.Dict, value: dict[str, Any], where: str) -> None:
    if value.keys() != space.spaces.keys():
        raise InvalidObservation(f"{where} has the keys {sorted(value)}: expected {sorted(space.spaces)}")


def _check_length(space: spaces.Tuple[Any], value: tuple[Any, ...], where: str) -> None:
    if len(value) != len(space.spaces):
        raise InvalidObservation(f"{where} is a tuple of {len(value)}: expected {len(space.spaces)}")


def _array(space: Space[Any], value: Any, n: int, where: str) -> NDArray[Any]:
    shape, dtype = (n, *(space.shape or ())), np.dtype(space.dtype)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidObservation(f"{where} has rows of different shapes: expected an array of shape {shape}") from error
    if array.shape != shape:
        raise InvalidObservation(
            f"{where} has shape {array.shape}: expected {shape}, one row of shape {shape[1:]} per agent"
        )
    return cast_exactly(array, dtype, where, InvalidObservation)


def check_observations(space: Space[Any], batch: Any, agent_ids: Sequence[str], where: str = "observation") -> None:
    """Check values that already have the right shape and dtype.

    Raises:
        InvalidObservation: a value is not finite, or a category is out of range; names the agent.
    """
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            check_observations(child, batch[key], agent_ids, f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            check_observations(child, batch[index], agent_ids, f"{where}[{index}]")
    elif isinstance(space, spaces.Discrete):
        low = int(space.start)
        _check_range(batch, low, low + int(space.n) - 1, agent_ids, where)
    elif isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(getattr(space, "start", 0))
        _check_range(batch, start, start + space.nvec - 1, agent_ids, where)
    elif isinstance(space, spaces.MultiBinary):
        _check_range(batch, 0, 1, agent_ids, where)
    elif batch.dtype.kind == "f" and not np.isfinite(batch).all():
        agent, value = _first(~np.isfinite(batch), batch)
        raise InvalidObservation(f"{where} of agent {agent_ids[agent]!r} holds {value}: expected finite numbers")


def _check_range(batch: NDArray[Any], low: Any, high: Any, agent_ids: Sequence[str], where: str) -> None:
    wrong = (batch < low) | (batch > high)
    if wrong.any():
        agent, value = _first(wrong, batch)
        raise InvalidObservation(f"{where} of agent {agent_ids[agent]!r} holds {value}: expected {low} to {high}")


def _first(wrong: NDArray[np.bool_], batch: NDArray[Any]) -> tuple[int, Any]:
    index = tuple(np.argwhere(wrong)[0])
    return int(index[0]), batch[index]


def is_single(space: Space[Any], observation: Any) -> bool:
    """Tell whether a value is one observation rather than a batch of them, judged by its first leaf's shape."""
    if isinstance(space, spaces.Dict) and isinstance(observation, dict) and space.spaces:
        key, child = next(iter(space.spaces.items()))
        return key in observation and is_single(child, observation[key])
    if isinstance(space, spaces.Tuple) and isinstance(observation, tuple) and space.spaces:
        return len(observation) > 0 and is_single(space.spaces[0], observation[0])
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return False
    return np.ndim(observation) == len(space.shape or ())


def first_of(action_space: Space[Any], batch: Any) -> Any:
    """Return the action of the first agent in a batch, as the action space holds it."""
    if isinstance(action_space, spaces.Dict):
        return {key: first_of(child, batch[key]) for key, child in action_space.spaces.items()}
    if isinstance(action_space, spaces.Tuple):
        return tuple(first_of(child, batch[index]) for index, child in enumerate(action_space.spaces))
    return batch[0]


def as_batch_of_one(space: Space[Any], observation: Any) -> Any:
    """Return one observation as a batch with a leading axis of length one."""
    if isinstance(space, spaces.Dict) and isinstance(observation, dict):
        return {
            key: as_batch_of_one(space.spaces[key], v) if key in space.spaces else v for key, v in observation.items()
        }
    if isinstance(space, spaces.Tuple) and isinstance(observation, tuple):
        _check_length(space, observation, "observation")
        return tuple(as_batch_of_one(child, v) for child, v in zip(space.spaces, observation, strict=True))
    return np.asarray(observation)[None]
