"""Serve an ASGI application: who may connect, on which address, and for how long.

The environment host, the policy server and the relay share these rules. They listen on loopback unless asked,
refuse any other address without a token (``admission.py``) and without TLS, and give a connection only so long to
ask for something (``half_open.py``).

uvicorn is imported when a server starts, never with the package.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import ipaddress
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from agentgpt_remote.admission import TOKEN_VARIABLE, ASGIApp, Message, NotFound, Receive, Scope, Send, TokenAuth
from agentgpt_remote.channel import CONNECTION
from agentgpt_remote.connection import DEFAULT_MAX_FRAME_BYTES
from agentgpt_remote.errors import AgentGPTError, AuthError, ConfigError, PortInUse, RemoteTimeout
from agentgpt_remote.tls import INSECURE_VARIABLE, is_insecure_allowed, pin_of

if TYPE_CHECKING:
    import uvicorn

__all__ = [
    "TLS",
    "TOKEN_VARIABLE",
    "ASGIApp",
    "BackgroundServer",
    "Message",
    "NotFound",
    "Receive",
    "Scope",
    "Send",
    "ServerOptions",
    "TokenAuth",
    "is_loopback",
    "resolve_token",
    "run_app",
]

_START_TIMEOUT_S = 30.0
_APP_SHUTDOWN_S = 15.0

_logger = logging.getLogger("agentgpt_remote.serving")


def resolve_token(token: str | None) -> str | None:
    """Return the token given, else the one in ``AGENTGPT_TOKEN``, else ``None``.

    Raises:
        AuthError: the token has characters that an HTTP header can't carry.
    """
    value = token or os.environ.get(TOKEN_VARIABLE) or None
    if value is not None and not (value.isascii() and value.isprintable() and value == value.strip()):
        raise AuthError("a token may hold printable ASCII characters only, with no space around it")
    return value


@dataclass(frozen=True, kw_only=True)
class TLS:
    """What a server proves itself with.

    Attributes:
        cert: file with the certificate chain, PEM.
        key: file with its private key, PEM.
    """

    cert: str
    key: str

    @classmethod
    def of(cls, cert: str | None, key: str | None) -> TLS | None:
        """Return both files, or None where neither is given.

        Raises:
            ConfigError: one is given without the other.
        """
        if (cert is None) != (key is None):
            raise ConfigError("TLS needs both files: pass --tls-cert and --tls-key")
        return None if cert is None or key is None else cls(cert=cert, key=key)

    def check(self) -> None:
        """Load both files.

        Raises:
            ConfigError: one can't be read, or they don't belong together.
        """
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError too
            raise ConfigError(f"can't use the certificate {self.cert} with the key {self.key}: {error}") from error

    @property
    def pin(self) -> str:
        """The certificate's fingerprint, for the other side to pin.

        Raises:
            ConfigError: the certificate can't be read.
        """
        try:
            return pin_of(Path(self.cert).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"can't read the certificate {self.cert}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens.

    Attributes:
        host: address to bind; anything but loopback needs a token.
        port: TCP port; 0 takes a free one.
        token: bearer token that clients must present, or ``None``.
        scheme: scheme of the URL that clients are told; with TLS an s is added.
        tls: certificate to encrypt with, or ``None``.
        max_frame_bytes: largest WebSocket message accepted, in bytes.
        shutdown_timeout_s: how long open requests may take to end, in seconds.
        insecure: whether any address but loopback may be served without TLS; ``AGENTGPT_INSECURE`` by default.
        guard: middleware that decides who is let in, in place of one token for all.
        guarded: whether the middleware asks for tokens.
        behind_proxy: nothing but a proxy that checks who calls reaches the port, as in a container of SageMaker: no
            token is asked for, on any address and under any host name.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    scheme: str = "ws"
    tls: TLS | None = None
    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    shutdown_timeout_s: float = 5.0
    insecure: bool = field(default_factory=is_insecure_allowed)
    guard: Callable[[ASGIApp], ASGIApp] | None = field(default=None, repr=False)
    guarded: bool = False
    behind_proxy: bool = False

    def __repr__(self) -> str:
        shown = "***" if self.token else None
        return f"ServerOptions(host={self.host!r}, port={self.port}, token={shown!r}, scheme={self.scheme!r})"


def is_loopback(host: str) -> bool:
    """Tell whether every address that ``host`` stands for is this machine's loopback."""
    if not host:
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in addresses)


