"""The WebSocket of a policy server: one session per connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable

import msgspec
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from agentgpt_remote.channel import Channel, Turns, channel_of
from agentgpt_remote.errors import AgentGPTError, CapacityReached, ConnectionLost, ProtocolMismatch
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.agent_table import Prepared
from agentgpt_remote.policy.batching import Batcher
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.session import Pending, PolicySession, welcome

MAX_FRAME_BYTES = 64 * 1024 * 1024
_HELLO_TIMEOUT_S = 10.0
_POLICY_VIOLATION = 1008
_REFUSALS = (AgentGPTError, msgspec.MsgspecError, TimeoutError)

_logger = logging.getLogger("agentgpt_remote.policy")


class _FrameJob:
    """One message of a WebSocket session."""

    def __init__(self, session: PolicySession, message: wire.Message) -> None:
        self.owner: Hashable = session
        self._session, self._message = session, message
        self._pending: Pending | None = None
        self._reply = b""

    def begin(self) -> Prepared | None:
        result = self._session.begin(self._message)
        if isinstance(result, Pending):
            self._pending = result
            return result.prepared
        self._reply = result
        return None

    def finish(self, vectors: Float32) -> None:
        if self._pending is not None:
            self._reply = self._session.finish(self._pending, vectors)

    def fail(self, prepared: Prepared) -> None:
        self._session.agents.roll_back(prepared)

    def answer(self) -> bytes:
        return self._reply


class ActEndpoint:
    """An ASGI application that serves clients over WebSockets.

    Args:
        batcher: answers their messages.
        new_session: returns a session.
        engine: what clients are greeted with.
        max_sessions: most at once.

    Attributes:
        num_sessions: how many there are.
    """

    def __init__(
        self, batcher: Batcher, new_session: Callable[[], PolicySession], engine: PolicyEngine, max_sessions: int
    ) -> None:
        self.num_sessions = 0
        self._batcher, self._new_session, self._max_sessions = batcher, new_session, max_sessions
        self._welcome = wire.encode(welcome(engine))
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it leaves."""
        session = self._new_session()
        self.num_sessions += 1
        try:
            if scope.get("scheme") == "wss":
                await self._serve_encrypted(WebSocket(scope, receive, send), session)
            else:
                await receive()
                await send({"type": "websocket.accept"})
                await self._serve(channel_of(scope, MAX_FRAME_BYTES, self._turns), session)
        finally:
            self.num_sessions -= 1
            await self._batcher.call(session.agents.clear, session)

    async def _serve(self, channel: Channel, session: PolicySession) -> None:
        """Answer messages from within the event loop's reads, which costs least."""
        try:
            first = await channel.receive(_HELLO_TIMEOUT_S)
            channel.send(self._welcome)
            self._check(first)
        except ConnectionLost:
            return
        except _REFUSALS as error:
            _logger.warning("session refused error=%s", error)
            channel.close(_POLICY_VIOLATION, str(error))
            return
        await channel.serve(lambda message: self._batcher.submit(_FrameJob(session, message)), bool)

    async def _serve_encrypted(self, websocket: WebSocket, session: PolicySession) -> None:
        """Answer messages of a connection whose bytes are not the event loop's to read."""
        await websocket.accept()
        try:
            first = await asyncio.wait_for(websocket.receive_bytes(), _HELLO_TIMEOUT_S)
            await websocket.send_bytes(self._welcome)
            self._check(first)
            while True:
                message = await websocket.receive_bytes()
                await websocket.send_bytes(await self._batcher.submit(_FrameJob(session, message)))
        except WebSocketDisconnect as left:
            _logger.debug("session ended code=%s", left.code)
        except (*_REFUSALS, KeyError) as error:
            _logger.warning("session refused error=%s", error)
            await websocket.close(_POLICY_VIOLATION, str(error)[:120])

    def _check(self, first: wire.Message) -> None:
        """Check a client's first message; the client tells by the welcome whether it can talk to this server."""
        hello = msgspec.msgpack.decode(first, type=wire.Hello)
        if hello.protocol != wire.PROTOCOL_VERSION:
            raise ProtocolMismatch(f"the client speaks policy protocol {hello.protocol}")
        if self.num_sessions > self._max_sessions:
            raise CapacityReached(f"this server takes at most {self._max_sessions} sessions")
