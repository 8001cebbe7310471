"""Where a client's environments live: on the host of a URL, in a process of its own, or in this process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.handshake import Open
from agentgpt_remote.serving import resolve_token
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.transport import SessionTransport, Timeouts


class LentHost(NamedTuple):
    """A host that another process may use.

    Attributes:
        url: where it listens.
        token: its token.
        only_one: whether it serves one environment, which exists already, to one session at a time.
    """

    url: str
    token: str | None
    only_one: bool


class HostedSession:
    """A session, and the host that was started for it, if one was.

    Args:
        source: what to make; with ``url`` an id to expect there, or ``None``.
        url: where a host listens; ``None`` starts one.
        token: its token.
        request: what to open; its ``source`` is filled in.
        timeouts: how long to wait.

    Attributes:
        transport: the open session.
        host: the process that was started for it, or ``None``.

    Raises:
        ConfigError: neither a source nor a URL is given, or the source can't be asked for at a URL.
    """

    def __init__(self, source: Any, url: str | None, token: str | None, request: Open, timeouts: Timeouts) -> None:
        self.host: LocalHost | None = None
        self._owner = os.getpid()
        self._close_host: Callable[[], None] | None = None
        self._only_one = False
        self._token = token = resolve_token(token) if url is not None else None
        if url is not None:
            request.source = _asked_name(source)
            self.transport = SessionTransport(url, token, request, timeouts)
            return
        if source is None:
            raise ConfigError("what environment? Pass a source such as 'CartPole-v1', or url= of a host")
        url, self._token = self._start(source, request)
        try:
            why_gone = (lambda: None) if self.host is None else self.host.why_gone
            self.transport = SessionTransport(url, self._token, request, timeouts, why_gone)
        except BaseException:
            if self._close_host is not None:
                self._close_host()
            raise

    def _start(self, source: Any, request: Open) -> tuple[str, str]:
        """Start a host for the source; return where it listens and its token."""
        if isinstance(source, (gym.Env, VectorEnv)):
            import agentgpt_remote

            if request.render_mode is None:
                request.render_mode = source.render_mode
            token = secrets.token_urlsafe(24)
            server = agentgpt_remote.serve(source, port=0, token=token, block=False)
            self._close_host, self._only_one = server.close, True
            return str(server.url), token
        self.host = LocalHost(source)
        self._close_host = self.host.close
        return self.host.url, self.host.token

    def lend(self) -> LentHost:
        """Return where another process may open sessions.

        An environment of this process exists once: its own session ends, so that the other process can have it.
        """
        if self._only_one:
            self.transport.close()
        return LentHost(self.transport.url, self._token, self._only_one)

    def close(self) -> None:
        """End the session, and the host that was started for it."""
        if os.getpid() != self._owner:
            return  # a fork's copy must not end what its parent still uses
        try:
            self.transport.close()
        finally:
            if self._close_host is not None:
                self._close_host()


def _asked_name(source: Any) -> str | None:
    if source is None or isinstance(source, str):
        return source
    if isinstance(source, EnvSpec):
        return source.id
    raise ConfigError(
        f"a {type(source).__name__} can't be sent to a host at a URL: name what it serves, or leave the source out"
    )


@contextmanager
def fixed_type_errors() -> Iterator[None]:
    """Raise a TypeError from the block so that its text can't be replaced; see :func:`with_fixed_text`."""
    try:
        yield
    except TypeError as error:
        raise with_fixed_text(error) from error.__cause__


def with_fixed_text(error: TypeError) -> TypeError:
    """Return the error so that its text can't be replaced.

    ``gymnasium.make`` raises a constructor's TypeError again, as ``type(error)(...)`` with all keyword arguments in
    the text, and one of them may be a token.
    """
    kind, text = type(error), str(error)

    def ignore_text(self: TypeError, *_: object) -> None:
        kind.__init__(self, text)

    def as_base(_: TypeError) -> tuple[type[TypeError], tuple[str]]:
        return kind, (text,)

    fixed: type[TypeError] = type(
        kind.__name__,
        (kind,),
        {"__init__": ignore_text, "__str__": lambda _: text, "__reduce__": as_base, "__module__": kind.__module__},
    )
    return fixed()
