"""Images built and pushed to ECR: by docker, or where there is none, by AWS CodeBuild."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgpt_remote._version import __version__
from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.cloud.requests import CREATED_BY, Request
from agentgpt_remote.cloud.storage import split_uri
from agentgpt_remote.errors import CloudError, ConfigError

PROJECT = "agentgpt-image"
_BUILD_TIMEOUT_S = 3600.0
_POLL_S, _REHEARSED_POLL_S = 10.0, 0.2
_BUILDSPEC = """version: 0.2
phases:
  build:
    commands:
      - aws ecr get-login-password | docker login --username AWS --password-stdin "${IMAGE_URI%%/*}"
      - docker build --tag "$IMAGE_URI" .
      - docker push "$IMAGE_URI"
"""
Say = Callable[[str], None]


@dataclass(frozen=True)
class ImageName:
    """Where an image lies in ECR.

    Attributes:
        account: number of the account.
        region: of AWS.
        repository: its name.
        tag: of the image.
    """

    account: str
    region: str
    repository: str = "agentgpt"
    tag: str = __version__

    @property
    def registry(self) -> str:
        """The registry's host name."""
        ending = ".cn" if self.region.startswith("cn-") else ""
        return f"{self.account}.dkr.ecr.{self.region}.amazonaws.com{ending}"

    @property
    def uri(self) -> str:
        """What SageMakerConfig takes as image_uri."""
        return f"{self.registry}/{self.repository}:{self.tag}"


def docker_available() -> bool:
    """Tell whether docker can build here: its command is there, and its daemon answers."""
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def ensure_repository(aws: Aws, repository: str) -> None:
    """Make a repository that scans what is pushed; one that is there stays.

    Raises:
        AuthError: the credentials may not make it.
    """
    client = aws.client("ecr")
    with explained(f"make the repository {repository}"):
        try:
            client.create_repository(
                repositoryName=repository,
                imageScanningConfiguration={"scanOnPush": True},
                tags=[{"Key": CREATED_BY, "Value": "agentgpt-remote"}],
            )
        except client.exceptions.RepositoryAlreadyExistsException:
            return


def build_with_docker(context: Path, tag: str, say: Say) -> None:
    """Build an image.

    Raises:
        CloudError: docker failed; holds its last lines.
    """
    say(f"docker build {tag}")
    _docker(["build", "--platform", "linux/amd64", "--tag", tag, str(context)])


def push_with_docker(aws: Aws, name: ImageName, say: Say) -> None:
    """Log in to ECR and push an image.

    Raises:
        CloudError: docker failed; holds its last lines.
    """
    with explained("log in to ECR"):
        data = aws.client("ecr").get_authorization_token()["authorizationData"][0]
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    # Through standard input: what is among a command's words can be read by everyone on this machine.
    _docker(["login", "--username", user, "--password-stdin", name.registry], password)
    say(f"docker push {name.uri}")
    _docker(["push", name.uri])


