"""Managed inference endpoints: what a policy needs of them, whoever offers them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

SAGEMAKER_SCHEME = "sagemaker://"
HUB_SCHEME = "hf://"
# Folders that a policy must not import, since they need libraries that acting does not: loaded when a URL asks for one.
_OPENERS = {SAGEMAKER_SCHEME: ("agentgpt_remote.cloud.runtime", "SageMakerRuntime")}


@dataclass(frozen=True, kw_only=True)
class EndpointReply:
    """What an endpoint answered.

    Attributes:
        body: of the answer.
        new_session: id of the session that the request opened, or None.
        closed_session: id of the session that the request ended, or None.
    """

    body: bytes
    new_session: str | None
    closed_session: str | None


class Endpoint(Protocol):
    """An inference endpoint that keeps a session on one instance."""

    def invoke(self, body: bytes, *, session_id: str | None, timeout_s: float) -> EndpointReply:
        """Send a request of type application/octet-stream.

        Args:
            body: of the request.
            session_id: of the session, ``"NEW_SESSION"`` to open one, or None.
            timeout_s: deadline of the reply in seconds.

        Raises:
            ConnectionLost: the endpoint can't be reached, or the session is gone.
            RemoteTimeout: there was no reply in time.
            AuthError: the credentials are missing or not allowed to.
            ConfigError: there is no such endpoint.
        """

    def close(self) -> None:
        """Free what is held."""


def open_endpoint(url: str) -> Endpoint:
    """Return the endpoint at a URL such as ``sagemaker://NAME``.

    Raises:
        ConfigError: the name or the region makes no sense.
        ModuleNotFoundError: the extra that it needs is not installed.
    """
    scheme = next(scheme for scheme in _OPENERS if url.startswith(scheme))
    module, name = _OPENERS[scheme]
    return cast(Endpoint, getattr(importlib.import_module(module), name)(url.removeprefix(scheme)))
