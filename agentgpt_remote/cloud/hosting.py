"""Environment hosts and relays in the cloud: one container on AWS ECS, with a token, an end and a way to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from agentgpt_remote.admission import TOKEN_VARIABLE
from agentgpt_remote.certificates import PEM_VARIABLE
from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.cloud.host_config import CLUSTER, CloudHostConfig
from agentgpt_remote.cloud.hosts import trust_variables
from agentgpt_remote.cloud.requests import CREATED_BY, EXPIRES, RUN, Request, unique_name
from agentgpt_remote.errors import AuthError, CloudError, ConfigError, RemoteTimeout
from agentgpt_remote.tokens import SECRET_VARIABLE

PORT = 8000
LOG_GROUP = "/agentgpt/hosts"
_INSECURE = "--insecure"  # within a VPC or a cluster; not where a certificate is given
_START_TIMEOUT_S = 600.0
_POLL_S, _REHEARSED_POLL_S = 5.0, 0.1


def host_requests(config: CloudHostConfig, words: Sequence[str], name: str, region: str) -> list[Request]:
    """Return what starts a host, in this order: task definition, task.

    Args:
        config: how it runs.
        words: what the image is told, such as ``["serve", "CartPole-v1", "--host", "0.0.0.0"]``.
        name: of the host.
        region: of AWS.

    Raises:
        ConfigError: the service model does not allow a request, or it would listen to the world without TLS.
    """
    if config.public and config.tls_secret is None and "--connect" not in words:
        raise ConfigError(
            "public=True without TLS would send tokens in plaintext through the internet: set tls_secret "
            "(`agentgpt cloud certificate` makes one), or have it dial out with --connect"
        )
    ends = datetime.now(UTC) + timedelta(hours=config.ttl_hours)
    own = {CREATED_BY: "agentgpt-remote", RUN: name, EXPIRES: f"{ends:%Y-%m-%dT%H:%M:%SZ}", **config.tags}
    tags = [{"key": key, "value": value} for key, value in own.items()]
    # Ends by itself whoever has forgotten it: the container's only process ends, and with it the task.
    limit = ["timeout", "--signal=TERM", "--kill-after=30", str(int(config.ttl_hours * 3600))]
    dials = "--connect" in words  # one that dials out listens nowhere
    secrets = [{"name": SECRET_VARIABLE if words[0] == "relay" else TOKEN_VARIABLE, "valueFrom": config.token_secret}]
    if config.tls_secret and not dials:
        secrets.append({"name": PEM_VARIABLE, "valueFrom": config.tls_secret})
    container: dict[str, Any] = {
        "name": "host",
        "image": config.image_uri,
        "essential": True,
        "memory": config.memory_mb,
        "entryPoint": [*limit, "python", "-m", "agentgpt_remote"],
        "command": [word for word in words if word != _INSECURE or config.tls_secret is None],
        "portMappings": [{"containerPort": PORT, "protocol": "tcp"}],
        "secrets": secrets,
        "environment": [{"name": name, "value": value} for name, value in trust_variables().items()],
        "user": "10001",
        "readonlyRootFilesystem": False,
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": LOG_GROUP,
                "awslogs-region": region,
                "awslogs-stream-prefix": name,
                "awslogs-create-group": "true",
            },
        },
    }
    if not dials:
        scheme, context = ("https", ", context=ssl._create_unverified_context()") if config.tls_secret else ("http", "")
        check = f"import ssl, urllib.request as r; r.urlopen('{scheme}://127.0.0.1:{PORT}/health', timeout=3{context})"
        command = ["CMD", "python", "-c", check]
        container["healthCheck"] = {"command": command, "interval": 15, "timeout": 5, "startPeriod": 60}
    definition: dict[str, Any] = {
        "family": name,
        "networkMode": "awsvpc",
        "requiresCompatibilities": [config.launch_type],
        "cpu": str(config.cpu),
        "memory": str(config.memory_mb),
        "executionRoleArn": config.execution_role_arn,
        "containerDefinitions": [container],
        "tags": tags,
    }
    network = {
        "subnets": list(config.subnets),
        "securityGroups": list(config.security_group_ids),
        "assignPublicIp": "ENABLED" if config.public else "DISABLED",
    }
    task: dict[str, Any] = {
        "cluster": config.cluster,
        "taskDefinition": name,
        "count": 1,
        "networkConfiguration": {"awsvpcConfiguration": network},
        "startedBy": "agentgpt-remote",
        "tags": tags,
    }
    if config.launch_type == "FARGATE" and config.spot:
        task["capacityProviderStrategy"] = [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    else:
        task["launchType"] = config.launch_type
    return [
        Request(service="ecs", operation="RegisterTaskDefinition", arguments=definition),
        Request(service="ecs", operation="RunTask", arguments=task),
    ]


class CloudHost:
    """A host that runs on ECS; it goes on when this process ends, until it is closed or its time is over.

    Attributes:
        url: where it is reached: within its VPC, or its public address.
        name: its name.
        task_arn: of its task.
    """

    def __init__(self, aws: Aws, cluster: str, name: str, task_arn: str, url: str) -> None:
        self._aws, self._cluster = aws, cluster
        self.name, self.task_arn, self.url = name, task_arn, url

    def close(self) -> None:
        """End the host and wait until its task has stopped; a second call does nothing.

        Raises:
            RemoteTimeout: it did not stop in time.
        """
        if self.task_arn:
            stop_host(self._aws, self._cluster, self.name, self.task_arn)
            self.task_arn = ""


def launch_host(
    config: CloudHostConfig,
    words: Sequence[str],
    *,
    base_name: str = "host",
    timeout_s: float = _START_TIMEOUT_S,
    on_status: Callable[[str], None] | None = None,
) -> CloudHost:
    """Start a host and wait until it runs.

    Args:
        config: how it runs.
        words: what the image is told.
        base_name: of the host; the time is added.
        timeout_s: seconds until it must run.
        on_status: called with ECS's status each time it was looked up.

    Raises:
        ConfigError: AWS refuses a request.
        CloudError: it did not start; what was made is gone, or the text says what is left.
        RemoteTimeout: it did not start in time; likewise.
    """
    aws, name = Aws(config.region), unique_name(base_name)
    definition, task = host_requests(config, words, name, aws.region)
    client = aws.client("ecs")
    with explained(f"make the cluster {config.cluster}"):
        client.create_cluster(clusterName=config.cluster, capacityProviders=["FARGATE", "FARGATE_SPOT"])
    aws.send(definition, f"register the task of {name}")
    task_arn = ""
    try:
        answer = aws.send(task, f"start {name}")
        if not answer["tasks"]:
            reasons = [str(failure.get("reason")) for failure in answer.get("failures", ())]
            raise CloudError(f"ECS did not start {name}: {', '.join(reasons) or 'no reason given'}")
        task_arn = str(answer["tasks"][0]["taskArn"])
        url = _await_running(aws, config, name, task_arn, timeout_s, on_status)
    except BaseException:
        if task_arn:
            stop_host(aws, config.cluster, name, task_arn, wait_s=0.0)
        else:
            _forget_definition(aws, name)
        raise
    return CloudHost(aws, config.cluster, name, task_arn, url)


def _await_running(
    aws: Aws,
    config: CloudHostConfig,
    name: str,
    task_arn: str,
    timeout_s: float,
    on_status: Callable[[str], None] | None,
) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        task = _describe(aws, config.cluster, task_arn)
        status = str(task["lastStatus"])
        if on_status is not None:
            on_status(status)
        if status == "RUNNING":
            scheme = "ws" if config.tls_secret is None else "wss"
            return f"{scheme}://{_address(aws, task, public=config.public)}:{PORT}"
        if status in ("STOPPED", "DEPROVISIONING"):
            reason = task.get("stoppedReason", "ECS gives no reason")
            raise CloudError(f"{name} has stopped: {reason}; its log is in {LOG_GROUP}")
        if time.monotonic() > deadline:
            raise RemoteTimeout(f"{name} is still {status} after {timeout_s:.0f} s")
        time.sleep(_REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S)


def _describe(aws: Aws, cluster: str, task_arn: str) -> dict[str, Any]:
    with explained(f"look up the task {task_arn}"):
        tasks = aws.client("ecs").describe_tasks(cluster=cluster, tasks=[task_arn])["tasks"]
    if not tasks:
        raise CloudError(f"the task {task_arn} is gone")
    return dict(tasks[0])


def _address(aws: Aws, task: Mapping[str, Any], *, public: bool) -> str:
    details = {
        entry["name"]: entry["value"]
        for attachment in task.get("attachments", ())
        for entry in attachment.get("details", ())
    }
    if not public:
        return str(details["privateIPv4Address"])
    with explained("look up the host's public address"):
        found = aws.client("ec2").describe_network_interfaces(NetworkInterfaceIds=[details["networkInterfaceId"]])
    association = found["NetworkInterfaces"][0].get("Association", {})
    if "PublicIp" not in association:
        raise CloudError("the host has no public address: its subnet needs a route to an internet gateway")
    return str(association["PublicIp"])


def stop_host(aws: Aws, cluster: str, name: str, task_arn: str, *, wait_s: float = 180.0) -> None:
    """End a host's task and forget its definition.

    Raises:
        RemoteTimeout: it did not stop in time.
    """
    with explained(f"stop the task {task_arn}"):
        aws.client("ecs").stop_task(cluster=cluster, task=task_arn, reason="closed by agentgpt")
    _forget_definition(aws, name)
    deadline = time.monotonic() + wait_s
    while wait_s and _describe(aws, cluster, task_arn)["lastStatus"] != "STOPPED":
        if time.monotonic() > deadline:
            raise RemoteTimeout(f"{name} has not stopped after {wait_s:.0f} s; AWS goes on with it")
        time.sleep(_REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S)


def running_hosts(aws: Aws, cluster: str) -> list[dict[str, Any]]:
    """Return the tasks of this package's hosts that run in a cluster, as ECS describes them; none without a cluster.

    Raises:
        AuthError: the credentials may not look.
    """
    client = aws.client("ecs")
    with explained(f"list the hosts in the cluster {cluster}"):
        try:
            pages = client.get_paginator("list_tasks").paginate(cluster=cluster, desiredStatus="RUNNING")
            arns = [arn for page in pages for arn in page["taskArns"]]
        except client.exceptions.ClusterNotFoundException:
            return []
        groups = [arns[first : first + 100] for first in range(0, len(arns), 100)]
        answers = [client.describe_tasks(cluster=cluster, tasks=group, include=["TAGS"]) for group in groups]
    tasks = [dict(task) for answer in answers for task in answer["tasks"]]
    return [task for task in tasks if host_name(task)]


def size_of(aws: Aws, task: Mapping[str, Any]) -> tuple[int, int]:
    """Return a host's 1/1024 cores and MiB by its task."""
    with explained(f"look up the task definition of {host_name(task)}"):
        told = aws.client("ecs").describe_task_definition(taskDefinition=task["taskDefinitionArn"])["taskDefinition"]
    return int(told.get("cpu") or 0), int(told.get("memory") or 0)


