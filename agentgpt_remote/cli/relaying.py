"""``agentgpt relay``, ``agentgpt relay status`` and ``agentgpt token``."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any

import typer

from agentgpt_remote.cli.options import (
    CaFile,
    Host,
    Insecure,
    Json,
    Pin,
    Port,
    Secret,
    SecretFile,
    SelfSigned,
    TLSCert,
    TLSKey,
    TokenFile,
    chosen_token,
    server_tls,
    tls_note,
    use_trust,
)
from agentgpt_remote.errors import ConfigError

_ROLES = ("host", "trainer", "admin")


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    commands = typer.Typer(invoke_without_command=True)
    commands.callback()(relay)
    commands.command()(status)
    app.add_typer(commands, name="relay")
    app.command()(token)


def relay(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 9000,
    secret: Secret = None,
    secret_file: SecretFile = None,
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    tls_self_signed: SelfSigned = False,
    insecure: Insecure = False,
    stall_timeout_s: Annotated[
        float, typer.Option(min=0.1, help="How long a peer may take no bytes, or not finish a frame.")
    ] = 300.0,
    max_sessions: Annotated[int, typer.Option(min=1, help="Sessions at a time.")] = 16384,
) -> None:
    """Run a relay, where hosts and trainers that can't reach each other meet, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from agentgpt_remote.server.relay import serve_relay
    from agentgpt_remote.server.rooms import RelayLimits

    use_trust(None, None, insecure=insecure)
    secret = chosen_token(secret, secret_file)
    tls = server_tls(tls_cert, tls_key, tls_self_signed, host)

    def announce(url: str) -> None:
        guarded = "with tokens" if secret else "without tokens, on this machine only"
        print(f"relay at {url} ({guarded}){tls_note(tls)}; a room is {url}/NAME; Ctrl-C ends it", flush=True)

    limits = RelayLimits(stall_timeout_s=stall_timeout_s, max_sessions=max_sessions)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        serve_relay(host=host, port=port, secret=secret, tls=tls, limits=limits, on_ready=announce)


def status(
    url: Annotated[str, typer.Argument(help="Where the relay listens, such as `wss://relay`.")],
    admin_token: Annotated[
        str | None, typer.Option("--token", envvar="AGENTGPT_TOKEN", show_envvar=True, help="An admin's token.")
    ] = None,
    token_file: TokenFile = None,
    pin: Pin = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show the rooms of a relay: hosts, round trips, sessions and bytes."""
    from agentgpt_remote.fetching import get_json
    from agentgpt_remote.meeting import RELAY_HINT

    use_trust(pin, ca_file, insecure=insecure)
    told = get_json(url, "/status", token=chosen_token(admin_token, token_file), hint=RELAY_HINT)
    if as_json:
        print(json.dumps(told))
        return
    if not told["rooms"]:
        print("no host is here")
    for room, hosts in told["rooms"].items():
        print(f"room {room}: {len(hosts)} hosts")
        for each in hosts:
            print(f"  {_line(each)}")


def _line(host: dict[str, Any]) -> str:
    trip = host["round_trip_ms"]
    offers = host["offers"]
    return (
        f"{host['id']} {host['name']}: {offers.get('source')}, {offers.get('envs')} of {offers.get('num_envs')} envs, "
        f"{host['relayed_sessions']} sessions, round trip {'unknown' if trip is None else f'{trip:.1f} ms'}, "
        f"{host['to_host_bytes']:,} bytes to it, {host['to_trainer_bytes']:,} from it, "
        f"here for {host['connected_s']:.0f} s"
    )


def token(
    role: Annotated[str | None, typer.Option(help=f"Who it is for: {', '.join(_ROLES)}.")] = None,
    room: Annotated[str | None, typer.Option(help="Room that it is good for.")] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0, help="Days that it is good for; for ever by default.")
    ] = None,
    secret: Secret = None,
    secret_file: SecretFile = None,
) -> None:
    """Make a token of a relay's room; without `--role`, a new secret for a relay or a host."""
    from agentgpt_remote.tokens import ANY_ROOM, Keyring, Role, expiry_in, new_secret

    if role is None:
        if room is not None:
            raise ConfigError(f"--room {room} needs --role: host or trainer")
        print(new_secret())
        return
    if role not in _ROLES:
        raise ConfigError(f"--role {role!r}: expected {', '.join(_ROLES)}")
    chosen = Role(f"agpt-{role}")
    if (room is None) is (chosen is not Role.ADMIN):
        raise ConfigError("--role host and --role trainer need --room; an admin's token is for the whole relay")
    secret = chosen_token(secret, secret_file)
    if not secret:
        raise ConfigError(
            "a token is made with the relay's secret: pass --secret-file FILE (`agentgpt token > FILE` makes one), or "
            "set AGENTGPT_RELAY_SECRET"
        )
    print(Keyring(secret).make(chosen, room or ANY_ROOM, expiry_in(expires_days)))
