"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