def find_host(aws: Aws, name: str, cluster: str = CLUSTER) -> CloudHost | None:
    """Return a host that runs, or None where there is none of that name or the credentials may not look."""
    try:
        tasks = running_hosts(aws, cluster)
    except AuthError:
        return None
    for task in tasks:
        if host_name(task) == name:
            return CloudHost(aws, cluster, name, str(task["taskArn"]), "")
    return None


def host_name(task: Mapping[str, Any]) -> str:
    """Return the name of a host by its task, or an empty text for a task that is none of this package's."""
    tags = {tag["key"]: tag["value"] for tag in task.get("tags", ())}
    return str(tags.get(RUN, "")) if CREATED_BY in tags else ""


def _forget_definition(aws: Aws, name: str) -> None:
    with explained(f"forget the task definition {name}"):
        aws.client("ecs").deregister_task_definition(taskDefinition=f"{name}:1")


def serve_words(source: str, num_envs: int | None = None, connect: str | None = None) -> list[str]:
    """Return what a host's image is told.

    Args:
        source: what it serves.
        num_envs: environments that it offers in all.
        connect: URL of a relay that it dials out to, instead of listening for trainers.
    """
    words = ["serve", source, *([] if num_envs is None else ["--num-envs", str(num_envs)])]
    if connect is not None:
        return [*words, "--connect", connect]
    return [*words, "--host", "0.0.0.0", "--port", str(PORT), _INSECURE]


def relay_words() -> list[str]:
    """Return what the image of a relay is told."""
    return ["relay", "--host", "0.0.0.0", "--port", str(PORT), _INSECURE]


def launch_environment(
    source: str, config: CloudHostConfig, *, num_envs: int | None = None, connect: str | None = None
) -> CloudHost:
    """Start a host of an environment; see :meth:`agentgpt_remote.EnvLauncher.launch_on_cloud`."""
    if not isinstance(config, CloudHostConfig):
        raise ConfigError(f"config is a {type(config).__name__}: expected a CloudHostConfig")
    if not isinstance(source, str):
        raise ConfigError(f"a {type(source).__name__} can't be put into an image: expected an id or module:factory")
    return launch_host(config, serve_words(source, num_envs, connect), base_name=source)
