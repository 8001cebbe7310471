"""The policy server: a bundle behind ``/ping``, ``/status``, ``/invocations`` and the WebSocket ``/act``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from agentgpt_remote._version import __version__
from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import ConfigError, check_seconds
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.act_endpoint import MAX_FRAME_BYTES, ActEndpoint
from agentgpt_remote.policy.batching import Batcher
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.invocations import SESSION_LIFETIME_S, Invocation, Invocations
from agentgpt_remote.policy.opening import OpenedPolicy, open_policies
from agentgpt_remote.policy.runner import Engine, check_engine
from agentgpt_remote.policy.session import Layouts, PolicySession
from agentgpt_remote.policy.watching import BundleWatcher
from agentgpt_remote.serving import (
    TLS,
    BackgroundServer,
    NotFound,
    Receive,
    Scope,
    Send,
    ServerOptions,
    resolve_token,
    run_app,
)

DEFAULT_PORT = 8080
MAX_SESSIONS = 1024

_logger = logging.getLogger("agentgpt_remote.policy")


@dataclass(frozen=True, kw_only=True)
class PolicyServerOptions:
    """How a policy server works.

    Attributes:
        max_agents: most agents of all clients together; by default 65,536, or as many as fit in 4 GiB.
        max_sessions: most WebSocket sessions at once.
        batch_wait_s: how long a request waits for those of other active clients, in seconds; None stands for what
            a pass through the model takes, at most 0.02, while requests follow each other closely.
        watch: take new weights when the bundle changes.
        watch_interval_s: how often to look, in seconds.
        session_lifetime_s: seconds without a request after which a session of HTTP requests ends.
        engine: what runs the model, see :class:`~agentgpt_remote.policy.gpt_policy.GPTPolicy`.
    """

    max_agents: int | None = None
    max_sessions: int = MAX_SESSIONS
    batch_wait_s: float | None = None
    watch: bool = False
    watch_interval_s: float = 1.0
    session_lifetime_s: float = SESSION_LIFETIME_S
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.max_agents is not None and self.max_agents < 1:
            raise ConfigError(f"max_agents={self.max_agents}: expected at least 1")
        if self.batch_wait_s is not None:
            check_seconds("batch_wait_s", self.batch_wait_s, zero=True)
        check_seconds("watch_interval_s", self.watch_interval_s)
        check_seconds("session_lifetime_s", self.session_lifetime_s)
        check_engine(self.engine)


class PolicyService:
    """A bundle, the engine that all sessions share, and the one thread that it runs in.

    The event loop never waits for the model, so health checks are answered while it works.

    Args:
        opened: the policy.
        options: how to work.
    """

    def __init__(self, opened: OpenedPolicy, options: PolicyServerOptions) -> None:
        self.engine = PolicyEngine(opened.runner, options.max_agents)
        self._layouts = Layouts(Layout(opened.observation_space), Layout(opened.action_space))
        self.invocations = Invocations(self.engine, self._layouts, self.describe, options.session_lifetime_s)
        self.batcher = Batcher(self.engine, options.batch_wait_s)
        self.acting = ActEndpoint(self.batcher, self._new_session, self.engine, options.max_sessions)
        self._options = options
        self._watcher = BundleWatcher(opened) if options.watch else None
        self._started = time.time()

    def _new_session(self) -> PolicySession:
        return PolicySession(self.engine, self._layouts, self.describe)

    def describe(self) -> dict[str, Any]:
        """Return what the server tells clients of itself."""
        return {
            "version": __version__,
            "sessions": self.acting.num_sessions,
            "http_sessions": len(self.invocations),
            "agents": self.engine.num_agents,
            "max_agents": self.engine.max_agents,
            "dropped": self.engine.num_dropped,
            "requests": self.batcher.num_requests,
            "batches": self.batcher.num_rounds,
            "reloads": 0 if self._watcher is None else self._watcher.num_reloads,
            "engine": self.engine.runner.describe(),
            "uptime_s": round(time.time() - self._started, 1),
        }

    async def ping(self, _request: Request) -> JSONResponse:
        """Answer a health check."""
        # Anyone may ask, so nothing of the machine is told, such as where the bundle lies.
        fields = {"status": "ok", "version": __version__, "protocol": wire.PROTOCOL_VERSION}
        return JSONResponse(fields | {"sessions": self.acting.num_sessions})

    async def status(self, _request: Request) -> JSONResponse:
        """Answer how many clients and agents there are."""
        return JSONResponse(self.describe())

    async def invoke(self, request: Request) -> Response:
        """Answer one HTTP request; its forms are in :mod:`agentgpt_remote.policy.invocations`."""
        job = Invocation(self.invocations, await _limited_body(request), dict(request.headers))
        status, body, headers = await self.batcher.submit(job)
        return Response(body, status_code=status, headers=headers)

    async def _watch(self, watcher: BundleWatcher) -> None:
        """Take new weights as they come; requests go on meanwhile, and each sees one set of weights."""
        while True:
            await asyncio.sleep(self._options.watch_interval_s)
            model = await asyncio.to_thread(watcher.poll)
            if model is not None:
                await self.batcher.call(lambda model=model: watcher.hand_over(model, self.engine))  # type: ignore[misc]

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Watch the bundle while the server runs, and end the inference thread with it."""
        watching = None if self._watcher is None else asyncio.create_task(self._watch(self._watcher))
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
            await asyncio.to_thread(self.batcher.close)


