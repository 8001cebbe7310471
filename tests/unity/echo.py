"""Answers the stand-in player's task ``echo``: an action must tell what its very agent saw."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def token_of(observation: Any) -> float:
    """Return what an agent's observation tells it to answer."""
    vector = observation["vector"] if isinstance(observation, dict) else observation
    return float(vector[0])


def answer(space: spaces.Space[Any], observation: Any) -> Any:
    """Return the action that the stand-in player expects for an observation."""
    token = token_of(observation)
    if isinstance(space, spaces.Box):
        return np.full(space.shape, token, np.float32)
    if isinstance(space, spaces.Discrete):
        return np.int64(_choice(token, int(space.n)))
    if isinstance(space, spaces.MultiDiscrete):
        return np.array([_choice(token, int(size)) for size in space.nvec], np.int64)
    assert isinstance(space, spaces.Dict)
    return {name: answer(part, observation) for name, part in space.spaces.items()}


def _choice(token: float, size: int) -> int:
    return int((token + 1) / 2 * size * 0.999)


def answers(env: Any, turns: Any) -> dict[str, list[Any]]:
    """Return actions for everyone who needs one."""
    from agentgpt_remote.agents import rows_of

    return {
        name: [answer(env.behaviors[name].action_space, one) for one in rows_of(turn.acting.observations)]
        for name, turn in turns.items()
        if turn.acting.agent_ids
    }


def wrong_actions(env: Any) -> int:
    """Return how many actions the player saw that were another agent's."""
    return int(env.stats()["wrong_actions"][-1][0])
