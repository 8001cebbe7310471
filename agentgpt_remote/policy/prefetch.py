"""Acting one frame late, while the loop does something else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
from gymnasium import Space

from agentgpt_remote.policy.observations import first_of
from agentgpt_remote.policy.wire import check_ids

_SINGLE = "prefetch"


class Submitter(Protocol):
    """A policy that acts in a thread of its own."""

    action_space: Space[Any]

    def submit(
        self, agent_ids: Sequence[str], observations: Any, terminated_agent_ids: Sequence[str] | None = None
    ) -> Future[Any]:
        """Return a future of a batch of actions."""


class Prefetch:
    """Acts for loops that may use an action one frame late: each call returns the actions of the call before.

    The model works between two calls. A call waits only where it is faster than the model, and where an agent has no
    action yet: one that is new, or whose episode begins. Then all actions are those of its own observations.
    Action masks are not taken, since an action of the last frame may not be allowed in this one.

    Args:
        policy: acts; to be used by nobody else for the same agents.
    """

    def __init__(self, policy: Submitter) -> None:
        self._policy = policy
        self._pending: tuple[tuple[str, ...], Future[Any]] | None = None
        self._restart = False

    def __call__(self, observation: Any) -> Any:
        """Return an action for one agent; call :meth:`reset` between its episodes."""
        ended = [_SINGLE] if self._restart else None
        self._restart = False
        return first_of(self._policy.action_space, self.select_action([_SINGLE], [observation], ended))

    def reset(self) -> None:
        """Begin a new episode of the one agent that calls of this object act for."""
        self._restart = self._pending is not None and _SINGLE in self._pending[0]

    def select_action(
        self, agent_ids: Sequence[str], observations: Any, terminated_agent_ids: Sequence[str] | None = None
    ) -> Any:
        """Return the actions of the call before, and have the policy act on these observations.

        Args:
            agent_ids: as for :meth:`GPTPolicy.select_action`.
            observations: likewise; they are copied.
            terminated_agent_ids: likewise.

        Raises:
            AgentGPTError: whatever the policy raised, for this call or for the one before.
        """
        ids = check_ids(agent_ids)
        last = self._pending
        future = self._policy.submit(ids, copy.deepcopy(observations), terminated_agent_ids)
        self._pending = (ids, future)
        over = set(() if terminated_agent_ids is None else terminated_agent_ids)
        if last is None or not over.isdisjoint(ids) or not set(last[0]).issuperset(ids):
            return future.result()
        late = last[1].result()
        return late if ids == last[0] else _rows(late, [last[0].index(agent) for agent in ids])


def _rows(batch: Any, rows: list[int]) -> Any:
    if isinstance(batch, dict):
        return {key: _rows(value, rows) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_rows(value, rows) for value in batch)
    return np.asarray(batch)[rows]