class SeveralPolicies:
    """What a server of several behaviours answers where none is named.

    Args:
        services: by behaviour.
    """

    def __init__(self, services: Mapping[str, PolicyService]) -> None:
        self._services = services
        names = ", ".join(map(repr, services))
        self._reason = f"{wire.NO_BEHAVIOR}None: this server has those of several, name one of {names}"
        self.acting = NotFound(self._reason)

    async def ping(self, _request: Request) -> JSONResponse:
        """Answer a health check."""
        sessions = sum(service.acting.num_sessions for service in self._services.values())
        fields = {"status": "ok", "version": __version__, "protocol": wire.PROTOCOL_VERSION}
        return JSONResponse(fields | {"sessions": sessions})

    async def status(self, _request: Request) -> JSONResponse:
        """Answer how many clients and agents each policy has."""
        told = {name: service.describe() for name, service in self._services.items()}
        return JSONResponse({"version": __version__, "behaviors": told})

    async def invoke(self, _request: Request) -> Response:
        """Refuse a request that names no behaviour."""
        return JSONResponse({"error": self._reason}, status_code=404)


class BehaviorRoutes:
    """Sends requests below ``/behaviors/NAME`` to the policy of that name.

    Args:
        services: by behaviour.
    """

    def __init__(self, services: Mapping[str, PolicyService]) -> None:
        self._services = services

    def _reason(self, name: str) -> str:
        known = ", ".join(repr(one) for one in self._services if one)
        return f"{wire.NO_BEHAVIOR}{name!r} here: " + (f"expected one of {known}" if known else "leave it out")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        name = scope["path_params"]["behavior"]
        found = self._services.get(name)
        await (NotFound(self._reason(name)) if found is None else found.acting)(scope, receive, send)

    async def invoke(self, request: Request) -> Response:
        """Answer one HTTP request."""
        name = request.path_params["behavior"]
        found = self._services.get(name)
        if found is None:
            return JSONResponse({"error": self._reason(name)}, status_code=404)
        return await found.invoke(request)


async def _limited_body(request: Request) -> bytes:
    """Return the body, or what of it is enough to see that it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > Invocations.max_body_bytes:
            break
    return bytes(body)


def policy_app(
    opened: OpenedPolicy | Mapping[str, OpenedPolicy], options: PolicyServerOptions | None = None
) -> Starlette:
    """Return the ASGI application that serves policies, without authentication.

    Args:
        opened: the policy, or several by behaviour.
        options: how to work.
    """
    policies = {"": opened} if isinstance(opened, OpenedPolicy) else opened
    services = {name: PolicyService(each, options or PolicyServerOptions()) for name, each in policies.items()}
    front: Any = next(iter(services.values())) if len(services) == 1 else SeveralPolicies(services)
    by_name = BehaviorRoutes(services)
    routes = [
        Route("/ping", front.ping),
        Route("/health", front.ping),
        Route("/status", front.status),
        Route("/invocations", front.invoke, methods=["POST"]),
        WebSocketRoute("/act", front.acting),
        Route("/behaviors/{behavior:path}/invocations", by_name.invoke, methods=["POST"]),
        WebSocketRoute("/behaviors/{behavior:path}/act", by_name),
        WebSocketRoute("/{path:path}", NotFound("this is a policy server: use /act")),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for service in services.values():
                await stack.enter_async_context(service.lifespan(app))
            yield

    return Starlette(routes=routes, lifespan=lifespan)


@overload
def serve_policy(
    bundle: str | Path | OpenedPolicy | Mapping[str, OpenedPolicy],
    *,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    tls: TLS | None = ...,
    options: PolicyServerOptions | None = ...,
    block: Literal[True] = True,
    on_ready: Callable[[str], None] | None = ...,
) -> None: ...
@overload
def serve_policy(
    bundle: str | Path | OpenedPolicy | Mapping[str, OpenedPolicy],
    *,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    tls: TLS | None = ...,
    options: PolicyServerOptions | None = ...,
    block: Literal[False],
) -> BackgroundServer: ...
def serve_policy(
    bundle: str | Path | OpenedPolicy | Mapping[str, OpenedPolicy],
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    token: str | None = None,
    tls: TLS | None = None,
    options: PolicyServerOptions | None = None,
    block: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> BackgroundServer | None:
    """Serve a bundle.

    Args:
        bundle: its folder, ``hf://OWNER/NAME``, a file that ``agentgpt export`` wrote, or one of them that is open; of
            several behaviours each policy is served under its name.
        host: address to listen on; anything but loopback needs a token.
        port: 0 takes a free one.
        token: secret that clients must present; ``AGENTGPT_TOKEN`` by default.
        tls: certificate to serve ``wss://`` and ``https://`` with.
        options: how to work: limits, batching, watching the bundle.
        block: serve in this thread until SIGINT or SIGTERM; ``False`` serves from a thread.
        on_ready: called with the URL once connections are accepted.

    Returns:
        With ``block=False``, the running server with ``url`` and ``close()``.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        AuthError: the address is not loopback and there is no token.
        PortInUse: another process listens on the port.
        ConfigError: an option is out of range, or the certificate can't be read.
        DependencyNotInstalled: what the engine needs is not installed.
    """
    options = options or PolicyServerOptions()
    if isinstance(bundle, str | Path):
        bundle = open_policies(bundle, engine=options.engine, max_agents=options.max_agents)
    app = policy_app(bundle, options)
    listening = ServerOptions(
        host=host, port=port, token=resolve_token(token), tls=tls, max_frame_bytes=MAX_FRAME_BYTES
    )
    if block:
        run_app(app, listening, on_ready=on_ready)
        return None
    return BackgroundServer(app, listening)
