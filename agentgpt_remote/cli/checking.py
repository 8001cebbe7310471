"""``agentgpt check`` and ``agentgpt doctor``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from agentgpt_remote.cli.options import CaFile, ClientToken, Insecure, Json, Pin, TokenFile, chosen_token, use_trust

if TYPE_CHECKING:
    from agentgpt_remote.diagnostics import Check

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(check)
    app.command()(doctor)


def check(
    url: Annotated[str, typer.Argument(help="Where the host listens, such as `ws://sim-7:8000`.")],
    token: ClientToken = None,
    token_file: TokenFile = None,
    pin: Pin = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Check a host from here: both libraries' env checkers, determinism, round-trip time, envs to keep in flight."""
    from agentgpt_remote.diagnostics import check_host

    use_trust(pin, ca_file, insecure=insecure)
    token = chosen_token(token, token_file)
    _show(check_host(url, token=token), as_json=as_json)


def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, extras, and a host started and stepped."""
    from agentgpt_remote import diagnostics

    _show(diagnostics.doctor(), as_json=as_json)


def _show(checks: Iterator[Check], *, as_json: bool) -> None:
    seen = []
    for entry in checks:
        seen.append(entry)
        if not as_json:
            outcome = typer.style(f"{entry.outcome:8}", fg=_COLOURS[entry.outcome])
            typer.echo(f"{outcome} {entry.name}: {entry.detail}")
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in seen]))
    if any(entry.outcome == "failed" for entry in seen):
        raise typer.Exit(1)
