"""Requests to AWS, from a configuration: plain dicts, checked against the service model, with no secret in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.encoding import to_strings
from agentgpt_remote.cloud.hosts import trust_variables
from agentgpt_remote.cloud.metric_lines import metric_definitions
from agentgpt_remote.cloud.strict import check_request
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.scrubbing import secret_names
from agentgpt_remote.trainer.hyperparameters import Hyperparameters

CREATED_BY, EXPIRES, RUN = "agentgpt:created-by", "agentgpt:expires", "agentgpt:run"
CHECKPOINT_VARIABLE = "AGENTGPT_CHECKPOINT_PATH"
SESSION_VARIABLE = "AGENTGPT_SESSION_EXPIRY_S"
SECRETS_NAME = "token_secrets"
VARIANT = "policy"
STARTUP_TIMEOUT_S = 600
CHECKPOINT_DIR = "/opt/ml/checkpoints"
_DELETE_ENDPOINT = "scheduler:::aws-sdk:sagemaker:deleteEndpoint"
_MAX_NAME = 63


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that is not sent yet.

    Attributes:
        service: as boto3 names it, such as ``"sagemaker"``.
        operation: such as ``"CreateTrainingJob"``.
        arguments: the request's members.
    """

    service: str
    operation: str
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        """Check the request.

        Raises:
            ConfigError: the service model does not allow it.
        """
        check_request(self.service, self.operation, self.arguments)


def unique_name(base: str, now: datetime | None = None) -> str:
    """Return a name of at most 63 letters, digits and hyphens that ends with the time.

    >>> unique_name("ALE/Pong_v5", datetime(2026, 1, 2, 3, 4, 5, 678000))
    'agentgpt-ALE-Pong-v5-20260102-030405-678'
    """
    now = now or datetime.now(UTC)
    ending = f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
    middle = re.sub(r"[^a-zA-Z0-9]+", "-", base).strip("-")
    head = f"agentgpt-{middle}"[: _MAX_NAME - 1 - len(ending)].rstrip("-")
    return f"{head}-{ending}"


def job_name(config: SageMakerConfig, hyperparameters: Hyperparameters) -> str:
    """Return the name of a training job."""
    if config.job_name is not None:
        return config.job_name
    return unique_name(hyperparameters.env_id or next(iter(hyperparameters.env_hosts), "run"))


def checkpoint_path(config: SageMakerConfig, name: str) -> str:
    """Return where a job keeps its checkpoints."""
    if config.checkpoint_path is not None:
        return config.checkpoint_path.rstrip("/")
    return f"{config.required('output_path', 'a training job').rstrip('/')}/{name}/checkpoints"


def training_job_request(config: SageMakerConfig, hyperparameters: Hyperparameters, name: str) -> Request:
    """Return the request for a training job.

    Raises:
        ConfigError: a field is missing, or the service model does not allow the request.
    """
    _refuse_secrets(hyperparameters)
    checkpoints = checkpoint_path(config, name)
    texts = to_strings(hyperparameters.to_dict() | {SECRETS_NAME: dict(config.secrets)})
    algorithm: dict[str, Any] = {
        "TrainingImage": config.required("image_uri", "a training job"),
        "TrainingInputMode": "File",
    }
    if hyperparameters.use_cloudwatch:
        algorithm["MetricDefinitions"] = metric_definitions()
    resources: dict[str, Any] = {
        "InstanceType": config.instance_type,
        "InstanceCount": config.instance_count,
        "VolumeSizeInGB": config.volume_gb,
    }
    if config.keep_alive_s:
        resources["KeepAlivePeriodInSeconds"] = config.keep_alive_s
    arguments: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": config.required("role_arn", "a training job"),
        "AlgorithmSpecification": algorithm,
        "HyperParameters": texts,
        "OutputDataConfig": {
            "S3OutputPath": config.required("output_path", "a training job"),
            "CompressionType": "GZIP",
        },
        "ResourceConfig": resources,
        "StoppingCondition": _stopping_condition(config),
        "CheckpointConfig": {"S3Uri": checkpoints, "LocalPath": CHECKPOINT_DIR},
        "EnableManagedSpotTraining": config.spot,
        "Environment": {CHECKPOINT_VARIABLE: checkpoints, **trust_variables()},
        "Tags": _tags(config, {RUN: name}),
        **_vpc(config),
    }
    return Request(service="sagemaker", operation="CreateTrainingJob", arguments=arguments)


