"""A bundle on disk that changes while it is served."""

from __future__ import annotations

import logging
from typing import Any

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.opening import OpenedPolicy

_Stamp = tuple[tuple[int, int, int], ...]

_logger = logging.getLogger("agentgpt_remote.policy")


class BundleWatcher:
    """Tells when a bundle has changed.

    Args:
        opened: as it was loaded.

    Attributes:
        num_reloads: how often new weights were taken.
    """

    def __init__(self, opened: OpenedPolicy) -> None:
        self._opened = opened
        self._seen = self._stamp()
        self.num_reloads = 0

    def poll(self) -> Any | None:
        """Return the model of a bundle that has changed since the last look, or None.

        A bundle that can't be loaded is logged once and left alone until it changes again.
        """
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            self._seen = stamp
            return self._opened.load()
        except FileNotFoundError:  # between two bundles
            return None
        except (AgentGPTError, OSError) as error:
            _logger.warning("the bundle has changed and can't be loaded, the old one goes on: %s", error)
            return None

    def hand_over(self, model: Any, engine: PolicyEngine) -> None:
        """Have the engine act with a new model; call it in the engine's thread."""
        try:
            engine.replace_model(model)
        except AgentGPTError as error:
            _logger.warning("the old bundle goes on: %s", error)
            return
        self.num_reloads += 1
        _logger.info("new weights reloads=%d", self.num_reloads)

    def _stamp(self) -> _Stamp:
        """Return what tells one version of the files from another."""
        stats = [path.stat() for path in self._opened.files]
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
