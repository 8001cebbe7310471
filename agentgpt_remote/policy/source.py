"""Where actions come from: one interface for a policy in this process and one behind a server."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.engine import AgentTable, PolicyEngine
from agentgpt_remote.policy.wire import check_ended


class PolicySource(Protocol):
    """What acts for :class:`~agentgpt_remote.policy.gpt_policy.GPTPolicy`; arguments are checked before."""

    observation_space: Space[Any]
    action_space: Space[Any]

    def act(
        self,
        agent_ids: tuple[str, ...],
        batch: Any,
        ended: tuple[str, ...],
        deterministic: bool,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Return a batch of actions for a batch of observations, forgetting ``ended`` agents first.

        ``action_mask``: bool array of shape (n, categories), what is allowed; None allows everything.
        """

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""

    def close(self) -> None:
        """Free what is held; a second call does nothing."""


class LocalSource:
    """A bundle in this process.

    Args:
        path: the bundle's folder.
        seed: seed of sampling.
        device: torch device.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
    """

    def __init__(self, path: str, *, seed: int | None, device: str) -> None:
        bundle = load_bundle(path, device=device)
        self.observation_space, self.action_space = bundle.observation_space, bundle.action_space
        self._agents = AgentTable(PolicyEngine(bundle.model), seed)

    def act(
        self,
        agent_ids: tuple[str, ...],
        batch: Any,
        ended: tuple[str, ...],
        deterministic: bool,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Return a batch of actions."""
        check_ended(ended, self._agents.held)
        return self._agents.act(agent_ids, batch, ended, deterministic, action_mask)

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""
        if agent_ids is None:
            self._agents.clear()
        else:
            check_ended(agent_ids, self._agents.held)
            self._agents.forget(list(agent_ids))

    def close(self) -> None:
        """Drop all agents."""
        self._agents.clear()
