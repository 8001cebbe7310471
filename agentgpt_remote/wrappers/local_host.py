"""A host of one's own: a process on this machine that ends with this one."""

from __future__ import annotations

import secrets
import sys
from typing import Any, Self

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from agentgpt_remote.errors import ChildProcessFailed, ConfigError, NotSendable
from agentgpt_remote.processes import READY_TIMEOUT_S, ChildProcess
from agentgpt_remote.remote_errors import error_from_dict
from agentgpt_remote.wrappers.unity.builds import is_build


class LocalHost:
    """A host process on loopback, with a random token; a context manager.

    Args:
        source: an id registered in this process, ``module:Name-v0``, ``module:factory``, a spec, or a callable
            that returns an environment; what this process alone knows is handed over through a private pipe.
        num_envs: environments it offers in all; ``None`` for no limit.
        workers: processes that its environments run in; 0 for the host's own, ``None`` for as many as they need.
        start_timeout_s: seconds until it must listen.

    Attributes:
        url: where it listens.
        token: the token that its clients must present.

    Raises:
        NameNotFound: no such id; names the closest.
        NotSendable: the callable can't be handed to another process.
        ChildProcessFailed: the process ended before it listened.
        RemoteTimeout: it did not listen in time.
    """

    def __init__(
        self,
        source: Any,
        *,
        num_envs: int | None = None,
        workers: int | None = None,
        start_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._last_output = ""
        payload = {
            "source": _portable(source),
            "num_envs": num_envs,
            "workers": workers,
            "token": self.token,
            "sys_path": list(sys.path),
        }
        self._process = ChildProcess.start(
            ["-m", "agentgpt_remote.server"], cloudpickle.dumps(payload), ready_timeout_s=start_timeout_s
        )
        ready = self._process.ready
        if "url" not in ready:
            self._process.close()
            raise error_from_dict(ready["error"]) if "error" in ready else ChildProcessFailed("no URL was reported")
        self.url: str = ready["url"]

    def __repr__(self) -> str:
        return f"LocalHost({self.url!r})"

    @property
    def pid(self) -> int:
        """Process id of the host."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def why_gone(self) -> str | None:
        """Return what to tell where the process has ended, or ``None`` while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        output = self._last_output or self.log_tail()
        return f"the environment's process ended (exit code {code}). Last output:\n{output or '(none)'}"

    def log_tail(self) -> str:
        """Return the last lines that the host, or an environment in it, printed."""
        return self._process.log_tail()

    def kill(self) -> None:
        """End the process at once, with whatever hangs in it."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it; a second call does nothing."""
        self._last_output = self._last_output or self.log_tail()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _portable(source: Any) -> Any:
    """Return the source as a string, or as the bytes of what this process knows about it."""
    if isinstance(source, str):
        if ":" in source or is_build(source):
            return source
        source = find_spec(source)
    if not isinstance(source, EnvSpec) and not callable(source):
        raise ConfigError(f"can't serve a {type(source).__name__} from another process: expected an id or a callable")
    try:
        return cloudpickle.dumps(source)
    except Exception as error:
        name = source.id if isinstance(source, EnvSpec) else repr(source)
        raise NotSendable(
            f"{name} can't be handed to another process ({error}): name it as module:factory, or serve an "
            "environment of this process with RemoteEnv(env)"
        ) from error


def find_spec(env_id: str) -> EnvSpec:
    """Return the spec of an id that this process knows, as ``gymnasium.make`` would choose it.

    Raises:
        gymnasium.error.Error: as ``gymnasium.make`` raises it, with the closest name.
    """
    find = gym.envs.registration._find_spec
    return getattr(find, "__wrapped__", find)(env_id)
