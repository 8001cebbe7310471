"""``agentgpt serve``: an environment host."""

from __future__ import annotations

import contextlib
import secrets
from typing import Annotated

import typer

from agentgpt_remote.cli.options import Host, Port, Token


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(serve)


def serve(
    source: Annotated[str, typer.Argument(help="`CartPole-v1`, `package.module:Name-v0` or `package.module:factory`.")],
    num_envs: Annotated[int, typer.Option(min=1, help="How many environments this host offers in all.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that run the environments; 0: the host's own. Measured by default."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Token = None,
    tunnel: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Make the host public through `cloudflared`, `ngrok`, `localtunnel`, the first of them that is "
            "installed (`auto`), or a command with `{port}` that prints a URL. A token is made where none is given.",
        ),
    ] = None,
) -> None:
    """Serve environments to trainers and scripts until Ctrl-C."""
    import agentgpt_remote
    from agentgpt_remote.serving import resolve_token

    is_new = tunnel is not None and resolve_token(token) is None
    token = secrets.token_urlsafe(24) if is_new else token

    def announce(url: str) -> None:
        guarded = "with a token" if token else "without a token, on this machine only"
        print(f"serving {source} at {url} ({num_envs} envs, {guarded}); Ctrl-C ends it", flush=True)
        if is_new:
            print(f"token, made now and shown once: {token}; the other side sets AGENTGPT_TOKEN to it", flush=True)

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        agentgpt_remote.serve(
            source,
            num_envs=num_envs,
            workers=workers,
            host=host,
            port=port,
            token=token,
            on_ready=announce,
            tunnel=tunnel,
        )
