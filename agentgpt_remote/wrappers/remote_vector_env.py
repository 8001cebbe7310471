"""Many environments on a host, as one Gymnasium vector environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from agentgpt_remote.connection import wait_readable
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.handshake import Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import VectorCodec
from agentgpt_remote.wrappers.hosting import fixed_type_errors
from agentgpt_remote.wrappers.remote_base import REMOTE_RENDER_MODES, RemoteBase, open_request, remote_metadata
from agentgpt_remote.wrappers.transport import Timeouts


class RemoteVectorEnv(RemoteBase, VectorEnv[Any, Any, Any]):
    """Environments on a host that step together: one message each way for all of them.

    Args:
        source: as for :class:`RemoteEnv`.
        num_envs: how many; ``None`` for as many as the host offers (one where the host was started for this).
        url: where a host listens; without it a host process is started.
        token: token of the host; ``AGENTGPT_TOKEN`` by default. Never part of the spec.
        autoreset_mode: when the host resets an environment whose episode ended.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        connect_timeout_s: how long to wait for a connection, in seconds.
        request_timeout_s: how long to wait for a reply, in seconds.
        resume_window_s: how long to try to get back after the connection dropped, in seconds.
        env_kwargs: arguments of the environment's constructor on the host.

    Attributes:
        url: where they are served.

    Raises:
        HostUnreachable: nothing listens at the URL.
        AuthError: the token is missing or wrong.
        NameNotFound: no such id; names the closest.
        RemoteEnvError: the environment's constructor raised; holds its traceback.
        CapacityReached: the host has no room for so many.
        ConfigError: ``num_envs`` or ``autoreset_mode`` is out of range.
    """

    metadata: dict[str, Any] = {"render_modes": list(REMOTE_RENDER_MODES), "render_fps": 30}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        source: Any = None,
        num_envs: int | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 300.0,
        resume_window_s: float | None = None,
        **env_kwargs: Any,
    ) -> None:
        self._pending: Kind | None = None
        if isinstance(num_envs, np.integer):
            num_envs = int(num_envs)
        if num_envs is not None and (type(num_envs) is not int or num_envs < 1):
            raise ConfigError(f"num_envs={num_envs!r} is out of range: expected an integer of at least 1")
        timeouts = Timeouts(connect_s=connect_timeout_s, request_s=request_timeout_s, resume_s=resume_window_s)
        with fixed_type_errors():
            request = open_request(render_mode, env_kwargs)
            request.num_envs = num_envs or (source.num_envs if isinstance(source, VectorEnv) else 0)
            request.autoreset_mode = _mode(autoreset_mode).value
            self._open(source, url, token, request, timeouts, env_kwargs, self._adopt)

    def _adopt(self, opened: Opened) -> None:
        self.num_envs = opened.num_envs or 1
        self.single_observation_space = space_from_dict(opened.observation_space, "observation")
        self.single_action_space = space_from_dict(opened.action_space, "action")
        self.observation_space = _batched(
            self.single_observation_space, opened.batched_observation_space, self.num_envs
        )
        self.action_space = _batched(self.single_action_space, opened.batched_action_space, self.num_envs)
        self.render_mode = opened.render_mode
        self.metadata = remote_metadata(opened)
        if isinstance(self.metadata.get("autoreset_mode"), str):
            self.metadata["autoreset_mode"] = AutoresetMode(self.metadata["autoreset_mode"])
        self._codec = VectorCodec(self.single_observation_space, self.single_action_space, self.num_envs)

    @property
    def host_step_s(self) -> float:
        """How long the host's environments took for the latest reply, in seconds."""
        return self._transport.host_ns * 1e-9

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments.

        Args:
            seed: one seed, from which the environments count up, or one for each of them.
            options: as in :meth:`gymnasium.vector.SyncVectorEnv.reset`, with ``reset_mask``; never changed.

        Returns:
            Batched observations and infos.

        Raises:
            NotSendable: ``options`` holds a value that the wire can't carry.
        """
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def reset_async(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Send the request to reset; :meth:`reset_wait` returns the reply.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
        """
        self._check_free("reset_async")
        if isinstance(seed, int):
            super().reset(seed=seed)
        self._transport.send(Kind.RESET, extras=pack_value([seed, options]))
        self._pending = Kind.RESET

    def reset_wait(self, timeout_s: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Return observations and infos of :meth:`reset_async`; raises as :meth:`step_wait`."""
        observations, infos = self._codec.decode_reset(self._await(Kind.RESET, "reset_wait", timeout_s))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments.

        Args:
            actions: one action for each environment, batched as ``action_space`` is.

        Returns:
            Observations, rewards (float64 (num_envs,)), terminations and truncations (bool (num_envs,)), infos.

        Raises:
            InvalidAction: there is not one action for each environment, or an environment raised because one is
                outside its space.
            RemoteEnvError: an environment raised; holds its traceback. The session goes on.
            RemoteTimeout: no reply in time.
            ConnectionLost: the host is gone, and did not come back.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Send the actions; :meth:`step_wait` returns the reply.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
            InvalidAction: there is not one action for each environment.
        """
        self._check_free("step_async")
        parts, flags, extras = self._codec.encode_actions(actions)
        self._transport.send(Kind.STEP, parts, flags=flags, extras=extras)
        self._pending = Kind.STEP

    def step_wait(self, timeout_s: float | None = None) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return what :meth:`step` returns, for the actions of :meth:`step_async`.

        Args:
            timeout_s: deadline in seconds; the request timeout by default.

        Raises:
            NoAsyncCallError: nothing was sent.
            RemoteTimeout: no reply in time; call again to wait on.
        """
        step: tuple[Any, Any, Any, Any, dict[str, Any]]
        step = self._codec.decode_step(self._await(Kind.STEP, "step_wait", timeout_s))
        return step

    def _check_free(self, name: str) -> None:
        if self.closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")
        if self._pending is not None:
            pending = self._pending.name.lower()
            raise AlreadyPendingCallError(f"called {name} while {pending}_async waits for {pending}_wait", pending)

    def _await(self, kind: Kind, name: str, timeout_s: float | None) -> Any:
        if self.closed:
            raise ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")
        if self._pending is not kind:
            raise NoAsyncCallError(f"called {name} without {kind.name.lower()}_async before", kind.name.lower())
        try:
            envelope = self._transport.receive(timeout_s)
        except TimeoutError:
            raise
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self._pending = None
            raise
        self._pending = None
        return envelope

    @property
    def reply_ready(self) -> bool:
        """Whether the reply of a request that was sent can be taken without waiting."""
        return self._pending is not None and self._transport.ready()

    def render(self) -> tuple[Any, ...] | None:
        """Return a frame of each environment."""
        self._check_free("render")
        self._transport.send(Kind.RENDER)
        frames: tuple[Any, ...] | None = unpack_value(self._transport.receive().extras_data)
        return frames

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment, or read an attribute; public names only."""
        results: tuple[Any, ...] = self._call("call", name, args, kwargs)
        return results

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each environment; public names only."""
        values: tuple[Any, ...] = self._call("get", name, (), {})
        return values

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment: a list or tuple of one value each, or one value for all."""
        self._call("set", name, (values,), {})

    def _call(self, operation: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_free(operation)
        return self._exchange(operation, name, args, kwargs)

    def __enter__(self) -> RemoteVectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self._spec.id if self._spec is not None else "environments"
        return f"RemoteVectorEnv({name}, num_envs={self.num_envs}, url={self.url!r})"


def wait_ready(envs: Sequence[RemoteVectorEnv], timeout_s: float) -> list[RemoteVectorEnv]:
    """Wait until the reply of at least one of the environments can be taken.

    Args:
        envs: environments with a request that lacks its reply; the others are never ready.
        timeout_s: seconds to wait at most.

    Returns:
        Those whose ``step_wait`` or ``reset_wait`` would not wait; empty when the time is over. One whose connection
        dropped counts as ready: waiting for it resumes the session.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        ready = [env for env in envs if env.reply_ready]
        left_s = deadline - time.monotonic()
        if ready or left_s <= 0:
            return ready
        connections = [env._transport.connection for env in envs if env._pending is not None]
        if not connections:
            return []
        wait_readable([connection for connection in connections if connection is not None], left_s)


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        modes = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ConfigError(f"unknown autoreset_mode {mode!r}: expected {modes}") from error


def _batched(single: gym.Space[Any], told: dict[str, Any] | None, n: int) -> gym.Space[Any]:
    """Return the batched space: Gymnasium's own for ``single`` unless the host's differs."""
    space = batch_space(single, n)
    theirs = None if told is None else space_from_dict(told)
    return space if theirs is None or theirs == space else theirs
