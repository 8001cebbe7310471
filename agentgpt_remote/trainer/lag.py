"""How old the weights were that chose the actions which are learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.trainer.streams import StreamStore

_KEPT_VERSIONS = 1000


class PolicyLag:
    """Measures policy lag, in updates and in environment steps."""

    def __init__(self) -> None:
        self._made_at: dict[int, int] = {0: 0}

    def renewed(self, version: int, env_steps: int) -> None:
        """Note that the acting policy has new weights, after so many environment steps."""
        self._made_at[version] = env_steps
        self._made_at.pop(version - _KEPT_VERSIONS, None)

    def metrics(
        self, store: StreamStore, first: NDArray[np.int64], last: NDArray[np.int64], version: int
    ) -> dict[str, float]:
        """Return the lag of new decisions: those of each stream from token ``first`` to before ``last``.

        ``rollout/policy_lag_updates`` counts the updates between the weights that decided and the newest ones,
        ``rollout/policy_lag_steps`` the environment steps between the moments from which they were there.
        """
        versions = np.concatenate(
            [
                store.version[stream, index][store.valid[stream, index]]
                for stream in range(store.num_streams)
                for index in [np.arange(first[stream], last[stream]) % store.capacity]
            ]
        )
        if not len(versions):
            return {}
        oldest = min(self._made_at)
        known, counts = np.unique(np.maximum(versions, oldest), return_counts=True)
        now = self._made_at.get(version, 0)
        steps = np.array([now - self._made_at.get(int(made), now) for made in known])
        updates = version - known
        total = counts.sum()
        return {
            "rollout/policy_lag_updates": float((updates * counts).sum() / total),
            "rollout/policy_lag_updates_max": float(updates.max()),
            "rollout/policy_lag_steps": float((steps * counts).sum() / total),
            "rollout/policy_lag_steps_max": float(steps.max()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return when each version was made, as lists."""
        return {"versions": list(self._made_at), "env_steps": list(self._made_at.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._made_at = dict(zip(state["versions"], state["env_steps"], strict=True))
