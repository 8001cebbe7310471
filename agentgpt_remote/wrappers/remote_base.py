"""What remote environments share: a session on a host, its end, and a specification that holds no secret."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from agentgpt_remote.errors import ConfigError, RemoteEnvError
from agentgpt_remote.handshake import Open, Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.registration import NAMESPACE, remote_spec
from agentgpt_remote.wrappers.hosting import Host, LentHost, Sessions
from agentgpt_remote.wrappers.transport import SessionTransport, Timeouts
from agentgpt_remote.wrappers.unity.builds import UNITY_PREFIX

_logger = logging.getLogger("agentgpt_remote.client")
UNITY_ID = "Unity-v0"
HOST_LOSS = "host_loss"  # key of the info that says why an episode was truncated
MISSING, METHOD, VALUE = "missing", "method", "value"
SPIN_WAIT_S = 0.001
REMOTE_RENDER_MODES = ("rgb_array", "ansi")


class RemoteBase:
    """A session on a host, which a single and a vector environment build on.

    Attributes:
        closed: whether the session has ended.
    """

    closed = True
    _spec: EnvSpec | None = None
    _sessions: Sessions

    def _connect(self, hosts: Sequence[Host], timeouts: Timeouts, *, owned: bool) -> None:
        """Take the hosts, which end with this environment where they are ``owned``."""
        self._sessions = Sessions(hosts, timeouts, owned=owned)
        self._finalizer = weakref.finalize(self, Sessions.close, self._sessions)
        self._callbacks: list[Callable[[], None]] = []
        self.closed = False

    @property
    def url(self) -> str | list[str]:
        """Where the environment is served; several hosts' URLs where environments are spread over them."""
        urls = [host.url for host in self._sessions.hosts]
        return urls[0] if len(urls) == 1 else urls

    @property
    def told_spec(self) -> dict[str, Any] | None:
        """What the host told of the environment's own specification."""
        return self._sessions.transports[0].opened.spec

    @property
    def spec(self) -> EnvSpec | None:
        """The specification; never holds a token."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = without_token(value)

    def give_up_when(self, why: Callable[[], str | None]) -> None:
        """Have ``why`` asked, while a connection is down, for a reason not to try to get back any longer."""
        self._sessions.give_up_when(why)

    def lend(self) -> list[LentHost]:
        """Return where its hosts listen, for another process to train there while this one keeps them alive.

        A source that was an environment of this process exists once, so it can't be stepped here meanwhile.
        """
        return [LentHost(host.url, host.token, self._envs_on(host)) for host in self._sessions.lend()]

    def shareable(self) -> list[LentHost]:
        """Return the hosts where further sessions may be opened: none whose environment exists only once."""
        return [LentHost(host.url, host.token, None) for host in self._sessions.hosts if not host.only_one]

    def _envs_on(self, host: Host) -> int | None:
        """Return how many environments a host may be asked for in place of this one's; ``None`` without a limit."""
        return 1 if host.only_one else None

    def __getstate__(self) -> Any:
        """Refuse to be pickled, or copied with its session.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"a {type(self).__name__} can't be pickled or deeply copied, because its session on a host exists once: "
            "pickle its spec, and make another with gymnasium.make(spec)"
        )

    def __copy__(self) -> Self:
        """Return a shallow copy: another name for the same session."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called once this environment was closed."""
        self._callbacks.append(callback)

    def close(self, **_: Any) -> None:
        """End the session with its environments, and the host that was started for it; idempotent."""
        if not self.closed:
            self.closed = True
            self._finalizer()
            for callback in self._callbacks:
                callback()


def exchange(transport: SessionTransport, operation: str, name: str, args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call, get or set something of a session's environments."""
    transport.send(Kind.CALL, extras=pack_value([operation, name, args, kwargs]))
    return unpack_value(transport.receive().extras_data)


def round_trip_s(transport: SessionTransport) -> float:
    """Return how long a request that asks a session for nothing takes, without the host's own time, in seconds."""
    began = time.perf_counter()
    try:
        exchange(transport, "get", "render_mode", (), {})
    except (RemoteEnvError, AttributeError, ConfigError) as error:  # a refusal comes all the way back as well
        _logger.debug("url=%s ping refused: %s", transport.url, error)
    return max(0.0, time.perf_counter() - began - 1e-9 * transport.host_ns)


def find_kind(env: gym.Env[Any, Any], name: str) -> str:
    """Return whether an attribute of an environment or its wrappers is missing, a method or a value."""
    try:
        return METHOD if callable(env.get_wrapper_attr(name)) else VALUE
    except AttributeError:
        return MISSING


def named_source(source: Any, env_kwargs: dict[str, Any] | None = None) -> Any:
    """Return the source without the prefix of remote ids: ``agentgpt/CartPole-v1`` names this very thing.

    ``agentgpt/Unity-v0`` is the Unity build that ``file_name`` in ``env_kwargs`` names, from which it is taken; the
    editor without it.
    """
    if not isinstance(source, str):
        return source
    source = source.removeprefix(NAMESPACE)
    if source != UNITY_ID or env_kwargs is None:
        return source
    return f"{UNITY_PREFIX}{env_kwargs.pop('file_name', None) or ''}"


def spin_seconds(spin_wait: bool | float) -> float:
    """Return how long to poll for a reply, in seconds."""
    return SPIN_WAIT_S * spin_wait if isinstance(spin_wait, bool) else spin_wait


def check_host_loss(on_host_loss: str) -> bool:
    """Return whether the loss of a host truncates episodes.

    Raises:
        ConfigError: unknown.
    """
    if on_host_loss not in ("error", "truncate"):
        raise ConfigError(f"unknown on_host_loss={on_host_loss!r}: expected 'error' or 'truncate'")
    return on_host_loss == "truncate"


def spec_kwargs(render_mode: str | None, on_host_loss: str, others: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a specification keeps, without those at their default."""
    chosen: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if on_host_loss != "error":
        chosen["on_host_loss"] = on_host_loss
    return {**chosen, **others}


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


def own_spec(opened: Opened, source: Any, url: Any, kwargs: dict[str, Any]) -> EnvSpec | None:
    """Return a specification from which ``gymnasium.make`` makes the same remote environment, without its token.

    Args:
        opened: what the host told.
        source: as the client named it.
        url: where hosts listen, or ``None`` where one was started.
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
