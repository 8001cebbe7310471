"""EnvPool's environments, many stepped by C++ threads at once, as Gymnasium environments: ``envpool:Walker2d-v4``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled, NameNotFound, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.server.envpool_values import cast_batch, check_actions, replace_rows, with_masks, with_whole_range
from agentgpt_remote.wrappers.splitting import split_infos

PREFIX = "envpool:"
_MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
_RENDER_MODES = ("rgb_array", None)
# What would break the order of environments, or is told in another way.
_RESERVED = {
    "num_envs": "ask for a vector environment of that size",
    "batch_size": "every step is one of all environments",
    "max_num_players": "environments with several players can't be served",
    "seed": "pass it to reset",
    "env_seed": "pass it to reset",
    "base_path": "it is the host's own",
    "gym_reset_return_info": "infos are always returned",
    "env_type": "it is 'gymnasium'",
}
_SEEDS = 2**32  # EnvPool takes 32 bits


def find_envpool(env_id: str) -> Any:
    """Return EnvPool, which is known to have the environment.

    Raises:
        DependencyNotInstalled: EnvPool is not installed.
        NameNotFound: EnvPool has no such environment; names the closest.
    """
    try:
        envpool: Any = importlib.import_module("envpool")
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled(
            f'{PREFIX}{env_id} needs EnvPool ({error}): run `pip install "agentgpt-remote[envpool]"`'
        ) from error
    known = envpool.list_all_envs()
    if env_id not in known:
        close = difflib.get_close_matches(env_id, known, n=1)
        hint = f" Did you mean: `{PREFIX}{close[0]}`?" if close else " `envpool.list_all_envs()` names all."
        raise NameNotFound(f"Environment `{env_id}` doesn't exist in EnvPool {envpool.__version__}.{hint}")
    return envpool


class EnvPoolVectorEnv(VectorEnv[Any, Any, Any]):
    """A pool of environments of one kind.

    EnvPool fixes seeds when a pool is made: a reset with a seed makes the pool anew, and one without, the first
    time, takes a random seed.

    Args:
        env_id: as EnvPool knows it.
        num_envs: how many.
        autoreset_mode: ``NEXT_STEP``, which is EnvPool's own, or ``SAME_STEP``.
        render_mode: ``rgb_array`` or ``None``.
        options: of EnvPool and the environment, such as ``num_threads`` or ``max_episode_steps``.

    Raises:
        DependencyNotInstalled: EnvPool is not installed.
        NameNotFound: EnvPool has no such environment; names the closest.
        ConfigError: an option or a mode that there is not.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if autoreset_mode not in _MODES:
            raise ConfigError(
                f"autoreset_mode={autoreset_mode.name}: an EnvPool resets environments by itself; "
                f"expected {' or '.join(mode.name for mode in _MODES)}"
            )
        if render_mode not in _RENDER_MODES:
            raise ConfigError(f"render_mode={render_mode!r}: EnvPool renders 'rgb_array' only")
        self._envpool = find_envpool(env_id)
        self._env_id, self._options = env_id, options
        self.num_envs, self.render_mode, self._mode = num_envs, render_mode, autoreset_mode
        spec = self._pool_spec()
        self.single_observation_space = with_whole_range(spec.gymnasium_observation_space)
        self.single_action_space = spec.gymnasium_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"render_modes": ["rgb_array"], "autoreset_mode": autoreset_mode}
        config = spec.config
        self.spec = EnvSpec(
            id=env_id,
            reward_threshold=getattr(config, "reward_threshold", None),
            max_episode_steps=getattr(config, "max_episode_steps", None),
        )
        self._pool: Any = None
        self._observations: Any = None
        self._infos: dict[str, Any] = {}

    def _pool_spec(self) -> Any:
        for name, why in _RESERVED.items():
            if name in self._options:
                raise ConfigError(f"{name}={self._options[name]!r} is not for {PREFIX}{self._env_id}: {why}")
        known = self._envpool.make_spec(self._env_id, num_envs=self.num_envs)
        allowed = sorted(set(known._config_keys) - set(_RESERVED) | {"from_pixels"})
        for name in self._options:
            if name not in allowed:
                raise ConfigError(f"{PREFIX}{self._env_id} has no option {name!r}; it has {', '.join(allowed)}")
        try:
            spec = self._envpool.make_spec(self._env_id, num_envs=self.num_envs, **self._options)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"{PREFIX}{self._env_id} refuses {self._options}: {error}") from error
        if spec.config.max_num_players != 1:
            raise ConfigError(f"{PREFIX}{self._env_id} has several players, which can't be served")
        return spec

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, or those of ``options["reset_mask"]``.

        Raises:
            ConfigError: an option other than ``reset_mask``, seeds together with it, or a seed out of range.
        """
        unknown = sorted(set(options or ()) - {"reset_mask"})
        if unknown:
            raise ConfigError(f"options={unknown}: EnvPool's reset has no options but 'reset_mask'")
        mask = (options or {}).get("reset_mask")
        if mask is None:
            if seed is not None or self._pool is None:
                self._make_pool(self._seeds(seed))
            self._keep(*self._pool.reset())
            return self._observations, with_masks(self._infos, np.ones(self.num_envs, np.bool_))
        if seed is not None or self._pool is None:
            raise ConfigError("'reset_mask' needs a reset of all environments before, and takes no seeds")
        if np.shape(mask) != (self.num_envs,) or not np.any(mask):
            raise ConfigError(f"reset_mask={mask!r}: expected {self.num_envs} bools, of which at least one is True")
        self._reset_some(mask)
        return self._observations, with_masks(self._infos, mask)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int]:
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
            seed = [int(seed) + index for index in range(self.num_envs)]
        seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ConfigError(f"seed holds {len(seeds)} values, expected one for each of {self.num_envs} environments")
        drawn = [int(self.np_random.integers(_SEEDS)) if one is None else int(one) for one in seeds]
        if not all(0 <= one < _SEEDS for one in drawn):
            raise ConfigError(f"seed={seed} is out of range: expected 0 to {_SEEDS - 1} for each environment")
        signed: list[int] = np.array(drawn, np.uint32).astype(np.int32).tolist()
        return signed

    def _make_pool(self, seeds: list[int]) -> None:
        rendering = {} if self.render_mode is None else {"render_mode": self.render_mode}
        self.close_extras()
        self._pool = self._envpool.make_gymnasium(
            self._env_id, num_envs=self.num_envs, seed=seeds, **rendering, **self._options
        )

    def _reset_some(self, mask: Any) -> None:
        observations, infos = self._pool.reset(np.flatnonzero(mask).astype(np.int32))
        order, last = infos["env_id"], (self._observations, self._infos)
        self._keep(observations, infos)
        self._observations = replace_rows(last[0], self._observations, order)
        self._infos = replace_rows(last[1], self._infos, order)

    def _keep(self, observations: Any, infos: dict[str, Any]) -> None:
        """Remember what the pool returned, in the spaces' dtypes and without the pool's own bookkeeping."""
        self._observations = cast_batch(self.observation_space, observations)
        self._infos = {key: value for key, value in infos.items() if key not in ("env_id", "players")}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments.

        Raises:
            ResetNeeded: they were not reset before.
            InvalidAction: the actions do not fit the action space.
        """
        self._check_reset("step")
        check_actions(self.action_space, actions)
        observations, rewards, terminations, truncations, raw = self._pool.step(actions)
        self._keep(observations, raw)
        ended, finals = terminations | truncations, {}
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            finals = self._finals(ended)
            self._reset_some(ended)
        infos = with_masks(self._infos, np.ones(self.num_envs, np.bool_)) | finals
        return self._observations, rewards.astype(np.float64), terminations, truncations, infos

    def _finals(self, ended: Any) -> dict[str, Any]:
        """Return the last observations and infos of the episodes that ended."""
        observations = np.full(self.num_envs, None, dtype=object)
        for index, observation in enumerate(iterate(self.observation_space, self._observations)):
            observations[index] = observation if ended[index] else None
        return {
            "final_obs": observations,
            "_final_obs": ended,
            "final_info": with_masks(self._infos, ended),
            "_final_info": ended.copy(),
        }

    def _check_reset(self, name: str) -> None:
        if self._pool is None:
            raise ResetNeeded(f"{PREFIX}{self._env_id}: call reset() before {name}()")

    def render(self) -> tuple[Any, ...] | None:
        """Return a frame of each environment: uint8 (height, width, 3).

        Raises:
            ResetNeeded: they were not reset before.
        """
        if self.render_mode is None:
            return None
        self._check_reset("render")
        return tuple(self._pool.render(np.arange(self.num_envs, dtype=np.int32)))

    def close_extras(self, **_: Any) -> None:
        """Close the pool."""
        if self._pool is not None:
            self._pool.close()


