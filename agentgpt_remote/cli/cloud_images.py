"""``agentgpt cloud image|host|relay|manifest``: images, and hosts and relays in the cloud."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from agentgpt_remote.cli.options import Json, parse_settings
from agentgpt_remote.errors import ConfigError

if TYPE_CHECKING:
    from agentgpt_remote.cloud.dockerfiles import Kind
    from agentgpt_remote.cloud.hosting import CloudHost

images = typer.Typer(help="The images of the cloud's containers.", no_args_is_help=True)

Cuda = Annotated[bool, typer.Option("--cuda", help="For machines with GPUs.")]
Env = Annotated[
    str | None, typer.Option("--env", metavar="SOURCE", help="An image that hosts this environment instead.")
]
Requirements = Annotated[
    list[str] | None, typer.Option("--requirement", "-r", help="A further library, such as pygame==2.6.1.")
]
Include = Annotated[
    list[str] | None, typer.Option("--include", help="A module or package of your own; importable in the image.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--host-set", metavar="FIELD=VALUE", help="Set a field of CloudHostConfig; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to ``agentgpt cloud``."""
    app.add_typer(images, name="image")
    app.command()(host)
    app.command()(relay)
    app.command()(manifest)


@images.command()
def build(
    folder: Annotated[Path | None, typer.Option("--to", help="Only write the Dockerfile and its files there.")] = None,
    tag: Annotated[str, typer.Option(help="Name of the image.")] = "agentgpt",
    cuda: Cuda = False,
    env: Env = None,
    requirements: Requirements = None,
    include: Include = None,
) -> None:
    """Build an image with docker, or only write what it is built from."""
    from agentgpt_remote.cloud.images import build_with_docker

    with _context(folder, cuda, env, requirements, include) as context:
        if folder is not None:
            print(f"wrote {context / 'Dockerfile'}; build it with `docker build --tag {tag} {context}`")
            return
        build_with_docker(context, tag, _say)
    print(tag)


@images.command()
def push(
    repository: Annotated[str, typer.Option(help="Name of the repository in ECR; made if it is missing.")] = "agentgpt",
    tag: Annotated[str | None, typer.Option(help="Tag of the image; this package's version by default.")] = None,
    cuda: Cuda = False,
    env: Env = None,
    requirements: Requirements = None,
    include: Include = None,
    role_arn: Annotated[str | None, typer.Option(help="Role for CodeBuild, where docker is not at hand.")] = None,
    output_path: Annotated[str | None, typer.Option(help="s3:// folder for CodeBuild.")] = None,
    region: Annotated[str | None, typer.Option(help="AWS region.")] = None,
) -> None:
    """Build an image and push it to ECR, by docker or by AWS CodeBuild, and print its address."""
    from agentgpt_remote._version import __version__
    from agentgpt_remote.cloud.aws import Aws
    from agentgpt_remote.cloud.images import ImageName, push_image

    aws = Aws(region)
    name = ImageName(aws.account(), aws.region, repository, tag or f"{__version__}{'-cuda' if cuda else ''}")
    with _context(None, cuda, env, requirements, include) as context:
        print(push_image(aws, context, name, role_arn=role_arn, folder=output_path, say=_say))


def host(
    source: Annotated[str, typer.Argument(help="Environment that the image knows.")],
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of CloudHostConfig's fields.")] = None,
    fields: Fields = None,
    num_envs: Annotated[int | None, typer.Option(min=1, help="Environments that it offers in all.")] = None,
    connect: Annotated[str | None, typer.Option(help="URL of a relay that it dials out to.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running; it ends by itself.")] = False,
    as_json: Json = False,
) -> None:
    """Host an environment on AWS ECS until Ctrl-C, or until its time is over."""
    from agentgpt_remote.cloud.hosting import serve_words

    _host(serve_words(source, num_envs, connect), source, config, fields, keep=keep, as_json=as_json)


