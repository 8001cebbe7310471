"""Acting with a trained policy: :class:`GPTPolicy`."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, InvalidObservation
from agentgpt_remote.policy.behaviors import behavior_names
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import as_batch_of_one, batch_observations, first_of, is_single
from agentgpt_remote.policy.options import ActOptions, mix
from agentgpt_remote.policy.prediction import PredictState, count_rows, predicted_agents
from agentgpt_remote.policy.prefetch import Prefetch
from agentgpt_remote.policy.runner import Engine
from agentgpt_remote.policy.settings import PolicySettings, is_integer
from agentgpt_remote.policy.wire import check_ended, check_ids

SINGLE_AGENT = "agent"


class GPTPolicy(PolicySettings):
    """A trained policy that acts like a local function.

    Each agent is a stream of observations with a memory of its own: the model sees the agent's last steps. A policy
    behind a server outlives it: where the server was restarted, or dropped agents to make room for those of others,
    their last steps are told again, and the actions are those that there would have been.

    Calls from several threads are done one after another.

    Args:
        source: folder of a bundle or a file that ``agentgpt export`` wrote (acts in this process), the URL of a policy
            server (``ws://``, ``http://``, or with TLS ``wss://``, ``https://``), ``sagemaker://ENDPOINT_NAME``, or
            ``hf://OWNER/NAME[@REVISION]``, a bundle on the Hugging Face Hub (acts in this process).
        deterministic: take the likeliest action; ``False`` samples.
        seed: seed of sampling, and of the draws of control values below 1; ``None`` takes entropy. Equal calls of
            policies with equal seeds return equal actions, whatever the kind of source.
        token: token of the policy server; ``AGENTGPT_TOKEN`` by default.
        timeout_s: deadline of connecting and of each call, in seconds.
        device: torch device of a bundle in this process.
        engine: what runs a bundle in this process: "eager" or "compile" (torch), "onnx" (ONNX Runtime, without torch)
            or "auto", which measures eager and onnx where both are installed and takes the faster one.
            ``status()["server"]["engine"]`` tells which, and why.
        behavior: whose policy it is, where the source has those of several behaviours; see :meth:`of_behaviors`.

    Attributes:
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        deterministic: as above; may be changed.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        HostUnreachable: nothing listens at the URL in time.
        AuthError: the server's token is missing or wrong.
        ProtocolMismatch: the server speaks another version.
        ConfigError: the seed, timeout, device, engine or kind of source makes no sense, or there is no such behaviour,
            or several and none is named.
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
        engine: Engine = "auto",
        behavior: str | None = None,
    ) -> None:
        super().__init__(
            source, seed=seed, token=token, timeout_s=timeout_s, device=device, engine=engine, behavior=behavior
        )
        self.deterministic = deterministic
        self._masks = ActionMasks(ActionFeatures(self.action_space))
        self._executor: ThreadPoolExecutor | None = None
        self._checked_ids: tuple[str, ...] = ()
        self._abandoned: deque[tuple[str, ...]] = deque()
        self._chains = itertools.count()
        self._on_close: list[Callable[[], None]] = []

    @classmethod
    def of_behaviors(cls, source: str | Path, **options: Any) -> dict[str, Self]:
        """Return a policy for each behaviour of a bundle's folder or a policy server, by the behaviour's name.

        Args:
            source: as for :class:`GPTPolicy`.
            options: as for :class:`GPTPolicy`.
        """
        policies: dict[str, Self] = {}
        try:
            for name in behavior_names(str(source), options.get("token"), options.get("timeout_s", 30.0)):
                policies[name] = cls(source, behavior=name or None, **options)
        except BaseException:
            for policy in policies.values():
                policy.close()
            raise
        return policies

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

    def prefetch(self) -> Prefetch:
        """Return an object that acts one frame late, so that the loop need not wait for the model."""
        return Prefetch(self)

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
            if max_agents is not None and not (is_integer(max_agents) and 1 <= max_agents <= most):
                raise ConfigError(f"max_agents={max_agents!r}: expected an integer from 1 to {most}, or None")
            self._source.forget(None)
            self._book.clear()
            if max_agents is not None:
                self._book.max_agents = int(max_agents)

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
