"""Options that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from agentgpt_remote.errors import ConfigError

Host = Annotated[str, typer.Option(help="Address to listen on; anything but loopback needs a token.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]
Token = Annotated[
    str | None, typer.Option(envvar="AGENTGPT_TOKEN", show_envvar=True, help="Secret that clients must present.")
]
TLSCert = Annotated[
    str | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain (PEM) to serve wss:// with.")
]
TLSKey = Annotated[str | None, typer.Option("--tls-key", metavar="FILE", help="Private key of the certificate (PEM).")]
ClientToken = Annotated[
    str | None, typer.Option("--token", envvar="AGENTGPT_TOKEN", show_envvar=True, help="Token of the host.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line for scripts.")]


def is_url(text: str) -> bool:
    """Tell whether an argument is the URL of a server rather than a source or a folder."""
    return text.startswith(("ws://", "wss://", "http://", "https://"))


def parse_settings(settings: list[str], option: str = "--set") -> dict[str, Any]:
    """Return ``FIELD=VALUE`` words as a dict; values are JSON where they can be, else text."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{option} {setting!r}: expected FIELD=VALUE, such as --set max_steps=60000")
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip()] = text
    return values


def where(sources: list[str]) -> dict[str, Any]:
    """Return the hyperparameters that name the environments."""
    urls = [source for source in sources if is_url(source)]
    if not urls and len(sources) == 1:
        return {"env_id": sources[0], "env_hosts": {}}
    if len(urls) != len(sources):
        raise ConfigError(f"can't train on {' '.join(sources)} at once: expected one source, or URLs of hosts")
    names = [url.partition("://")[2].strip("/") for url in urls]
    if len(set(names)) != len(names):
        raise ConfigError(f"a host is named twice in {' '.join(urls)}: expected different URLs")
    return {
        "env_id": None,
        "env_hosts": {name: {"env_endpoint": url, "num_agents": None} for name, url in zip(names, urls, strict=True)},
    }
