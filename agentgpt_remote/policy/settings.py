"""What can be asked of a policy and changed while it acts, beside acting itself."""

from __future__ import annotations

import copy
import math
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector.utils import batch_space

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.agent_book import AgentBook
from agentgpt_remote.policy.options import mix
from agentgpt_remote.policy.runner import Engine
from agentgpt_remote.policy.source import open_source
from agentgpt_remote.policy.wire import check_ended, check_ids

_MAX_SAMPLERS = 8


class PolicySettings:
    """Memory, control, samples and status of a policy; see :class:`~agentgpt_remote.policy.gpt_policy.GPTPolicy`."""

    def __init__(
        self,
        source: str | Path,
        *,
        seed: int | None,
        token: str | None,
        timeout_s: float,
        device: str,
        engine: Engine = "auto",
        behavior: str | None = None,
    ) -> None:
        if behavior is not None and not isinstance(behavior, str):
            raise ConfigError(f"behavior={behavior!r}: expected None or a behaviour's name")
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
            raise ConfigError(f"seed={seed!r}: expected None or an integer from 0 to 2**63 - 1")
        if not (isinstance(timeout_s, int | float) and 0 < timeout_s < math.inf):
            raise ConfigError(f"timeout_s={timeout_s!r}: expected seconds, more than 0")
        self._name = str(source)
        self._source = open_source(
            self._name, token=token, timeout_s=timeout_s, device=device, engine=engine, behavior=behavior
        )
        self.observation_space: Space[Any] = self._source.observation_space
        self.action_space: Space[Any] = self._source.action_space
        self._book = AgentBook(self._source.max_agents)
        self._seed = secrets.randbits(63) if seed is None else seed
        self._calls = 0
        self._num_input_states = 0  # 0: all that the model can see
        self._samplers: dict[tuple[bool, int | None], Space[Any]] = {}
        self._num_samplers = 0
        self._lock = threading.RLock()
        self._closed = False

    def get_num_agents(self) -> int:
        """Return how many agents have a memory."""
        return len(self._book)

    def get_agent_ids(self) -> list[str]:
        """Return their ids, in the order in which they joined."""
        return self._book.ids

    def status(self, agent_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what there is to tell of the policy and its agents.

        Args:
            agent_ids: which agents; None stands for all that are held.

        Returns:
            A dict with ``source``, ``num_agents``, ``max_agents``, ``num_input_states``, ``max_input_states``,
            ``control_value``, ``server`` (what the source tells of itself) and ``agents``: for each id a dict with
            ``status`` and, of one that is ``"active"``, ``steps`` of its episode and ``control_value``. An agent that
            was dropped to make room for others is ``"dropped"``, one that never came or has left is ``"unknown"``.
        """
        with self._lock:
            self._check_open()
            ids = self._book.ids if agent_ids is None else check_ids(agent_ids)
            return {
                "source": self._name,
                "num_agents": len(self._book),
                "max_agents": self._book.max_agents,
                "num_input_states": self.get_num_input_states(),
                "max_input_states": self.get_max_input_states(),
                "control_value": self._book.control,
                "server": self._source.describe(),
                "agents": self._book.status(ids),
            }

    def set_num_input_states(self, num_input_states: int) -> None:
        """Set how many steps the model sees, the current one included, from the next call on.

        At the maximum the policy acts as it was trained. Below it, each action is that of a model which is given the
        agent's last steps of the current episode, and nothing before them.

        Raises:
            ConfigError: it is no integer from 1 to the maximum; nothing changes.
        """
        most = self.get_max_input_states()
        if not (is_integer(num_input_states) and 1 <= num_input_states <= most):
            raise ConfigError(f"num_input_states={num_input_states!r}: expected an integer from 1 to {most}")
        self._num_input_states = 0 if num_input_states == most else int(num_input_states)

    def get_num_input_states(self) -> int:
        """Return how many steps the model sees."""
        return self._num_input_states or self.get_max_input_states()

    def get_max_input_states(self) -> int:
        """Return how many steps the model can see: the window that it was trained with."""
        return self._source.max_input_states

    def set_control_value(self, agent_ids: Sequence[str] | None = None, control_value: float = 1.0) -> None:
        """Set how much control the policy has over agents: the share of steps in which it acts.

        In each step the policy acts with this probability; else the agent takes its action space's neutral action
        (:mod:`agentgpt_remote.policy.control`). 1 is the trained policy, 0 can't act. The policy sees which actions
        were taken. The draws follow the seed of the policy.

        Args:
            agent_ids: agents that are held; None stands for all, also those that will join, and replaces what was set
                for single ones. An agent's own value ends when it leaves.
            control_value: from 0 to 1.

        Raises:
            ConfigError: it is out of range; nothing changes.
            UnknownAgent: an agent is not known; nothing changes.
        """
        with self._lock:
            self._book.set_control(None if agent_ids is None else check_ids(agent_ids), control_value)

    def get_control_value(self, agent_ids: Sequence[str] | None = None) -> Any:
        """Return the control value of agents without one of their own, or with ids a dict of those agents' values.

        Raises:
            UnknownAgent: an agent is not known.
        """
        if agent_ids is None:
            return self._book.control
        ids = check_ids(agent_ids)
        check_ended(ids, self._book)
        return {agent: self._book.control_of(agent) for agent in ids}

    def sample_action(self, num_agents: int | None = None) -> Any:
        """Return a random action, or with ``num_agents`` a batch of them; draws follow the policy's seed."""
        return self._sample(True, num_agents)

    def sample_observation(self, num_agents: int | None = None) -> Any:
        """Return a random observation, or with ``num_agents`` a batch of them; draws follow the policy's seed."""
        return self._sample(False, num_agents)

    def _sample(self, actions: bool, num_agents: int | None) -> Any:
        if num_agents is not None and not (is_integer(num_agents) and num_agents >= 1):
            raise ConfigError(f"num_agents={num_agents!r}: expected an integer of at least 1, or None")
        with self._lock:
            self._check_open()
            space = self.action_space if actions else self.observation_space
            key = (actions, num_agents)
            if key not in self._samplers:
                while len(self._samplers) >= _MAX_SAMPLERS:
                    self._samplers.pop(next(iter(self._samplers)))
                # A space of its own: the draws of the policy's spaces belong to the user.
                sampler: Space[Any] = copy.deepcopy(space) if num_agents is None else batch_space(space, num_agents)
                sampler.seed(mix(self._seed, self._num_samplers) & (2**31 - 1))
                self._num_samplers += 1
                self._samplers[key] = sampler
            return self._samplers[key].sample()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{self!r} is closed: make a new one to act")


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer, of Python or of numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
