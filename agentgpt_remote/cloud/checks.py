"""What can be found out about a request before it is sent: the bucket, the image, the role, the quota."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from agentgpt_remote.cloud.aws import Aws, error_code
from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.storage import check_bucket
from agentgpt_remote.errors import AgentGPTError, ConfigError

_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: of the check.
        outcome: ``skipped`` where the credentials may not look.
        detail: what was found, or the error.
        error: what to raise where it failed.
    """

    name: str
    outcome: Literal["ok", "failed", "skipped"]
    detail: str
    error: AgentGPTError | None = None


def check_training(aws: Aws, config: SageMakerConfig) -> Iterator[Finding]:
    """Yield what is found about a training job's surroundings."""
    output = config.required("output_path", "a training job")
    yield _finding("bucket", lambda: _bucket(aws, output, "output_path"))
    if config.checkpoint_path is not None:
        checkpoints = config.checkpoint_path
        yield _finding("checkpoint bucket", lambda: _bucket(aws, checkpoints, "checkpoint_path"))
    yield _finding("image", lambda: _image(aws, config.required("image_uri", "a training job")))
    yield _finding("role", lambda: _role(aws, config.required("role_arn", "a training job"), "sagemaker"))
    kind = "spot training job" if config.spot else "training job"
    yield _finding("quota", lambda: _quota(aws, config.instance_type, kind, config.instance_count))


def check_deployment(aws: Aws, config: SageMakerConfig) -> Iterator[Finding]:
    """Yield what is found about an endpoint's surroundings."""
    model = config.required("model_data", "a deployment")
    yield _finding("bucket", lambda: _bucket(aws, model, "model_data"))
    yield _finding("image", lambda: _image(aws, config.required("image_uri", "a deployment")))
    role = config.required("role_arn", "a deployment")
    yield _finding("role", lambda: _role(aws, role, "sagemaker"))
    yield _finding("scheduler role", lambda: _role(aws, config.scheduler_role_arn or role, "scheduler"))
    instance_type = config.endpoint_instance_type or config.instance_type
    count = config.endpoint_instance_count or config.instance_count
    yield _finding("quota", lambda: _quota(aws, instance_type, "endpoint", count))


def require(findings: Iterator[Finding]) -> None:
    """Raise the error of the first check that failed."""
    for finding in findings:
        if finding.error is not None:
            raise finding.error


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except AgentGPTError as error:
        return Finding(name, "failed", str(error), error)
    except ClientError as error:
        if error_code(error) in _DENIED:
            return Finding(name, "skipped", f"these credentials may not look ({error_code(error)})")
        return Finding(name, "skipped", str(error))
    except BotoCoreError as error:
        return Finding(name, "skipped", str(error))


def _bucket(aws: Aws, uri: str, field: str) -> str:
    check_bucket(aws, uri, field)
    return f"{uri} is there, in {aws.region}"


def _image(aws: Aws, uri: str) -> str:
    registry, slash, name = uri.partition("/")
    if not slash or ".dkr.ecr." not in registry:
        return f"{uri} is not in ECR: not looked up"
    account, _, region = registry.split(".")[0], None, registry.split(".")[3]
    if region != aws.region:
        raise ConfigError(
            f"image_uri={uri!r}: the image lies in {region}, the machines would be in {aws.region}; push it there with "
            "`agentgpt cloud image push`"
        )
    repository, at, digest = name.partition("@")
    repository, _, tag = repository.partition(":")
    image = {"imageDigest": digest} if at else {"imageTag": tag or "latest"}
    client = aws.client("ecr")
    try:
        client.describe_images(registryId=account, repositoryName=repository, imageIds=[image])
    except (client.exceptions.RepositoryNotFoundException, client.exceptions.ImageNotFoundException) as error:
        raise ConfigError(
            f"image_uri={uri!r}: there is no such image; build and push it with `agentgpt cloud image push`"
        ) from error
    return f"{uri} is there"


def _role(aws: Aws, arn: str, service: str) -> str:
    client = aws.client("iam")
    try:
        role: dict[str, Any] = client.get_role(RoleName=arn.rpartition("/")[2])["Role"]
    except client.exceptions.NoSuchEntityException as error:
        raise ConfigError(f"role_arn={arn!r}: there is no such role; docs/cloud.md says how to make it") from error
    if f"{service}.amazonaws.com" not in str(role.get("AssumeRolePolicyDocument", "")):
        raise ConfigError(
            f"role_arn={arn!r}: the role does not trust {service}.amazonaws.com, so it can't be assumed; docs/cloud.md "
            "has its trust policy"
        )
    return f"{arn} is there and trusts {service}"


def _quota(aws: Aws, instance_type: str, kind: str, count: int) -> str:
    wanted = f"{instance_type} for {kind} usage"
    pages = aws.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
    for page in pages:
        for quota in page["Quotas"]:
            if quota["QuotaName"] == wanted:
                return _compared(wanted, quota, count)
    return f"no quota is listed for {wanted}"


def _compared(wanted: str, quota: dict[str, Any], count: int) -> str:
    if quota["Value"] < count:
        raise ConfigError(
            f"the quota '{wanted}' is {quota['Value']:g}, the request needs {count}: ask for more with `aws "
            "service-quotas request-service-quota-increase --service-code sagemaker --quota-code "
            f"{quota['QuotaCode']} --desired-value {count}`, or take another instance_type"
        )
    return f"{wanted}: {quota['Value']:g}"