class EnvPoolEnv(gym.Env[Any, Any]):
    """A single environment of EnvPool; arguments and errors are those of :class:`EnvPoolVectorEnv`."""

    def __init__(self, env_id: str, *, render_mode: str | None = None, **options: Any) -> None:
        self._envs = EnvPoolVectorEnv(env_id, 1, render_mode=render_mode, **options)
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.metadata = {"render_modes": ["rgb_array"]}
        self.render_mode, self.spec = render_mode, self._envs.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; with a seed, it is made anew."""
        super().reset(seed=seed)
        observations, infos = self._envs.reset(seed=seed, options=options)
        return self._first(observations), split_infos(infos, 1)[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; raises as the vector environment does."""
        space, batch = self.action_space, create_empty_array(self.action_space, n=1)
        actions = concatenate(space, [action], batch)  # type: ignore[arg-type]  # none of these spaces is without one
        observations, rewards, terminations, truncations, infos = self._envs.step(actions)
        info = split_infos(infos, 1)[0]
        return self._first(observations), float(rewards[0]), bool(terminations[0]), bool(truncations[0]), info

    def _first(self, observations: Any) -> Any:
        return next(iter(iterate(self._envs.observation_space, observations)))

    def render(self) -> Any:
        """Return a frame (uint8 (height, width, 3)) where the render mode is ``rgb_array``."""
        frames = self._envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the pool."""
        self._envs.close()
