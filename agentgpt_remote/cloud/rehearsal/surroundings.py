"""The rest of AWS in a rehearsal: S3, logs, roles, images and secrets, by moto's server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
from botocore.config import Config

from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.storage import split_uri
from agentgpt_remote.errors import missing_dependency

ACCOUNT = "123456789012"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": ["sagemaker.amazonaws.com", "scheduler.amazonaws.com"]},
            "Action": "sts:AssumeRole",
        }
    ],
}
# Every service that moto stands in for; SageMaker's own and the scheduler have stand-ins of this package.
_VARIABLES = {
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": "rehearsal",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_HIDDEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


class Surroundings:
    """A server that answers for S3, CloudWatch Logs, IAM, STS, ECR, Secrets Manager and more.

    Args:
        region: of AWS.

    Attributes:
        url: where it answers.
        region: as above.

    Raises:
        DependencyNotInstalled: moto is not installed; holds the command to type.
    """

    def __init__(self, region: str) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ModuleNotFoundError as error:
            error.name = "moto"
            raise missing_dependency(error) from error
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.region = region
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self._reset()

    def _reset(self) -> None:
        import httpx

        httpx.post(f"{self.url}/moto-api/reset", timeout=10).raise_for_status()
        # Tasks of ECS run until they are stopped, as real ones do; moto's own end when they are looked at.
        change = {"model_name": "ecs::task", "transition": {"progression": "manual", "times": 1_000_000}}
        where = f"{self.url}/moto-api/state-manager/set-transition"
        httpx.post(where, json=change, timeout=10).raise_for_status()

    def client(self, service: str, region: str | None = None) -> Any:
        """Return a boto3 client of a service, whatever the environment says."""
        return boto3.session.Session(
            aws_access_key_id="rehearsal", aws_secret_access_key="rehearsal", region_name=region or self.region
        ).client(service, endpoint_url=self.url, config=Config(retries={"total_max_attempts": 2}))

    def prepare(self, config: SageMakerConfig) -> None:
        """Make the buckets, the roles and the image that a configuration names."""
        for uri in (config.output_path, config.model_data, config.checkpoint_path):
            if uri is not None:
                self.make_bucket(split_uri(uri)[0])
        for arn in (config.role_arn, config.scheduler_role_arn):
            if arn is not None:
                self.make_role(arn.rpartition("/")[2])
        if config.image_uri is not None:
            self.push_image(config.image_uri)

    def make_bucket(self, name: str, region: str | None = None) -> None:
        """Make a bucket; one that is there stays."""
        region = region or self.region
        client = self.client("s3", region)
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=name, **where)

    def make_role(self, name: str, trust: Mapping[str, Any] = _TRUST) -> None:
        """Make a role that SageMaker and the scheduler may take; one that is there stays."""
        client = self.client("iam")
        with contextlib.suppress(client.exceptions.EntityAlreadyExistsException):
            client.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))

    def make_secret(self, arn: str, value: str) -> str:
        """Make a secret of the name in an ARN, and return its ARN here, which has another ending."""
        client = self.client("secretsmanager")
        name = arn.partition(":secret:")[2]
        try:
            made = client.create_secret(Name=name, SecretString=value)
        except client.exceptions.ResourceExistsException:
            made = client.put_secret_value(SecretId=name, SecretString=value)
        return str(made["ARN"])

    def push_image(self, uri: str) -> None:
        """Have an image in ECR, without layers; an address elsewhere needs none."""
        parts = image_parts(uri)
        if parts is None:
            return
        repository, tag = parts
        client = self.client("ecr")
        with contextlib.suppress(client.exceptions.RepositoryAlreadyExistsException):
            client.create_repository(repositoryName=repository)
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        config = {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": "sha256:" + "0" * 64,
            "size": 2,
        }
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": []})
        with contextlib.suppress(client.exceptions.ImageAlreadyExistsException):
            client.put_image(
                repositoryName=repository, imageManifest=manifest, imageManifestMediaType=kind, imageTag=tag
            )

    def has_image(self, uri: str) -> bool:
        """Tell whether an image of ECR is there; of other places nothing is known."""
        parts = image_parts(uri)
        if parts is None:
            return True
        client = self.client("ecr")
        try:
            client.describe_images(repositoryName=parts[0], imageIds=[{"imageTag": parts[1]}])
        except (client.exceptions.RepositoryNotFoundException, client.exceptions.ImageNotFoundException):
            return False
        return True

    def has_role(self, arn: str) -> bool:
        """Tell whether a role is there and trusts SageMaker."""
        client = self.client("iam")
        try:
            role = client.get_role(RoleName=arn.rpartition("/")[2])["Role"]
        except client.exceptions.NoSuchEntityException:
            return False
        return "sagemaker.amazonaws.com" in json.dumps(role["AssumeRolePolicyDocument"])

    def close(self) -> None:
        """End the server."""
        self._server.stop()


def image_parts(uri: str) -> tuple[str, str] | None:
    """Return repository and tag of an image in ECR, or None for one elsewhere.

    >>> image_parts("123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/agentgpt:0.1.0")
    ('team/agentgpt', '0.1.0')
    """
    registry, slash, name = uri.partition("/")
    if not slash or ".dkr.ecr." not in registry:
        return None
    repository, _, tag = name.partition(":")
    return repository, tag or "latest"


@contextlib.contextmanager
def pointed_at(variables: Mapping[str, str], region: str) -> Iterator[None]:
    """Have boto3 in this process talk to the stand-ins, with made-up credentials, for a while."""
    wanted = {**_VARIABLES, "AWS_REGION": region, "AWS_DEFAULT_REGION": region, **variables}
    before = {name: os.environ.get(name) for name in (*wanted, *_HIDDEN)}
    for name in _HIDDEN:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def credentials() -> dict[str, str]:
    """Return the variables of the made-up credentials, for containers."""
    return dict(_VARIABLES)
