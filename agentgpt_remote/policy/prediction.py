"""The state of Stable-Baselines3's ``predict``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, InvalidObservation


class PredictState:
    """Which agents a chain of :meth:`GPTPolicy.predict` calls belongs to; their memory ends with this object."""

    def __init__(self, agent_ids: tuple[str, ...]) -> None:
        self.agent_ids = agent_ids


def predicted_agents(
    state: Any, count: int, episode_start: NDArray[np.bool_] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the agents of a call and those of them whose episode begins here.

    Args:
        state: what the last call returned.
        count: observations of this call.
        episode_start: bool array of shape (count,), or None.

    Raises:
        InvalidObservation: the number of observations has changed.
        ConfigError: the state or ``episode_start`` is something else.
    """
    if not isinstance(state, PredictState):
        raise ConfigError(f"state is a {type(state).__name__}: expected None or what the last predict returned")
    ids = state.agent_ids
    if len(ids) != count:
        raise InvalidObservation(f"got {count} observations, the state is of {len(ids)}: pass state=None to begin anew")
    starts = np.asarray(False if episode_start is None else episode_start, np.bool_)
    if starts.shape not in ((), (count,)):
        raise ConfigError(f"episode_start has shape {starts.shape}: expected ({count},), one per observation")
    starts = np.broadcast_to(starts, (count,))
    return ids, [agent for agent, start in zip(ids, starts, strict=True) if start]


def count_rows(batch: Any) -> int:
    """Return the number of rows of a batch."""
    if isinstance(batch, dict):
        return count_rows(next(iter(batch.values())))
    if isinstance(batch, tuple):
        return count_rows(batch[0])
    return len(batch) if np.ndim(batch) else 0