def _bind(options: ServerOptions) -> socket.socket:
    """Return a bound TCP socket.

    Raises:
        AuthError: the address is not loopback, and there is no token or no TLS.
        ConfigError: the port is out of range, the address is not one of this machine's, or the certificate is no good.
        PortInUse: another process listens there.
    """
    if not 0 <= options.port <= 65535:
        raise ConfigError(f"port {options.port} is out of range: expected 0 (a free port) to 65535")
    if not is_loopback(options.host) and not options.behind_proxy:
        if options.token is None and not options.guarded:
            raise AuthError(
                f"refusing to listen on {options.host!r} without a token: anyone who reaches the port could use it. "
                f"Pass --token (or token=), set {TOKEN_VARIABLE}, or listen on 127.0.0.1"
            )
        if options.tls is None and not options.insecure:
            raise AuthError(
                f"refusing to listen on {options.host!r} without TLS: tokens and data could be read on their way. "
                "Pass --tls-self-signed, or --tls-cert and --tls-key; behind a proxy that does TLS, or on a network "
                f"that you trust, pass --insecure (insecure=True, {INSECURE_VARIABLE}=1)"
            )
    if options.tls is not None:
        options.tls.check()
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _keep_alive(listener)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                errno.EADDRINUSE,
                f"port {options.port} on {options.host} is in use by another process: choose another with --port, "
                "or 0 for a free one",
            ) from error
        raise ConfigError(f"can't listen on {options.host}:{options.port}: {error}") from error
    return listener


def _keep_alive(listener: socket.socket) -> None:
    """Have the kernel find peers that are gone; accepted connections inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _url_of(listener: socket.socket, options: ServerOptions) -> str:
    name = f"[{options.host}]" if ":" in options.host else options.host
    scheme = options.scheme if options.tls is None else f"{options.scheme}s"
    return f"{scheme}://{name}:{listener.getsockname()[1]}"


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell uvicorn's errors from what it says of each WebSocket refused with a status, which is logged here."""
    return "without completing handshake" not in str(record.msg)


def _guarded(app: ASGIApp, options: ServerOptions) -> ASGIApp:
    """Put before an application what decides who is let in."""
    if options.guard is not None:
        return options.guard(app)
    return app if options.behind_proxy else TokenAuth(app, options.token)


def _make_server(app: ASGIApp, options: ServerOptions, on_started: Callable[[], None]) -> uvicorn.Server:
    import uvicorn
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    from agentgpt_remote.half_open import Waiting, impatient_protocol

    logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)

    class Connection(WebSocketsSansIOProtocol):
        """A WebSocket that an application may take over; see ``channel.py``."""

        def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], **kwargs: Any) -> None:
            super().__init__(config, server_state, {**app_state, CONNECTION: self}, **kwargs)

    class Server(uvicorn.Server):
        """A server that says when it accepts connections."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_started()

    return Server(
        uvicorn.Config(
            _guarded(app, options),
            loop="uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
            http=impatient_protocol(Waiting()),
            ws=Connection,
            ws_max_size=options.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # a client that computes for a minute answers no ping; keepalive finds dead peers
            timeout_graceful_shutdown=max(1, int(options.shutdown_timeout_s)),
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,  # at DEBUG, websockets logs request headers, and one of them is the token
            server_header=False,
            ssl_certfile=None if options.tls is None else options.tls.cert,
            ssl_keyfile=None if options.tls is None else options.tls.key,
        )
    )


def run_app(app: ASGIApp, options: ServerOptions, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve ``app`` in this thread until SIGINT or SIGTERM.

    Args:
        app: an ASGI application with a lifespan.
        options: how to listen.
        on_ready: called with the URL once connections are accepted.

    Raises:
        AuthError: the address is not loopback and there is no token.
        PortInUse: another process listens on the port.
        KeyboardInterrupt: SIGINT ended it.
    """
    listener = _bind(options)
    url = _url_of(listener, options)
    server = _make_server(app, options, lambda: on_ready(url) if on_ready else None)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


class BackgroundServer:
    """An ASGI application served from a thread of this process.

    Attributes:
        url: where it is served.

    Raises:
        AuthError: the address is not loopback and there is no token.
        PortInUse: another process listens on the port.
        RemoteTimeout: it did not start in time.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        listener = _bind(options)
        self.url = _url_of(listener, options)
        started = threading.Event()
        self._server = _make_server(app, options, started.set)
        self._failure: BaseException | None = None
        self._shutdown_timeout_s = options.shutdown_timeout_s
        self._thread = threading.Thread(target=self._run, args=(listener, started), name="agentgpt-server", daemon=True)
        self._thread.start()
        if not started.wait(_START_TIMEOUT_S):
            self.close()
            raise RemoteTimeout(f"the server at {self.url} did not start within {_START_TIMEOUT_S:.0f} s")
        if self._failure is not None:
            raise AgentGPTError(f"the server at {self.url} failed to start: {self._failure}") from self._failure

    def _run(self, listener: socket.socket, started: threading.Event) -> None:
        try:
            self._server.run(sockets=[listener])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - raised again in the thread that started the server
            self._failure = error
            _logger.debug("server ended url=%s error=%s", self.url, error)
        finally:
            listener.close()
            started.set()

    @property
    def running(self) -> bool:
        """Whether connections are still accepted."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the server and wait for it; a second call does nothing.

        Raises:
            RemoteTimeout: requests were still running when the shutdown timeout had passed.
        """
        self._server.should_exit = True
        if threading.current_thread() is self._thread:
            return
        timeout_s = self._shutdown_timeout_s + _APP_SHUTDOWN_S
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise RemoteTimeout(f"the server at {self.url} did not stop within {timeout_s:.0f} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
