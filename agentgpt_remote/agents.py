"""Many agents in one environment: each by a stable text id, with an episode of its own.

Agents of one *behaviour* share their spaces, and by default their policy. Ids appear and vanish at any step. What an
environment answers is, for each behaviour, a :class:`Turn`: the agents that now need an action, and those whose episode
has just ended. An agent that does neither, because it decides at a slower pace or waits for its turn, is in none. One
whose episode ended and began anew in the same step is in both, with the final observation and the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidAction

Infos = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Behavior:
    """Agents that share their spaces.

    Attributes:
        name: of the behaviour.
        observation_space: of one agent.
        action_space: of one agent.
        mask_width: bools of an action mask: the sizes of all categorical columns together; 0 where there is no mask.
        agent_ids: ids that are known beforehand; more may appear.
    """

    name: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    mask_width: int = 0
    agent_ids: tuple[str, ...] = ()


class Acting(NamedTuple):
    """Agents of one behaviour that need an action, one row each.

    Attributes:
        agent_ids: n ids; actions are given in this order.
        observations: a batch (n, ...), or a list of n single ones where they don't fit their space exactly.
        rewards: float64 (n,): since the agent's row before.
        begins: bool (n,): the agent's episode begins with this observation.
        action_mask: bool (n, mask_width), True where allowed; None where everything is.
        infos: of those agents that have one.
    """

    agent_ids: tuple[str, ...]
    observations: Any
    rewards: NDArray[np.float64]
    begins: NDArray[np.bool_]
    action_mask: NDArray[np.bool_] | None
    infos: Infos


class Ended(NamedTuple):
    """Agents of one behaviour whose episode has ended, one row each.

    Attributes:
        agent_ids: n ids.
        observations: the final ones, as in :class:`Acting`.
        rewards: float64 (n,): since the agent's row before.
        terminated: bool (n,).
        truncated: bool (n,).
        infos: of those agents that have one.
    """

    agent_ids: tuple[str, ...]
    observations: Any
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    infos: Infos


class Turn(NamedTuple):
    """What a step brought for one behaviour."""

    acting: Acting
    ended: Ended


Turns = dict[str, Turn]


@runtime_checkable
class MultiAgentEnv(Protocol):
    """An environment of many agents.

    Attributes:
        behaviors: by name; behaviours may be added by any step, and none is removed.
        metadata: as of a Gymnasium environment.
        render_mode: as of a Gymnasium environment.
        is_over: whether no agent is left, nor will appear, before a reset.
    """

    behaviors: dict[str, Behavior]
    metadata: dict[str, Any]
    render_mode: str | None

    @property
    def is_over(self) -> bool:
        """Whether no agent is left, nor will appear, before a reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Begin anew and return who needs an action; nobody has ended."""

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Take actions and return what they brought.

        Args:
            actions: by behaviour: a batch, or a list of single actions, of those that needed one, in their order.
        """

    def render(self) -> Any:
        """Return a frame, or None."""

    def close(self) -> None:
        """End it; idempotent."""


