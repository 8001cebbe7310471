"""One environment on a host, as a Gymnasium environment."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.handshake import Open, Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.registration import remote_spec
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import EnvCodec
from agentgpt_remote.wrappers.hosting import HostedSession, LentHost, with_fixed_text
from agentgpt_remote.wrappers.transport import Timeouts

REMOTE_RENDER_MODES = ("rgb_array", "ansi")


class RemoteEnv(gym.Env[Any, Any]):
    """An environment that runs on a host; it behaves as the environment itself would here.

    Args:
        source: ``CartPole-v1``, ``module:Name-v0``, ``module:factory``, a callable that returns an environment,
            or an environment, which is then served from a thread of this process. With ``url`` the id that the
            host must serve; ``None`` takes whatever it serves.
        url: where a host listens, such as ``ws://sim-7:8000``. Without it a host process is started on this
            machine, which ends with this environment.
        token: token of the host; ``AGENTGPT_TOKEN`` by default. Never part of the spec.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        connect_timeout_s: how long to wait for a connection, in seconds.
        request_timeout_s: how long to wait for a reply, in seconds.
        resume_window_s: how long to try to get back after the connection dropped, in seconds; by default as long
            as the host keeps the session.
        env_kwargs: arguments of the environment's constructor on the host.

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
        url: str | None = None,
        token: str | None = None,
        render_mode: str | None = None,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 300.0,
        resume_window_s: float | None = None,
        **env_kwargs: Any,
    ) -> None:
        self._closed = True
        self._spec: EnvSpec | None = None
        timeouts = Timeouts(connect_s=connect_timeout_s, request_s=request_timeout_s, resume_s=resume_window_s)
        try:
            self._open(source, url, token, open_request(render_mode, env_kwargs), timeouts)
            made_with = env_kwargs if render_mode is None else {"render_mode": render_mode, **env_kwargs}
            self._spec = own_spec(self._transport.opened, source, url, made_with)
        except TypeError as error:
            raise with_fixed_text(error) from error.__cause__

    def _open(self, source: Any, url: str | None, token: str | None, request: Open, timeouts: Timeouts) -> None:
        self._session = HostedSession(source, url, token, request, timeouts)
        self._transport = self._session.transport
        self._finalizer = weakref.finalize(self, HostedSession.close, self._session)
        self._closed = False
        try:
            self._adopt(self._transport.opened)
        except BaseException:
            self.close()
            raise

    def _adopt(self, opened: Opened) -> None:
        self.observation_space = space_from_dict(opened.observation_space, "observation")
        self.action_space = space_from_dict(opened.action_space, "action")
        self.render_mode = opened.render_mode
        self.metadata = remote_metadata(opened)
        self._codec = EnvCodec(self.observation_space, self.action_space)

    @property
    def url(self) -> str:
        """Where the environment is served."""
        return self._transport.url

    @property
    def spec(self) -> EnvSpec | None:
        """The environment's specification; never holds a token."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = without_token(value)

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
        transport = self._transport
        transport.send(Kind.RESET, extras=pack_value([seed, options]))
        observation, info = self._codec.decode_reset(transport.receive())
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
        parts, flags, extras = self._codec.encode_actions(action)
        transport.send(Kind.STEP, parts, flags=flags, extras=extras)
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = self._codec.decode_step(transport.receive())
        return result

    def render(self) -> Any:
        """Return a frame (``rgb_array``: uint8 array (height, width, 3); ``ansi``: str) or ``None``."""
        self._check_open()
        self._transport.send(Kind.RENDER)
        return unpack_value(self._transport.receive().extras_data)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment on its host, or read an attribute; public names only."""
        return self._call("call", name, args, kwargs)

    def get_attr(self, name: str) -> Any:
        """Return an attribute of the environment on its host; public names only."""
        return self._call("get", name, (), {})

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute of the environment on its host; public names only."""
        self._call("set", name, (value,), {})

    def _call(self, operation: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_open()
        self._transport.send(Kind.CALL, extras=pack_value([operation, name, args, kwargs]))
        return unpack_value(self._transport.receive().extras_data)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")

    def lend(self) -> LentHost:
        """Return where the host listens, for another process to train there while this one keeps it alive.

        A source that was an environment of this process exists once, so it can't be stepped here meanwhile.
        """
        return self._session.lend()

    def close(self) -> None:
        """Close the environment, its session, and the host that was started for it; idempotent."""
        if not self._closed:
            self._closed = True
            self._finalizer()

    def __repr__(self) -> str:
        name = self._spec.id if self._spec is not None else "environment"
        return f"<RemoteEnv {name} at {self.url}>"


def open_request(render_mode: str | None, env_kwargs: dict[str, Any]) -> Open:
    """Return the request for a single environment.

    Raises:
        ConfigError: a render mode that does not go over the wire.
        NotSendable: an argument that the wire can't carry.
    """
    if render_mode is not None and render_mode not in REMOTE_RENDER_MODES:
        raise ConfigError(
            f"render_mode={render_mode!r} is out of range: expected 'rgb_array', 'ansi' or None. For a window here, "
            "gymnasium.make('agentgpt/...', render_mode='human') renders frames that the host sends"
        )
    return Open(render_mode=render_mode, kwargs=pack_value(env_kwargs) if env_kwargs else b"")


def remote_metadata(opened: Opened) -> dict[str, Any]:
    """Return the host's metadata without the render modes that need a screen there."""
    metadata = dict(unpack_value(opened.metadata))
    modes = metadata.get("render_modes")
    if isinstance(modes, (list, tuple)):
        metadata["render_modes"] = [mode for mode in modes if mode != "human"]
    return metadata


def own_spec(opened: Opened, source: Any, url: str | None, kwargs: dict[str, Any]) -> EnvSpec | None:
    """Return a specification from which ``gymnasium.make`` makes the same remote environment, without its token.

    Args:
        opened: what the host told.
        source: as the client named it.
        url: where the host listens, or ``None`` where one was started.
        kwargs: further arguments of the remote environment.

    Returns:
        ``None`` where the environment can't be made again from names alone, or has no specification of its own.
    """
    if opened.spec is None or not (isinstance(source, str) or url is not None):
        return None
    named = source if isinstance(source, str) else opened.spec["id"]
    spec = remote_spec(named, **({} if url is None else {"url": url}), **kwargs)
    spec.reward_threshold = opened.spec["reward_threshold"]
    spec.nondeterministic = opened.spec["nondeterministic"]
    return spec


def without_token(spec: EnvSpec | None) -> EnvSpec | None:
    """Return the specification without a token in its arguments: loggers and data sets keep specifications."""
    if spec is None or "token" not in spec.kwargs:
        return spec
    spec = copy.copy(spec)
    spec.kwargs = {key: value for key, value in spec.kwargs.items() if key != "token"}
    return spec