def _docker(words: list[str], standard_input: str = "") -> None:
    try:
        done = subprocess.run(
            ["docker", *words],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CloudError(f"docker {words[0]} failed: {error}") from error
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise CloudError(f"docker {words[0]} failed (exit code {done.returncode}):\n{tail}")


def project_request(name: ImageName, role_arn: str, source: str) -> Request:
    """Return the request for a CodeBuild project that builds and pushes images."""
    environment = {
        "type": "LINUX_CONTAINER",
        "image": "aws/codebuild/standard:7.0",
        "computeType": "BUILD_GENERAL1_MEDIUM",
        "privilegedMode": True,  # docker in a build needs it
        "environmentVariables": [{"name": "IMAGE_URI", "value": name.uri, "type": "PLAINTEXT"}],
    }
    arguments: dict[str, Any] = {
        "name": PROJECT,
        "description": "builds images of agentgpt-remote",
        "source": {"type": "S3", "location": source, "buildspec": _BUILDSPEC},
        "artifacts": {"type": "NO_ARTIFACTS"},
        "environment": environment,
        "serviceRole": role_arn,
        "timeoutInMinutes": 60,
        "tags": [{"key": CREATED_BY, "value": "agentgpt-remote"}],
    }
    return Request(service="codebuild", operation="CreateProject", arguments=arguments)


def build_with_codebuild(aws: Aws, context: Path, name: ImageName, *, role_arn: str, folder: str, say: Say) -> None:
    """Have AWS build and push an image: its folder goes to S3 as a zip.

    Args:
        aws: of the image's region.
        context: what it is built from.
        name: of the image.
        role_arn: role that CodeBuild works with.
        folder: ``s3://`` folder for the zip.
        say: called with what is being done.

    Raises:
        CloudError: the build failed, or took more than an hour; holds where its log is.
    """
    bucket, prefix = split_uri(folder)
    key = "/".join(part for part in (prefix, f"{name.repository}-{name.tag}.zip") if part)
    with tempfile.TemporaryDirectory() as scratch:
        archive = shutil.make_archive(f"{scratch}/context", "zip", context)
        with explained(f"upload the image's source to {folder}"):
            aws.client("s3").upload_file(archive, bucket, key)
    client = aws.client("codebuild")
    variables = [{"name": "IMAGE_URI", "value": name.uri, "type": "PLAINTEXT"}]
    with explained(f"make the CodeBuild project {PROJECT}"):
        if not client.batch_get_projects(names=[PROJECT])["projects"]:
            client.create_project(**project_request(name, role_arn, f"{bucket}/{key}").arguments)
    with explained("start the build"):
        build = client.start_build(
            projectName=PROJECT,
            sourceTypeOverride="S3",
            sourceLocationOverride=f"{bucket}/{key}",
            environmentVariablesOverride=variables,
        )["build"]
    say(f"CodeBuild builds {name.uri}: {build['id']}")
    _await_build(aws, client, str(build["id"]))


def _await_build(aws: Aws, client: Any, build_id: str) -> None:
    deadline = time.monotonic() + _BUILD_TIMEOUT_S
    while True:
        with explained(f"look up the build {build_id}"):
            build = client.batch_get_builds(ids=[build_id])["builds"][0]
        if build["buildStatus"] == "SUCCEEDED":
            return
        if build["buildStatus"] != "IN_PROGRESS":
            raise CloudError(
                f"the build {build_id} is {build['buildStatus']}: its log is at "
                f"{build.get('logs', {}).get('deepLink', 'CloudWatch, /aws/codebuild/' + PROJECT)}"
            )
        if time.monotonic() > deadline:
            raise CloudError(f"{build_id} still builds after an hour: `aws codebuild stop-build --id {build_id}`")
        time.sleep(_REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S)


def push_image(aws: Aws, context: Path, name: ImageName, *, role_arn: str | None, folder: str | None, say: Say) -> str:
    """Build an image and push it to ECR, and return its address.

    Args:
        aws: of the image's region.
        context: what it is built from.
        name: of the image.
        role_arn: role for CodeBuild, where docker is not at hand.
        folder: ``s3://`` folder for CodeBuild.
        say: called with what is being done.

    Raises:
        ConfigError: docker is not at hand, and CodeBuild is not told what it needs.
        CloudError: the build or the push failed.
    """
    if not docker_available() and (role_arn is None or folder is None):
        raise ConfigError(
            "docker does not answer here, and CodeBuild needs role_arn (a role that trusts codebuild.amazonaws.com) "
            "and output_path of SageMakerConfig"
        )
    ensure_repository(aws, name.repository)
    if docker_available():
        build_with_docker(context, name.uri, say)
        push_with_docker(aws, name, say)
    elif role_arn is not None and folder is not None:
        build_with_codebuild(aws, context, name, role_arn=role_arn, folder=f"{folder.rstrip('/')}/images", say=say)
    return name.uri
