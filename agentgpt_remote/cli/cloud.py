"""``agentgpt cloud``: train and act in Amazon SageMaker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentgpt_remote.cli import cloud_images
from agentgpt_remote.cli.options import ClientToken, Json, parse_settings, where
from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    from agentgpt_remote.cloud.config import SageMakerConfig
    from agentgpt_remote.cloud.job import CloudStatus, CloudTrainingRun
    from agentgpt_remote.cloud.plan import Plan
    from agentgpt_remote.trainer.hyperparameters import Hyperparameters

DEFAULT_FILE = Path("agentgpt-cloud.toml")
commands = typer.Typer(help="Train and act in Amazon SageMaker.", no_args_is_help=True)

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE_OR_URL...", help="One source, or the URLs of hosts that serve the same.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help=f"TOML file of SageMakerConfig's fields; {DEFAULT_FILE} where it is there."),
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--aws", metavar="FIELD=VALUE", help="Set a field of SageMakerConfig; may be repeated."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a hyperparameter; may be repeated.")
]
MaxUsd = Annotated[
    float | None, typer.Option("--max-usd", help="Most that it may cost; it ends, with a checkpoint, before that.")
]
Submit = Annotated[
    bool | None,
    typer.Option("--submit/--dry-run", help="Do it, or only show what would be done; the first time only shows."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end, with progress.")]
Region = Annotated[str | None, typer.Option(help="AWS region; that of the configuration or the profile by default.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``app``."""
    cloud_images.register(commands)
    app.add_typer(commands, name="cloud")


@commands.command()
def plan(
    sources: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE_OR_URL...]")] = None,
    config: Config = None,
    fields: Fields = None,
    settings: Settings = None,
    max_usd: MaxUsd = None,
    as_json: Json = False,
) -> None:
    """Show the requests, what they cost at most, and what is missing; without a source, of a deployment."""
    from agentgpt_remote.cloud.plan import plan_deployment, plan_training

    given = _config(config, fields)
    made = (
        plan_training(given, _hyperparameters(sources, settings), max_usd=max_usd)
        if sources
        else plan_deployment(given, max_usd=max_usd)
    )
    _show_plan(made, as_json=as_json)
    if made.failed:
        raise typer.Exit(1)


@commands.command()
def train(
    sources: Sources,
    config: Config = None,
    fields: Fields = None,
    settings: Settings = None,
    max_usd: MaxUsd = None,
    submit: Submit = None,
    wait: Wait = False,
    token: ClientToken = None,
    as_json: Json = False,
) -> None:
    """Start a training job; the first time in an account, only show what it would be."""
    from agentgpt_remote import AgentGPT
    from agentgpt_remote.cloud.plan import plan_training

    hyperparameters = _hyperparameters(sources, settings)
    made = plan_training(_config(config, fields), hyperparameters, max_usd=max_usd)
    if not _goes_on(made, submit, as_json=as_json):
        return
    run = AgentGPT.train_on_cloud(made.config, hyperparameters, token=token)
    _remember(made.config)
    name = run.latest_training_job.name
    if not as_json:
        print(f"started {name}: {made.estimate or 'its price is not known'}")
        print(f"watch:   agentgpt cloud logs {name} --follow\nend:     agentgpt cloud stop {name}")
    if wait:
        _wait(run)
    if as_json:
        print(json.dumps({"job": name, "model_data": run.model_data, "status": run.status().job_status}))
    else:
        print(f"deploy:  agentgpt cloud deploy {name}")


@commands.command()
def deploy(
    model: Annotated[str, typer.Argument(metavar="JOB_OR_S3_URI", help="A training job, or its model.tar.gz in S3.")],
    name: Annotated[str | None, typer.Option(help="Name of the endpoint.")] = None,
    config: Config = None,
    fields: Fields = None,
    max_usd: MaxUsd = None,
    submit: Submit = None,
    as_json: Json = False,
) -> None:
    """Deploy an endpoint that deletes itself when it expires; the first time, only show what it would be."""
    from agentgpt_remote.cloud import deployment
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.job import CloudTrainingRun
    from agentgpt_remote.cloud.plan import plan_deployment

    given = _config(config, fields)
    model_data = model if "://" in model else CloudTrainingRun(Aws(given.region), model).model_data
    given = given.from_dict(given.to_dict() | {"model_data": model_data})
    made = plan_deployment(given, name, max_usd=max_usd)
    if not _goes_on(made, submit, as_json=as_json):
        return
    endpoint = _interruptible(lambda: deployment.deploy(made.config, name, on_status=_show_endpoint))
    _remember(made.config)
    if as_json:
        print(json.dumps({"endpoint": endpoint}))
        return
    print(f"{endpoint} is in service: {made.estimate or 'its price is not known'}; then it deletes itself")
    print(f'act:     GPTPolicy("sagemaker://{endpoint}")\nend:     agentgpt cloud stop {endpoint}')


