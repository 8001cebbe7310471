"""Where a client's environments live: on the host of a URL, in a process of its own, or in this process."""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from agentgpt_remote.agents import MultiAgentEnv
from agentgpt_remote.errors import AgentGPTError, CapacityReached, ConfigError, ConnectionLost, RemoteTimeout
from agentgpt_remote.handshake import Open
from agentgpt_remote.serving import resolve_token
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import free_envs, host_health
from agentgpt_remote.wrappers.pettingzoo_env import adapt
from agentgpt_remote.wrappers.rooms import Room, RoomMember
from agentgpt_remote.wrappers.transport import SessionTransport, Timeouts

_logger = logging.getLogger("agentgpt_remote.client")
_REOPEN_PAUSE_S = 0.25
_REOPEN_FOR_S = 60.0


class LentHost(NamedTuple):
    """A host that another process may use.

    Attributes:
        url: where it listens.
        token: its token.
        num_envs: environments that the lender had there; ``None`` for as many as wanted.
    """

    url: str
    token: str | None
    num_envs: int | None


class Host:
    """Where sessions are opened: the host of a URL.

    Args:
        url: where it listens.
        token: its token; kept here only, never shown.
        asked: id that it is expected to serve, or ``None`` for whatever it does.

    Attributes:
        url: where it listens.
        only_one: whether it serves one environment, which exists already, to one session at a time.
    """

    only_one = False

    def __init__(self, url: str, token: str | None, asked: str | None = None) -> None:
        self.url = url
        self.token = token
        self._asked = asked

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def label(self) -> str:
        """What it is called in errors."""
        return self.url

    def _why_gone(self) -> Callable[[], str | None]:
        """Return what tells why it will not be back, or ``None`` while it may."""
        return lambda: None

    def open(self, request: Open, timeouts: Timeouts) -> SessionTransport:
        """Open a session; raises as :class:`SessionTransport`."""
        request.source = self._asked
        return SessionTransport(self.url, self.token, request, timeouts, self._why_gone())

    def siblings(self) -> list[Host]:
        """Return the hosts that may take its place, beyond those that are known."""
        return []

    def revive(self) -> None:
        """Start it again where it was started here and is gone."""

    def end_hung(self) -> bool:
        """End it because an environment in it hangs; return whether that is this process's to do."""
        return False

    def close(self) -> None:
        """End it where it was started here; idempotent."""


class InstanceHost(Host):
    """An environment of this process, served from a thread of it."""

    only_one = True

    def __init__(self, env: Any) -> None:
        import agentgpt_remote

        token = secrets.token_urlsafe(24)
        self._render_mode = getattr(env, "render_mode", None)
        self._server = agentgpt_remote.serve(env, port=0, token=token, block=False)
        super().__init__(str(self._server.url), token)

    def open(self, request: Open, timeouts: Timeouts) -> SessionTransport:
        """Open a session with the render mode that the environment has."""
        if request.render_mode is None:
            request.render_mode = self._render_mode
        return super().open(request, timeouts)

    def close(self) -> None:
        """End the server."""
        self._server.close()


class ProcessHost(Host):
    """A host in a process of its own, which is started again where it has ended and a session is wanted.

    Args:
        source: what it serves; see :class:`LocalHost`.
        workers: worker processes of the host; ``None`` for as many as its environments need.

    Attributes:
        process: the running process.
    """

    def __init__(self, source: Any, workers: int | None = None) -> None:
        self._start: Callable[[], LocalHost] = lambda: LocalHost(source, workers=workers)
        self._lock = threading.Lock()
        self._closed = False
        self.process = self._start()
        super().__init__(self.process.url, self.process.token)

    def _why_gone(self) -> Callable[[], str | None]:
        return self.process.why_gone  # of this process, not of one that replaces it

    def revive(self) -> None:
        """Start the process again where it has ended."""
        with self._lock:
            if self._closed or self.process.running:
                return
            self.process.close()
            self.process = self._start()
            self.url, self.token = self.process.url, self.process.token

    def end_hung(self) -> bool:
        """Kill the process."""
        self.process.kill()
        return True

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
        self.process.close()


class RoomHost(Host):
    """A host that is reached through a relay's room.

    Args:
        room: the room.
        member: which of its hosts.
        token: of the room's trainers; kept here only, never shown.
        asked: id that it is expected to serve.
    """

    def __init__(self, room: Room, member: RoomMember, token: str | None, asked: str | None) -> None:
        super().__init__(member.url, token, asked)
        self.room, self._name = room, member.name

    @property
    def label(self) -> str:
        """What it calls itself, and where it is."""
        return f"host {self._name!r} at {self.url}"

    def siblings(self) -> list[Host]:
        """Return the hosts that are in the room now; none where the relay does not answer."""
        try:
            return [RoomHost(self.room, member, self.token, self._asked) for member in self.room.members()]
        except AgentGPTError as error:
            _logger.debug("room=%s error=%s", self.room.url, error)
            return []


