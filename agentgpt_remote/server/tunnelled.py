"""A host on loopback that a tunnel makes public."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from agentgpt_remote.errors import ChildProcessFailed
from agentgpt_remote.serving import ASGIApp, BackgroundServer, ServerOptions
from agentgpt_remote.tunnels import Tunnel

_POLL_S = 0.5


class TunnelledServer:
    """A host, served from a thread of this process, and its tunnel; both end with it.

    Args:
        app: of the host.
        options: how it listens; with a token.
        tunnel: name of the tunnel's tool, or a command with ``{port}``.

    Attributes:
        url: the public one.

    Raises:
        AuthError: there is no token.
        DependencyNotInstalled: the tool is not installed.
        ChildProcessFailed: it ended.
        HostUnreachable: clients can't reach the host through it.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, tunnel: str) -> None:
        self._server = server = BackgroundServer(app, options)
        lost = threading.Event()
        self._lost = lost
        try:
            port = int(server.url.rpartition(":")[2])
            self._tunnel = Tunnel(tunnel, port, token=options.token, on_lost=lambda _: lost.set())
        except BaseException:
            server.close()
            raise
        self.url = self._tunnel.url
        self._finalizer = weakref.finalize(self, _close, self._tunnel, server)
        self._finalizer.atexit = False  # the interpreter's end ends the server's thread, and the tunnel sees to itself

    @property
    def lost(self) -> str | None:
        """Why the host can't be reached from outside any more, or ``None``."""
        return self._tunnel.lost

    @property
    def running(self) -> bool:
        """Whether connections from outside are still accepted."""
        return self._server.running and self.lost is None

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until the tunnel is lost; return whether it is."""
        return self._lost.wait(timeout_s)

    def close(self) -> None:
        """End the tunnel and the host, and wait for both; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(tunnel: Tunnel, server: BackgroundServer) -> None:
    try:
        tunnel.close()
    finally:
        server.close()


def run_tunnelled(
    app: ASGIApp, options: ServerOptions, tunnel: str, *, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve ``app`` through a tunnel until SIGINT or SIGTERM.

    Args:
        app: of the host.
        options: how it listens; with a token.
        tunnel: name of the tunnel's tool, or a command with ``{port}``.
        on_ready: called with the public URL once the host was reached through it.

    Raises:
        ChildProcessFailed: the tunnel's tool ended.
        KeyboardInterrupt: SIGINT ended it.
    """
    with _sigterm() as asked_to_end, TunnelledServer(app, options, tunnel) as served:
        if on_ready is not None:
            on_ready(served.url)
        while not asked_to_end.is_set():
            if served.wait_lost(_POLL_S):
                raise ChildProcessFailed(served.lost or "the tunnel is gone")


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Have SIGTERM set an event, where nobody has decided otherwise."""
    asked = threading.Event()
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
