"""Which behaviours a source of policies has."""

from __future__ import annotations

from agentgpt_remote.endpoints import HUB_SCHEME, SAGEMAKER_SCHEME
from agentgpt_remote.fetching import get_json
from agentgpt_remote.policy.websocket_channel import RUN_HINT
from agentgpt_remote.serving import resolve_token

_URL_SCHEMES = ("ws://", "wss://", "http://", "https://")


def behavior_names(source: str, token: str | None, timeout_s: float) -> list[str]:
    """Return the behaviours that a source has policies for; an empty name is that of single agents.

    Args:
        source: a bundle's folder, an exported file, or the URL of a policy server.
        token: of the server; ``AGENTGPT_TOKEN`` by default.
        timeout_s: deadline of the server's answer, in seconds.

    Raises:
        BundleError: the bundle is missing or damaged.
        HostUnreachable: the server does not answer.
        AuthError: its token is missing or wrong, or its certificate is not trusted.
        ProtocolMismatch: what answers is no policy server.
    """
    if source.startswith(_URL_SCHEMES):
        return _of_server(source, token, timeout_s)
    if source.startswith((SAGEMAKER_SCHEME, HUB_SCHEME)) or source.endswith(".onnx"):
        return [""]
    from agentgpt_remote.policy.bundle_files import behavior_folders

    return list(behavior_folders(source))


def _of_server(url: str, token: str | None, timeout_s: float) -> list[str]:
    told = get_json(url, "/status", token=resolve_token(token), timeout_s=timeout_s, hint=RUN_HINT)
    return list(told.get("behaviors") or [""])
