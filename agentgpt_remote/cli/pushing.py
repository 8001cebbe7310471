"""``agentgpt push``: a bundle for others, on a model hub."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from agentgpt_remote.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(push)


def push(
    bundle: Annotated[str, typer.Argument(help="Folder of a policy bundle.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository; made if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only its owner sees.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to write; made if it is missing.")] = None,
    as_json: Json = False,
) -> None:
    """Push a policy to the Hugging Face Hub, as who is logged in there; `GPTPolicy("hf://OWNER/NAME")` acts with it."""
    from agentgpt_remote.policy.hub import push_bundle

    done = push_bundle(bundle, repository, private=private, revision=revision)
    if as_json:
        print(json.dumps(done))
        return
    print(f"pushed {bundle} to {done['url']} (commit {done['commit'][:12]})")
    print(f'act with GPTPolicy("{done["source"]}")')
