"""Tunnels: a public URL for a host on loopback, made by a tool such as cloudflared, ngrok or localtunnel."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

import httpx

from agentgpt_remote._version import __version__
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import (
    AgentGPTError,
    AuthError,
    ChildProcessFailed,
    ConfigError,
    HostUnreachable,
    RemoteTimeout,
    check_seconds,
)
from agentgpt_remote.tunnel_process import ToolProcess
from agentgpt_remote.tunnel_tools import Tool, find_tool

TUNNEL_TIMEOUT_S = 60.0
_SESSION_PATH = "/session"
_REQUEST_TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0
_UP_WAIT_S = 10.0
# Tools that show people a warning page first are told that this is no browser.
_HEADERS = {"User-Agent": f"agentgpt-remote/{__version__}", "ngrok-skip-browser-warning": "1"}
_HEADERS |= {"bypass-tunnel-reminder": "1"}
_WEBSOCKET = {"http": "ws", "https": "wss"}

_logger = logging.getLogger("agentgpt_remote.tunnels")


class Tunnel:
    """A tunnel to a host on loopback; it ends when it is closed, forgotten, or with this process.

    Args:
        name: ``cloudflared``, ``ngrok``, ``localtunnel``, ``auto`` for the first of them that is installed, or a
            command that holds ``{port}`` and prints the public URL.
        port: where the host listens on 127.0.0.1.
        token: that the host asks for.
        timeout_s: seconds until clients must reach the host through it.
        on_lost: called, from a thread, with the reason when the tool ends by itself later.

    Attributes:
        url: where clients reach the host; ``wss://`` unless it is on this machine.
        name: of the tool.

    Raises:
        ConfigError: no such tool.
        DependencyNotInstalled: the tool is not installed; names the command that installs it.
        AuthError: there is no token, though whoever finds the URL could use the host; or the URL is plaintext.
        ChildProcessFailed: the tool ended; the text holds its last lines.
        RemoteTimeout: it told no URL in time.
        HostUnreachable: it told one, through which the host can't be reached.
    """

    def __init__(
        self,
        name: str,
        port: int,
        *,
        token: str | None,
        timeout_s: float = TUNNEL_TIMEOUT_S,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        check_seconds("tunnel_timeout_s", timeout_s)
        if not token:
            raise AuthError(
                "a tunnel makes the host public: it needs a token; pass token=, --token or set AGENTGPT_TOKEN"
            )
        tool = find_tool(name)
        self.name = tool.name
        deadline = time.monotonic() + timeout_s
        instance = _instance_at(f"http://127.0.0.1:{port}")
        progress = _Progress(tool, port, on_lost)
        self._progress = progress
        self._process = ToolProcess(tool.command(port), progress.take, progress.end, [token, *tool.secrets])
        self._finalizer = weakref.finalize(self, _close, progress, self._process)
        progress.tail = self._process.tail
        try:
            self.url = self._reached(instance, token, deadline, timeout_s)
        except BaseException:
            self.close()
            raise
        progress.announced.set()
        _logger.info("tunnel open tool=%s url=%s port=%d", self.name, self.url, port)

    def _reached(self, instance: str, token: str, deadline: float, timeout_s: float) -> str:
        """Return the URL through which the host was reached."""
        progress, problem, pause_s = self._progress, "", _FIRST_PAUSE_S
        progress.wait(lambda: bool(progress.urls), deadline)
        progress.wait(lambda: progress.is_up, min(deadline, time.monotonic() + _UP_WAIT_S))
        while True:
            if progress.ended.is_set():
                raise ChildProcessFailed(progress.why_ended("before the host was reached through it"))
            for url in list(progress.urls):
                told = _problem_of(url, instance, token)
                if told is None:
                    return url
                problem = f"{url} {told}"
            if time.monotonic() >= deadline:
                raise self._too_late(problem, timeout_s)
            progress.ended.wait(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _too_late(self, problem: str, timeout_s: float) -> Exception:
        tail = self._process.tail()
        said = f"{self._progress.tool.advise(tail)} Its last output:\n{tail}"
        if problem:
            text = f"{self.name} made no way to the host within {timeout_s:g} s: {problem}."
            return HostUnreachable(text + said)
        if self._progress.plaintext:
            url = self._progress.plaintext
            return AuthError(
                f"{self.name} made {url}, where anyone on the way could read the token: use a tunnel with TLS"
            )
        return RemoteTimeout(f"{self.name} told no public URL within {timeout_s:g} s.{said}")

    @property
    def lost(self) -> str | None:
        """Why the tunnel is gone, or ``None`` while the tool runs."""
        return self._progress.lost

    def close(self) -> None:
        """End the tool with all that it started, and wait for them; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Tunnel({self.name!r}, {getattr(self, 'url', None)!r})"


