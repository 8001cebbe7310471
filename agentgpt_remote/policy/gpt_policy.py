"""Acting with a trained policy: :class:`GPTPolicy`."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium import Space
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector.utils import batch_space, create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, InvalidObservation
from agentgpt_remote.policy.agent_book import AgentBook
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import as_batch_of_one, batch_observations, first_of, is_single
from agentgpt_remote.policy.options import ActOptions, mix
from agentgpt_remote.policy.prediction import PredictState, count_rows, predicted_agents
from agentgpt_remote.policy.source import open_source
from agentgpt_remote.policy.wire import check_ended, check_ids

SINGLE_AGENT = "agent"


class GPTPolicy:
    """A trained policy that acts like a local function.

    Each agent is a stream of observations with a memory of its own: the model sees the agent's last steps. A policy
    behind a server outlives it: where the server was restarted, or dropped agents to make room for those of others,
    their last steps are told again, and the actions are those that there would have been.

    Calls from several threads are done one after another.

    Args:
        source: folder of a bundle (acts in this process), the URL of a policy server (``ws://``, ``http://``, or with
            TLS ``wss://``, ``https://``), or ``sagemaker://ENDPOINT_NAME``.
        deterministic: take the likeliest action; ``False`` samples.
        seed: seed of sampling, and of the draws of control values below 1; ``None`` takes entropy. Equal calls of
            policies with equal seeds return equal actions, whatever the kind of source.
        token: token of the policy server; ``AGENTGPT_TOKEN`` by default.
        timeout_s: deadline of connecting and of each call, in seconds.
        device: torch device of a bundle in this process.

    Attributes:
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        deterministic: as above; may be changed.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        HostUnreachable: nothing listens at the URL in time.
        AuthError: the server's token is missing or wrong.
        ProtocolMismatch: the server speaks another version.
        ConfigError: the seed, timeout, device or kind of source makes no sense.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        deterministic: bool = True,
        seed: int | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        device: str = "cpu",
    ) -> None:
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**63):
            raise ConfigError(f"seed={seed!r}: expected None or an integer from 0 to 2**63 - 1")
        if not (isinstance(timeout_s, int | float) and 0 < timeout_s < math.inf):
            raise ConfigError(f"timeout_s={timeout_s!r}: expected seconds, more than 0")
        self.deterministic = deterministic
        self._name = str(source)
        self._source = open_source(self._name, token=token, timeout_s=timeout_s, device=device)
        self.observation_space: Space[Any] = self._source.observation_space
        self.action_space: Space[Any] = self._source.action_space
        self._masks = ActionMasks(ActionFeatures(self.action_space))
        self._book = AgentBook(self._source.max_agents)
        self._seed = secrets.randbits(63) if seed is None else seed
        self._calls = 0
        self._num_input_states = 0  # 0: all that the model can see
        self._samplers: dict[tuple[bool, int | None], Space[Any]] = {}
        self._lock = threading.RLock()
        self._executor: ThreadPoolExecutor | None = None
        self._checked_ids: tuple[str, ...] = ()
        self._abandoned: deque[tuple[str, ...]] = deque()
        self._chains = itertools.count()
        self._on_close: list[Callable[[], None]] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"GPTPolicy({self._name!r}, deterministic={self.deterministic})"

    def __call__(self, observation: Any, *, action_mask: Any = None) -> Any:
        """Return an action for one agent; call :meth:`reset` between its episodes.

        Args:
            observation: of ``observation_space``.
            action_mask: what is allowed, as ``info["action_mask"]`` says it; None allows everything.

        Returns:
            An action of ``action_space``, with its dtype.

        Raises:
            InvalidObservation: the observation does not fit the space, or is not finite.
        """
        batch = as_batch_of_one(self.observation_space, observation)
        masks = None if action_mask is None else [action_mask]
        with self._lock:
            return first_of(self.action_space, self._act((SINGLE_AGENT,), batch, (), self.deterministic, masks))

    def reset(self) -> None:
        """Begin a new episode of the one agent that ``policy(observation)`` acts for."""
        with self._lock:
            self._check_open()
            if SINGLE_AGENT in self._book:
                self._forget((SINGLE_AGENT,))

    def select_action(
        self,
        agent_ids: Sequence[str],
        observations: Any,
        terminated_agent_ids: Sequence[str] | None = None,
        *,
        action_masks: Any = None,
    ) -> Any:
        """Return actions for many agents.

        An agent that was not there before joins with an empty memory.

        Args:
            agent_ids: n different ids.
            observations: one per id: a list of single observations, or an array (or dict or tuple of arrays)
                with leading axis n.
            terminated_agent_ids: agents whose episode has ended: their memory is dropped first. One that is in
                ``agent_ids`` too begins a new episode with its observation.
            action_masks: what each agent may do: a list with one ``info["action_mask"]`` or None per id, or
                ``infos["action_mask"]`` of a vector environment. An action that is not allowed is not taken.

        Returns:
            A batch of actions, one row per agent id, as a batched action space holds them: an array of shape
            (n, ...), or a dict or tuple of arrays.

        Raises:
            InvalidObservation: a wrong number, shape or dtype, a value that is not finite, or a mask that allows
                nothing. Nothing changes.
            UnknownAgent: an id is there twice or is not a text, or a terminated agent is not known.
            CapacityReached: more agents at once than the policy holds.
            ConnectionLost: the server has ended and did not come back in time; the step may be asked for again.
            RemoteTimeout: the server did not answer in time; the step may be asked for again.
        """
        with self._lock:
            return self._select(agent_ids, observations, terminated_agent_ids, action_masks)

    def _select(
        self, agent_ids: Sequence[str], observations: Any, terminated_agent_ids: Sequence[str] | None, masks: Any
    ) -> Any:
        # Mostly the agents of the last call, whose ids are known to be right.
        same = isinstance(agent_ids, list | tuple) and tuple(agent_ids) == self._checked_ids
        ids = self._checked_ids if same else check_ids(agent_ids)
        self._checked_ids = ids
        ended = check_ids(() if terminated_agent_ids is None else terminated_agent_ids, "terminated_agent_ids")
        self._check_open()
        check_ended(ended, self._book)
        if not ids:
            if ended:
                self._forget(ended)
            return create_empty_array(self.action_space, 0)
        return self._act(ids, observations, ended, self.deterministic, masks)

    async def aselect_action(
        self,
        agent_ids: Sequence[str],
        observations: Any,
        terminated_agent_ids: Sequence[str] | None = None,
        *,
        action_masks: Any = None,
    ) -> Any:
        """Return actions as :meth:`select_action` does, without blocking the event loop.

        Calls are done in the order in which they were made. One that is cancelled before it began has no effect; after
        that its step counts.
        """
        future = self.submit(agent_ids, observations, terminated_agent_ids, action_masks=action_masks)
        return await asyncio.wrap_future(future)

    def submit(
        self,
        agent_ids: Sequence[str],
        observations: Any,
        terminated_agent_ids: Sequence[str] | None = None,
        *,
        action_masks: Any = None,
    ) -> Future[Any]:
        """Return a future of what :meth:`select_action` returns, from a thread of this policy.

        The observations must not change until it is done.
        """
        with self._lock:
            self._check_open()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="agentgpt-policy")
            return self._executor.submit(
                self.select_action, agent_ids, observations, terminated_agent_ids, action_masks=action_masks
            )

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        *,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Return actions in the form of Stable-Baselines3's ``predict``.

        Args:
            observation: one observation, or a batch of them with a leading axis.
            state: what the last call returned; ``None`` begins with an empty memory.
            episode_start: bool array of shape (n,): agents whose episode begins here.
            deterministic: take the likeliest actions.
            action_masks: what is allowed: one mask for one observation, else as for :meth:`select_action`.

        Returns:
            The action or batch of actions, and the state for the next call.

        Raises:
            InvalidObservation: the observations do not fit the space, or their number has changed.
        """
        with self._lock:
            single = is_single(self.observation_space, observation)
            batch = as_batch_of_one(self.observation_space, observation) if single else observation
            count = 1 if single else count_rows(batch)
            if not count:
                raise InvalidObservation("got a batch of 0 observations: expected at least one")
            state = self._new_chain(count) if state is None else state
            ids, starting = predicted_agents(state, count, episode_start)
            ended = tuple(agent for agent in starting if agent in self._book)
            masks = [action_masks] if single and action_masks is not None else action_masks
            actions = self._act(ids, batch, ended, deterministic, masks)
            return (first_of(self.action_space, actions) if single else actions), state

    def _new_chain(self, count: int) -> PredictState:
        chain = next(self._chains)
        state = PredictState(tuple(f"predict-{chain}-{index}" for index in range(count)))
        weakref.finalize(state, self._abandoned.append, state.agent_ids).atexit = False
        return state

    def terminate_agents(self, agent_ids: Sequence[str]) -> None:
        """Drop agents that are gone.

        Raises:
            UnknownAgent: one of them is not known; nothing changes.
        """
        with self._lock:
            self._check_open()
            ids = check_ids(agent_ids)
            check_ended(ids, self._book)
            if ids:
                self._forget(ids)

    def reset_agents(self, max_agents: int | None = None) -> None:
        """Drop all agents.

        Args:
            max_agents: most agents from here on; where more come, those that have not acted for longest are dropped.
                None leaves the limit as it is: at first that of the source.

        Raises:
            ConfigError: the limit is less than 1 or more than the source holds; nothing changes.
        """
        with self._lock:
            self._check_open()
            most = self._source.max_agents
            if max_agents is not None and not (_is_integer(max_agents) and 1 <= max_agents <= most):
                raise ConfigError(f"max_agents={max_agents!r}: expected an integer from 1 to {most}, or None")
            self._source.forget(None)
            self._book.clear()
            if max_agents is not None:
                self._book.max_agents = int(max_agents)

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
        if not (_is_integer(num_input_states) and 1 <= num_input_states <= most):
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
        if num_agents is not None and not (_is_integer(num_agents) and num_agents >= 1):
            raise ConfigError(f"num_agents={num_agents!r}: expected an integer of at least 1, or None")
        with self._lock:
            self._check_open()
            space = self.action_space if actions else self.observation_space
            key = (actions, num_agents)
            if key not in self._samplers:
                # A space of its own: the draws of the policy's spaces belong to the user.
                sampler: Space[Any] = copy.deepcopy(space) if num_agents is None else batch_space(space, num_agents)
                sampler.seed(mix(self._seed, int(actions)) & (2**31 - 1))
                self._samplers[key] = sampler
            return self._samplers[key].sample()

    def _act(
        self, ids: tuple[str, ...], observations: Any, ended: tuple[str, ...], deterministic: bool, masks: Any
    ) -> Any:
        self._check_open()
        batch = batch_observations(self.observation_space, observations, ids)
        if self._abandoned:
            ended = (*ended, *self._take_abandoned())
        seed = mix(self._seed, self._calls)
        dropped = self._book.room_for(ids, ended)
        options = ActOptions(
            deterministic=deterministic,
            seed=seed,
            num_input_states=self._num_input_states,
            action_mask=None if masks is None else self._masks.read(masks, ids),
            in_control=self._book.in_control(ids, seed),
        )
        actions = self._source.act(ids, batch, (*ended, *dropped) if dropped else ended, options)
        self._book.acted(ids, ended, dropped)
        self._calls += 1
        return actions

    def _take_abandoned(self) -> Iterable[str]:
        """Yield agents of ``predict`` whose state nobody holds any more."""
        while self._abandoned:
            for agent in self._abandoned.popleft():
                if agent in self._book:
                    yield agent

    def _forget(self, ids: tuple[str, ...]) -> None:
        self._source.forget(ids)
        self._book.forget(ids)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{self!r} is closed: make a new one to act")

    def call_on_close(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when this policy is closed, to end what it owns."""
        self._on_close.append(callback)

    def close(self) -> None:
        """Free the model or end the session; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        self._book.clear()
        self._source.close()
        for callback in self._on_close:
            callback()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
