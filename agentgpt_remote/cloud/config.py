"""What a cloud needs to be told: :class:`SageMakerConfig`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.field_checks import (
    check_count,
    check_instance_type,
    check_region,
    check_s3,
    check_shape,
    checked_list,
    checked_secrets,
    checked_tags,
    refuse_placeholders,
)
from agentgpt_remote.errors import ConfigError

# Where the service model says what a field may hold.
_SHAPES = {
    "role_arn": ("CreateTrainingJob", "RoleArn"),
    "scheduler_role_arn": ("CreateTrainingJob", "RoleArn"),
    "image_uri": ("CreateTrainingJob", "AlgorithmSpecification.TrainingImage"),
    "model_data": ("CreateModel", "PrimaryContainer.ModelDataUrl"),
    "output_path": ("CreateTrainingJob", "OutputDataConfig.S3OutputPath"),
    "checkpoint_path": ("CreateTrainingJob", "CheckpointConfig.S3Uri"),
    "endpoint_name": ("CreateEndpoint", "EndpointName"),
    "job_name": ("CreateTrainingJob", "TrainingJobName"),
    "max_run": ("CreateTrainingJob", "StoppingCondition.MaxRuntimeInSeconds"),
    "max_wait": ("CreateTrainingJob", "StoppingCondition.MaxWaitTimeInSeconds"),
    "keep_alive_s": ("CreateTrainingJob", "ResourceConfig.KeepAlivePeriodInSeconds"),
}
_LISTS = {
    "subnets": ("CreateTrainingJob", "VpcConfig.Subnets"),
    "security_group_ids": ("CreateTrainingJob", "VpcConfig.SecurityGroupIds"),
}
_S3_FIELDS = ("model_data", "output_path", "checkpoint_path")
_COUNTS = {"instance_count": 1, "endpoint_instance_count": 1, "volume_gb": 1, "session_expiry_s": 60}
_MAX_RUN_S = 28 * 24 * 3600
MIN_EXPIRY_H, _MAX_EXPIRY_H = 0.5, 24 * 365
_MAX_COUNT = {"instance_count": 100, "endpoint_instance_count": 100, "volume_gb": 16384, "session_expiry_s": 7 * 86400}


@dataclass(frozen=True, kw_only=True)
class SageMakerConfig:
    """Where and on what to train and to act in Amazon SageMaker; every field is checked when it is made.

    Attributes:
        role_arn: IAM role that the containers run with.
        region: of AWS, such as ``"eu-west-1"``; None takes that of the AWS profile.
        image_uri: of the container image, as ``agentgpt cloud image push`` prints it.
        output_path: ``s3://`` folder that jobs write their model and output to.
        model_data: ``s3://`` address of the model.tar.gz that an endpoint serves.
        instance_type: such as ``"ml.m5.xlarge"``.
        instance_count: machines of a training job; of several, torchrun has all learn together.
        endpoint_instance_type: of an endpoint where it is another.
        endpoint_instance_count: machines of an endpoint where it is another number.
        endpoint_name: of an endpoint to make or to use; by default one is made up.
        job_name: of a training job; by default one is made up of the environment and the time.
        max_run: most seconds of a training job; SIGTERM then ends it with a checkpoint.
        spot: train on spare machines at a lower price, which may be taken away; the job then goes on from its last
            checkpoint.
        max_wait: most seconds of a spot job with the waits for machines, by default twice ``max_run``.
        checkpoint_path: ``s3://`` folder of checkpoints, from which a job with the same folder goes on; by default one
            of the job's own below ``output_path``.
        subnets: of a VPC that the containers run in.
        security_group_ids: of that VPC.
        tags: of everything that is made.
        volume_gb: disk of a training machine.
        keep_alive_s: seconds that a training machine is kept for the next job, at its full price; not with spot.
        secrets: ARNs of Secrets Manager with the tokens of hosts: by URL, or ``""`` for all others.
        session_expiry_s: seconds without a request after which an endpoint forgets a session.
        expiry_hours: hours after which an endpoint deletes itself.
        scheduler_role_arn: role that EventBridge Scheduler deletes the endpoint with; by default ``role_arn``.

    Raises:
        ConfigError: a field is out of range, of the wrong form, or still a placeholder.
    """

    role_arn: str | None = None
    region: str | None = None
    image_uri: str | None = None
    output_path: str | None = None
    model_data: str | None = None
    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    endpoint_instance_type: str | None = None
    endpoint_instance_count: int | None = None
    endpoint_name: str | None = None
    job_name: str | None = None
    max_run: int = 3600
    spot: bool = False
    max_wait: int | None = None
    checkpoint_path: str | None = None
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    volume_gb: int = 30
    keep_alive_s: int = 0
    secrets: Mapping[str, str] = field(default_factory=dict)
    session_expiry_s: int = 3600
    expiry_hours: float = 8.0
    scheduler_role_arn: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for spec in fields(self):
            if spec.name != "secrets":  # what is wrong there may be a token, which is never shown
                refuse_placeholders(spec.name, getattr(self, spec.name))
        for name, (operation, path) in _SHAPES.items():
            check_shape(name, getattr(self, name), operation, path)
        for name, (operation, path) in _LISTS.items():
            object.__setattr__(self, name, checked_list(name, getattr(self, name), operation, path))
        for name in _S3_FIELDS:
            check_s3(name, getattr(self, name))
        for name, least in _COUNTS.items():
            check_count(name, getattr(self, name), least, _MAX_COUNT[name])
        check_region(self.region)
        check_instance_type("instance_type", self.instance_type)
        check_instance_type("endpoint_instance_type", self.endpoint_instance_type)
        self._check_times()
        if bool(self.subnets) != bool(self.security_group_ids):
            raise ConfigError("a VPC needs both: set subnets and security_group_ids, or neither")
        object.__setattr__(self, "tags", checked_tags(self.tags))
        object.__setattr__(self, "secrets", checked_secrets(self.secrets))

    def _check_times(self) -> None:
        if not isinstance(self.spot, bool):
            raise ConfigError(f"spot={self.spot!r}: expected true or false")
        if self.max_run > _MAX_RUN_S:
            raise ConfigError(f"max_run={self.max_run}: expected at most {_MAX_RUN_S} seconds (28 days)")
        if self.max_wait is not None and not self.spot:
            raise ConfigError(f"max_wait={self.max_wait}: only a spot job waits; set spot=True or leave it out")
        if self.max_wait is not None and self.max_wait < self.max_run:
            raise ConfigError(f"max_wait={self.max_wait}: expected at least max_run={self.max_run}")
        if self.spot and self.keep_alive_s:
            raise ConfigError(
                f"keep_alive_s={self.keep_alive_s}: spot machines can't be kept; set it to 0 or spot=False"
            )
        hours = self.expiry_hours
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not MIN_EXPIRY_H <= hours <= _MAX_EXPIRY_H:
            raise ConfigError(
                f"expiry_hours={hours!r}: expected hours, at least {MIN_EXPIRY_H} (making one takes minutes) and "
                f"at most {_MAX_EXPIRY_H}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SageMakerConfig:
        """Build from a mapping of field names to values.

        Raises:
            ConfigError: an unknown field (the closest name is given), or a value that is refused.
        """
        names = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"
                raise ConfigError(f"unknown field {name!r} of SageMakerConfig: {hint}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path, **changes: Any) -> SageMakerConfig:
        """Build from a TOML file of fields.

        Args:
            path: the file.
            changes: fields that replace those of the file.

        Raises:
            ConfigError: the file can't be read, or a field is refused.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read as TOML: {error}") from error
        return cls.from_dict(values | changes)

    def required(self, name: str, purpose: str) -> str:
        """Return a field that ``purpose`` can't do without.

        Raises:
            ConfigError: it is not set.
        """
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"{purpose} needs {name}: {_HELP[name]}")
        return str(value)


def check_config(config: object) -> None:
    """Check that a user gave a configuration.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(config, SageMakerConfig):
        raise ConfigError(f"sagemaker_config is a {type(config).__name__}: expected SageMakerConfig(...)")


_HELP = {
    "role_arn": "set it to the role that docs/cloud.md makes, such as arn:aws:iam::ACCOUNT:role/agentgpt",
    "image_uri": "set it to what `agentgpt cloud image push` prints",
    "output_path": "set it to an s3:// folder of your account; `aws s3 mb s3://NAME` makes a bucket",
    "model_data": "set it to the s3:// address of a model.tar.gz, such as a training run's model_data",
    "endpoint_name": "name an endpoint; `agentgpt cloud status` lists those that run",
    "region": "set region=, AWS_REGION, or run `aws configure`",
}
