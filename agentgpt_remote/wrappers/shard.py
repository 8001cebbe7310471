"""A shard: consecutive environments of a vector environment, in one session on one host."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate

from agentgpt_remote.connection import wait_readable
from agentgpt_remote.errors import ConnectionLost, RemoteTimeout
from agentgpt_remote.handshake import Open
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Envelope, Kind
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import DroppedCallback, Payload, VectorCodec
from agentgpt_remote.wrappers.hosting import Host, Sessions
from agentgpt_remote.wrappers.remote_base import HOST_LOSS

_logger = logging.getLogger("agentgpt_remote.client")
_RESET_ATTEMPTS = 3

Reset = tuple[Any, dict[str, Any]]
Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class Shard:
    """Requests and replies of some environments; survives the loss of their host where that is asked for.

    Args:
        sessions: opens the session.
        host: where.
        request: what to open.
        start: index of its first environment in the whole.
        group: index of its group.
        mode: when an environment whose episode ended is reset.
        truncates: whether the loss of the host truncates the episodes, which go on in new environments elsewhere.
        keeps_last: whether a reset of other shards alone repeats its latest observations.
        on_dropped: is told the parts of infos that the host could not send, instead of a warning.

    Attributes:
        opened: the host's answer to the handshake.
        num_envs: how many environments.
        codec: of its messages.
        pending: what lacks its reply.
    """

    def __init__(
        self,
        sessions: Sessions,
        host: Host,
        request: Open,
        *,
        start: int,
        group: int,
        mode: AutoresetMode,
        truncates: bool,
        keeps_last: bool,
        on_dropped: DroppedCallback | None = None,
    ) -> None:
        self._sessions, self._host, self._request = sessions, host, request
        self.transport = sessions.open(host, request)
        self.opened = opened = self.transport.opened
        self.num_envs = opened.num_envs or 1
        self.start, self.stop, self.group = start, start + self.num_envs, group
        self.single_observation_space = space_from_dict(opened.observation_space, "observation")
        self.single_action_space = space_from_dict(opened.action_space, "action")
        self.codec = VectorCodec(self.single_observation_space, self.single_action_space, self.num_envs, on_dropped)
        self._mode, self._truncates, self._keeps_last = mode, truncates, keeps_last or truncates
        self.pending: Kind | None = None
        self._last: Any = None
        self._last_frames: Any = None
        self._loss: Exception | None = None  # why the session was lost while a step was sent
        self._is_new = False  # the environments replace lost ones, and were not reset yet
        self._steps_by_reset = False
        self._reset_arguments: tuple[Any, Any] = (None, None)
        self._repeats_last = False

    @property
    def host(self) -> Host:
        """The host that serves it."""
        return self._host

    @property
    def url(self) -> str:
        """Where it is served."""
        return self.transport.url

    def send_reset(self, seed: Any, options: dict[str, Any] | None) -> None:
        """Start a reset; seeds and ``reset_mask`` are those of these environments."""
        mask = None if options is None else options.get("reset_mask")
        self._repeats_last = mask is not None and self._keeps_last and not np.any(mask) and not self._is_new
        if not self._repeats_last:
            if mask is not None and self._is_new and options is not None:  # all of them lack their first reset
                options = {key: value for key, value in options.items() if key != "reset_mask"}
            self._reset_arguments = (seed, options)
            self._send_reset()
        self.pending = Kind.RESET

    def _send_reset(self) -> None:
        if self._truncates and self.transport.ended:
            self.transport, self._host = self._sessions.reopen(self.transport, self._host, self._request)
        self.transport.send(Kind.RESET, extras=pack_value(list(self._reset_arguments)))

    def check_alive(self) -> None:
        """Check, before any shard is asked, that this one can be.

        Raises:
            ConnectionLost: its session is over, and no other host takes over.
        """
        if self.transport.ended is not None and not self._truncates:
            raise ConnectionLost(self.transport.ended)

    def encode_actions(self, actions: Any) -> Payload:
        """Return what :meth:`send_step` sends for the actions of these environments.

        Raises:
            InvalidAction: there is not one action for each environment, or one is of a type that can't be sent.
        """
        return self.codec.encode_actions(actions)

    def send_step(self, actions: Payload) -> None:
        """Start a step with encoded actions."""
        parts, flags, extras = actions
        self._loss = None
        self._steps_by_reset = self._is_new and self._mode is AutoresetMode.NEXT_STEP
        if self._steps_by_reset:
            self._reset_arguments = (None, None)
            self._send_reset()
        else:
            try:
                self.transport.send(Kind.STEP, parts, flags=flags, extras=extras)
            except ConnectionLost as error:
                if not self._truncates or self._last is None:
                    raise
                self._loss = error
        self.pending = Kind.STEP

    def ready(self) -> bool:
        """Tell, without waiting, whether the reply can be taken without waiting."""
        return self._loss is not None or self._repeats_last or self.transport.ready()

    def has_reply(self) -> bool:
        """Tell the same as far as it is known without looking at the connection."""
        return self._loss is not None or self._repeats_last or self.transport.has_reply()

    def receive_reset(self, timeout_s: float | None) -> Reset:
        """Return observations and infos of the reset that was sent."""
        if self._repeats_last:
            self._repeats_last, self.pending = False, None
            return copy.deepcopy(self._last), {}
        return self._received_reset(self.codec.decode_reset(self._receive_again(timeout_s)))

    def _received_reset(self, reset: Reset) -> Reset:
        self.pending, self._is_new = None, False
        if self._keeps_last:
            self._last = reset[0]
        return reset

    def _receive_again(self, timeout_s: float | None) -> Envelope:
        """Return the reply to a reset, sent again where its host was lost."""
        for attempt in range(_RESET_ATTEMPTS):
            try:
                return self._receive(timeout_s)
            except (ConnectionLost, RemoteTimeout) as error:
                if not self._is_loss(error) or attempt == _RESET_ATTEMPTS - 1:
                    raise
                self.transport.abandon(str(error))
            self._send_reset()
        raise AssertionError("unreachable")

    def receive_step(self, timeout_s: float | None) -> Step:
        """Return what the step that was sent returned.

        Raises:
            RemoteTimeout: no reply in time; call again to wait on.
            ConnectionLost: the host is gone.
            Exception: what an environment raised.
        """
        if self._steps_by_reset:
            observations, infos = self.receive_reset(timeout_s)
            self._steps_by_reset = False
            return (observations, *self._no_rewards(), infos)
        if self._loss is None:
            try:
                step: Step = self.codec.decode_step(self._receive(timeout_s))
            except (ConnectionLost, RemoteTimeout) as error:
                if self._last is None or not self._is_loss(error):
                    raise
                self._loss = error
            else:
                self.pending = None
                if self._keeps_last:
                    self._last = step[0]
                return step
        return self._truncated(self._loss)

    def send_render(self) -> None:
        """Ask for the frames, unless the session is lost."""
        if not self._is_lost:
            self.transport.send(Kind.RENDER)

    def receive_render(self) -> tuple[Any, ...] | None:
        """Return a frame of each environment: after the loss of their host, and until they go on, the latest ones."""
        if not self._is_lost:
            try:
                frames = unpack_value(self.transport.receive().extras_data)
            except (ConnectionLost, RemoteTimeout) as error:
                if not self._is_loss(error):
                    raise
                self.transport.abandon(str(error))
            else:
                self._last_frames = frames if self._truncates else None
                return frames  # type: ignore[no-any-return]
        return copy.deepcopy(self._last_frames)  # type: ignore[no-any-return]

    @property
    def _is_lost(self) -> bool:
        return self._truncates and self.transport.ended is not None

    def _receive(self, timeout_s: float | None) -> Envelope:
        try:
            return self.transport.receive(timeout_s)
        except (TimeoutError, KeyboardInterrupt):
            raise  # the reply may still be taken
        except BaseException:
            self.pending = None
            raise

    def _is_loss(self, error: Exception) -> bool:
        """Return whether the environments are gone and new ones are to replace them; ends a process that hangs."""
        if not self._truncates:
            return False
        return isinstance(error, ConnectionLost) or self._host.end_hung()

    def _no_rewards(self) -> tuple[Any, Any, Any]:
        n = self.num_envs
        return np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_)

    def _truncated(self, error: Exception) -> Step:
        """Return a step that truncates all episodes at their latest observations, and says why in the infos."""
        _logger.warning("host lost url=%s envs=%d-%d: %s", self.url, self.start, self.stop - 1, error)
        self.transport.abandon(str(error))
        self._loss, self._is_new, self.pending = None, True, None
        rewards, terminations, truncations = self._no_rewards()
        truncations[:] = True
        cause = np.full(self.num_envs, str(error), dtype=object)
        why: dict[str, Any] = {HOST_LOSS: cause, f"_{HOST_LOSS}": truncations.copy()}
        last, infos = copy.deepcopy(self._last), dict(why)
        if self._mode is AutoresetMode.SAME_STEP:
            final = np.empty(self.num_envs, dtype=object)
            for index, observation in enumerate(
                iterate(batch_space(self.single_observation_space, self.num_envs), last)
            ):
                final[index] = observation
            infos |= {"final_obs": final, "_final_obs": truncations.copy()}
            infos |= {"final_info": why, "_final_info": truncations.copy()}
            self.send_reset(None, None)
            last, reset_infos = self.receive_reset(None)
            infos |= reset_infos
        return last, rewards, terminations, truncations, infos


def take_in_replies(shards: Iterable[Shard], timeout_s: float) -> None:
    """Receive what has arrived for shards that have no reply yet, waiting up to ``timeout_s`` seconds for the first.

    One system call looks at all of them, and one receives for each that has something.
    """
    waiting = [shard for shard in shards if shard.pending is not None and not shard.has_reply()]
    by_connection = {shard.transport.connection: shard for shard in waiting}
    connections = [connection for connection in by_connection if connection is not None]
    if connections:
        for connection in wait_readable(connections, timeout_s):
            by_connection[connection].ready()
