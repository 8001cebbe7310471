"""Start hosts from Python: :class:`EnvLauncher`."""

from __future__ import annotations

import importlib
import secrets
from typing import Any, Self

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.serving import resolve_token


class EnvLauncher:
    """A host that serves environments, from a thread of this process or in the cloud; a context manager.

    Attributes:
        url: where clients reach it.
        token: that they must present, where it is known here.
    """

    def __init__(self, server: Any, url: str, token: str | None = None) -> None:
        self._server = server
        self.url = url
        self.token = token

    @classmethod
    def launch_on_local_with_ip(
        cls,
        source: Any,
        ip_address: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        num_envs: int | None = None,
        token: str | None = None,
    ) -> EnvLauncher:
        """Serve environments on an address of this machine.

        Args:
            source: an id, ``module:factory``, a callable that returns an environment, or an environment.
            ip_address: name or address by which clients reach this machine, where that is not ``host``.
            host: address to listen on; anything but loopback needs a token.
            port: TCP port; 0 takes a free one.
            num_envs: environments that it offers in all; ``None`` for no limit.
            token: secret that clients must present; ``AGENTGPT_TOKEN`` by default.

        Raises:
            NameNotFound: no such id; names the closest.
            AuthError: the address is not loopback and there is no token.
            PortInUse: another process listens on the port.
        """
        import agentgpt_remote

        if ip_address is not None and ("/" in ip_address or not ip_address):
            raise ConfigError(f"ip_address={ip_address!r} is not a name or an address, such as 192.168.1.7")
        server = agentgpt_remote.serve(source, num_envs=num_envs, host=host, port=port, token=token, block=False)
        url = str(server.url)
        if ip_address is not None:
            name = f"[{ip_address}]" if ":" in ip_address else ip_address
            url = f"ws://{name}:{url.rpartition(':')[2]}"
        return cls(server, url)

    @classmethod
    def launch_on_local_with_url(
        cls,
        source: Any,
        tunnel_name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        num_envs: int | None = None,
        token: str | None = None,
    ) -> EnvLauncher:
        """Serve environments of this machine at a public URL, through a tunnel.

        The tunnel ends when the launcher is closed or forgotten, and with this process.

        Args:
            source: an id, ``module:factory``, a callable that returns an environment, or an environment.
            tunnel_name: ``cloudflared``, ``ngrok``, ``localtunnel``, or a command that holds ``{port}`` and prints the
                public URL; by default the first of them that is installed.
            host: loopback address to listen on, which the tunnel leads to.
            port: TCP port; by default a free one.
            num_envs: environments that it offers in all; ``None`` for no limit.
            token: secret that clients must present; ``AGENTGPT_TOKEN`` by default, else one that is made here:
                :attr:`token`.

        Raises:
            NameNotFound: no such id; names the closest.
            ConfigError: no such tool; names the closest.
            DependencyNotInstalled: the tool is not installed; names the command that installs it.
            ChildProcessFailed: the tool ended; the text holds its last lines.
            RemoteTimeout: it told no URL in time.
            HostUnreachable: the host can't be reached through the URL.
        """
        import agentgpt_remote

        token = resolve_token(token) or secrets.token_urlsafe(24)
        server = agentgpt_remote.serve(
            source,
            num_envs=num_envs,
            host=host,
            port=port,
            token=token,
            block=False,
            tunnel="auto" if tunnel_name is None else tunnel_name,
        )
        return cls(server, str(server.url), token)

    @classmethod
    def launch_on_cloud(
        cls, source: str, config: Any, *, num_envs: int | None = None, connect: str | None = None
    ) -> EnvLauncher:
        """Serve environments from a container on AWS ECS, which ends by itself after a while.

        It goes on when this process ends; :meth:`close` ends it, and so does its ``ttl_hours``.

        Args:
            source: an id or ``module:factory`` that the image knows.
            config: a ``CloudHostConfig`` of :mod:`agentgpt_remote.cloud.host_config`.
            num_envs: environments that it offers in all; ``None`` for its default.
            connect: URL of a relay that it dials out to.

        Raises:
            ConfigError: a field is refused.
            CloudError: it did not start; what was made is gone, or the text says what is left.
        """
        # By its name: a simulation machine needs no AWS.
        hosting = importlib.import_module("agentgpt_remote.cloud.hosting")
        host = hosting.launch_environment(source, config, num_envs=num_envs, connect=connect)
        return cls(host, host.url)

    @property
    def lost(self) -> str | None:
        """Why clients can't reach it any more since its tunnel ended, or ``None``."""
        reason: str | None = getattr(self._server, "lost", None)
        return reason

    def close(self) -> None:
        """End the host and its sessions; a second call does nothing."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EnvLauncher({self.url!r})"
