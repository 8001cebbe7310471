"""The server's side of one client: its agents and its last reply; bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import AgentGPTError, InvalidObservation, ProtocolError
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.agent_table import AgentsLost, AgentTable, Prepared
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.history import Steps, check_steps
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import check_observations
from agentgpt_remote.policy.options import ActOptions, Bools
from agentgpt_remote.spaces import space_to_dict

_FLOAT_BYTES = 4


class Layouts(NamedTuple):
    """How observations and actions lie in messages."""

    observations: Layout
    actions: Layout


class Pending(NamedTuple):
    """A request for actions that is understood and waits for the engine."""

    prepared: Prepared
    frame: wire.Frame


def welcome(engine: PolicyEngine) -> wire.Welcome:
    """Return the server's first message."""
    model = engine.model
    return wire.Welcome(
        protocol=wire.PROTOCOL_VERSION,
        version=__version__,
        observation_space=space_to_dict(model.observation_space),
        action_space=space_to_dict(model.action_space),
        image_encoder=model.config.image_encoder,
        max_input_states=engine.max_input_states,
        history_steps=engine.history.length,
        max_agents=engine.max_agents,
    )


class PolicySession:
    """One client's agents and the last reply.

    Args:
        engine: shared by all sessions.
        layouts: of the observation and of the action space.
        describe: returns what the server tells of itself.

    Attributes:
        agents: the client's agents.
    """

    def __init__(
        self, engine: PolicyEngine, layouts: Layouts, describe: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        self.agents = AgentTable(engine)
        self._engine, self._layouts, self._describe = engine, layouts, describe
        self._masks = ActionMasks(engine.model.actions)
        self._ids: tuple[str, ...] = ()
        self._last: tuple[int, bytes] = (-1, b"")

    def handle(self, message: wire.Message) -> bytes:
        """Return the reply to a request; a request that is wrong gets a FAILED reply and changes nothing."""
        self._engine.begin()
        result = self.begin(message)
        if isinstance(result, bytes):
            return result
        try:
            (vectors,) = self._engine.decide([result.prepared.decision])
        except BaseException:
            self.agents.roll_back(result.prepared)
            raise
        return self.finish(result, vectors)

    def begin(self, message: wire.Message) -> bytes | Pending:
        """Return the reply, or what the engine must do before :meth:`finish` can tell it."""
        request_id = 0
        try:
            frame = wire.unpack_frame(message)
            request_id = frame.request_id
            if request_id == self._last[0]:
                return self._last[1]
            if frame.kind == wire.ACT:
                return self._begin_act(frame)
            reply = self._execute(frame)
        except AgentsLost as lost:
            reply = wire.pack_frame(wire.LOST, 0, request_id, 0, (), wire.encode(wire.AgentList(lost.agent_ids)))
        except (AgentGPTError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reply = wire.pack_failure(request_id, error)
        self._last = (request_id, reply)
        return reply

    def finish(self, pending: Pending, vectors: Float32) -> bytes:
        """Return the reply once the engine has acted.

        Args:
            pending: from :meth:`begin`.
            vectors: compact actions, float32 of shape (n, width).
        """
        frame = pending.frame
        self.agents.commit(pending.prepared)
        self._ids = pending.prepared.agent_ids
        parts: list[Any] = []
        if frame.flags & wire.COMPACT:
            parts.append(np.ascontiguousarray(vectors))
        elif not self._layouts.actions.batch_parts(self._engine.model.actions.decode(vectors), frame.count, parts):
            raise ProtocolError("the policy's actions do not fit its action space")
        reply = wire.pack_frame(wire.ACTIONS, frame.flags & wire.COMPACT, frame.request_id, frame.count, parts)
        self._last = (frame.request_id, reply)
        return reply

    def _begin_act(self, frame: wire.Frame) -> Pending:
        agents = msgspec.msgpack.decode(frame.tail, type=wire.Agents) if frame.tail_bytes else wire.Agents(None, [])
        ids = self._ids if agents.ids is None else wire.check_ids(agents.ids)
        obs_bytes = self._layouts.observations.nbytes(frame.count)
        mask_bytes = frame.count * self._masks.width if frame.flags & wire.MASKED else 0
        control_bytes = frame.count if frame.flags & wire.CONTROLLED else 0
        if frame.count != len(ids) or not ids or frame.raw_bytes != obs_bytes + mask_bytes + control_bytes:
            raise ProtocolError(f"{frame.raw_bytes} bytes of observations for {frame.count} agents, of {len(ids)} ids")
        self._engine.window(frame.num_input_states)
        batch = self._layouts.observations.decode_batch(frame.message, wire.RAW_OFFSET, frame.count, copy=False)
        check_observations(self._engine.model.observation_space, batch, ids)
        offset = wire.RAW_OFFSET + obs_bytes
        action_mask = in_control = None
        if mask_bytes:
            rows = np.frombuffer(frame.message, np.uint8, mask_bytes, offset)
            action_mask = self._masks.read(rows.reshape(frame.count, -1), ids)
        if control_bytes:
            in_control = _flags(frame, offset + mask_bytes)
        options = ActOptions(
            deterministic=bool(frame.flags & wire.DETERMINISTIC),
            seed=frame.seed,
            num_input_states=frame.num_input_states,
            action_mask=action_mask,
            in_control=in_control,
        )
        ended = () if not agents.ended else tuple(a for a in wire.check_ids(agents.ended) if a in self.agents.held)
        return Pending(self.agents.prepare(ids, batch, ended, options, set(agents.starting)), frame)

    def _execute(self, frame: wire.Frame) -> bytes:
        tail = b""
        if frame.kind == wire.FORGET:
            ids = msgspec.msgpack.decode(frame.tail, type=wire.AgentList).ids
            self.agents.clear() if ids is None else self.agents.forget(ids)
        elif frame.kind == wire.RESTORE:
            self._restore(frame)
        elif frame.kind == wire.STATUS:
            tail = wire.encode({} if self._describe is None else self._describe())
        elif frame.kind == wire.HELLO:
            hello = msgspec.msgpack.decode(frame.tail, type=wire.Hello)
            wire.check_version(hello.protocol, hello.version, "client")
            return wire.pack_frame(wire.WELCOME, 0, frame.request_id, 0, (), wire.encode(welcome(self._engine)))
        elif frame.kind == wire.BYE:
            self.agents.clear()
        else:
            raise ProtocolError(f"a message of kind {frame.kind}: expected {wire.ACT} (act) or another request")
        return wire.pack_frame(wire.DONE, 0, frame.request_id, 0, (), tail)

    def _restore(self, frame: wire.Frame) -> None:
        restored = msgspec.msgpack.decode(frame.tail, type=wire.Restored)
        model, history = self._engine.model, self._engine.history
        step_bytes = _FLOAT_BYTES * history.width + history.pixel_width
        previous_bytes = _FLOAT_BYTES * model.actions.width
        sizes = [count * step_bytes + previous_bytes for count in restored.counts]
        ids = wire.check_ids(restored.ids)
        if len(sizes) != len(ids) or min(restored.counts, default=1) < 1 or sum(sizes) != frame.raw_bytes:
            raise ProtocolError(f"{frame.raw_bytes} bytes of steps for {len(ids)} agents")
        told: list[tuple[str, Steps, Float32]] = []
        offset = wire.RAW_OFFSET
        for agent, count in zip(ids, restored.counts, strict=True):
            rows = np.frombuffer(frame.message, np.float32, count * history.width, offset).reshape(count, -1)
            offset += rows.nbytes
            previous = np.frombuffer(frame.message, np.float32, model.actions.width, offset)
            offset += previous.nbytes
            pixels = None
            if history.pixel_width:
                pixels = np.frombuffer(frame.message, np.uint8, count * history.pixel_width, offset).reshape(count, -1)
                offset += pixels.nbytes
            check_steps(model.observations, model.actions, rows, agent)
            if not np.isfinite(previous).all():
                raise InvalidObservation(f"the last action of agent {agent!r} that was sent again is not finite")
            told.append((agent, Steps(rows, pixels), previous))
        for agent, steps, previous in told:
            self.agents.restore(agent, steps, previous)


def _flags(frame: wire.Frame, offset: int) -> Bools:
    """Return a bool per agent from the bytes at ``offset``."""
    flags: Bools = np.frombuffer(frame.message, np.uint8, frame.count, offset) != 0
    return flags