@dataclass
class TurnRows:
    """Collects the rows of one behaviour, and makes a turn of them."""

    behavior: Behavior
    acting_ids: list[str] = field(default_factory=list)
    acting_obs: list[Any] = field(default_factory=list)
    acting_rewards: list[float] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)
    masks: list[NDArray[np.bool_] | None] = field(default_factory=list)
    acting_infos: Infos = field(default_factory=dict)
    ended_ids: list[str] = field(default_factory=list)
    ended_obs: list[Any] = field(default_factory=list)
    ended_rewards: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    ended_infos: Infos = field(default_factory=dict)

    def act(
        self, agent_id: str, obs: Any, reward: float, begins: bool, mask: NDArray[np.bool_] | None, info: dict[str, Any]
    ) -> None:
        """Add an agent that needs an action."""
        self.acting_ids.append(agent_id)
        self.acting_obs.append(obs)
        self.acting_rewards.append(reward)
        self.begins.append(begins)
        self.masks.append(mask)
        if info:
            self.acting_infos[agent_id] = info

    def end(
        self, agent_id: str, obs: Any, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        """Add an agent whose episode has ended."""
        self.ended_ids.append(agent_id)
        self.ended_obs.append(obs)
        self.ended_rewards.append(reward)
        self.terminated.append(terminated)
        self.truncated.append(truncated)
        if info:
            self.ended_infos[agent_id] = info

    def turn(self) -> Turn:
        """Return the rows as a turn."""
        space = self.behavior.observation_space
        acting = Acting(
            tuple(self.acting_ids),
            stack(space, self.acting_obs),
            np.array(self.acting_rewards, np.float64),
            np.array(self.begins, np.bool_),
            self._mask(),
            self.acting_infos,
        )
        ended = Ended(
            tuple(self.ended_ids),
            stack(space, self.ended_obs),
            np.array(self.ended_rewards, np.float64),
            np.array(self.terminated, np.bool_),
            np.array(self.truncated, np.bool_),
            self.ended_infos,
        )
        return Turn(acting, ended)

    def _mask(self) -> NDArray[np.bool_] | None:
        if all(mask is None for mask in self.masks):
            return None
        everything = np.ones(self.behavior.mask_width, np.bool_)
        return np.array([everything if mask is None else mask for mask in self.masks])


def stack(space: gym.Space[Any], values: list[Any]) -> Any:
    """Return values of a space as a batch (n, ...), or the list itself where one does not fit exactly."""
    if not values:
        return empty_batch(space)
    batch = _stacked(space, values)
    return values if batch is None else batch


def _stacked(space: gym.Space[Any], values: list[Any]) -> Any:
    if type(space) is gym.spaces.Dict:
        if not all(type(value) is dict and value.keys() == space.spaces.keys() for value in values):
            return None
        parts = {key: _stacked(part, [value[key] for value in values]) for key, part in space.spaces.items()}
        return None if any(part is None for part in parts.values()) else parts
    if type(space) is gym.spaces.Tuple:
        if not all(type(value) is tuple and len(value) == len(space.spaces) for value in values):
            return None
        columns = [_stacked(part, [value[i] for value in values]) for i, part in enumerate(space.spaces)]
        return None if any(part is None for part in columns) else tuple(columns)
    if type(space) not in _ARRAY_SPACES:
        return None
    scalar = type(space) is gym.spaces.Discrete
    kind, shape = (np.generic, ()) if scalar else (np.ndarray, space.shape)
    if not all(isinstance(one, kind) and one.dtype == space.dtype and one.shape == shape for one in values):
        return None
    return np.array(values, space.dtype)


_ARRAY_SPACES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


def empty_batch(space: gym.Space[Any]) -> Any:
    """Return a batch of no values."""
    try:
        return create_empty_array(space, 0)
    except (TypeError, ValueError):  # spaces without batches
        return []


def count_rows(batch: Any) -> int:
    """Return how many values a batch or a list holds."""
    while isinstance(batch, dict | tuple):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch)


def row_of(batch: Any, index: int) -> Any:
    """Return one value of a batch or a list."""
    if isinstance(batch, dict):
        return {key: row_of(part, index) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(row_of(part, index) for part in batch)
    return batch[index]


def rows_of(batch: Any) -> list[Any]:
    """Return the values of a batch or a list, one by one."""
    return batch if isinstance(batch, list) else [row_of(batch, index) for index in range(count_rows(batch))]


def take_rows(batch: Any, indices: Sequence[int] | NDArray[Any]) -> Any:
    """Return a batch or a list of some of the values."""
    if isinstance(batch, dict):
        return {key: take_rows(part, indices) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(take_rows(part, indices) for part in batch)
    if isinstance(batch, list):
        return [batch[index] for index in indices]
    return batch[np.asarray(indices, np.intp)]


def empty_turn(behavior: Behavior) -> Turn:
    """Return a turn in which nobody needs an action and nobody has ended."""
    return TurnRows(behavior).turn()


def check_counts(behaviors: Mapping[str, Behavior], needed: Mapping[str, Sequence[str]], actions: Any) -> None:
    """Check that there is an action for each agent that needs one, and for no other.

    Args:
        behaviors: of the environment.
        needed: ids of the agents that need an action, by behaviour.
        actions: as for :meth:`MultiAgentEnv.step`.

    Raises:
        InvalidAction: names the behaviour, what it got and who needs an action.
    """
    for name in actions:
        if name not in behaviors:
            raise InvalidAction(f"actions hold behaviour {name!r}: expected some of {sorted(behaviors)}")
    for name, ids in needed.items():
        got = count_rows(actions[name]) if name in actions else 0
        if got != len(ids):
            shown = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
            raise InvalidAction(
                f"behaviour {name!r} got {got} actions: expected {len(ids)}, for the agents that need one now ({shown})"
            )
