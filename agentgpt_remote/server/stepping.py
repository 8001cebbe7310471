"""The vector environment of a session: Gymnasium's own, with less work around each step."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

from agentgpt_remote.codec import Rows

_LARGE_BYTES = 4096
_CHECKED_AFTER_STEPS = 8


class HostVectorEnv(SyncVectorEnv):
    """Steps its environments in turn, with the results of ``SyncVectorEnv`` to the bit.

    What it returns is its own memory, which the next step changes: a reply holds it before that.
    """

    def __init__(self, env_fns: Any, autoreset_mode: AutoresetMode) -> None:
        super().__init__(env_fns, copy=False, autoreset_mode=autoreset_mode)
        space = self.single_observation_space
        shape = space.shape if type(space) is Box else ()
        self._row_lengths = set(shape[:1]) if math.prod(shape) else set()
        self._row_shape = (-1, *shape[1:])
        self._are_large = type(space) is Box and space.dtype.itemsize * math.prod(shape) >= _LARGE_BYTES
        self._unchecked_steps = _CHECKED_AFTER_STEPS

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments, or reset those that are due."""
        if self._unchecked_steps:
            self._unchecked_steps -= 1
            if not self._unchecked_steps:
                for env in self.envs:
                    _skip_passed_checks(env)
        mode, due, observations = self.autoreset_mode, self._autoreset_envs.tolist(), self._env_obs
        if mode is AutoresetMode.DISABLED and any(due):
            names = ", ".join(str(index) for index, is_due in enumerate(due) if is_due)
            raise AssertionError(f"the episodes of environments {names} have ended: reset them with reset_mask")
        self._rewards = rewards = np.zeros(self.num_envs, np.float64)
        self._terminations = terminations = np.zeros(self.num_envs, np.bool_)
        self._truncations = truncations = np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for index, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            if due[index] and mode is AutoresetMode.NEXT_STEP:
                observations[index], info = env.reset()
            else:
                observations[index], reward, terminated, truncated, info = env.step(action)
                rewards[index], terminations[index], truncations[index] = reward, terminated, truncated
                if (terminated or truncated) and mode is AutoresetMode.SAME_STEP:
                    infos = self._add_info(infos, {"final_obs": observations[index], "final_info": info}, index)
                    observations[index], info = env.reset()
            if info:
                infos = self._add_info(infos, info, index)
        self._autoreset_envs = terminations | truncations
        return self._together(observations), rewards, terminations, truncations, infos

    def _together(self, observations: Any) -> Any:
        """Return one batch; large ones are not copied together, as they can be sent one after the other."""
        space = self.single_observation_space
        if self._are_large and all(
            type(one) is np.ndarray and one.dtype == space.dtype and one.shape == space.shape and one.flags.c_contiguous
            for one in observations
        ):
            return Rows(observations)
        if self._row_lengths and set(map(len, observations)) == self._row_lengths:
            # What stacking does, in a third of the time: it checks what is left of the shapes itself.
            np.concatenate(observations, out=self._observations.reshape(self._row_shape))
        else:
            self._observations = concatenate(space, observations, self._observations)
        return self._observations


def _skip_passed_checks(env: gym.Env[Any, Any]) -> None:
    """Have wrappers that only check, and have nothing left to check, step what they wrap without their own call."""
    if not isinstance(env, gym.Wrapper):
        return
    _skip_passed_checks(env.env)
    if type(env) is OrderEnforcing:
        passed = env.has_reset
    else:
        passed = type(env) is PassiveEnvChecker and env.checked_step and getattr(env, "checked_data_reuse", True)
    if passed:
        env.step = env.env.step  # type: ignore[method-assign]
