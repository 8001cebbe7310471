"""The relay: a Starlette application where hosts and trainers that can't reach each other meet in rooms."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, overload

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agentgpt_remote._version import __version__
from agentgpt_remote.admission import ASGIApp, NotFound, upgrade_required
from agentgpt_remote.errors import (
    AgentGPTError,
    AuthError,
    CapacityReached,
    HostUnreachable,
    ProtocolError,
    RemoteTimeout,
)
from agentgpt_remote.handshake import PROTOCOL_VERSION
from agentgpt_remote.meeting import (
    CONTROL_PATH,
    DATA_PATH,
    MAX_CONTROL_BYTES,
    TICKET_HEADER,
    FromRelay,
    Hello,
    Offers,
    Ping,
    Pong,
    Welcome,
    decode_from_dialler,
    encode_control,
)
from agentgpt_remote.processes import allow_many_connections
from agentgpt_remote.server.relay_auth import NO_ROOM, STATUS_PATH, RelayAuth
from agentgpt_remote.server.relay_metrics import metrics_text, rooms_table
from agentgpt_remote.server.rooms import RelayLimits, RoomHost, Rooms, read_offers
from agentgpt_remote.server.splice import SpliceEnd
from agentgpt_remote.serving import TLS, BackgroundServer, ServerOptions, is_loopback, run_app
from agentgpt_remote.tls import is_insecure_allowed
from agentgpt_remote.tokens import Keyring

_logger = logging.getLogger("agentgpt_remote.relay")
_PING_EVERY_S = 5.0
_HELLO_TIMEOUT_S = 10.0
_SILENCE_S = 90.0  # a host whose environment computes on its event loop answers no ping meanwhile
_MAX_QUEUED = 1024
_CHECKS_PER_STALL = 4
_GONE = (WebSocketDisconnect, RuntimeError, OSError, KeyError, TimeoutError)  # what a connection that ended raises


class Relay:
    """Hosts and trainers of one relay.

    Args:
        keyring: makes and checks tokens; ``None`` for a relay that this machine's programs use.
        limits: what it allows.

    Attributes:
        app: the ASGI application.
        rooms: who is there.
    """

    def __init__(self, keyring: Keyring | None = None, limits: RelayLimits | None = None) -> None:
        self.rooms = Rooms(limits or RelayLimits())
        self._keyring = keyring
        self._auth: RelayAuth | None = None
        self._began = time.monotonic()
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route(STATUS_PATH, self._status),
            WebSocketRoute(f"/{{room}}{CONTROL_PATH}", self._control),
            WebSocketRoute(f"/{{room}}{DATA_PATH}", self._data),
            WebSocketRoute("/{room}/{host}/session", self._session),
            Route("/{room}/hosts", self._hosts),
            Route("/{room}/{host}/health", self._host_health),
            *(
                Route(path, upgrade_required(path.rpartition("/")[2]))
                for path in (f"/{{room}}{CONTROL_PATH}", f"/{{room}}{DATA_PATH}", "/{room}/{host}/session")
            ),
            WebSocketRoute("/{path:path}", NotFound(NO_ROOM)),
            Route("/{path:path}", NotFound(NO_ROOM)),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    def guard(self, app: ASGIApp) -> ASGIApp:
        """Return the middleware that lets hosts and trainers into their rooms."""
        self._auth = RelayAuth(app, self._keyring)
        return self._auth

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self.rooms.close()

    async def _watch(self) -> None:
        every_s = min(5.0, max(0.1, self.rooms.limits.stall_timeout_s / _CHECKS_PER_STALL))
        while True:
            await asyncio.sleep(every_s)
            self.rooms.drop_stalled()

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse(
            {"status": "ok", "service": "relay", "version": __version__, "protocol": PROTOCOL_VERSION},
        )

    async def _metrics(self, _: Request) -> Response:
        refused = {} if self._auth is None else self._auth.refused
        text = metrics_text(self.rooms, refused, time.monotonic() - self._began)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _status(self, _: Request) -> JSONResponse:
        return JSONResponse({"version": __version__, "rooms": rooms_table(self.rooms)})

    async def _hosts(self, request: Request) -> JSONResponse:
        room = request.path_params["room"]
        return JSONResponse({"room": room, "hosts": [host.describe() for host in self.rooms.hosts(room)]})

    async def _host_health(self, request: Request) -> JSONResponse:
        room, host_id = request.path_params["room"], request.path_params["host"]
        for host in self.rooms.hosts(room):
            if host.host_id == host_id:
                return JSONResponse({**host.offers, "round_trip_ms": host.round_trip_ms})
        return JSONResponse({"error": f"host {host_id} is not in room {room!r} now"}, 503)

    async def _control(self, websocket: WebSocket) -> None:
        """Keep a host in its room for as long as its control connection lives."""
        await websocket.accept()
        line = _ControlLine(websocket)
        try:
            hello = decode_from_dialler(await asyncio.wait_for(websocket.receive_bytes(), _HELLO_TIMEOUT_S))
            if not isinstance(hello, Hello):
                raise ProtocolError(f"the host said {type(hello).__name__} before it said hello")
            host = self.rooms.enter(websocket.path_params["room"], hello, line.send, line.end)
        except (AgentGPTError, TimeoutError) as error:
            await websocket.close(1008, str(error)[:120] or "no hello in time")
            return
        except _GONE:
            return
        _logger.info("host entered room=%s host=%s name=%s", host.room, host.host_id, host.name)
        line.send(Welcome(host=host.host_id))
        try:
            await line.run(host)
        finally:
            self.rooms.leave(host)
            _logger.info("host left room=%s host=%s", host.room, host.host_id)

    async def _data(self, websocket: WebSocket) -> None:
        """Hand a host's data connection to the trainer that waits for it."""
        ticket = websocket.headers.get(TICKET_HEADER, "")
        arrival = self.rooms.take_ticket(websocket.path_params["room"], ticket)
        if arrival is None:
            await _deny(websocket, 410, "the ticket is not good (any more)")
            return
        await websocket.accept()
        end = SpliceEnd(websocket.scope, "host", self.rooms.limits.max_frame_bytes)
        if arrival.done():
            end.abort()
        else:
            arrival.set_result(end)
        await end.closed

    async def _session(self, websocket: WebSocket) -> None:
        """Join a trainer with the host that it names."""
        room, host_id = websocket.path_params["room"], websocket.path_params["host"]
        try:
            data = await self.rooms.call(room, host_id)
        except (HostUnreachable, CapacityReached, RemoteTimeout) as error:
            status = 504 if isinstance(error, RemoteTimeout) else 503
            await _deny(websocket, status, str(error))
            return
        try:
            await websocket.accept()
            trainer = SpliceEnd(websocket.scope, "trainer", self.rooms.limits.max_frame_bytes)
        except BaseException:  # the trainer is gone
            data.abort()
            raise
        self.rooms.join(room, host_id, trainer, data)
        await trainer.closed


