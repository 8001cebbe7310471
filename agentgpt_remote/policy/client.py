"""The client of a policy server."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import AgentGPTError, ConfigError, ConnectionLost, InvalidObservation, ProtocolError
from agentgpt_remote.policy import wire
from agentgpt_remote.spaces import space_from_dict

_HINT = "start one with `agentgpt run BUNDLE --port PORT`"


class RemoteSource:
    """A policy behind a policy server.

    Args:
        url: where the server listens, ``ws://`` or ``http://``.
        token: its token, or ``None``.
        seed: seed of sampling, on the server.
        timeout_s: deadline of connecting and of each reply, in seconds.

    Raises:
        HostUnreachable: nothing listens there in time.
        AuthError: the token is missing or wrong.
        ProtocolMismatch: the server speaks another version, or is another service.
    """

    def __init__(self, url: str, *, token: str | None, seed: int | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._request_id = 0
        self._ids: tuple[str, ...] = ()
        self._connection = WebSocketConnection.connect(
            url, token=token, path="/act", connect_timeout_s=min(timeout_s, 10.0), hint=_HINT
        )
        try:
            hello = wire.Hello(protocol=wire.PROTOCOL_VERSION, version=__version__, seed=seed)
            self._connection.send(msgspec.msgpack.encode(hello))
            welcome = msgspec.msgpack.decode(self._connection.recv(timeout_s), type=wire.Welcome)
        except msgspec.MsgspecError as error:
            self._connection.close()
            raise ProtocolError(f"{url} does not greet as a policy server: {error}") from error
        except AgentGPTError:
            self._connection.close()
            raise
        try:
            wire.check_version(welcome.protocol, welcome.version, "server")
            self.observation_space = space_from_dict(welcome.observation_space)
            self.action_space = space_from_dict(welcome.action_space)
            self._takes_masks = welcome.action_masks
        except AgentGPTError:
            self._connection.close()
            raise
        self._observations, self._actions = Layout(self.observation_space), Layout(self.action_space)

    def act(
        self,
        agent_ids: tuple[str, ...],
        batch: Any,
        ended: tuple[str, ...],
        deterministic: bool,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> Any:
        """Return a batch of actions."""
        parts: list[Any] = []
        if not self._observations.batch_parts(batch, len(agent_ids), parts):
            raise InvalidObservation("the observations do not fit the policy's observation space")
        flags = wire.DETERMINISTIC if deterministic else 0
        if action_mask is not None:
            if not self._takes_masks:
                raise ConfigError(
                    f"action_masks: the policy server at {self._connection.url} takes none: "
                    "upgrade agentgpt-remote there"
                )
            flags |= wire.MASKED
            parts.append(np.ascontiguousarray(action_mask, np.bool_))
        same = agent_ids == self._ids
        tail = b"" if same and not ended else _tail(None if same else agent_ids, ended)
        frame = self._request(wire.ACT, flags, len(agent_ids), parts, tail)
        self._ids = agent_ids
        if frame.count != len(agent_ids):
            raise ProtocolError(f"the server sent {frame.count} actions for {len(agent_ids)} agents")
        return self._actions.decode_batch(frame.message, wire.RAW_OFFSET, frame.count)

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""
        tail = msgspec.msgpack.encode(wire.Forget(None if agent_ids is None else list(agent_ids)))
        self._request(wire.FORGET, 0, 0, [], tail)

    def _request(self, kind: int, flags: int, count: int, parts: list[Any], tail: bytes) -> wire.Frame:
        """Send a request and return its reply.

        A timeout ends the session: a reply that came late would be taken for the next one's.
        """
        if self._connection.fileno() == -1:
            raise ConnectionLost(f"the session at {self._connection.url} has ended: make a new policy to act")
        self._request_id = (self._request_id + 1) % 2**32
        try:
            self._connection.send(wire.pack_frame(kind, flags, self._request_id, count, parts, tail))
            frame = wire.unpack_frame(self._connection.recv(self._timeout_s))
        except (AgentGPTError, KeyboardInterrupt):
            self._connection.close()
            raise
        if frame.request_id != self._request_id:
            self._connection.close()
            raise ProtocolError(f"the server answered request {frame.request_id}, expected {self._request_id}")
        if frame.kind == wire.FAILED:
            wire.raise_failure(frame)
        return frame

    def close(self) -> None:
        """Close the connection, which ends the session and its agents."""
        with contextlib.suppress(ConnectionLost):  # it is gone already
            self._connection.close()


def _tail(agent_ids: tuple[str, ...] | None, ended: tuple[str, ...]) -> bytes:
    return msgspec.msgpack.encode(wire.Agents(None if agent_ids is None else list(agent_ids), list(ended)))
