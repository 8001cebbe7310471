"""Environments on a host as a Stable-Baselines3 ``VecEnv``: one message each way for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from agentgpt_remote.errors import ConfigError, RemoteEnvError, missing_dependency
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.splitting import split_infos

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
except ModuleNotFoundError as error:
    raise missing_dependency(error) from error


class SB3VecEnv(VecEnv):
    """What Stable-Baselines3's own ``DummyVecEnv`` does, with environments on a host.

    Observations, rewards (float32), dones and infos (``terminal_observation``, ``TimeLimit.truncated``) are those of
    ``DummyVecEnv`` over the same environments, to the bit. For the logger's ``rollout/ep_rew_mean``, wrap it in
    Stable-Baselines3's ``VecMonitor``.

    Args:
        envs: remote environments whose ``autoreset_mode`` is ``SAME_STEP``.

    Attributes:
        envs: the remote environments.

    Raises:
        ConfigError: they reset at another time.

    Example:
        >>> from stable_baselines3 import PPO
        >>> with SB3VecEnv.make("CartPole-v1", num_envs=8) as envs:
        ...     model = PPO("MlpPolicy", envs, n_steps=16).learn(128)
    """

    def __init__(self, envs: RemoteVectorEnv) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"autoreset_mode={mode}: Stable-Baselines3 expects environments that are reset in the step that ends "
                "an episode. Make them with RemoteVectorEnv(..., autoreset_mode='SameStep'), or with SB3VecEnv.make"
            )
        self.envs = envs
        self._was_reset = False
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata

    @classmethod
    def make(
        cls, source: Any = None, num_envs: int | None = None, *, url: str | Sequence[str] | None = None, **options: Any
    ) -> SB3VecEnv:
        """Make the remote environments too.

        Args:
            source: as for :class:`RemoteVectorEnv`.
            num_envs: how many; ``None`` for as many as the hosts offer.
            url: where a host listens, or a list of hosts; without it a host process is started.
            options: further arguments of :class:`RemoteVectorEnv`.

        Raises:
            AgentGPTError: as :class:`RemoteVectorEnv` raises it.
        """
        envs = RemoteVectorEnv(source, num_envs, url=url, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        try:
            return cls(envs)
        except BaseException:
            envs.close()
            raise

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds and options set before; return observations (num_envs, ...)."""
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        groups = self._indices_by_options()
        observations: VecEnvObs
        if len(groups) == 1:
            observations, infos = self.envs.reset(seed=seeds, options=groups[0][0])
            self.reset_infos = split_infos(infos, self.num_envs)
        else:
            if not self._was_reset:  # Gymnasium resets some environments only once all have been
                self.envs.reset()
            for options, indices in groups:
                mask = np.zeros(self.num_envs, np.bool_)
                mask[indices] = True
                observations, infos = self.envs.reset(seed=seeds, options={**(options or {}), "reset_mask": mask})
                self._keep_reset_infos(infos, indices)
        self._was_reset = True
        self._reset_seeds()
        self._reset_options()
        return observations

    def _indices_by_options(self) -> list[tuple[dict[str, Any] | None, list[int]]]:
        """Return each options that were set, and the environments that they are for."""
        groups: dict[int, tuple[dict[str, Any] | None, list[int]]] = {}
        for index, options in enumerate(self._options):
            groups.setdefault(id(options) if options else 0, (options or None, []))[1].append(index)
        return list(groups.values())

    def _keep_reset_infos(self, infos: dict[str, Any], indices: Sequence[int]) -> None:
        split = split_infos(infos, self.num_envs)
        for index in indices:
            self.reset_infos[index] = split[index]

    def step_async(self, actions: Any) -> None:
        """Send the actions, one for each environment; :meth:`step_wait` returns the result."""
        self.envs.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards (float32), dones (bool) and infos (one dict for each environment)."""
        observations, rewards, terminations, truncations, infos = self.envs.step_wait()
        dones = terminations | truncations
        cut = (truncations & ~terminations).tolist()
        if not infos:
            return observations, rewards.astype(np.float32), dones, [{"TimeLimit.truncated": value} for value in cut]
        final_observations = infos.pop("final_obs", None)
        final_infos = infos.pop("final_info", {})
        infos = {key: value for key, value in infos.items() if key not in ("_final_obs", "_final_info")}
        split = split_infos(infos, self.num_envs)
        ended = np.flatnonzero(dones).tolist()
        if ended:
            finals = split_infos(final_infos, self.num_envs)
            for index in ended:
                self.reset_infos[index], split[index] = split[index], finals[index]
                split[index]["terminal_observation"] = final_observations[index]
        for info, value in zip(split, cut, strict=True):
            info["TimeLimit.truncated"] = value
        return observations, rewards.astype(np.float32), dones, split

    def close(self) -> None:
        """Close the environments, and the host that was started for them; idempotent."""
        self.envs.close()

    def __enter__(self) -> SB3VecEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return a frame (uint8 (height, width, 3)) of each environment; needs ``render_mode='rgb_array'``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode={self.render_mode!r} has no images: make it with 'rgb_array'", stacklevel=2)
            return [None] * self.num_envs
        return list(self.envs.render() or ())

    def has_attr(self, attr_name: str) -> bool:
        """Tell whether all environments have an attribute, without reading or calling it."""
        try:
            return all(self._of_each(self.envs.call, "has_wrapper_attr", attr_name))
        except AttributeError:  # a vector environment of its own kind
            return bool(super().has_attr(attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each environment, public names only; of a method, what it returns.

        Raises:
            AttributeError: an environment lacks it.
        """
        values: Sequence[Any]
        if attr_name in ("render_mode", "spec"):
            values = [getattr(self.envs, attr_name)] * self.num_envs
        else:
            values = self._of_each(self.envs.get_attr, attr_name)
        return [values[index] for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment, public names only."""
        if indices is None:
            self.envs.set_attr(attr_name, [value] * self.num_envs)
        else:
            self.env_method("set_wrapper_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of each environment, public names only; return a list of the results.

        Raises:
            AttributeError: an environment lacks it.
        """
        if indices is None:
            return list(self._of_each(self.envs.call, method_name, *method_args, **method_kwargs))
        chosen = [
            index + self.num_envs if -self.num_envs <= index < 0 else index for index in self._get_indices(indices)
        ]
        return list(self._of_each(self.envs.call_some, chosen, method_name, *method_args, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Tell whether each environment is wrapped in a ``Monitor`` on its host; of other wrappers it is not told."""
        is_wrapped = issubclass(wrapper_class, Monitor) and self.has_attr("get_episode_rewards")
        return [is_wrapped for _ in self._get_indices(indices)]

    def _of_each(self, ask: Callable[..., Any], *args: Any, **kwargs: Any) -> Sequence[Any]:
        try:
            values = ask(*args, **kwargs)
        except RemoteEnvError as error:
            if error.remote_type == "AttributeError":
                raise AttributeError(error.remote_message) from error
            raise
        # A vector environment of its own kind tells one value for all.
        return values if isinstance(values, (tuple, list)) else [values] * self.num_envs
