"""The client of a policy server, which outlives the server's memory of its agents."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import msgspec
import numpy as np

from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import (
    BundleError,
    CapacityReached,
    ConnectionLost,
    InvalidObservation,
    ProtocolError,
    RemoteTimeout,
)
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.client_history import ClientHistory
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures
from agentgpt_remote.policy.options import ActOptions
from agentgpt_remote.spaces import space_from_dict

_MAX_RESTORES = 3
_RESTORE_BYTES = 4 * 1024 * 1024


class Channel(Protocol):
    """A way to a policy server.

    Attributes:
        url: where it is.
        max_body_bytes: largest message that it takes.
    """

    url: str
    max_body_bytes: int

    @property
    def connected(self) -> bool:
        """Whether the last session may still be there."""

    def open(self, deadline: float, *, patient: bool = False) -> wire.Welcome:
        """Connect and greet."""

    def exchange(self, message: bytes, timeout_s: float) -> wire.Message:
        """Return the reply to a message; ConnectionLost where the session is gone."""

    def drop(self) -> None:
        """Forget the session, after an error."""

    def close(self) -> None:
        """End the session; a second call does nothing."""


class RemoteSource:
    """A policy behind a policy server.

    It keeps the last steps of each agent. Where the server has lost the session, or has dropped agents to make room,
    it tells the steps again and repeats the request: the actions are those that there would have been.

    Args:
        channel: the way there.
        timeout_s: deadline of connecting and of each call, in seconds.

    Attributes:
        observation_space: of one agent.
        action_space: of one agent.
        max_input_states: the model's window.
        max_agents: most agents that the server holds.
        num_restores: how often agents were told again.

    Raises:
        HostUnreachable: nothing listens there in time.
        AuthError: the token is missing or wrong.
        ProtocolMismatch: the server speaks another version, or is another service.
    """

    def __init__(self, channel: Channel, *, timeout_s: float) -> None:
        self._channel, self._timeout_s = channel, timeout_s
        self._request_id = 0
        self._ids: tuple[str, ...] = ()  # those of the last request, which the server knows
        self.num_restores = 0
        self._welcome = channel.open(time.monotonic() + timeout_s)
        self.observation_space = space_from_dict(self._welcome.observation_space)
        self.action_space = space_from_dict(self._welcome.action_space)
        self.max_input_states, self.max_agents = self._welcome.max_input_states, self._welcome.max_agents
        self._observations = Layout(self.observation_space)
        images = self._welcome.image_encoder == "cnn"
        self._features = ActionFeatures(self.action_space)
        self._history = ClientHistory(
            ObservationFeatures(self.observation_space, images=images), self._features, self._welcome.history_steps
        )

    def act(self, agent_ids: tuple[str, ...], batch: Any, ended: tuple[str, ...], options: ActOptions) -> Any:
        """Return a batch of actions."""
        parts: list[Any] = []
        if not self._observations.batch_parts(batch, len(agent_ids), parts):
            raise InvalidObservation("the observations do not fit the policy's observation space")
        flags = wire.COMPACT | (wire.DETERMINISTIC if options.deterministic else 0)
        if options.action_mask is not None:
            flags |= wire.MASKED
            parts.append(np.ascontiguousarray(options.action_mask, np.bool_))
        if options.in_control is not None:
            flags |= wire.CONTROLLED
            parts.append(np.ascontiguousarray(options.in_control, np.bool_))
        known = self._history.agent_ids
        starting: Collection[str] = ()
        if ended or agent_ids != self._ids:
            over = set(ended)
            starting = [agent for agent in agent_ids if agent not in known or agent in over]
        count = len(agent_ids)

        def message(request_id: int) -> bytes:
            tail = b""
            if ended or starting or agent_ids != self._ids:
                tail = wire.encode(wire.Agents(list(agent_ids), list(ended), list(starting)))
            return wire.pack_frame(
                wire.ACT,
                flags,
                request_id,
                count,
                parts,
                tail,
                num_input_states=options.num_input_states,
                seed=options.seed,
            )

        frame = self._ask(message, time.monotonic() + self._timeout_s)
        if frame.count != count or frame.raw_bytes != 4 * count * self._features.width:
            raise ProtocolError(f"the server sent {frame.count} actions for {count} agents")
        self._ids = agent_ids
        vectors: Float32 = np.frombuffer(frame.message, np.float32, count * self._features.width, wire.RAW_OFFSET)
        vectors = vectors.reshape(count, -1)
        self._history.add(agent_ids, batch, starting, vectors)
        if ended:
            acting = set(agent_ids)
            self._history.forget([agent for agent in ended if agent not in acting])
        return self._features.decode(vectors)

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""
        tail = wire.encode(wire.AgentList(None if agent_ids is None else list(agent_ids)))
        self._ask(lambda number: wire.pack_frame(wire.FORGET, 0, number, 0, (), tail), self._deadline())
        self._ids = ()
        if agent_ids is None:
            self._history.clear()
        else:
            self._history.forget(agent_ids)

    def describe(self) -> dict[str, Any]:
        """Return what the server tells of itself, and how often it had lost agents of this client."""
        frame = self._ask(lambda number: wire.pack_frame(wire.STATUS, 0, number, 0, ()), self._deadline())
        fields: dict[str, Any] = msgspec.msgpack.decode(frame.tail, type=dict[str, Any])
        return fields | {"restored": self.num_restores}

    def close(self) -> None:
        """End the session and its agents."""
        self._history.clear()
        self._channel.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _ask(self, message: Callable[[int], bytes], deadline: float) -> wire.Frame:
        """Return the reply to a request, telling agents again that the server does not hold.

        Args:
            message: builds the request from its number; called again for each attempt.
            deadline: on the monotonic clock, in seconds.
        """
        for _ in range(_MAX_RESTORES + 1):
            frame = self._exchange(message, deadline)
            if frame.kind != wire.LOST:
                return frame
            self._ids = ()
            lost = msgspec.msgpack.decode(frame.tail, type=wire.AgentList).ids or []
            unknown = [agent for agent in lost if agent not in self._history.agent_ids]
            if unknown:
                raise ProtocolError(f"the server asks for steps of agent {unknown[0]!r}, which is new")
            self._restore(lost, deadline)
        raise CapacityReached(
            f"the policy server at {self._channel.url} drops agents as fast as they come: it holds at most "
            f"{self.max_agents} of all clients; raise `agentgpt run --max-agents`"
        )

    def _restore(self, agent_ids: list[str], deadline: float) -> None:
        """Tell the server the last steps of agents."""
        self.num_restores += len(agent_ids)
        limit = min(_RESTORE_BYTES, self._channel.max_body_bytes // 2)
        for restored, raw in self._history.told(agent_ids, limit):
            tail = wire.encode(restored)
            build = _restoring(tail, raw)
            if self._exchange(build, deadline).kind == wire.LOST:
                return  # the session ended meanwhile: the request that comes next tells which agents are missing

    def _exchange(self, message: Callable[[int], bytes], deadline: float) -> wire.Frame:
        """Return the reply to a request; where the connection is lost, connect anew and ask once more."""
        self._request_id = (self._request_id + 1) % 2**32
        retried = False
        while True:
            try:
                if not self._channel.connected:
                    retried = True
                    self._reconnect(deadline)
                request = message(self._request_id)
                self._check_size(request)
                frame = wire.unpack_frame(self._channel.exchange(request, self._left(deadline)))
            except RemoteTimeout as error:
                self._ids = ()
                raise RemoteTimeout(
                    f"no reply from {self._channel.url} within {self._timeout_s:g} s; the call may be repeated"
                ) from error
            except ConnectionLost as error:
                self._ids = ()
                if time.monotonic() >= deadline:
                    raise type(error)(
                        f"{error}: the server was not back within {self._timeout_s:g} s; the call may be repeated"
                    ) from error
                if retried:
                    raise type(error)(f"{error}; asked twice, the call may be repeated") from error
            else:
                break
        if frame.kind == wire.FAILED:
            wire.raise_failure(frame)
        if frame.request_id != self._request_id:
            self._channel.drop()
            raise ProtocolError(f"the server answered request {frame.request_id}, expected {self._request_id}")
        return frame

    def _reconnect(self, deadline: float) -> None:
        self._ids = ()
        welcome = self._channel.open(deadline, patient=True)
        if _identity(welcome) != _identity(self._welcome):
            self._channel.drop()
            raise BundleError(f"the server at {self._channel.url} serves another policy by now: make a new GPTPolicy")

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RemoteTimeout("the time is over")
        return left

    def _check_size(self, request: bytes) -> None:
        limit = self._channel.max_body_bytes
        if len(request) > limit:
            raise InvalidObservation(
                f"the request is {len(request)} bytes, over the limit of {limit} of {self._channel.url}: "
                "act for fewer agents per call"
            )


def _restoring(tail: bytes, raw: list[bytes]) -> Callable[[int], bytes]:
    return lambda number: wire.pack_frame(wire.RESTORE, 0, number, 0, raw, tail)


def _identity(welcome: wire.Welcome) -> tuple[Any, ...]:
    """Return what of a policy must stay the same for a client to go on."""
    sizes = (welcome.image_encoder, welcome.max_input_states, welcome.history_steps)
    return (welcome.observation_space, welcome.action_space, *sizes)