class _ControlLine:
    """A host's control connection: messages to it wait in a queue of bounded length."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._queue: asyncio.Queue[FromRelay | None] = asyncio.Queue(_MAX_QUEUED)
        self._heard_at = time.monotonic()

    def send(self, message: FromRelay) -> None:
        """Queue a message; a host that takes none is left."""
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            self.end()

    def end(self) -> None:
        """End the connection."""
        with contextlib.suppress(asyncio.QueueFull, asyncio.QueueEmpty):
            if self._queue.full():
                self._queue.get_nowait()
            self._queue.put_nowait(None)

    async def run(self, host: RoomHost) -> None:
        """Exchange messages until either side ends the connection."""
        tasks = [asyncio.create_task(work) for work in (self._write(), self._read(host), self._ping())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(*_GONE):
                await asyncio.wait_for(self._websocket.close(), 1.0)

    async def _write(self) -> None:
        while (message := await self._queue.get()) is not None:
            await self._websocket.send_bytes(encode_control(message))

    async def _read(self, host: RoomHost) -> None:
        while True:
            message = decode_from_dialler(await self._websocket.receive_bytes())
            self._heard_at = time.monotonic()
            if isinstance(message, Pong):
                host.round_trips_s.append(max(0.0, time.perf_counter() - message.stamp))
            elif isinstance(message, Offers):
                host.offers = read_offers(message.offers)

    async def _ping(self) -> None:
        while time.monotonic() - self._heard_at < _SILENCE_S:
            self.send(Ping(stamp=time.perf_counter()))
            await asyncio.sleep(_PING_EVERY_S)


async def _deny(websocket: WebSocket, status: int, reason: str) -> None:
    await websocket.send_denial_response(JSONResponse({"error": reason}, status))


@overload
def serve_relay(
    *,
    host: str = ...,
    port: int = ...,
    secret: str | None = ...,
    tls: TLS | None = ...,
    insecure: bool | None = ...,
    limits: RelayLimits | None = ...,
    block: Literal[True] = ...,
    on_ready: Callable[[str], None] | None = ...,
) -> None: ...


@overload
def serve_relay(
    *,
    host: str = ...,
    port: int = ...,
    secret: str | None = ...,
    tls: TLS | None = ...,
    insecure: bool | None = ...,
    limits: RelayLimits | None = ...,
    block: Literal[False],
    on_ready: Callable[[str], None] | None = ...,
) -> BackgroundServer: ...


def serve_relay(
    *,
    host: str = "127.0.0.1",
    port: int = 9000,
    secret: str | None = None,
    tls: TLS | None = None,
    insecure: bool | None = None,
    limits: RelayLimits | None = None,
    block: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> BackgroundServer | None:
    """Run a relay.

    Args:
        host: address to listen on; anything but loopback needs a secret and TLS.
        port: TCP port; 0 takes a free one.
        secret: with which tokens are made and checked; ``None`` for this machine's programs only.
        tls: certificate to serve ``wss://`` with.
        insecure: whether another address than loopback may be served without TLS; ``AGENTGPT_INSECURE`` by default.
        limits: what it allows.
        block: serve in this thread until SIGINT or SIGTERM, else in one of its own.
        on_ready: called with the URL once connections are accepted.

    Returns:
        With ``block=False`` a handle with ``.url`` and ``.close()``.

    Raises:
        AuthError: the address is not loopback, and there is no secret or no TLS.
        ConfigError: the secret is too short, or an option makes no sense.
        PortInUse: another process listens on the port.
    """
    if secret is None and not is_loopback(host):
        raise AuthError(
            f"refusing to listen on {host!r} without a secret: anyone who reaches the port could use it. Make one with "
            "`agentgpt token > FILE` and pass --secret-file FILE (or secret=, AGENTGPT_RELAY_SECRET), or listen on "
            "127.0.0.1"
        )
    relay = Relay(None if secret is None else Keyring(secret), limits)
    options = ServerOptions(
        host=host,
        port=port,
        tls=tls,
        max_frame_bytes=MAX_CONTROL_BYTES,  # of control messages; those of sessions are not the server's
        guard=relay.guard,
        guarded=secret is not None,
        insecure=is_insecure_allowed() if insecure is None else insecure,
        shutdown_timeout_s=2.0,
    )
    allow_many_connections()
    if block:
        run_app(relay.app, options, on_ready=on_ready)
        return None
    server = BackgroundServer(relay.app, options)
    if on_ready is not None:
        on_ready(server.url)
    return server