class _Progress:
    """What a tool's output has told so far; holds no reference to the tunnel, which may be forgotten meanwhile."""

    def __init__(self, tool: Tool, port: int, on_lost: Callable[[str], None] | None) -> None:
        self.tool = tool
        self.urls: list[str] = []
        self.plaintext: str | None = None
        self.is_up = tool.is_up is None
        self.ended, self.closing, self.announced = threading.Event(), threading.Event(), threading.Event()
        self.tail: Callable[[], str] = str
        self.lost: str | None = None
        self._port, self._on_lost = port, on_lost
        self._changed = threading.Condition()

    def take(self, line: str) -> None:
        """Take in a line of the tool's output."""
        _logger.debug("tool=%s said something", self.tool.name)
        with self._changed:
            for told in self.tool.find_urls(line):
                url = self._usable(told)
                if url is not None and url not in self.urls:
                    self.urls.append(url)
            self.is_up = self.is_up or (self.tool.is_up is not None and self.tool.is_up(line))
            self._changed.notify_all()

    def _usable(self, told: str) -> str | None:
        """Return the WebSocket URL for a URL that a tool told, or ``None`` where it is not for clients."""
        try:
            parts = urlsplit(told.rstrip("/.;"))
            host, port = parts.hostname, parts.port
        except ValueError:
            return None
        if not host or parts.username or parts.password or (_is_here(host) and port == self._port):
            return None
        scheme = _WEBSOCKET.get(parts.scheme, parts.scheme)
        if scheme == "ws" and not _is_here(host):
            self.plaintext = f"ws://{parts.netloc}"
            return None
        return f"{scheme}://{parts.netloc}{parts.path}"

    def end(self) -> None:
        """Take in that the tool has ended."""
        with self._changed:
            self.ended.set()
            self._changed.notify_all()
        if self.closing.is_set() or not self.announced.is_set():
            return
        self.lost = self.why_ended("and the host can't be reached from outside any more")
        _logger.error("tunnel lost: %s", self.lost)
        if self._on_lost is not None:
            self._on_lost(self.lost)

    def why_ended(self, what: str) -> str:
        """Return that the tool ended, with its last words."""
        tail = self.tail()
        return f"the tunnel's tool {self.tool.name} ended {what}.{self.tool.advise(tail)} Its last output:\n{tail}"

    def wait(self, condition: Callable[[], bool], deadline: float) -> None:
        """Wait until the condition holds, the tool has ended, or the time is over."""
        with self._changed:
            while not condition() and not self.ended.is_set():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)


def _close(progress: _Progress, process: ToolProcess) -> None:
    progress.closing.set()
    process.close()


def _is_here(host: str) -> bool:
    """Tell whether a name in a URL is this machine's loopback, without a lookup."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _instance_at(address: str) -> str:
    """Return what the host at an address calls itself."""
    try:
        told = httpx.get(f"{address}/health", timeout=_REQUEST_TIMEOUT_S, trust_env=False).json()["instance"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no environment host answers at {address} ({error}): start it before its tunnel") from error
    return str(told)


def _problem_of(url: str, instance: str, token: str) -> str | None:
    """Return what stands between clients and the host at a URL; ``None`` where they reach it.

    The token is not shown before what answers there has told that it is the host.
    """
    address = url.replace("ws", "http", 1)
    try:
        answer = httpx.get(f"{address}/health", timeout=_REQUEST_TIMEOUT_S, headers=_HEADERS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"does not answer ({error or type(error).__name__})"
    if answer.status_code != httpx.codes.OK:
        return f"answers HTTP {answer.status_code} instead of the host"
    try:
        told = answer.json()["instance"]
    except (ValueError, KeyError, TypeError):
        return "leads to something else than an environment host"
    if told != instance:
        return "leads to another host"
    try:
        WebSocketConnection.connect(
            url, token=token, path=_SESSION_PATH, connect_timeout_s=_REQUEST_TIMEOUT_S, hint="check the tunnel"
        ).close()
    except AgentGPTError as error:
        return f"passes no WebSocket on to the host: {error}"
    return None
