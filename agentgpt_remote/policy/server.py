"""The policy server: a bundle behind ``/ping``, ``/invocations`` and the WebSocket ``/act``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, overload

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import AgentGPTError, CapacityReached, ProtocolMismatch
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.bundle import Bundle, load_bundle
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.invocations import Invocations
from agentgpt_remote.serving import BackgroundServer, NotFound, ServerOptions, resolve_token, run_app

DEFAULT_PORT = 8080
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_SESSIONS = 1024
_HELLO_TIMEOUT_S = 10.0

_logger = logging.getLogger("agentgpt_remote.policy")


class PolicyService:
    """A bundle, the engine that all sessions share, and the one thread that it runs in.

    The event loop never waits for the model, so health checks are answered while it works.

    Args:
        bundle: the policy.
        max_sessions: most WebSocket sessions at once.
    """

    def __init__(self, bundle: Bundle, max_sessions: int = MAX_SESSIONS) -> None:
        self.bundle = bundle
        self.engine = PolicyEngine(bundle.model)
        self.layouts = (Layout(bundle.observation_space), Layout(bundle.action_space))
        self.invocations = Invocations(self.engine, bundle, self.layouts)
        self.num_sessions = 0
        self._max_sessions = max_sessions
        self._welcome = wire.welcome(bundle)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="agentgpt-inference")

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in the inference thread, in the order of the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def ping(self, _request: Request) -> JSONResponse:
        """Answer a health check."""
        # Anyone may ask, so nothing of the machine is told, such as where the bundle lies.
        fields = {"status": "ok", "version": __version__, "protocol": wire.PROTOCOL_VERSION}
        return JSONResponse(fields | {"sessions": self.num_sessions})

    async def invoke(self, request: Request) -> Response:
        """Answer one HTTP request; its forms are in :mod:`agentgpt_remote.policy.invocations`."""
        status, body, headers = await self.run(
            self.invocations.answer, await _limited_body(request), dict(request.headers)
        )
        return Response(body, status_code=status, headers=headers)

    async def act(self, websocket: WebSocket) -> None:
        """Serve one client until it leaves."""
        await websocket.accept()
        session: wire.PolicySession | None = None
        self.num_sessions += 1
        try:
            session = await self._greet(websocket)
            while True:
                message = await websocket.receive_bytes()
                await websocket.send_bytes(await self.run(session.handle, message))
        except WebSocketDisconnect as left:
            _logger.debug("session ended code=%s", left.code)
        except (AgentGPTError, msgspec.MsgspecError, KeyError, TimeoutError) as error:
            _logger.warning("session refused error=%s", error)
            await websocket.close(1008, str(error)[:120])
        finally:
            self.num_sessions -= 1
            if session is not None:
                await self.run(session.agents.clear)

    async def _greet(self, websocket: WebSocket) -> wire.PolicySession:
        """Exchange first messages; the client tells by the welcome whether it can talk to this server."""
        raw = await asyncio.wait_for(websocket.receive_bytes(), _HELLO_TIMEOUT_S)
        hello = msgspec.msgpack.decode(raw, type=wire.Hello)
        await websocket.send_bytes(self._welcome)
        if hello.protocol != wire.PROTOCOL_VERSION:
            raise ProtocolMismatch(f"the client speaks policy protocol {hello.protocol}")
        if self.num_sessions > self._max_sessions:
            raise CapacityReached(f"this server takes at most {self._max_sessions} sessions")
        return wire.PolicySession(self.engine, self.bundle, self.layouts, hello.seed)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """End the inference thread with the server."""
        yield
        self._executor.shutdown(wait=True, cancel_futures=True)


async def _limited_body(request: Request) -> bytes:
    """Return the body, or what of it is enough to see that it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > Invocations.max_body_bytes:
            break
    return bytes(body)


def policy_app(bundle: Bundle, *, max_sessions: int = MAX_SESSIONS) -> Starlette:
    """Return the ASGI application that serves a bundle, without authentication.

    Args:
        bundle: the policy.
        max_sessions: most WebSocket sessions at once.
    """
    service = PolicyService(bundle, max_sessions)
    routes = [
        Route("/ping", service.ping),
        Route("/health", service.ping),
        Route("/invocations", service.invoke, methods=["POST"]),
        WebSocketRoute("/act", service.act),
        WebSocketRoute("/{path:path}", NotFound("this is a policy server: use /act")),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


@overload
def serve_policy(
    bundle: str | Path,
    *,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    block: Literal[True] = True,
    on_ready: Callable[[str], None] | None = ...,
) -> None: ...
@overload
def serve_policy(
    bundle: str | Path,
    *,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    block: Literal[False],
) -> BackgroundServer: ...
def serve_policy(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    block: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> BackgroundServer | None:
    """Serve a bundle.

    Args:
        bundle: its folder.
        host: address to listen on; anything but loopback needs a token.
        port: 0 takes a free one.
        token: secret that clients must present; ``AGENTGPT_TOKEN`` by default.
        block: serve in this thread until SIGINT or SIGTERM; ``False`` serves from a thread.
        on_ready: called with the URL once connections are accepted.

    Returns:
        With ``block=False``, the running server with ``url`` and ``close()``.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        AuthError: the address is not loopback and there is no token.
        PortInUse: another process listens on the port.
    """
    app = policy_app(load_bundle(bundle))
    options = ServerOptions(host=host, port=port, token=resolve_token(token), max_frame_bytes=MAX_FRAME_BYTES)
    if block:
        run_app(app, options, on_ready=on_ready)
        return None
    return BackgroundServer(app, options)
