"""A host that dials out: it waits in a room of a relay, and connects to each trainer that comes for it.

Nothing listens on the host's machine. The sessions are those of a host that listens; only who dials is different.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from agentgpt_remote.channel import Channel
from agentgpt_remote.errors import AgentGPTError, AuthError, ProtocolMismatch
from agentgpt_remote.frames import GOING_AWAY
from agentgpt_remote.meeting import (
    CONTROL_PATH,
    DATA_PATH,
    MAX_CONTROL_BYTES,
    RELAY_HINT,
    SILENCE_TIMEOUT_S,
    TICKET_HEADER,
    Dial,
    FromDialler,
    Hello,
    Offers,
    Ping,
    Pong,
    Welcome,
    check_room_url,
    decode_from_relay,
    encode_control,
    host_name,
)
from agentgpt_remote.server.app import SessionEndpoint
from agentgpt_remote.server.sessions import HostLimits, SessionTable
from agentgpt_remote.server.sources import EnvSource
from agentgpt_remote.server.websocket_client import ControlConnection, Dialled, dial
from agentgpt_remote.tls import Trust

_logger = logging.getLogger("agentgpt_remote.server")
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.25, 5.0
_CONNECT_TIMEOUT_S = 10.0
_SETTLED_S = 30.0  # a connection that held for so long was not the start of another failure
_MAX_DIALS = 256


class DialingHost:
    """Offers the sessions of a host in a room.

    Args:
        source: what is served.
        limits: how much of it.
        url: of the room, such as ``wss://relay/room``.
        token: of the room's hosts; kept here only, never shown.
        name: what the host calls itself, for people; this machine's name by default.
        insecure: whether the token may be sent without TLS; ``AGENTGPT_INSECURE`` by default.
        on_ready: called with the host's URL whenever it has entered the room.

    Attributes:
        url: where trainers reach this host alone: the room's URL and the host's name there.
        on_ready: as given.
        why_not: why it is not in the room, as far as it knows.

    Raises:
        ConfigError: the URL names no room.
    """

    def __init__(
        self,
        source: EnvSource,
        limits: HostLimits,
        url: str,
        token: str | None,
        *,
        name: str | None = None,
        insecure: bool | None = None,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        self._room_url = check_room_url(url)
        self._source, self._limits, self._token = source, limits, token
        self._name = name or socket.gethostname()
        self._key = secrets.token_urlsafe(32)
        self.on_ready = on_ready
        self.why_not = "the relay did not answer"
        self._trust = Trust.of_environment()
        if insecure is not None:
            self._trust = replace(self._trust, insecure=insecure)
        self.url = f"{self._room_url}/{host_name(self._key)}"
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._entered_at: float | None = None

    def __repr__(self) -> str:
        return f"DialingHost({self.url!r})"

    async def run(self) -> None:
        """Stay in the room, dialling again whenever the connection ends, until :meth:`stop`.

        Raises:
            AuthError: the relay refused the token on the first try, or its certificate is not trusted.
            ProtocolMismatch: what listens at the URL is no relay, or one of another version.
        """
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        table = SessionTable(self._source, self._limits)
        endpoint = SessionEndpoint(table)
        try:
            await self._stay(table, endpoint, self._stop)
        finally:
            for task in self._sessions:
                task.cancel()
            if self._sessions:
                await asyncio.wait(self._sessions, timeout=2.0)
            await table.close()
            await asyncio.sleep(0)  # aborted connections are let go of in the loop's next pass

    def stop(self) -> None:
        """Have :meth:`run` return; from any thread, at any time."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)

    async def _stay(self, table: SessionTable, endpoint: SessionEndpoint, stop: asyncio.Event) -> None:
        backoff_s, entered_once, warned = _FIRST_BACKOFF_S, False, False
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._entered_at = None
                visit = asyncio.create_task(self._visit(table, endpoint))
                await asyncio.wait({visit, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    visit.cancel()
                    await asyncio.wait({visit})
                    return
                error = visit.exception()
                entered_once = entered_once or self._entered_at is not None
                if error is not None and not entered_once and isinstance(error, AuthError | ProtocolMismatch):
                    raise error
                if error is not None and not isinstance(error, AgentGPTError | OSError):
                    raise error
                self.why_not = str(error or "the relay closed the connection")
                if self._entered_at is not None:
                    warned = False
                    if time.monotonic() - self._entered_at > _SETTLED_S:
                        backoff_s = _FIRST_BACKOFF_S
                log = _logger.debug if warned else _logger.warning
                log(
                    "relay=%s lost or not there, dialling again: %s",
                    self._room_url,
                    self.why_not,
                )
                warned = True
                pause_s = backoff_s * random.uniform(0.5, 1.0)  # so that a thousand hosts don't come back at once
                await asyncio.wait({stopping}, timeout=pause_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
        finally:
            stopping.cancel()

    async def _visit(self, table: SessionTable, endpoint: SessionEndpoint) -> None:
        """Be in the room for as long as one control connection lives."""
        dialled = await self._dial(CONTROL_PATH, {})
        line = ControlConnection(dialled, "the relay", MAX_CONTROL_BYTES)
        changed = asyncio.Event()
        table.on_change = changed.set
        offers = asyncio.create_task(self._tell_offers(line, table, changed))
        try:
            line.send(encode_control(Hello(key=self._key, name=self._name, offers=table.health())))
            while True:
                message = decode_from_relay(await line.receive(SILENCE_TIMEOUT_S))
                if isinstance(message, Ping):
                    _say(line, Pong(stamp=message.stamp))
                elif isinstance(message, Dial):
                    self._start_session(endpoint, message.ticket)
                elif isinstance(message, Welcome) and self._entered_at is None:
                    self._entered_at = time.monotonic()
                    _logger.info("entered room url=%s", self.url)
                    if self.on_ready is not None:
                        self.on_ready(self.url)
        finally:
            offers.cancel()
            table.on_change = lambda: None
            line.close()

    async def _tell_offers(self, line: ControlConnection, table: SessionTable, changed: asyncio.Event) -> None:
        while True:
            await changed.wait()
            changed.clear()
            _say(line, Offers(offers=table.health()))

    def _start_session(self, endpoint: SessionEndpoint, ticket: str) -> None:
        if len(self._sessions) >= self._limits.max_sessions + _MAX_DIALS:
            _logger.warning("relay=%s asks for more sessions than max_sessions=%d", self._room_url, len(self._sessions))
            return
        task = asyncio.create_task(self._serve_session(endpoint, ticket))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _serve_session(self, endpoint: SessionEndpoint, ticket: str) -> None:
        try:
            dialled = await self._dial(DATA_PATH, {TICKET_HEADER: ticket})
        except (AgentGPTError, OSError) as error:
            _logger.warning("could not dial a trainer at relay=%s: %s", self._room_url, error)
            return
        channel = Channel(
            dialled.transport,
            "the client",
            self._limits.max_frame_bytes,
            lambda _: None,
            endpoint.turns,
            received=dialled.rest,
            dialled=True,
        )
        try:
            await endpoint.serve(channel)
            channel.close()
            await channel.ended()
        finally:
            channel.close(GOING_AWAY, "the host ends")
            channel.abort()

    async def _dial(self, path: str, headers: dict[str, str]) -> Dialled:
        return await dial(
            self._room_url,
            path=path,
            token=self._token,
            headers=headers,
            timeout_s=_CONNECT_TIMEOUT_S,
            hint=RELAY_HINT,
            trust=self._trust,
        )


def _say(line: ControlConnection, message: FromDialler) -> None:
    line.send(encode_control(message))