def find_hosts(
    source: Any,
    url: str | Host | Sequence[str | Host] | None,
    token: str | Mapping[str, str] | None,
    workers: int | None,
    *,
    wait_s: float = 10.0,
    num_envs: int = 1,
) -> list[Host]:
    """Return the hosts of a client: those of its URLs, or one that is started for it.

    Args:
        source: what to make; with ``url`` an id to expect there, or ``None``.
        url: where hosts listen; ``None`` starts one.
        token: of the hosts: one for all, or one by URL.
        workers: worker processes of the host that is started.
        wait_s: how long to wait for hosts in a relay's room, in seconds.
        num_envs: environments that the hosts of a room are to have free.

    Raises:
        HostUnreachable: a relay is not there, or no host came to its room in time.
        AuthError: a relay refused the token.
        ConfigError: neither a source nor a URL is given, the source can't be asked for at a URL, or ``workers`` is
            not for the caller to choose.
    """
    if url is not None:
        if workers is not None:
            raise ConfigError("workers= is for a host that is started here: start the one at the URL with --workers")
        urls: list[Any] = list(url) if isinstance(url, (list, tuple)) else [url]
        if not urls:
            raise ConfigError("url=[] names no host: expected at least one URL such as ws://sim-7:8000")
        asked = _asked_name(source)
        tokens = {item: token.get(item) if isinstance(token, Mapping) else token for item in urls}
        found: list[Host] = []
        for item in urls:
            if isinstance(item, Host):
                found.append(item)
            else:
                found += _hosts_at(item, resolve_token(tokens[item]), asked, wait_s, num_envs)
        return found
    if source is None:
        raise ConfigError("what environment? Pass a source such as 'CartPole-v1', or url= of a host")
    if isinstance(source, (gym.Env, VectorEnv, MultiAgentEnv)) or adapt(source) is not None:
        if workers:
            raise ConfigError(
                f"workers={workers}: an environment of this process can't move to another; pass a factory"
            )
        return [InstanceHost(source)]
    return [ProcessHost(source, workers)]


def _hosts_at(url: str, token: str | None, asked: str | None, wait_s: float, num_envs: int) -> list[Host]:
    """Return the host at a URL, or those in the room there."""
    room = Room.at(url, token)
    if room is None:
        return [Host(url, token, asked)]
    return [RoomHost(room, member, token, asked) for member in room.wait(wait_s, num_envs)]


def freest_first(hosts: list[Host]) -> list[Host]:
    """Return the hosts of a room with the one that has most environments free first."""
    if len(hosts) < 2:
        return hosts
    free = {id(host): free_envs(host_health(host.url, host.token)) for host in hosts}
    return sorted(hosts, key=lambda host: -(math.inf if (room := free[id(host)]) is None else room))


class Sessions:
    """A client's open sessions and the hosts that were started for them.

    Args:
        hosts: where sessions are opened; the first to be opened again on is the one that was lost.
        timeouts: how long to wait.
    """

    def __init__(self, hosts: Sequence[Host], timeouts: Timeouts, *, owned: bool) -> None:
        self.hosts = list(hosts)
        self.transports: list[SessionTransport] = []
        self.timeouts = timeouts
        self._owned = owned
        self._pid = os.getpid()
        self._why: Callable[[], str | None] = lambda: None

    def open(self, host: Host, request: Open) -> SessionTransport:
        """Open a session on a host."""
        transport = host.open(request, self.timeouts)
        transport.give_up_when(lambda: self._why())
        self.transports.append(transport)
        return transport

    def reopen(self, lost: SessionTransport, host: Host, request: Open) -> tuple[SessionTransport, Host]:
        """Open a session in place of a lost one, on its host where that is there (again), else on another.

        Raises:
            ConnectionLost: no host has room for it within the resume window.
        """
        lost.close()
        if lost in self.transports:
            self.transports.remove(lost)
        window_s = _REOPEN_FOR_S if self.timeouts.resume_s is None else self.timeouts.resume_s
        deadline = time.monotonic() + window_s
        while True:
            for newcomer in host.siblings():
                if all(newcomer.url != known.url for known in self.hosts):
                    self.hosts.append(newcomer)
            for candidate in (host, *(other for other in self.hosts if other is not host)):
                try:
                    candidate.revive()
                    return self.open(candidate, request), candidate
                except (ConnectionLost, RemoteTimeout, CapacityReached) as error:
                    reason = f"{candidate.url}: {error}"
            why = self._why()
            if why is not None or time.monotonic() > deadline:
                raise ConnectionLost(why or f"no host took over from {host.url} within {window_s:g} s. {reason}")
            time.sleep(_REOPEN_PAUSE_S)

    def give_up_when(self, why: Callable[[], str | None]) -> None:
        """Have ``why`` asked, while a connection is down, for a reason not to try to get back any longer."""
        self._why = why

    def lend(self) -> list[Host]:
        """Return the hosts, for another process to open sessions on.

        An environment of this process exists once: its own session ends, so that the other process can have it.
        """
        if any(host.only_one for host in self.hosts):
            for transport in self.transports:
                transport.close()
        return self.hosts

    def close(self) -> None:
        """End the sessions, and the hosts that were started for them."""
        if os.getpid() != self._pid:
            return  # a fork's copy must not end what its parent still uses
        try:
            for transport in self.transports:
                transport.close()
        finally:
            if self._owned:
                for host in self.hosts:
                    host.close()


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
