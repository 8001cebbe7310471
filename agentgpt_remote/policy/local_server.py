"""A policy server in a child process, owned by the policy that acts through it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Self

import msgspec

from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.runner import Engine
from agentgpt_remote.processes import ChildProcess
from agentgpt_remote.remote_errors import error_from_dict
from agentgpt_remote.serving import resolve_token


class LocalPolicyServer:
    """A policy server that this process started; it ends with it.

    Args:
        bundle: folder of the policy.
        host: address to listen on; anything but loopback needs a token.
        port: 0 takes a free one.
        token: ``AGENTGPT_TOKEN`` by default, else a random one on loopback.
        watch: take new weights when the bundle changes.
        max_agents: most agents at once; by default as many as fit in 4 GiB.
        engine: what runs the model, see :class:`GPTPolicy`.

    Attributes:
        url: where it listens.
        token: what clients must present.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
        PortInUse: another process listens on the port.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        watch: bool = False,
        max_agents: int | None = None,
        engine: Engine = "auto",
    ) -> None:
        self.token = resolve_token(token) or secrets.token_urlsafe(24)
        settings = {
            "bundle": str(bundle),
            "host": host,
            "port": port,
            "token": self.token,
            "options": {"watch": watch, "max_agents": max_agents, "engine": engine},
        }
        self._process = ChildProcess.start(["-m", "agentgpt_remote.policy"], msgspec.json.encode(settings))
        failure = self._process.ready.get("error")
        if failure is not None:
            self._process.close()
            raise error_from_dict(failure)
        self.url: str = self._process.ready["url"]

    def policy(self, *, deterministic: bool = True, seed: int | None = None, behavior: str | None = None) -> GPTPolicy:
        """Return a policy that acts through this server; closing it ends the server."""
        try:
            policy = GPTPolicy(self.url, deterministic=deterministic, seed=seed, token=self.token, behavior=behavior)
        except BaseException:
            self.close()
            raise
        policy.call_on_close(self.close)
        return policy

    def close(self) -> None:
        """End the server; a second call does nothing."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
