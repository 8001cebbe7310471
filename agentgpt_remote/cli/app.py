"""The typer application: global options, and the commands by module."""

from __future__ import annotations

from typing import Annotated

import typer

from agentgpt_remote._version import __version__
from agentgpt_remote.cli import (
    acting,
    checking,
    cloud,
    container,
    evaluating,
    hosting,
    playing,
    pushing,
    relaying,
    training,
)

app = typer.Typer(
    help="Train a GPT by reinforcement learning on environments that live anywhere, then act with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log; accepted anywhere.")] = False,
) -> None:
    """Train a GPT by reinforcement learning on environments that live anywhere, then act with it."""


for commands in (
    hosting,
    relaying,
    training,
    acting,
    evaluating,
    playing,
    pushing,
    checking,
    cloud,
    container,
):
    commands.register(app)
