"""``agentgpt serve``: an environment host."""

from __future__ import annotations

import contextlib
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
) -> None:
    """Serve environments to trainers and scripts until Ctrl-C."""
    import agentgpt_remote

    def announce(url: str) -> None:
        guarded = "with a token" if token else "without a token, on this machine only"
        print(f"serving {source} at {url} ({num_envs} envs, {guarded}); Ctrl-C ends it", flush=True)

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        agentgpt_remote.serve(
            source, num_envs=num_envs, workers=workers, host=host, port=port, token=token, on_ready=announce
        )
