"""``serve``: run a host in this thread until it is interrupted, or in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from agentgpt_remote.connection import DEFAULT_MAX_FRAME_BYTES
from agentgpt_remote.errors import ConfigError, check_seconds
from agentgpt_remote.processes import allow_many_connections
from agentgpt_remote.server.app import host_app
from agentgpt_remote.server.dialling import DialingHost
from agentgpt_remote.server.running import BackgroundDialler, run_dialler
from agentgpt_remote.server.sessions import HostLimits
from agentgpt_remote.server.sources import Source, resolve_source
from agentgpt_remote.server.tunnelled import TunnelledServer, run_tunnelled
from agentgpt_remote.serving import TLS, BackgroundServer, ServerOptions, is_loopback, resolve_token, run_app
from agentgpt_remote.tls import is_insecure_allowed


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
    connect: str | None = ...,
    name: str | None = ...,
    tls: TLS | None = ...,
    insecure: bool | None = ...,
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
    connect: str | None = ...,
    name: str | None = ...,
    tls: TLS | None = ...,
    insecure: bool | None = ...,
    tunnel: str | None = ...,
) -> BackgroundServer | BackgroundDialler | TunnelledServer: ...


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
    connect: str | None = None,
    name: str | None = None,
    tls: TLS | None = None,
    insecure: bool | None = None,
    tunnel: str | None = None,
) -> BackgroundServer | BackgroundDialler | TunnelledServer | None:
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
        connect: URL of a relay's room, such as ``wss://relay/room``: the host dials out and waits for trainers there,
            and nothing listens here. ``token`` is then the room's token for hosts.
        name: what the host calls itself in the room, for people; this machine's name by default.
        tls: certificate to serve ``wss://`` with.
        insecure: whether another address than loopback may be served, or a token be sent, without TLS;
            ``AGENTGPT_INSECURE`` by default.
        tunnel: makes the host public: ``cloudflared``, ``ngrok``, ``localtunnel``, ``auto`` for the first of them that
            is installed, or a command that holds ``{port}`` and prints the public URL. Needs a token.

    Returns:
        With ``block=False`` a handle with ``.url`` and ``.close()``.

    Raises:
        NameNotFound: no such id; names the closest.
        ConfigError: the source or a limit makes no sense.
        AuthError: the address is not loopback, and there is no token or no TLS; or the relay refused the token.
        PortInUse: another process listens on the port.
        HostUnreachable: the relay did not let the host in in time (with ``block=False``; else it dials on), or the
            host can't be reached through the tunnel.
        DependencyNotInstalled: the tunnel's tool is not installed; names the command that installs it.
        ChildProcessFailed: the tunnel's tool ended.
    """
    for option, value in (("num_envs", num_envs), ("max_sessions", max_sessions), ("max_frame_bytes", max_frame_bytes)):
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{option}={value!r} is out of range: expected an integer of at least 1")
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
    if tunnel is not None and (connect is not None or tls is not None or not is_loopback(host)):
        other = "connect" if connect is not None else "tls" if tls is not None else f"host={host!r}"
        raise ConfigError(f"{other} and tunnel exclude each other: a host behind a tunnel listens on loopback only")
    if connect is not None:
        allow_many_connections()
        offered, secret = resolve_source(source), resolve_token(token)
        dialler = DialingHost(offered, limits, connect, secret, name=name, insecure=insecure, on_ready=on_ready)
        if block:
            run_dialler(dialler)
            return None
        return BackgroundDialler(dialler)
    app = host_app(resolve_source(source), limits)
    options = ServerOptions(
        host=host,
        port=port,
        token=resolve_token(token),
        max_frame_bytes=max_frame_bytes,
        tls=tls,
        insecure=is_insecure_allowed() if insecure is None else insecure,
    )
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