@commands.command()
def status(
    region: Region = None,
    config: Config = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what this package did not make.")] = False,
    as_json: Json = False,
) -> None:
    """List the jobs, endpoints and hosts that run, and what they cost."""
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.listing import list_running

    aws = Aws(region or _config(config, None).region)
    running = list_running(aws, everything=everything)
    if as_json:
        print(json.dumps([entry.to_dict() for entry in running]))
        return
    if not running:
        print(f"nothing runs in {aws.region}")
    for entry in running:
        price = "price not known" if entry.per_hour is None else f"${entry.per_hour:.3f}/h"
        print(
            f"{entry.kind:9}{entry.name}  {entry.status}  {entry.machines}  {price}, {entry.hours:.1f} h so far, ends "
            f"{entry.ends}"
        )
    if running:
        known = sum(entry.per_hour or 0.0 for entry in running)
        print(f"together ${known:.3f} per hour; end one with `agentgpt cloud stop NAME`")


@commands.command()
def logs(
    job: Annotated[str, typer.Argument(help="Name of a training job.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last lines.")] = None,
    region: Region = None,
    config: Config = None,
) -> None:
    """Print what a training job has printed."""
    run = _run(job, region, config)
    lines = run.logs(tail)
    while True:
        for line in lines:
            print(line, flush=True)
        ended = run.status().state != "running"
        lines = run.new_logs()
        if not lines and (ended or not follow):
            return
        time.sleep(0.0 if ended else 2.0)


