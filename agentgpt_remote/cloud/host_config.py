"""How a host runs in the cloud, and what it costs."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.cost import price_table
from agentgpt_remote.errors import ConfigError

CLUSTER = "agentgpt"
_SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@!-]+")
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")
_MEMORY_MB = {256: (512, 2048), 512: (1024, 4096), 1024: (2048, 8192), 2048: (4096, 16384), 4096: (8192, 30720)}
_MAX_TTL_H = 24 * 30


@dataclass(frozen=True, kw_only=True)
class CloudHostConfig:
    """How a host runs on ECS.

    Attributes:
        image_uri: of the environment's image, as ``agentgpt cloud image push --env`` prints it.
        execution_role_arn: role by which ECS pulls the image and reads the token.
        token_secret: ARN of the host's token, or of a relay's secret, in Secrets Manager.
        tls_secret: ARN of key and certificate (PEM) in Secrets Manager, as ``agentgpt cloud certificate`` stores them;
            ``None`` for plaintext within the VPC.
        subnets: that it runs in.
        security_group_ids: who may reach port 8000; let the training job's group in.
        region: of AWS; that of the profile by default.
        public: give it a public address, too; needs ``tls_secret`` where it listens.
        cpu: in 1/1024 of a core.
        memory_mb: memory in MiB.
        spot: on spare machines, which may be taken away.
        ttl_hours: after which it ends by itself.
        cluster: name of the ECS cluster; made if it is missing.
        launch_type: ``"FARGATE"``, or ``"EC2"`` on machines that the cluster has.
        tags: of what is made.

    Raises:
        ConfigError: a field is missing, of the wrong form or out of range.
    """

    image_uri: str
    execution_role_arn: str
    token_secret: str
    subnets: Sequence[str]
    security_group_ids: Sequence[str]
    tls_secret: str | None = None
    region: str | None = None
    public: bool = False
    cpu: int = 1024
    memory_mb: int = 2048
    spot: bool = True
    ttl_hours: float = 8.0
    cluster: str = CLUSTER
    launch_type: str = "FARGATE"
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        if _ROLE_ARN.fullmatch(self.execution_role_arn) is None:
            raise ConfigError(f"execution_role_arn={self.execution_role_arn!r}: expected the ARN of an IAM role")
        if _SECRET_ARN.fullmatch(self.token_secret) is None:
            # What is not an ARN may be the token itself: it is not shown.
            raise ConfigError(
                "token_secret is not an ARN: store the token with `agentgpt cloud secret`, which prints one"
            )
        if self.tls_secret is not None and _SECRET_ARN.fullmatch(self.tls_secret) is None:
            raise ConfigError(
                "tls_secret is not an ARN: store a certificate with `agentgpt cloud certificate`, which prints one"
            )
        if not self.subnets or not self.security_group_ids:
            raise ConfigError("a host in the cloud needs subnets and security_group_ids of a VPC")
        if self.launch_type not in ("FARGATE", "EC2"):
            raise ConfigError(f"launch_type={self.launch_type!r}: expected 'FARGATE' or 'EC2'")
        low, high = _MEMORY_MB.get(self.cpu, (0, -1))
        if not low <= self.memory_mb <= high:
            sizes = ", ".join(f"{cpu} with {least} to {most}" for cpu, (least, most) in _MEMORY_MB.items())
            raise ConfigError(f"cpu={self.cpu}, memory_mb={self.memory_mb}: expected one of {sizes}")
        if not isinstance(self.ttl_hours, int | float) or not 0 < self.ttl_hours <= _MAX_TTL_H:
            raise ConfigError(f"ttl_hours={self.ttl_hours!r}: expected hours, more than 0 and at most {_MAX_TTL_H}")


def read_config(path: Path | None, changes: Mapping[str, Any]) -> CloudHostConfig:
    """Return a configuration from a TOML file of fields and from changes to it.

    Raises:
        ConfigError: the file can't be read, a field is unknown, missing or refused.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read as TOML: {error}") from error
    values |= changes
    known = {spec.name: spec for spec in fields(CloudHostConfig)}
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"unknown field {name!r} of CloudHostConfig: {hint}")
    needed = ("image_uri", "execution_role_arn", "token_secret", "subnets", "security_group_ids")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ConfigError(
            f"a host in the cloud needs {', '.join(missing)}: see docs/cloud.md; use --config or --host-set"
        )
    return CloudHostConfig(**values)


def hourly_cost(config: CloudHostConfig) -> float:
    """Return what a host costs per hour on Fargate, in US dollars and without spot's discount."""
    return fargate_cost(config.cpu, config.memory_mb)


def fargate_cost(cpu: int, memory_mb: int) -> float:
    """Return what a task costs per hour on Fargate, in US dollars and without spot's discount."""
    prices = price_table()["fargate"]
    return float(cpu / 1024 * prices["vcpu_hour"] + memory_mb / 1024 * prices["gb_hour"])
