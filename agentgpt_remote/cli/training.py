"""``agentgpt train``."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from agentgpt_remote.cli.options import (
    CaFile,
    ClientToken,
    Insecure,
    Json,
    Pin,
    Secret,
    SecretFile,
    SelfSigned,
    TLSCert,
    TLSKey,
    TokenFile,
    chosen_token,
    parse_settings,
    server_tls,
    use_trust,
    where,
)
from agentgpt_remote.cli.progress import show_progress
from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    from agentgpt_remote.trainer.evaluation import Evaluation
    from agentgpt_remote.trainer.results import TrainingResult

EVALUATION_EPISODES = 20
_FIRST_HOST_WAIT_S = 3600.0


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    app.command()(train)


def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE_OR_URL...", help="One source, or URLs of hosts and of rooms where hosts serve the same."
        ),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; by default that of the environment.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a hyperparameter; may be repeated.")
    ] = None,
    token: ClientToken = None,
    token_file: TokenFile = None,
    pin: Pin = None,
    ca_file: CaFile = None,
    insecure: Insecure = False,
    listen: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Let hosts dial in here, such as `:9000`: `serve SOURCE --connect`."),
    ] = None,
    secret: Secret = None,
    secret_file: SecretFile = None,
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    tls_self_signed: SelfSigned = False,
    max_agents: Annotated[
        int | None,
        typer.Option(min=1, help="Agents in a room, now and later; by default twice those at the start."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a GPT, evaluate it through a policy server, and print the return with the paths.

    Ctrl-C ends the run early with a checkpoint and a usable bundle. Under torchrun all its processes learn together.
    """
    if resume and force:
        raise ConfigError("--resume and --force exclude each other: continue the run, or replace it")
    use_trust(pin, ca_file, insecure=insecure)
    given = parse_settings(settings or []) | {"resume_training": resume}
    with contextlib.ExitStack() as stack:
        if listen is None:
            if not sources:
                raise ConfigError("what is to be trained on? Name a source or URLs, or --listen for hosts that dial in")
            where_to = _Environments(sources, chosen_token(token, token_file))
        elif sources:
            raise ConfigError(f"--listen trains on the hosts that dial in: leave out {' '.join(sources)}")
        else:
            secret = chosen_token(secret, secret_file)
            where_to = _listen(stack, listen, secret, (tls_cert, tls_key, tls_self_signed), insecure=insecure)
            given = {"host_wait_s": _FIRST_HOST_WAIT_S} | given
        named = where(where_to.sources, max_agents)
        name = where_to.room or named.get("env_id") or where_to.sources[0].partition("://")[2]
        _train(where_to, runs_dir, run_id, name, given | named, resume=resume, force=force, as_json=as_json)


class _Environments(NamedTuple):
    """What is trained on.

    Attributes:
        sources: a source, or URLs.
        token: of the hosts.
        room: of this trainer's own that hosts dial in to.
    """

    sources: list[str]
    token: str | None
    room: str | None = None


def _listen(
    stack: contextlib.ExitStack,
    text: str,
    secret: str | None,
    certificate: tuple[str | None, str | None, bool],
    *,
    insecure: bool,
) -> _Environments:
    """Let hosts dial in, and say how."""
    from agentgpt_remote.server.listening import listening, parse_address

    address = parse_address(text)
    tls = server_tls(*certificate, address.host)
    place = stack.enter_context(listening(address, secret=secret, tls=tls, insecure=insecure))
    if place.pin is not None:
        use_trust(place.pin, None, insecure=insecure)
    trust = f" --pin {place.pin}" if place.pin else ""
    print(f"waiting for hosts: agentgpt serve SOURCE --connect {place.public_url}{trust}", file=sys.stderr, flush=True)
    return _Environments([place.url], place.token, address.room)