def _refuse_secrets(hyperparameters: Hyperparameters) -> None:
    """Check that no hyperparameter holds a secret: whoever may describe the job reads them.

    Raises:
        ConfigError: one seems to.
    """
    for host in hyperparameters.env_hosts.values():
        parts = urlsplit(host.env_endpoint)
        if "@" in parts.netloc or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.hostname}"
            raise ConfigError(
                f"the URL of the host at {shown} holds more than an address, perhaps a secret, and would be readable "
                "in the job: give the plain URL, and the token as secrets={URL: ARN} of SageMakerConfig"
            )
    for name in secret_names(hyperparameters.env_kwargs):
        raise ConfigError(
            f"env_kwargs[{name!r}] seems to be a secret and would be readable in the job: have the environment read it "
            "from Secrets Manager"
        )


def _stopping_condition(config: SageMakerConfig) -> dict[str, int]:
    condition = {"MaxRuntimeInSeconds": config.max_run}
    if config.spot:
        condition["MaxWaitTimeInSeconds"] = longest_s(config)
    return condition


def longest_s(config: SageMakerConfig) -> int:
    """Return the most seconds that a training job may take, waits for spot machines included."""
    if not config.spot:
        return config.max_run
    return config.max_wait or min(2 * config.max_run, config.max_run + 24 * 3600)


def _vpc(config: SageMakerConfig) -> dict[str, Any]:
    if not config.subnets:
        return {}
    return {"VpcConfig": {"SecurityGroupIds": list(config.security_group_ids), "Subnets": list(config.subnets)}}


def _tags(config: SageMakerConfig, own: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"Key": key, "Value": value} for key, value in {CREATED_BY: "agentgpt-remote", **own, **config.tags}.items()
    ]


def deployment_requests(config: SageMakerConfig, name: str, *, now: datetime | None = None) -> list[Request]:
    """Return what deploys an endpoint, in this order: model, endpoint configuration, expiry, endpoint.

    The expiry is there before the endpoint, so that none can be left that does not end by itself.

    Args:
        config: where and on what.
        name: of the endpoint and of what belongs to it.
        now: when the expiry begins; now by default.

    Raises:
        ConfigError: a field is missing, or the service model does not allow a request.
    """
    role = config.required("role_arn", "a deployment")
    expires = (now or datetime.now(UTC)) + timedelta(hours=config.expiry_hours)
    tags = _tags(config, {EXPIRES: f"{expires:%Y-%m-%dT%H:%M:%SZ}", RUN: name})
    container = {
        "Image": config.required("image_uri", "a deployment"),
        "ModelDataUrl": config.required("model_data", "a deployment"),
        "Environment": {SESSION_VARIABLE: str(config.session_expiry_s)},
    }
    variant = {
        "VariantName": VARIANT,
        "ModelName": name,
        "InstanceType": config.endpoint_instance_type or config.instance_type,
        "InitialInstanceCount": config.endpoint_instance_count or config.instance_count,
        "InitialVariantWeight": 1.0,
        "ContainerStartupHealthCheckTimeoutInSeconds": STARTUP_TIMEOUT_S,
    }
    model = {"ModelName": name, "ExecutionRoleArn": role, "PrimaryContainer": container, "Tags": tags, **_vpc(config)}
    endpoint_config = {"EndpointConfigName": name, "ProductionVariants": [variant], "Tags": tags}
    endpoint = {"EndpointName": name, "EndpointConfigName": name, "Tags": tags}
    return [
        Request(service="sagemaker", operation="CreateModel", arguments=model),
        Request(service="sagemaker", operation="CreateEndpointConfig", arguments=endpoint_config),
        expiry_request(config.scheduler_role_arn or role, name, expires),
        Request(service="sagemaker", operation="CreateEndpoint", arguments=endpoint),
    ]


def expiry_request(role_arn: str, name: str, expires: datetime) -> Request:
    """Return the request for a schedule that deletes an endpoint once, and then itself."""
    arguments = {
        "Name": expiry_name(name),
        "ScheduleExpression": f"at({expires:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Description": f"deletes the endpoint {name}",
        "Target": {
            "Arn": f"arn:{role_arn.split(':')[1]}:{_DELETE_ENDPOINT}",
            "RoleArn": role_arn,
            "Input": json.dumps({"EndpointName": name}),
            "RetryPolicy": {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86400},
        },
    }
    return Request(service="scheduler", operation="CreateSchedule", arguments=arguments)


def expiry_name(endpoint: str) -> str:
    """Return the name of the schedule that deletes an endpoint."""
    return f"x{endpoint}"