def relay(
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of CloudHostConfig's fields.")] = None,
    fields: Fields = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running; it ends by itself.")] = False,
    as_json: Json = False,
) -> None:
    """Run a relay on AWS ECS, where hosts and trainers meet, until Ctrl-C or until its time is over."""
    from agentgpt_remote.cloud.hosting import relay_words

    _host(relay_words(), "relay", config, fields, keep=keep, as_json=as_json)


def manifest(
    kind: Annotated[str, typer.Argument(metavar="kubernetes|skypilot")],
    source: Annotated[str, typer.Argument(help="Environment that the image knows.")],
    image: Annotated[str, typer.Option(help="Address of the image.")],
    name: Annotated[str, typer.Option(help="Name of what is made.")] = "agentgpt-host",
    replicas: Annotated[int, typer.Option(help="Kubernetes: how many hosts.")] = 1,
    ttl_hours: Annotated[float, typer.Option(help="SkyPilot: hours after which it ends.")] = 8.0,
    num_envs: Annotated[int | None, typer.Option(min=1, help="Environments that a host offers in all.")] = None,
    connect: Annotated[str | None, typer.Option(help="URL of a relay that it dials out to.")] = None,
) -> None:
    """Print a manifest that hosts an environment on Kubernetes or by SkyPilot."""
    from agentgpt_remote.cloud.hosting import serve_words
    from agentgpt_remote.cloud.manifests import kubernetes_manifest, skypilot_task

    words = serve_words(source, num_envs, connect)
    if kind == "kubernetes":
        print(kubernetes_manifest(image, words, name=name, replicas=replicas), end="")
    elif kind == "skypilot":
        print(skypilot_task(image, words, name=name, ttl_hours=ttl_hours), end="")
    else:
        raise ConfigError(f"{kind!r}: expected kubernetes or skypilot")


@contextlib.contextmanager
def _context(
    folder: Path | None, cuda: bool, env: str | None, requirements: list[str] | None, include: list[str] | None
) -> Iterator[Path]:
    from agentgpt_remote.cloud.dockerfiles import write_context
    from agentgpt_remote.cloud.hosting import serve_words

    if cuda and env is not None:
        raise ConfigError("--cuda and --env exclude each other: hosts of environments need no GPU")
    kind: Kind = "env" if env is not None else _trainer_kind(cuda)
    words = [] if env is None else serve_words(env)
    with tempfile.TemporaryDirectory() as scratch:
        yield write_context(
            folder or Path(scratch), kind, words=words, requirements=requirements or (), include=include or ()
        )


def _trainer_kind(cuda: bool) -> Literal["cpu", "cuda"]:
    return "cuda" if cuda else "cpu"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _host(
    words: list[str], base_name: str, path: Path | None, fields: list[str] | None, *, keep: bool, as_json: bool
) -> None:
    from agentgpt_remote.cloud.host_config import hourly_cost, read_config
    from agentgpt_remote.cloud.hosting import launch_host

    config = read_config(path, parse_settings(fields or [], "--host-set"))
    started = launch_host(config, words, base_name=base_name, on_status=_say)
    told: dict[str, Any] = {"name": started.name, "url": started.url, "task": started.task_arn}
    if as_json:
        print(json.dumps(told), flush=True)
    else:
        cost = hourly_cost(config)
        print(
            f"{started.name} runs at {started.url}: about ${cost:.3f} per hour, at most "
            f"${cost * config.ttl_hours:.2f}; it ends by itself after {config.ttl_hours:g} hours",
            flush=True,
        )
    if keep:
        _say(f"end it earlier: agentgpt cloud stop {started.name}")
        return
    _wait_for_interrupt(started, config.ttl_hours)


def _wait_for_interrupt(started: CloudHost, ttl_hours: float) -> None:
    """Keep a host until Ctrl-C or SIGTERM, or until its time is over; then end it."""
    try:
        time.sleep(ttl_hours * 3600)
    except KeyboardInterrupt:
        _say(f"ending {started.name}")
    finally:
        started.close()
