"""``agentgpt container``: the entry of the cloud's containers."""

from __future__ import annotations

import logging
import sys

import typer

commands = typer.Typer(help="Entry of a container in the cloud; reads /opt/ml.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.add_typer(commands, name="container")


@commands.command()
def train() -> None:
    """Train as /opt/ml/input/config says; SIGTERM ends it with a checkpoint and a bundle."""
    from agentgpt_remote.cloud.container import train_in_container

    _log_to_stdout()
    raise typer.Exit(train_in_container())


@commands.command()
def serve() -> None:
    """Serve the bundle in /opt/ml/model on port 8080."""
    from agentgpt_remote.policy.container import serve_in_container

    _log_to_stdout()
    serve_in_container()


def _log_to_stdout() -> None:
    """Log what happens to standard output, which the cloud keeps."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout, force=True
    )
    for name in ("botocore", "boto3", "urllib3", "s3transfer"):
        logging.getLogger(name).setLevel(logging.WARNING)
