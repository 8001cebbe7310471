"""The state of environments in this process, as the actions that lead to it.

An environment's state can't be read in general, and unpickling one would run code. What can be kept as plain
numbers is how it came about: the random generator before the episode's reset, and the actions since. Taking
them again leads to the same state where the environment is deterministic, which is checked.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

MAX_RECORDED_STEPS = 100_000
MAX_RECORDED_VALUES = 2**24  # numbers of all environments' actions
_GENERATORS: dict[str, Callable[[], np.random.BitGenerator]] = {
    kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.SFC64)
}
logger = logging.getLogger("agentgpt_remote.trainer")


class EpisodeRecorder:
    """Records the running episodes of a :class:`gymnasium.vector.SyncVectorEnv` under NEXT_STEP autoreset.

    Args:
        envs: the environments.
    """

    def __init__(self, envs: SyncVectorEnv) -> None:
        self._envs = envs
        self._seeds: list[int] = []
        self._generators: list[dict[str, Any] | None] = [None] * envs.num_envs
        values = max(1, flatdim(envs.action_space))
        self._actions: deque[Any] = deque(maxlen=max(1, min(MAX_RECORDED_STEPS, MAX_RECORDED_VALUES // values)))
        self._count = 0  # actions so far; the last one recorded has the number count - 1
        self._begin = np.zeros(envs.num_envs, np.int64)
        self._ended = np.zeros(envs.num_envs, np.bool_)

    @classmethod
    def of(cls, envs: VectorEnv[Any, Any, Any]) -> Self | None:
        """Return a recorder, or None where the environments can't be stepped one by one from here."""
        # A subclass or a wrapper may hold state of its own, which nothing here would restore.
        known = type(envs) is SyncVectorEnv and envs.autoreset_mode is AutoresetMode.NEXT_STEP
        return cls(envs) if known and hasattr(envs, "_autoreset_envs") else None  # type: ignore[arg-type]

    def reset(self, seed: int) -> None:
        """Note a reset of all environments; number i gets the seed ``seed + i``."""
        self._seeds = [seed + index for index in range(self._envs.num_envs)]
        self._generators = [None] * self._envs.num_envs
        self._actions.clear()
        self._count = 0
        self._begin[:] = 0
        self._ended[:] = False

    def before_step(self, actions: Any) -> None:
        """Note what is about to be taken."""
        for index in np.flatnonzero(self._ended):  # this step resets them
            self._generators[index] = _generator_state(self._envs.envs[index])
        self._begin[self._ended] = self._count + 1
        self._actions.append(actions)
        self._count += 1

    def after_step(self, ended: NDArray[np.bool_]) -> None:
        """Note which episodes ended."""
        self._ended = ended.copy()
        oldest = int(self._begin.min())
        while self._actions and self._count - len(self._actions) < oldest:
            self._actions.popleft()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the episodes as tensors and numbers; None where one is too long to be kept."""
        first = self._count - len(self._actions)
        now = [_generator_state(env) for env in self._envs.envs]
        if not self._seeds or int(self._begin.min()) < first or None in now:
            return None
        return {
            "seeds": self._seeds,
            "generators": self._generators,
            "now": now,
            "begin": (self._begin - first).tolist(),
            "ended": self._ended.tolist(),
            "steps": len(self._actions),
            "actions": _stack(list(self._actions)) if self._actions else None,
        }

    def restore(self, state: dict[str, Any], is_same: Callable[[Any], bool]) -> bool:
        """Take the episodes' actions again in environments that are new.

        Args:
            state: what ``state_dict`` returned.
            is_same: whether batched observations are those that the run was left at.

        Returns:
            Whether all environments are where they were; where not, they need a reset.
        """
        if len(state["seeds"]) != self._envs.num_envs:
            return False
        try:
            observations = self._replay(state)
        except Exception as error:  # noqa: BLE001 - an environment that changed may raise anything
            logger.warning("the running episodes can't be repeated: %s: %s", type(error).__name__, error)
            return False
        space = self._envs.single_observation_space
        empty: Any = create_empty_array(space, self._envs.num_envs)
        batch = concatenate(space, observations, empty)
        if not is_same(batch) or [_generator_state(env) for env in self._envs.envs] != state["now"]:
            return False
        self._seeds, self._generators = list(state["seeds"]), list(state["generators"])
        self._begin, self._count = np.asarray(state["begin"], np.int64), int(state["steps"])
        self._ended = np.asarray(state["ended"], np.bool_)
        self._actions.clear()
        self._actions.extend(_row(state["actions"], step) for step in range(self._count))
        self._envs._autoreset_envs = self._ended.copy()
        return True

    def _replay(self, state: dict[str, Any]) -> list[Any]:
        """Reset and step each environment on its own; return the latest observations."""
        observations = []
        for env, seed, generator in zip(self._envs.envs, state["seeds"], state["generators"], strict=True):
            observation, _ = env.reset(seed=seed)
            if generator is not None:
                env.unwrapped.np_random = _make_generator(generator)
                observation, _ = env.reset()
            observations.append(observation)
        for step in range(int(state["steps"])):
            actions = iterate(self._envs.action_space, _row(state["actions"], step))
            for index, action in enumerate(actions):
                if step >= state["begin"][index]:
                    observations[index] = self._envs.envs[index].step(action)[0]
        return observations


def _generator_state(env: Any) -> dict[str, Any] | None:
    """Return the state of an environment's generator; None where it has one of another kind."""
    generator = env.unwrapped.np_random
    known = isinstance(generator, np.random.Generator) and type(generator.bit_generator).__name__ in _GENERATORS
    state: dict[str, Any] | None = _plain(generator.bit_generator.state) if known else None
    return state


def _plain(value: Any) -> Any:
    """Return a generator's state as numbers, texts, lists and dicts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _make_generator(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(_GENERATORS[state["bit_generator"]]())
    generator.bit_generator.state = state
    return generator


def _stack(steps: list[Any]) -> Any:
    """Return nests of arrays as one nest of tensors with a leading axis of steps."""
    first = steps[0]
    if isinstance(first, dict):
        return {key: _stack([step[key] for step in steps]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack([step[index] for step in steps]) for index in range(len(first)))
    return torch.from_numpy(np.stack(steps))


def _row(stacked: Any, step: int) -> Any:
    if isinstance(stacked, dict):
        return {key: _row(value, step) for key, value in stacked.items()}
    if isinstance(stacked, tuple):
        return tuple(_row(value, step) for value in stacked)
    return stacked[step].numpy()
