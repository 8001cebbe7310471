"""PPO and SAC of Stable-Baselines3, RecurrentPPO of sb3-contrib, with rl-zoo's hyperparameters, beside a task."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym

from benchmarks.common import RETURN_WINDOW, Crossing

Curve = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What runs beside a task, in process.

    Attributes:
        kind: ``ppo``, ``recurrent_ppo`` or ``sac``.
        num_envs: environments.
        max_steps: environment steps after which it is given up.
        normalize: observations and rewards are normalised by their running statistics.
        whole: it goes on after the bar, for its curve.
        arguments: of the algorithm's constructor.
    """

    kind: Literal["ppo", "recurrent_ppo", "sac"]
    num_envs: int
    max_steps: int
    normalize: bool = False
    whole: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name in tables."""
        return {"ppo": "SB3 PPO", "recurrent_ppo": "RecurrentPPO", "sac": "SB3 SAC"}[self.kind]


def ppo(num_envs: int, max_steps: int, *, normalize: bool = False, falling: bool = False, **arguments: Any) -> Baseline:
    """Return SB3's PPO; with ``falling`` the learning rate and the clip range fall linearly to 0."""
    arguments = _falling(arguments) if falling else arguments
    return Baseline(kind="ppo", num_envs=num_envs, max_steps=max_steps, normalize=normalize, arguments=arguments)


def recurrent_ppo(
    num_envs: int,
    max_steps: int,
    *,
    policy: Mapping[str, Any],
    normalize: bool = False,
    falling: bool = False,
    **arguments: Any,
) -> Baseline:
    """Return sb3-contrib's RecurrentPPO with an LSTM."""
    arguments = (_falling(arguments) if falling else arguments) | {"policy_kwargs": dict(policy)}
    return Baseline(
        kind="recurrent_ppo", num_envs=num_envs, max_steps=max_steps, normalize=normalize, arguments=arguments
    )


def sac(max_steps: int, **arguments: Any) -> Baseline:
    """Return SB3's SAC on one environment; it goes on after the bar."""
    return Baseline(kind="sac", num_envs=1, max_steps=max_steps, whole=True, arguments=arguments)


def _falling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _linear(value) if name in ("learning_rate", "clip_range") else value for name, value in arguments.items()
    }


def _linear(first: float) -> Callable[[float], float]:
    return lambda remaining: first * remaining


def make_env(source: str) -> gym.Env[Any, Any]:
    """Return the environment of a source in this process: an id, or ``package.module:factory``."""
    module, colon, name = source.partition(":")
    return getattr(importlib.import_module(module), name)() if colon else gym.make(source)


def run_baseline(baseline: Baseline, source: str, bar: float, seed: int) -> tuple[Crossing, Curve]:
    """Train until the mean return of the last 20 finished episodes reaches the bar, or all steps are used up.

    Returns:
        When it crossed, in steps and in seconds since this was called, and the curve of that mean.
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    crossing, curve, returns = Crossing(bar), Curve(), deque[float](maxlen=RETURN_WINDOW)

    class Watch(BaseCallback):
        episodes = 0

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    returns.append(info["episode"]["r"])
                    self.episodes += 1
            if returns:
                mean = sum(returns) / len(returns)
                crossing.offer(self.num_timesteps, mean, self.episodes)
                if not curve or self.num_timesteps >= curve[-1][0] + 1000:
                    curve.append((self.num_timesteps, mean))
            return baseline.whole or crossing.env_steps is None

    envs: Any = make_vec_env(lambda: make_env(source), n_envs=baseline.num_envs, seed=seed)
    if baseline.normalize:
        envs = VecNormalize(envs, gamma=baseline.arguments.get("gamma", 0.99))
    _algorithm(baseline)(envs, seed).learn(baseline.max_steps, callback=Watch())
    envs.close()
    return crossing, curve


def _algorithm(baseline: Baseline) -> Callable[[Any, int], Any]:
    kind: Any
    if baseline.kind == "ppo":
        from stable_baselines3 import PPO as kind

        policy = "MlpPolicy"
    elif baseline.kind == "sac":
        from stable_baselines3 import SAC as kind

        policy = "MlpPolicy"
    else:
        from sb3_contrib import RecurrentPPO as kind

        policy = "MlpLstmPolicy"
    return lambda envs, seed: kind(policy, envs, seed=seed, device="cpu", **baseline.arguments)
