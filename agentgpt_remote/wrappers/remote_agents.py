"""A session of environments of many agents on a host, for the trainer and for what is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded

from agentgpt_remote.agent_codec import ClientAgentsCodec
from agentgpt_remote.agents import Behavior, Turns
from agentgpt_remote.errors import ConfigError, ProtocolError
from agentgpt_remote.packing import unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.wrappers.hosting import Host, find_hosts, fixed_type_errors
from agentgpt_remote.wrappers.remote_base import (
    RemoteBase,
    exchange,
    open_request,
    remote_metadata,
    spin_seconds,
)
from agentgpt_remote.wrappers.transport import Timeouts


class RemoteAgents(RemoteBase):
    """Environments of many agents on a host.

    Args:
        source: ``pettingzoo:package.module``, ``unity:PATH``, ``unity:`` (the editor), ``module:factory``, a callable
            that returns a PettingZoo environment, or one itself. With ``url`` the source that the host must serve;
            ``None`` takes whatever it serves.
        url: where a host listens; without it a host process is started on this machine.
        num_envs: environments that step together: agents are then called ``i/<id>``, and an environment whose agents
            are all gone begins anew at once. ``None`` is one environment, which is over when its agents are gone.
        token: token of the host; ``AGENTGPT_TOKEN`` by default.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        connect_timeout_s: how long to wait for a connection, in seconds.
        request_timeout_s: how long to wait for a reply, in seconds.
        resume_window_s: how long to try to get back after the connection dropped, in seconds.
        spin_wait: how long to poll for a reply before sleeping until it arrives, in seconds; ``True`` for 1 ms.
        env_kwargs: arguments of the environment's constructor on the host.

    Attributes:
        url: where they are served.
        num_envs: how many; ``None`` for one that does not begin anew.
        metadata: of the environment.
        render_mode: as above.

    Raises:
        HostUnreachable: nothing listens at the URL.
        AuthError: the token is missing or wrong.
        NameNotFound: the host serves something else.
        ConfigError: the source makes environments of one agent.
        RemoteEnvError: the environment's constructor raised; holds its traceback.
        CapacityReached: the host has no room.
    """

    def __init__(
        self,
        source: Any = None,
        *,
        url: str | Host | None = None,
        num_envs: int | None = None,
        token: str | None = None,
        render_mode: str | None = None,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 300.0,
        resume_window_s: float | None = None,
        spin_wait: bool | float = False,
        **env_kwargs: Any,
    ) -> None:
        timeouts = Timeouts(
            connect_s=connect_timeout_s,
            request_s=request_timeout_s,
            resume_s=resume_window_s,
            spin_s=spin_seconds(spin_wait),
        )
        if isinstance(url, list | tuple):
            raise ConfigError(f"can't connect to {url!r}: expected one URL; open one session for each host")
        self._pending: Kind | None = None
        self._was_reset = False
        with fixed_type_errors():
            request = open_request(render_mode, env_kwargs)
            request.agents, request.num_envs = True, num_envs
            self._connect(find_hosts(source, url, token, None), timeouts, owned=url is None)
            try:
                self._transport = self._sessions.open(self._sessions.hosts[0], request)
                opened = self._transport.opened
                if opened.behaviors is None:
                    theirs = opened.versions.get("agentgpt-remote", "unknown")
                    raise ProtocolError(
                        f"{self.url} (agentgpt-remote {theirs}) knows environments of one agent only: upgrade the host"
                    )
                self._codec = ClientAgentsCodec(opened.behaviors)
                self.num_envs = opened.num_envs
                self.render_mode = opened.render_mode
                self.metadata = remote_metadata(opened)
            except BaseException:
                self.close()
                raise

    @property
    def behaviors(self) -> dict[str, Behavior]:
        """Behaviours so far, by name."""
        return self._codec.behaviors

    @property
    def agent_ids(self) -> list[str]:
        """Ids that were known beforehand, in the environment's order."""
        return self._transport.opened.agent_ids

    @property
    def acting(self) -> dict[str, tuple[str, ...]]:
        """Ids of the agents that need an action now, by behaviour."""
        return self._codec.acting

    @property
    def host_step_s(self) -> float:
        """How long the environments took on their host for the latest reply, in seconds."""
        return self._transport.host_ns * 1e-9

    @property
    def connected(self) -> bool:
        """Whether the connection is not down; taking a reply while it is waits until the session resumes, or can't."""
        return self._transport.connection is not None

    @property
    def transport(self) -> Any:
        """The session."""
        return self._transport

    @property
    def pending(self) -> Kind | None:
        """The request that lacks its reply."""
        return self._pending

    def reset_async(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Send the request to reset; :meth:`receive` returns the reply.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
            NotSendable: ``options`` holds a value that the wire can't carry.
        """
        self._check_free("reset")
        self._transport.send(Kind.RESET, extras=self._codec.encode_reset(seed, options))
        self._pending = Kind.RESET

    def step_async(self, actions: Mapping[str, Any]) -> None:
        """Send actions; :meth:`receive` returns the reply.

        Args:
            actions: by behaviour: a batch, or a list of single actions, in the order of :attr:`acting`.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
            InvalidAction: there is not one action for each agent that needs one, or one can't be sent.
            ResetNeeded: the environments were not reset before.
        """
        self._check_free("step")
        if not self._was_reset:
            raise ResetNeeded("call reset() before step()")
        parts, flags, extras = self._codec.encode_actions(actions)
        self._transport.send(Kind.STEP, parts, flags=flags, extras=extras)
        self._pending = Kind.STEP

    def receive(self, timeout_s: float | None = None) -> Turns:
        """Return the reply to the request that was sent.

        Args:
            timeout_s: deadline in seconds; the request timeout by default.

        Raises:
            NoAsyncCallError: nothing was sent.
            RemoteEnvError: the environment raised; holds its traceback. The session goes on.
            RemoteTimeout: no reply in time; call again to wait on.
            ConnectionLost: the host is gone, and did not come back.
        """
        if self._pending is None:
            raise NoAsyncCallError("called receive without a request before", "receive")
        try:
            envelope = self._transport.receive(timeout_s)
        except TimeoutError:
            raise
        except BaseException:
            self._pending = None
            raise
        self._was_reset = self._was_reset or self._pending is Kind.RESET
        self._pending = None
        return self._codec.decode(envelope)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Begin anew and return who needs an action; see :meth:`reset_async` and :meth:`receive`."""
        self.reset_async(seed=seed, options=options)
        return self.receive()

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Return what the actions brought; see :meth:`step_async` and :meth:`receive`."""
        self.step_async(actions)
        return self.receive()

    def ready(self) -> bool:
        """Tell, without waiting, whether :meth:`receive` would return or raise at once."""
        return self._transport.ready()

    def render(self) -> Any:
        """Return a frame, or a tuple of frames where there are several environments."""
        self._check_free("render")
        self._transport.send(Kind.RENDER)
        return unpack_value(self._transport.receive().extras_data)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment on its host, or read an attribute; public names only."""
        self._check_free("call")
        return exchange(self._transport, "call", name, args, kwargs)

    def find(self, name: str) -> str:
        """Return what ``name`` is on the host: ``missing``, ``method`` or ``value``."""
        self._check_free("find")
        kind: str = exchange(self._transport, "find", name, (), {})
        return kind

    def _check_free(self, name: str) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")
        if self._pending is not None:
            raise AlreadyPendingCallError(
                f"called {name} while a {self._pending.name.lower()} waits for receive", self._pending.name.lower()
            )

    def __enter__(self) -> RemoteAgents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(self.behaviors)} at {self.url}>"
