"""Which behaviours a source of policies has."""

from __future__ import annotations

from agentgpt_remote.endpoints import HUB_SCHEME, SAGEMAKER_SCHEME

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
        AuthError: its token is missing or wrong.
    """
    if source.startswith(_URL_SCHEMES):
        return _of_server(source, token, timeout_s)
    if source.startswith((SAGEMAKER_SCHEME, HUB_SCHEME)) or source.endswith(".onnx"):
        return [""]
    from agentgpt_remote.policy.bundle_files import behavior_folders

    return list(behavior_folders(source))


def _of_server(url: str, token: str | None, timeout_s: float) -> list[str]:
    import httpx

    from agentgpt_remote.errors import AuthError, HostUnreachable
    from agentgpt_remote.serving import resolve_token

    scheme, _, rest = url.partition("://")
    address = f"{scheme.replace('ws', 'http')}://{rest.rstrip('/')}/status"
    secret = resolve_token(token)
    try:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        answer = httpx.get(address, headers=headers, timeout=timeout_s)
        if answer.status_code in (401, 403):
            raise AuthError(f"{url} refuses the token: pass token=, or set AGENTGPT_TOKEN")
        told = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise HostUnreachable(f"{url} does not answer as a policy server: {error}") from error
    return list(told.get("behaviors") or [""])
