"""``serve``: run a host in this thread until it is interrupted, or in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from agentgpt_remote.connection import DEFAULT_MAX_FRAME_BYTES
from agentgpt_remote.errors import ConfigError, check_seconds
from agentgpt_remote.server.app import host_app
from agentgpt_remote.server.sessions import HostLimits
from agentgpt_remote.server.sources import Source, resolve_source
from agentgpt_remote.server.tunnelled import TunnelledServer, run_tunnelled
from agentgpt_remote.serving import BackgroundServer, ServerOptions, is_loopback, resolve_token, run_app


@overload
def serve(
    source: Source,
    *,
    num_envs: int | None = ...,
    workers: int | None = ...,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    block: Literal[True] = ...,
    on_ready: Callable[[str], None] | None = ...,
    max_sessions: int = ...,
    max_frame_bytes: int = ...,
    resume_window_s: float = ...,
    step_timeout_s: float = ...,
    tunnel: str | None = ...,
) -> None: ...


@overload
def serve(
    source: Source,
    *,
    num_envs: int | None = ...,
    workers: int | None = ...,
    host: str = ...,
    port: int = ...,
    token: str | None = ...,
    block: Literal[False],
    on_ready: Callable[[str], None] | None = ...,
    max_sessions: int = ...,
    max_frame_bytes: int = ...,
    resume_window_s: float = ...,
    step_timeout_s: float = ...,
    tunnel: str | None = ...,
) -> BackgroundServer | TunnelledServer: ...


def serve(
    source: Source,
    *,
    num_envs: int | None = None,
    workers: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    block: bool = True,
    on_ready: Callable[[str], None] | None = None,
    max_sessions: int = 1024,
    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    resume_window_s: float = 60.0,
    step_timeout_s: float = 600.0,
    tunnel: str | None = None,
) -> BackgroundServer | TunnelledServer | None:
    """Serve environments to trainers and scripts.

    Args:
        source: ``CartPole-v1``, ``package.module:Name-v0``, ``package.module:factory``, a callable that returns
            an environment, or an environment (one session at a time).
        num_envs: environments that the host offers in all; ``None`` for no limit. A vector client that does not
            say how many it wants gets as many.
        workers: processes that run the environments; 0 for this one, ``None`` for as many as environments that were
            measured to be slow need. One that dies or hangs truncates its environments only, and is started again.
        host: address to listen on; anything but loopback needs a token.
        port: TCP port; 0 takes a free one.
        token: secret that clients must present; ``AGENTGPT_TOKEN`` by default.
        block: serve in this thread until SIGINT or SIGTERM, else in one of its own.
        on_ready: called with the URL once connections are accepted.
        max_sessions: sessions at a time.
        max_frame_bytes: largest message, in bytes.
        resume_window_s: how long a session waits for its client after a dropped connection, in seconds.
        step_timeout_s: how long an environment may take for one request, in seconds.
        tunnel: makes the host public: ``cloudflared``, ``ngrok``, ``localtunnel``, ``auto`` for the first of them that
            is installed, or a command that holds ``{port}`` and prints the public URL. Needs a token.

    Returns:
        With ``block=False`` a handle with ``.url`` and ``.close()``.

    Raises:
        NameNotFound: no such id; names the closest.
        ConfigError: the source or a limit makes no sense.
        AuthError: the address is not loopback and there is no token.
        PortInUse: another process listens on the port.
        DependencyNotInstalled: the tunnel's tool is not installed; names the command that installs it.
        ChildProcessFailed: the tunnel's tool ended.
        HostUnreachable: the host can't be reached through the tunnel.
    """
    for name, value in (("num_envs", num_envs), ("max_sessions", max_sessions), ("max_frame_bytes", max_frame_bytes)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{name}={value!r} is out of range: expected an integer of at least 1")
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ConfigError(f"workers={workers!r} is out of range: expected None or an integer of at least 0")
    check_seconds("resume_window_s", resume_window_s, zero=True)
    check_seconds("step_timeout_s", step_timeout_s)
    limits = HostLimits(
        num_envs=num_envs,
        max_sessions=max_sessions,
        resume_window_s=resume_window_s,
        step_timeout_s=step_timeout_s,
        max_frame_bytes=max_frame_bytes,
        workers=workers,
    )
    app = host_app(resolve_source(source), limits)
    options = ServerOptions(host=host, port=port, token=resolve_token(token), max_frame_bytes=max_frame_bytes)
    if tunnel is not None and not is_loopback(host):
        raise ConfigError(f"host={host!r}: a host behind a tunnel listens on loopback only; leave host out")
    if block:
        if tunnel is None:
            run_app(app, options, on_ready=on_ready)
        else:
            run_tunnelled(app, options, tunnel, on_ready=on_ready)
        return None
    server = BackgroundServer(app, options) if tunnel is None else TunnelledServer(app, options, tunnel)
    if on_ready is not None:
        on_ready(server.url)
    return server