@commands.command()
def stop(
    name: Annotated[str, typer.Argument(help="A training job, an endpoint or a host.")],
    region: Region = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """End a training job (with a checkpoint), an endpoint (with all that belongs to it) or a host."""
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.deployment import tear_down
    from agentgpt_remote.cloud.hosting import find_host
    from agentgpt_remote.cloud.job import find_job

    aws = Aws(region or _config(config, None).region)
    run = find_job(aws, name)
    told: dict[str, Any]
    if run is not None and run.status().state == "running":
        ended = run.stop()
        told = {"job": name, "status": ended.job_status, "env_steps": ended.env_steps}
    elif run is not None:
        told = {"job": name, "status": run.status().job_status}
    elif (host := find_host(aws, name)) is not None:
        host.close()
        told = {"host": name, "status": "STOPPED"}
    else:
        told = {"endpoint": name, "deleted": tear_down(aws, name)}
    print(json.dumps(told) if as_json else ", ".join(f"{key} {value}" for key, value in told.items()))


@commands.command()
def rehearse(
    sources: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE_OR_URL...]")] = None,
    config: Config = None,
    fields: Fields = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Play all of it on this machine without AWS: train, stop, resume, fail, deploy, invoke, expire, delete."""
    from agentgpt_remote.cloud.config import SageMakerConfig
    from agentgpt_remote.cloud.rehearsal.scenario import Step, rehearse
    from agentgpt_remote.cloud.rehearsal.stage import rehearsal_config

    def show(step: Step) -> None:
        print(
            f"{step.name:16} {step.seconds:6.1f} s  {step.detail}",
            file=sys.stderr if as_json else sys.stdout,
            flush=True,
        )

    own = {key: value for key, value in _config(config, fields).to_dict().items() if value is not None}
    given = SageMakerConfig.from_dict(rehearsal_config().to_dict() | own)
    defaults = [] if sources else ["max_steps=30000"]
    hyperparameters = _hyperparameters(sources or ["CartPole-v1"], [*defaults, *(settings or [])])
    report = rehearse(given, hyperparameters, on_step=show)
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    place = "under an /opt/ml of their own" if report.isolated else "in base directories (no namespaces here)"
    print(f"rehearsed in {report.seconds:.0f} s; containers ran {place}; nothing was paid for and nothing is left")


@commands.command()
def secret(
    name: Annotated[str, typer.Argument(help="Name in Secrets Manager, such as `agentgpt/hosts`.")],
    token: Annotated[
        str,
        typer.Option(envvar="AGENTGPT_TOKEN", prompt=True, hide_input=True, help="The token; asked for by default."),
    ],
    region: Region = None,
    config: Config = None,
) -> None:
    """Store a host's token in Secrets Manager, and print the ARN for `secrets` of SageMakerConfig."""
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.secret import store_token

    print(store_token(Aws(region or _config(config, None).region), name, token))


@commands.command()
def certificate(
    name: Annotated[str, typer.Argument(help="Name in Secrets Manager, such as `agentgpt/tls`.")],
    region: Region = None,
    config: Config = None,
) -> None:
    """Make a certificate for hosts and relays in the cloud, store it, and print its ARN and what the others pin."""
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.secret import store_certificate

    arn, pin = store_certificate(Aws(region or _config(config, None).region), name)
    print(f"{arn}\n{pin}")


def _config(path: Path | None, fields: list[str] | None) -> SageMakerConfig:
    from agentgpt_remote.cloud.config import SageMakerConfig

    changes = parse_settings(fields or [], "--aws")
    if path is None and not DEFAULT_FILE.exists():
        return SageMakerConfig.from_dict(changes)
    return SageMakerConfig.from_file(path or DEFAULT_FILE, **changes)


def _hyperparameters(sources: list[str], settings: list[str] | None) -> Hyperparameters:
    from agentgpt_remote.trainer.hyperparameters import Hyperparameters

    return Hyperparameters.from_dict(parse_settings(settings or []) | where(sources))


def _run(job: str, region: str | None, config: Path | None) -> CloudTrainingRun:
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.job import CloudTrainingRun

    return CloudTrainingRun(Aws(region or _config(config, None).region), job)


def _show_plan(made: Plan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(made.to_dict()))
        return
    for request in made.requests:
        print(f"{request.operation} {json.dumps(request.arguments, indent=2)}")
    print(f"cost:    {made.estimate or 'not known: the price is not in the table'}")
    for note in () if made.estimate is None else made.estimate.notes:
        print(f"         {note}")
    for finding in made.findings:
        print(f"{finding.outcome:8} {finding.name}: {finding.detail}")


def _goes_on(made: Plan, submit: bool | None, *, as_json: bool) -> bool:
    """Show the plan where it is not to be carried out; return whether it is."""
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.plan import Submissions

    if made.failed and submit is not False:
        raise ConfigError(made.failed[0].detail)
    if submit is None:
        submit = Aws(made.config.region).account() in Submissions()
        if not submit:
            _show_plan(made, as_json=as_json)
            if not as_json:
                print("nothing was started: add --submit to do it (asked for once in each account)")
            return False
    if not submit:
        _show_plan(made, as_json=as_json)
    return submit


def _remember(config: SageMakerConfig) -> None:
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.plan import Submissions

    Submissions().add(Aws(config.region).account())


def _wait(run: CloudTrainingRun) -> None:
    last = ""

    def show(status: CloudStatus) -> None:
        nonlocal last
        returned = "-" if status.episode_return is None else f"{status.episode_return:.1f}"
        line = f"{status.secondary_status}: {status.env_steps}/{status.max_steps} env steps, return {returned}"
        if line != last:
            print(line, file=sys.stderr, flush=True)
        last = line

    _interruptible(lambda: run.wait(on_status=show))


def _show_endpoint(status: str) -> None:
    print(f"endpoint: {status}", file=sys.stderr, flush=True)


def _interruptible(wait: Any) -> Any:
    """Wait; Ctrl-C ends the waiting, and says what keeps running."""
    try:
        return wait()
    except KeyboardInterrupt as interrupt:
        print(f"\nagentgpt: {interrupt}", file=sys.stderr)
        raise typer.Exit(130) from None
