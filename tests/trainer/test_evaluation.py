from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.trainer.evaluation import evaluate, evaluate_source


class Countdown(gym.Env[Any, Any]):
    """Episodes of a fixed length and return; counts its resets."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.left = length, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return np.array([self.left], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {}


class Recorder:
    """A policy that notes what it was shown."""

    def __init__(self) -> None:
        self.deterministic = True
        self.seen: list[tuple[list[float], list[str], bool]] = []

    def select_action(
        self, agent_ids: Sequence[str], observations: Any, terminated_agent_ids: Sequence[str] | None = None
    ) -> Any:
        self.seen.append((observations[:, 0].tolist(), list(terminated_agent_ids or ()), self.deterministic))
        return np.zeros(len(agent_ids), np.int64)


def test_every_environment_contributes_its_quota() -> None:
    env = SyncVectorEnv([lambda: Countdown(2), lambda: Countdown(20)])
    result = evaluate(Recorder(), env, episodes=5)
    # Taking the first five finished would count the short environment nearly alone.
    assert result.episodes == 5
    assert result.mean == pytest.approx((3 * 2 + 2 * 20) / 5)
    assert (result.min, result.max, result.episode_length) == (2, 20, result.mean)
    assert (result.q25, result.q50, result.q75) == (2, 2, 20)
    env.close()


def test_agents_end_when_the_next_episode_is_shown() -> None:
    env = SyncVectorEnv([lambda: Countdown(2)])
    policy = Recorder()
    evaluate(policy, env, episodes=2, deterministic=False)
    assert policy.seen == [
        ([2.0], [], False),
        ([1.0], [], False),
        ([0.0], [], False),  # the final observation: its action only resets
        ([2.0], ["evaluation-0"], False),
        ([1.0], [], False),
    ]
    assert policy.deterministic
    env.close()


def test_unsuitable_requests_are_refused() -> None:
    env = SyncVectorEnv([lambda: Countdown(2)], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ConfigError, match="NEXT_STEP"):
        evaluate(Recorder(), env)
    with pytest.raises(ConfigError, match="episodes=0"):
        evaluate(Recorder(), env, episodes=0)
    env.close()


def test_source_is_hosted_and_the_same_seed_gives_the_same_returns() -> None:
    first, second, other = (evaluate_source(Recorder(), "CartPole-v1", episodes=6, seed=seed) for seed in (3, 3, 1000))
    assert first == second
    assert first != other
    assert first.to_dict()["episodes"] == 6
