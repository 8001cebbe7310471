"""``agentgpt eval``: the returns of whole episodes, with the likeliest actions and with sampled ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentgpt_remote.cli.options import ClientToken, Json, is_url
from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    from agentgpt_remote.trainer.agent_evaluation import AgentEvaluation
    from agentgpt_remote.trainer.evaluation import Evaluation

_COLUMNS = {
    **{"mean": "mean", "std": "std", "min": "min", "25 %": "q25", "50 %": "q50", "75 %": "q75", "max": "max"},
    "length": "episode_length",
}
_PIPE_WIDTH = 160


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command("eval")(evaluate)


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Folder of a policy bundle, hf://OWNER/NAME, or the URL of a server.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE_OR_URL", help="Environment to act in.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play in each way.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the environments and of sampling.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Only take the likeliest actions.")] = False,
    sampled: Annotated[bool, typer.Option("--sampled", help="Only sample actions.")] = False,
    token: ClientToken = None,
    as_json: Json = False,
) -> None:
    """Play whole episodes with a policy and print the returns: with the likeliest actions, then with sampled ones."""
    from agentgpt_remote.trainer.agent_evaluation import evaluate_any

    if greedy and sampled:
        raise ConfigError("--greedy and --sampled exclude each other: leave both out to play in both ways")
    policy_token = token if is_url(bundle) else None
    results = {}
    for name in ("greedy", "sampled"):
        if {"greedy": sampled, "sampled": greedy}[name]:
            continue
        # A policy of its own each time: its draws are then those of a policy that does only this.
        results[name] = evaluate_any(
            bundle,
            source,
            episodes=episodes,
            seed=seed,
            deterministic=name == "greedy",
            policy_token=policy_token,
            token=token,
        )
    if as_json:
        print(json.dumps(_summary(results)))
    else:
        _print_table(results)


def _summary(results: Mapping[str, Evaluation | AgentEvaluation]) -> dict[str, Any]:
    """Return each way's figures by its name, and those of the first one beside them."""
    told = {name: result.to_dict() for name, result in results.items()}
    return {**next(iter(told.values())), **told}


def _print_table(results: Mapping[str, Evaluation | AgentEvaluation]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = _together(next(iter(results.values())))
    print(
        f"{first.episodes} episodes: return {first.mean:.2f} ± {first.std:.2f} "
        f"(min {first.min:.2f}, max {first.max:.2f}), length {first.episode_length:.1f}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("actions", no_wrap=True)
    for title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for name, result in results.items():
        rows = {name: _together(result)}
        for behavior, own in getattr(result, "behaviors", {}).items():
            rows[f"{name} {behavior}"] = own
        for title, row in rows.items():
            told = row.to_dict()
            table.add_row(title, *(f"{told[field]:.2f}" for field in _COLUMNS.values()))
    console = Console()
    # A pipe has no width of its own, and figures must not be cut there.
    console.print(table, width=None if console.is_terminal else _PIPE_WIDTH)


def _together(result: Evaluation | AgentEvaluation) -> Evaluation:
    """Return the figures of all agents together."""
    from agentgpt_remote.trainer.agent_evaluation import AgentEvaluation

    return result.together if isinstance(result, AgentEvaluation) else result
