"""Play whole episodes with a policy, with the same number of them from every environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.masks import MASK_KEY, ActionMasks
from agentgpt_remote.trainer.hosts import offered_envs
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

MAX_PARALLEL = 16


class ActingPolicy(Protocol):
    """What acts: a GPTPolicy, or anything with the same method."""

    def select_action(
        self, agent_ids: Sequence[str], observations: Any, terminated_agent_ids: Sequence[str] | None = None
    ) -> Any:
        """Return a batch of actions, one row per agent id.

        An environment with action masks also needs the keyword argument ``action_masks``, see GPTPolicy.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Returns of whole episodes.

    Attributes:
        episodes: how many.
        mean: mean return.
        std: standard deviation of the returns.
        min: smallest return.
        q25: return that a quarter of the episodes do not exceed, interpolated between the nearest two.
        q50: median return.
        q75: return that three quarters of the episodes do not exceed.
        max: largest return.
        episode_length: mean steps of an episode.
        env_steps: environment steps taken, those beyond the quotas included.
    """

    episodes: int
    mean: float
    std: float
    min: float
    q25: float
    q50: float
    q75: float
    max: float
    episode_length: float
    env_steps: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def evaluate(
    policy: ActingPolicy,
    env: VectorEnv[Any, Any, Any],
    *,
    episodes: int = 20,
    seed: int | None = 0,
    deterministic: bool | None = None,
) -> Evaluation:
    """Play episodes and return their statistics.

    Every environment contributes the same number of episodes (one more in the first few, where it does not
    divide), so that short episodes are not over-represented.

    Args:
        policy: what acts. Each environment is an agent of its own, named after its index.
        env: a vector environment under NEXT_STEP autoreset.
        episodes: how many episodes.
        seed: environment i is reset with ``seed + i``; None takes entropy.
        deterministic: True takes the likeliest actions, False samples; None leaves the policy as it is.

    Raises:
        ConfigError: the environment resets in another way, or ``episodes`` is less than 1.
    """
    if episodes < 1:
        raise ConfigError(f"episodes={episodes}: expected at least 1")
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    if mode != AutoresetMode.NEXT_STEP:
        raise ConfigError(f"autoreset_mode={mode}: expected AutoresetMode.NEXT_STEP to evaluate on")
    with Deterministic(policy, deterministic):
        return _play(policy, env, episodes, seed)


class Deterministic:
    """Sets a policy's ``deterministic`` for a while."""

    def __init__(self, policy: Any, value: bool | None) -> None:
        self._policy, self._value = policy, value

    def __enter__(self) -> None:
        if self._value is not None and hasattr(self._policy, "deterministic"):
            self._before = self._policy.deterministic
            self._policy.deterministic = self._value

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_before"):
            self._policy.deterministic = self._before


def _play(policy: ActingPolicy, env: VectorEnv[Any, Any, Any], episodes: int, seed: int | None) -> Evaluation:
    n = env.num_envs
    quota = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    agent_ids = [f"evaluation-{index}" for index in range(n)]
    observations, infos = env.reset(seed=seed)
    reader = _MaskReader(env)
    select_action: Callable[..., Any] = policy.select_action
    totals, lengths = np.zeros(n), np.zeros(n, np.int64)
    final = np.zeros(n, np.bool_)
    returns: list[float] = []
    steps: list[int] = []
    env_steps = 0
    ended: list[str] = []
    while quota.any():
        masks = reader.read(infos, final)
        actions = _batched(select_action(agent_ids, observations, ended or None, **masks), env)
        observations, reward, terminated, truncated, infos = env.step(actions)
        counted = ~final  # the step after an episode's end only resets
        totals += np.where(counted, reward, 0.0)
        lengths += counted
        env_steps += int(counted.sum())
        # An agent whose final observation was just shown starts anew with the next one.
        ended = [agent_ids[index] for index in np.flatnonzero(final)]
        final = (np.asarray(terminated) | np.asarray(truncated)) & counted
        for index in np.flatnonzero(final):
            if quota[index]:
                quota[index] -= 1
                returns.append(float(totals[index]))
                steps.append(int(lengths[index]))
            totals[index], lengths[index] = 0.0, 0
    return summary(returns, steps, env_steps)


class _MaskReader:
    """Reads the action masks of an environment that has any."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._env = env
        self._masks: ActionMasks | None = None

    def read(self, infos: dict[str, Any], final: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the keyword argument that hands the masks to a policy, or nothing."""
        if MASK_KEY not in infos:
            return {}
        if self._masks is None:
            self._masks = ActionMasks(ActionFeatures(self._env.single_action_space))
        agents, present = range(self._env.num_envs), infos.get(f"_{MASK_KEY}")
        return {"action_masks": self._masks.read(infos[MASK_KEY], agents, present=present, final=final)}


def _batched(actions: Any, env: VectorEnv[Any, Any, Any]) -> Any:
    """Return actions in the form of the batched action space, from that form or from a list of single actions."""
    if not isinstance(actions, list):
        return actions
    space = env.single_action_space
    empty: Any = create_empty_array(space, len(actions))
    return concatenate(space, actions, empty)


def summary(returns: list[float], steps: list[int], env_steps: int) -> Evaluation:
    """Return the statistics of episodes; at least one."""
    values: NDArray[np.float64] = np.asarray(returns)
    q25, q50, q75 = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return Evaluation(
        episodes=len(returns),
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        q25=q25,
        q50=q50,
        q75=q75,
        max=float(values.max()),
        episode_length=float(np.mean(steps)),
        env_steps=env_steps,
    )


def evaluate_source(
    policy: ActingPolicy,
    source: str,
    *,
    episodes: int = 20,
    seed: int | None = 0,
    deterministic: bool | None = None,
    token: str | None = None,
    num_envs: int | None = None,
) -> Evaluation:
    """Evaluate on a source, hosted by a process of its own, or on the host at a URL.

    Args:
        policy: what acts.
        source: a source such as "CartPole-v1", or a URL.
        episodes: how many episodes.
        seed: of the environments.
        deterministic: True takes the likeliest actions, False samples; None leaves the policy as it is.
        token: of the host at the URL.
        num_envs: environments that play at once; by default at most 16, and what a host offers.

    Raises:
        HostUnreachable: nothing listens at the URL.
        RemoteEnvError: the environment could not be made, or raised.
    """
    parallel = num_envs or min(episodes, MAX_PARALLEL)
    if num_envs is None and "://" in source:
        parallel = min(parallel, offered_envs(source, parallel, token))
    where: dict[str, Any] = {"url": source, "token": token} if "://" in source else {"source": source}
    with RemoteVectorEnv(num_envs=parallel, **where) as env:
        return evaluate(policy, env, episodes=episodes, seed=seed, deterministic=deterministic)
