"""What of this package runs in the cloud, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.cloud.cost import hourly_price
from agentgpt_remote.cloud.host_config import CLUSTER, fargate_cost
from agentgpt_remote.cloud.hosting import host_name, running_hosts, size_of
from agentgpt_remote.cloud.requests import CREATED_BY, EXPIRES
from agentgpt_remote.errors import AuthError


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job, an endpoint or a host that is paid for.

    Attributes:
        kind: what it is.
        name: its name.
        status: SageMaker's.
        machines: number and type.
        per_hour: US dollars, or None where the price is not known.
        hours: since it was made.
        ends: when it ends by itself, or an empty text.
    """

    kind: Literal["job", "endpoint", "host"]
    name: str
    status: str
    machines: str
    per_hour: float | None
    hours: float
    ends: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def list_running(aws: Aws, *, everything: bool = False) -> list[Running]:
    """Return the jobs, endpoints and hosts that run; hosts only where the credentials may look.

    Args:
        aws: of the region to look in.
        everything: those that this package did not make, too.

    Raises:
        AuthError: the credentials are missing, or may not look.
    """
    return [*_jobs(aws, everything), *_endpoints(aws, everything), *_hosts(aws)]


def _jobs(aws: Aws, everything: bool) -> Iterator[Running]:
    client = aws.client("sagemaker")
    for status in ("InProgress", "Stopping"):
        with explained("list training jobs"):
            pages = list(client.get_paginator("list_training_jobs").paginate(StatusEquals=status))
        for summary in (entry for page in pages for entry in page["TrainingJobSummaries"]):
            if not everything and CREATED_BY not in _tags(aws, summary["TrainingJobArn"]):
                continue
            with explained(f"look up the training job {summary['TrainingJobName']}"):
                told = client.describe_training_job(TrainingJobName=summary["TrainingJobName"])
            machines = told["ResourceConfig"]
            longest = told["StoppingCondition"].get("MaxWaitTimeInSeconds") or told["StoppingCondition"].get(
                "MaxRuntimeInSeconds", 0
            )
            yield _running(
                aws,
                "job",
                summary["TrainingJobName"],
                f"{told['TrainingJobStatus']} ({told['SecondaryStatus']})",
                (machines.get("InstanceType", ""), machines.get("InstanceCount", 1)),
                told["CreationTime"],
                f"after at most {longest} s",
            )


def _endpoints(aws: Aws, everything: bool) -> Iterator[Running]:
    client = aws.client("sagemaker")
    with explained("list endpoints"):
        pages = list(client.get_paginator("list_endpoints").paginate())
    for summary in (entry for page in pages for entry in page["Endpoints"]):
        tags = _tags(aws, summary["EndpointArn"])
        if not everything and CREATED_BY not in tags:
            continue
        name = summary["EndpointName"]
        with explained(f"look up the endpoint {name}"):
            told = client.describe_endpoint(EndpointName=name)
            config = client.describe_endpoint_config(EndpointConfigName=told["EndpointConfigName"])
        variant = config["ProductionVariants"][0]
        machines = (variant.get("InstanceType", ""), variant.get("InitialInstanceCount", 1))
        ends = tags.get(EXPIRES, "never by itself")
        yield _running(aws, "endpoint", name, told["EndpointStatus"], machines, told["CreationTime"], ends)


def _hosts(aws: Aws) -> Iterator[Running]:
    try:
        tasks = running_hosts(aws, CLUSTER)
    except AuthError:
        return
    now = datetime.now(UTC)
    for task in tasks:
        tags = {tag["key"]: tag["value"] for tag in task["tags"]}
        cpu, memory_mb = size_of(aws, task)
        yield Running(
            kind="host",
            name=host_name(task),
            status=task["lastStatus"],
            machines=f"{cpu / 1024:g} cores, {memory_mb / 1024:g} GB",
            per_hour=fargate_cost(cpu, memory_mb),
            hours=(now - task.get("createdAt", now)).total_seconds() / 3600,
            ends=tags.get(EXPIRES, "never by itself"),
        )


def _tags(aws: Aws, arn: str) -> dict[str, str]:
    with explained(f"read the tags of {arn}"):
        found = aws.client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


def _running(
    aws: Aws,
    kind: Literal["job", "endpoint"],
    name: str,
    status: str,
    machines: tuple[str, int],
    created: datetime,
    ends: str,
) -> Running:
    instance_type, count = machines
    found = hourly_price(instance_type, aws.region)
    return Running(
        kind=kind,
        name=name,
        status=status,
        machines=f"{count} x {instance_type}",
        per_hour=None if found is None else found[0] * count,
        hours=(datetime.now(UTC) - created).total_seconds() / 3600,
        ends=ends,
    )
