"""One environment on a host, as a Gymnasium environment."""

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from agentgpt_remote.errors import ConfigError, ConnectionLost, NotSendable, RemoteTimeout
from agentgpt_remote.handshake import Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import DroppedCallback, EnvCodec
from agentgpt_remote.wrappers.hosting import Host, find_hosts, fixed_type_errors, freest_first
from agentgpt_remote.wrappers.remote_base import (
    HOST_LOSS,
    METHOD,
    MISSING,
    REMOTE_RENDER_MODES,
    RemoteBase,
    check_host_loss,
    exchange,
    named_source,
    open_request,
    own_spec,
    remote_metadata,
    spec_kwargs,
    spin_seconds,
)
from agentgpt_remote.wrappers.transport import Timeouts

_RESET_ATTEMPTS = 3
_logger = logging.getLogger("agentgpt_remote.client")


class RemoteEnv(RemoteBase, gym.Env[Any, Any]):
    """An environment that runs on a host; it behaves as the environment itself would here.

    Args:
        source: ``CartPole-v1``, ``module:Name-v0``, ``module:factory``, a callable that returns an environment,
            or an environment, which is then served from a thread of this process. With ``url`` the id that the
            host must serve; ``None`` takes whatever it serves.
        url: where a host listens, such as ``wss://sim-7:8000``, or a relay's room, such as ``wss://relay/room``, of
            whose hosts the one with most room is taken. Without it a host process is started on this
            machine, which ends with this environment.
        token: token of the host; ``AGENTGPT_TOKEN`` by default. Never part of the spec.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        connect_timeout_s: how long to wait for a connection, and for a host in a room, in seconds.
        request_timeout_s: how long to wait for a reply, in seconds.
        resume_window_s: how long to try to get back after the connection dropped, in seconds; by default as long
            as the host keeps the session.
        on_host_loss: ``error``, or ``truncate`` to end the episode where its host is lost (or its process hangs) and
            go on in a new environment: ``info["host_loss"]`` says why.
        spin_wait: how long to poll for a reply before sleeping until it arrives, in seconds; ``True`` for 1 ms. Keeps
            a processor busy and answers small steps sooner.
        workers: processes that a host started for this runs its environment in; 0 for the host's own, by default
            measured.
        env_kwargs: arguments of the environment's constructor on the host.

    Public attributes and methods of the environment on its host are those of this object too, where it has none of
    that name: ``env.unwrapped.gravity``, ``env.unwrapped.some_method(3)``.

    Attributes:
        url: where it is served.

    Raises:
        HostUnreachable: nothing listens at the URL.
        AuthError: the token is missing or wrong.
        NameNotFound: no such id; names the closest.
        RemoteEnvError: the environment's constructor raised; holds its traceback.
        CapacityReached: the host has no room.
    """

    # gymnasium.make reads the class's metadata to choose who renders: "human" is rendered here, from rgb_array.
    metadata: dict[str, Any] = {"render_modes": list(REMOTE_RENDER_MODES), "render_fps": 30}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        source: Any = None,
        *,
        url: str | Host | None = None,
        token: str | None = None,
        render_mode: str | None = None,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 300.0,
        resume_window_s: float | None = None,
        on_host_loss: str = "error",
        spin_wait: bool | float = False,
        workers: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        timeouts = Timeouts(
            connect_s=connect_timeout_s,
            request_s=request_timeout_s,
            resume_s=resume_window_s,
            spin_s=spin_seconds(spin_wait),
        )
        if isinstance(url, (list, tuple)):
            raise ConfigError(f"can't connect to {url!r}: one environment runs on one host; expected one URL")
        self._truncates = check_host_loss(on_host_loss)
        self._last: Any = None
        self._last_frame: Any = None
        with fixed_type_errors():
            if url is None:
                source = named_source(source, env_kwargs)
            source = named_source(source)
            self._request = open_request(render_mode, env_kwargs)
            hosts = find_hosts(source, url, token, workers, wait_s=connect_timeout_s)
            self._connect(freest_first(hosts), timeouts, owned=url is None)
            try:
                self._host = self._sessions.hosts[0]
                self._transport = self._sessions.open(self._host, self._request)
                self._adopt(self._transport.opened)
                kwargs = spec_kwargs(render_mode, on_host_loss, env_kwargs)
                self._spec = own_spec(self._transport.opened, source, url, kwargs)
            except BaseException:
                self.close()
                raise

    def _adopt(self, opened: Opened) -> None:
        self.observation_space = space_from_dict(opened.observation_space, "observation")
        self.action_space = space_from_dict(opened.action_space, "action")
        self.render_mode = opened.render_mode
        self.metadata = remote_metadata(opened)
        self._codec = EnvCodec(self.observation_space, self.action_space)

    def tell_dropped(self, callback: DroppedCallback) -> None:
        """Have ``callback`` told the parts of infos that could not be sent, instead of a warning."""
        self._codec.tell_dropped(callback)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment.

        Args:
            seed: as in :meth:`gymnasium.Env.reset`.
            options: as in :meth:`gymnasium.Env.reset`; never changed.

        Returns:
            The first observation and an info.

        Raises:
            NotSendable: ``options`` holds a value that the wire can't carry.
        """
        self._check_open()
        super().reset(seed=seed)
        request = pack_value([seed, options])
        for attempt in range(_RESET_ATTEMPTS):
            try:
                if self._truncates and self._transport.ended:
                    self._transport, self._host = self._sessions.reopen(self._transport, self._host, self._request)
                self._transport.send(Kind.RESET, extras=request)
                observation, info = self._codec.decode_reset(self._transport.receive())
                break
            except (ConnectionLost, RemoteTimeout) as error:
                if not self._is_loss(error) or attempt == _RESET_ATTEMPTS - 1:
                    raise
                self._transport.abandon(str(error))
        self._last = observation if self._truncates else None
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment.

        Args:
            action: as the environment itself would take it.

        Returns:
            Observation, reward, terminated, truncated and info.

        Raises:
            InvalidAction: the action is outside its space, and the environment raised because of it.
            ResetNeeded: the environment was not reset before.
            RemoteEnvError: the environment raised; holds its traceback. The session goes on.
            RemoteTimeout: no reply in time.
            ConnectionLost: the host is gone, and did not come back.
        """
        self._check_open()
        transport = self._transport
        if self._truncates and transport.ended and self._last is None:
            raise ResetNeeded("the episode ended with its host: call reset() before step()")
        parts, flags, extras = self._codec.encode_actions(action)
        try:
            transport.send(Kind.STEP, parts, flags=flags, extras=extras)
            result: tuple[Any, Any, bool, bool, dict[str, Any]] = self._codec.decode_step(transport.receive())
        except (ConnectionLost, RemoteTimeout) as error:
            if self._last is None or not self._is_loss(error):
                raise
            return self._truncated(error)
        if self._truncates:
            self._last = result[0]
        return result

    def _is_loss(self, error: Exception) -> bool:
        """Return whether the environment is gone and a new one is to replace it; ends a process that hangs."""
        return self._truncates and (isinstance(error, ConnectionLost) or self._host.end_hung())

    def _truncated(self, error: Exception) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return a step that truncates the episode at its latest observation, and says why in the info."""
        _logger.warning("host lost url=%s: %s", self._transport.url, error)
        self._transport.abandon(str(error))
        last, self._last = self._last, None
        return copy.deepcopy(last), 0.0, False, True, {HOST_LOSS: str(error)}

    def render(self) -> Any:
        """Return a frame (``rgb_array``: uint8 array (height, width, 3); ``ansi``: str) or ``None``.

        With ``on_host_loss="truncate"``, after the loss of the host and until the next reset, it is the latest one.
        """
        self._check_open()
        try:
            if not (self._truncates and self._transport.ended):
                self._transport.send(Kind.RENDER)
                frame = unpack_value(self._transport.receive().extras_data)
                self._last_frame = frame if self._truncates else None
                return frame
        except (ConnectionLost, RemoteTimeout) as error:
            if not self._is_loss(error):
                raise
            self._transport.abandon(str(error))
        return copy.deepcopy(self._last_frame)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment on its host, or read an attribute; public names only."""
        return self._call("call", name, args, kwargs)

    def get_attr(self, name: str) -> Any:
        """Return an attribute of the environment on its host; public names only."""
        return self._call("get", name, (), {})

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute of the environment on its host; public names only."""
        self._call("set", name, (value,), {})

    def find_attr(self, name: str) -> str:
        """Return what ``name`` is on the host: ``missing``, ``method`` or ``value``."""
        kind: str = self._call("find", name, (), {})
        return kind

    def __getattr__(self, name: str) -> Any:
        """Return a public attribute of the environment on its host; a method runs there when it is called."""
        if name.startswith("_") or self.__dict__.get("closed", True):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        kind = self.find_attr(name)
        if kind == MISSING:
            raise AttributeError(f"the environment at {self.url} has no attribute {name!r}, nor has {self!r}")
        if kind == METHOD:
            return partial(self.call, name)
        try:
            return self.get_attr(name)
        except NotSendable as error:  # for whoever asks hasattr, it is not here
            raise AttributeError(f"attribute {name!r} of the environment at {self.url}: {error}") from error

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute: this object's own where it has one of that name, else that of the environment on its host.

        Args:
            name: of the attribute.
            value: what to set it to.
            force: whether to set it on the host where nothing has it.

        Returns:
            Whether it was set.
        """
        if name in self.__dict__ or hasattr(type(self), name):
            setattr(self, name, value)
            return True
        if not force and self.find_attr(name) == MISSING:
            return False
        self.set_attr(name, value)
        return True

    def _call(self, operation: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_open()
        return exchange(self._transport, operation, name, args, kwargs)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")

    def __repr__(self) -> str:
        name = self._spec.id if self._spec is not None else "environment"
        return f"<RemoteEnv {name} at {self.url}>"
