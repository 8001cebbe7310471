"""``agentgpt serve``: an environment host."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from agentgpt_remote.cli.options import (
    CaFile,
    Host,
    Insecure,
    Pin,
    Port,
    SelfSigned,
    TLSCert,
    TLSKey,
    Token,
    TokenFile,
    chosen_token,
    server_tls,
    tls_note,
    use_trust,
)
from agentgpt_remote.errors import ConfigError


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
    token_file: TokenFile = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Dial out to a relay's room, such as `wss://relay/room`, and listen nowhere."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the host calls itself in the room.")] = None,
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    tls_self_signed: SelfSigned = False,
    pin: Pin = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
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
    from agentgpt_remote.tokens import new_secret

    use_trust(pin, ca_file, insecure=insecure)
    token = chosen_token(token, token_file)
    is_new = tunnel is not None and resolve_token(token) is None
    token = new_secret() if is_new else token
    tls = server_tls(tls_cert, tls_key, tls_self_signed, host)
    if connect is not None and tls is not None:
        raise ConfigError("--connect listens nowhere: the certificate is the relay's to show")

    def announce(url: str) -> None:
        guarded = "with a token" if token else "without a token, on this machine only"
        where = "through a relay" if connect else guarded
        print(f"serving {source} at {url} ({num_envs} envs, {where}){tls_note(tls)}; Ctrl-C ends it", flush=True)
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
            connect=connect,
            name=name,
            tls=tls,
            tunnel=tunnel,
        )
