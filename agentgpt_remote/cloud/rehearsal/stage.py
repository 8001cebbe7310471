"""The stage of a rehearsal: everything that stands in for AWS, for a while."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Self

from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.rehearsal.sagemaker import SageMaker
from agentgpt_remote.cloud.rehearsal.surroundings import ACCOUNT, Surroundings, credentials, pointed_at


def rehearsal_config(**changes: object) -> SageMakerConfig:
    """Return a configuration of made-up names, for a rehearsal without an account."""
    fields: dict[str, object] = {
        "role_arn": f"arn:aws:iam::{ACCOUNT}:role/agentgpt-rehearsal",
        "region": "us-east-1",
        "image_uri": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/agentgpt:rehearsal",
        "output_path": "s3://agentgpt-rehearsal/jobs",
    }
    return SageMakerConfig.from_dict(fields | changes)


class Stage:
    """A context in which boto3, in this process and in the containers, talks to stand-ins on this machine.

    Args:
        config: whose buckets, roles and image are made.

    Attributes:
        config: as above, with the ARNs that secrets have here; they hold ``AGENTGPT_TOKEN``.
        sagemaker: the stand-in of SageMaker and the scheduler.
        surroundings: the rest of AWS.

    Raises:
        DependencyNotInstalled: moto is not installed; holds the command to type.
    """

    def __init__(self, config: SageMakerConfig) -> None:
        self._stack = contextlib.ExitStack()
        region = config.region or "us-east-1"
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentgpt-rehearsal-"))
            self.surroundings = Surroundings(region)
            stack.callback(self.surroundings.close)
            self.surroundings.prepare(config)
            token = os.environ.get("AGENTGPT_TOKEN") or "of-the-rehearsal"
            secrets = {url: self.surroundings.make_secret(arn, token) for url, arn in config.secrets.items()}
            self.config = replace(config, region=region, secrets=secrets)
            variables = {"AWS_ENDPOINT_URL": self.surroundings.url, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
            self.sagemaker = SageMaker(Path(folder), self.surroundings, credentials() | variables)
            stack.callback(self.sagemaker.close)
            services = ("SAGEMAKER", "SAGEMAKER_RUNTIME", "SCHEDULER", "SERVICE_QUOTAS")
            own = {f"AWS_ENDPOINT_URL_{service}": self.sagemaker.url for service in services}
            stack.enter_context(pointed_at({"AWS_ENDPOINT_URL": self.surroundings.url, **own}, region))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End everything; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
