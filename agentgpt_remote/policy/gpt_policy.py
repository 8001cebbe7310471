"""Acting with a trained policy: :class:`GPTPolicy`."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from gymnasium import Space
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError, InvalidObservation
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import as_batch_of_one, batch_observations, first_of, is_single
from agentgpt_remote.policy.source import LocalSource, PolicySource
from agentgpt_remote.policy.wire import check_ended, check_ids

SINGLE_AGENT = "agent"
_URL_SCHEMES = ("ws://", "wss://", "http://", "https://")


class PredictState:
    """Which agents a chain of :meth:`GPTPolicy.predict` calls belongs to; their memory ends with this object."""

    def __init__(self, agent_ids: tuple[str, ...]) -> None:
        self.agent_ids = agent_ids


class GPTPolicy:
    """A trained policy that acts like a local function.

    Each agent is a stream of observations with a memory of its own: the model sees the agent's last steps.
    Not safe for use by several threads at once.

    Args:
        source: folder of a bundle (acts in this process), or the URL of a policy server, ``ws://`` or ``http://``.
        deterministic: take the likeliest action; ``False`` samples.
        seed: seed of sampling.
        token: token of the policy server; ``AGENTGPT_TOKEN`` by default.
        timeout_s: deadline of connecting and of each reply, in seconds.
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
        self._source = _open(self._name, seed=seed, token=token, timeout_s=timeout_s, device=device)
        self.observation_space: Space[Any] = self._source.observation_space
        self.action_space: Space[Any] = self._source.action_space
        self._masks = ActionMasks(ActionFeatures(self.action_space))
        self._agents: dict[str, None] = {}
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
        return first_of(self.action_space, self._act((SINGLE_AGENT,), batch, (), self.deterministic, masks))

    def reset(self) -> None:
        """Begin a new episode of the one agent that ``policy(observation)`` acts for."""
        self._check_open()
        if SINGLE_AGENT in self._agents:
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
        """
        # Mostly the agents of the last call, whose ids are known to be right.
        same = isinstance(agent_ids, list | tuple) and tuple(agent_ids) == self._checked_ids
        ids = self._checked_ids if same else check_ids(agent_ids)
        self._checked_ids = ids
        ended = check_ids(() if terminated_agent_ids is None else terminated_agent_ids, "terminated_agent_ids")
        self._check_open()
        check_ended(ended, self._agents)
        if not ids:
            if ended:
                self._forget(ended)
            return create_empty_array(self.action_space, 0)
        return self._act(ids, observations, ended, self.deterministic, action_masks)

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
        single = is_single(self.observation_space, observation)
        batch = as_batch_of_one(self.observation_space, observation) if single else observation
        count = 1 if single else _count(batch)
        if not count:
            raise InvalidObservation("got a batch of 0 observations: expected at least one")
        if state is None:
            state = self._new_chain(count)
        if not isinstance(state, PredictState):
            raise ConfigError(f"state is a {type(state).__name__}: expected None or what the last predict returned")
        ids = state.agent_ids
        if len(ids) != count:
            raise InvalidObservation(
                f"got {count} observations, the state is of {len(ids)}: pass state=None to begin anew"
            )
        starts = np.asarray(False if episode_start is None else episode_start, np.bool_)
        if starts.shape not in ((), (count,)):
            raise ConfigError(f"episode_start has shape {starts.shape}: expected ({count},), one per observation")
        starts = np.broadcast_to(starts, (count,))
        ended = tuple(agent for agent, start in zip(ids, starts, strict=True) if start and agent in self._agents)
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
        self._check_open()
        ids = check_ids(agent_ids)
        check_ended(ids, self._agents)
        if ids:
            self._forget(ids)

    def reset_agents(self) -> None:
        """Drop all agents."""
        self._check_open()
        self._source.forget(None)
        self._agents.clear()

    def get_num_agents(self) -> int:
        """Return how many agents have a memory."""
        return len(self._agents)

    def get_agent_ids(self) -> list[str]:
        """Return their ids, in the order in which they joined."""
        return list(self._agents)

    def _act(
        self, ids: tuple[str, ...], observations: Any, ended: tuple[str, ...], deterministic: bool, masks: Any
    ) -> Any:
        self._check_open()
        batch = batch_observations(self.observation_space, observations, ids)
        if self._abandoned:
            ended = (*ended, *self._take_abandoned())
        rows = None if masks is None else self._masks.read(masks, ids)
        actions = self._source.act(ids, batch, ended, deterministic, rows)
        for agent in ended:
            self._agents.pop(agent, None)
        self._agents.update(dict.fromkeys(ids))
        return actions

    def _take_abandoned(self) -> Iterable[str]:
        """Yield agents of ``predict`` whose state nobody holds any more."""
        while self._abandoned:
            for agent in self._abandoned.popleft():
                if agent in self._agents:
                    yield agent

    def _forget(self, ids: tuple[str, ...]) -> None:
        self._source.forget(ids)
        for agent in ids:
            self._agents.pop(agent, None)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{self!r} is closed: make a new one to act")

    def call_on_close(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when this policy is closed, to end what it owns."""
        self._on_close.append(callback)

    def close(self) -> None:
        """Free the model or end the session; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._agents.clear()
        self._source.close()
        for callback in self._on_close:
            callback()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _count(batch: Any) -> int:
    """Return the number of rows of a batch."""
    if isinstance(batch, dict):
        return _count(next(iter(batch.values())))
    if isinstance(batch, tuple):
        return _count(batch[0])
    return len(batch) if np.ndim(batch) else 0


def _open(source: str, *, seed: int | None, token: str | None, timeout_s: float, device: str) -> PolicySource:
    if source.startswith(_URL_SCHEMES):
        from agentgpt_remote.policy.client import RemoteSource
        from agentgpt_remote.serving import resolve_token

        return RemoteSource(source, token=resolve_token(token), seed=seed, timeout_s=timeout_s)
    if "://" in source:
        raise ConfigError(f"source={source!r}: expected a bundle's folder, or the ws:// or http:// URL of a server")
    return LocalSource(source, seed=seed, device=device)
