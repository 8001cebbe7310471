"""What remote environments share: a session on a host, its end, and a specification that holds no secret."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

from gymnasium.envs.registration import EnvSpec

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.handshake import Open, Opened
from agentgpt_remote.packing import pack_value, unpack_value
from agentgpt_remote.protocol import Kind
from agentgpt_remote.registration import NAMESPACE, remote_spec
from agentgpt_remote.wrappers.hosting import HostedSession, LentHost
from agentgpt_remote.wrappers.transport import Timeouts

REMOTE_RENDER_MODES = ("rgb_array", "ansi")


class RemoteBase:
    """A session on a host, which a single and a vector environment build on.

    Attributes:
        closed: whether the session has ended.
    """

    closed = True
    _spec: EnvSpec | None = None

    def _open(
        self,
        source: Any,
        url: str | None,
        token: str | None,
        request: Open,
        timeouts: Timeouts,
        env_kwargs: dict[str, Any],
        adopt: Callable[[Opened], None],
    ) -> None:
        """Open the session, and have ``adopt`` take over what the host told of its environments."""
        if isinstance(source, str):
            source = source.removeprefix(NAMESPACE)  # "agentgpt/CartPole-v1" is the name of this very thing
        self._session = HostedSession(source, url, token, request, timeouts)
        self._transport = self._session.transport
        self._finalizer = weakref.finalize(self, HostedSession.close, self._session)
        self.closed = False
        opened = self._transport.opened
        try:
            adopt(opened)
            rendering = {} if request.render_mode is None else {"render_mode": request.render_mode}
            self._spec = own_spec(opened, source, url, {**rendering, **env_kwargs})
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where the environment, or environments, are served."""
        return self._transport.url

    @property
    def spec(self) -> EnvSpec | None:
        """The specification; never holds a token."""
        return self._spec

    @spec.setter
    def spec(self, value: EnvSpec | None) -> None:
        self._spec = without_token(value)

    def _exchange(self, operation: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call, get or set something of the environments on the host."""
        self._transport.send(Kind.CALL, extras=pack_value([operation, name, args, kwargs]))
        return unpack_value(self._transport.receive().extras_data)

    def give_up_when(self, why: Callable[[], str | None]) -> None:
        """Have ``why`` asked, while the connection is down, for a reason not to try to get back any longer."""
        self._transport.give_up_when(why)

    def lend(self) -> LentHost:
        """Return where the host listens, for another process to train there while this one keeps it alive.

        A source that was an environment of this process exists once, so it can't be stepped here meanwhile.
        """
        return self._session.lend()

    def close(self, **_: Any) -> None:
        """End the session with its environments, and the host that was started for it; idempotent."""
        if not self.closed:
            self.closed = True
            self._finalizer()


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
