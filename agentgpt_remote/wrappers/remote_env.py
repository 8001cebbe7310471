"""One environment on a host, as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.error import ClosedEnvironmentError

from agentgpt_remote.handshake import Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import EnvCodec
from agentgpt_remote.wrappers.hosting import fixed_type_errors
from agentgpt_remote.wrappers.remote_base import REMOTE_RENDER_MODES, RemoteBase, open_request, remote_metadata
from agentgpt_remote.wrappers.transport import Timeouts


class RemoteEnv(RemoteBase, gym.Env[Any, Any]):
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
        timeouts = Timeouts(connect_s=connect_timeout_s, request_s=request_timeout_s, resume_s=resume_window_s)
        with fixed_type_errors():
            request = open_request(render_mode, env_kwargs)
            self._open(source, url, token, request, timeouts, env_kwargs, self._adopt)

    def _adopt(self, opened: Opened) -> None:
        self.observation_space = space_from_dict(opened.observation_space, "observation")
        self.action_space = space_from_dict(opened.action_space, "action")
        self.render_mode = opened.render_mode
        self.metadata = remote_metadata(opened)
        self._codec = EnvCodec(self.observation_space, self.action_space)

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
        return self._exchange(operation, name, args, kwargs)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")

    def __repr__(self) -> str:
        name = self._spec.id if self._spec is not None else "environment"
        return f"<RemoteEnv {name} at {self.url}>"