def _train(
    where_to: _Environments,
    runs_dir: Path,
    run_id: str | None,
    name: str,
    given: dict[str, Any],
    *,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train, evaluate and print."""
    from agentgpt_remote.trainer.hyperparameters import Hyperparameters
    from agentgpt_remote.trainer.ranks import join_ranks

    source, token = where_to.sources[0], where_to.token
    with join_ranks() as ranks:
        if where_to.room is not None and ranks.size > 1:
            raise ConfigError("--listen is for one process: run `agentgpt relay`, and name a room of it for each rank")
        # Only the first of several processes looks at the folder: what it finds, the others may find changed.
        place, told = ranks.decided(lambda: _prepare(runs_dir, run_id, name, given, resume=resume, force=force))
        from agentgpt_remote.trainer.loop import train as run_training

        run_dir, hyperparameters = Path(place), Hyperparameters.from_dict(told)
        with show_progress(run_dir) if ranks.leads else contextlib.nullcontext() as on_progress:
            result = run_training(
                hyperparameters, run_dir=run_dir, token=token, replace_run=force, on_progress=on_progress
            )
    if not ranks.leads:
        return
    evaluation = None
    if not result.stopped:
        evaluation = _evaluate(result.bundle, source, hyperparameters.seed, token)
    if as_json:
        print(json.dumps(_summary(result, evaluation)))
    else:
        _print_summary(result, evaluation, source)


def _prepare(
    runs_dir: Path, run_id: str | None, name: str, given: dict[str, Any], *, resume: bool, force: bool
) -> tuple[str, dict[str, Any]]:
    """Return the run's folder, which may be used, and its hyperparameters."""
    from agentgpt_remote.trainer.hyperparameters import Hyperparameters
    from agentgpt_remote.trainer.run import choose_run_dir
    from agentgpt_remote.trainer.run_folder import prepare_run_folder, saved_hyperparameters

    run_dir = runs_dir / name if resume and run_id is None else choose_run_dir(runs_dir, run_id, name)
    saved = saved_hyperparameters(run_dir) if resume else {}
    hyperparameters = Hyperparameters.from_dict(saved | given)
    prepare_run_folder(run_dir, resume=resume, force=force)
    return str(run_dir), hyperparameters.to_dict()


def _evaluate(bundle: Path, source: str, seed: int, token: str | None) -> Evaluation:
    """Play greedy episodes through a policy server, with environments that training has not seen."""
    from agentgpt_remote.policy.bundle_files import behavior_folders
    from agentgpt_remote.policy.local_server import LocalPolicyServer
    from agentgpt_remote.policy.provenance import note_evaluation
    from agentgpt_remote.trainer.agent_evaluation import AgentEvaluation, evaluate_any

    with LocalPolicyServer(bundle) as server:
        result = evaluate_any(
            server.url,
            source,
            episodes=EVALUATION_EPISODES,
            seed=seed + 1_000_003,
            policy_token=server.token,
            token=token,
        )
    if not isinstance(result, AgentEvaluation):
        note_evaluation(bundle, result.to_dict())
        return result
    folders = behavior_folders(bundle)
    for name, own in result.behaviors.items():
        note_evaluation(folders[name], own.to_dict())
    return result.together


def _summary(result: TrainingResult, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return what ``--json`` prints; without an evaluation the return is that of training."""
    return {
        "run_id": result.run_dir.name,
        "run_dir": str(result.run_dir),
        "bundle": str(result.bundle),
        "env_steps": result.env_steps,
        "wall_s": round(result.wall_s, 3),
        "episode_return": result.episode_return if evaluation is None else evaluation.mean,
        "training_return": result.episode_return,
        "stopped": result.stopped,
    }


def _print_summary(result: TrainingResult, evaluation: Evaluation | None, source: str) -> None:
    if evaluation is None:
        reached = "no episode has ended" if result.episode_return is None else f"return {result.episode_return:.2f}"
        print(f"stopped after {result.env_steps} env steps in {result.wall_s:.1f} s, {reached} in training")
        print(f"go on:   agentgpt train {source} --run-id {result.run_dir.name} --resume")
    else:
        print(f"trained {result.env_steps} env steps in {result.wall_s:.1f} s")
        print(
            f"return:  {evaluation.mean:.2f} ± {evaluation.std:.2f} over {evaluation.episodes} greedy episodes "
            f"(min {evaluation.min:.2f}, max {evaluation.max:.2f}) through a policy server"
        )
    print(f"bundle:  {result.bundle}")
    print(f"curve:   {result.run_dir / 'learning_curve.png'}")
    print(f"act:     agentgpt run {result.bundle}")
