"""Endpoints: made or reused, rolled back where they fail, and never without an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from agentgpt_remote.cloud.aws import Aws, error_code, explained
from agentgpt_remote.cloud.checks import check_deployment, require
from agentgpt_remote.cloud.config import SageMakerConfig, check_config
from agentgpt_remote.cloud.requests import Request, deployment_requests, expiry_name, unique_name
from agentgpt_remote.errors import AgentGPTError, CloudError, RemoteTimeout

_POLL_S, _REHEARSED_POLL_S = 10.0, 0.2
_TIMEOUT_S = 1800.0
# What undoes a request: service, method, and the argument that takes the name.
_UNDO = {
    "CreateModel": ("sagemaker", "delete_model", "ModelName"),
    "CreateEndpointConfig": ("sagemaker", "delete_endpoint_config", "EndpointConfigName"),
    "CreateSchedule": ("scheduler", "delete_schedule", "Name"),
    "CreateEndpoint": ("sagemaker", "delete_endpoint", "EndpointName"),
}
_READY, _COMING = ("InService",), ("Creating", "Updating", "SystemUpdating", "RollingBack")


def deploy(
    config: SageMakerConfig,
    name: str | None = None,
    *,
    on_status: Callable[[str], None] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """Return the name of an endpoint that is in service: an existing one, or one that is made.

    Args:
        config: where and on what.
        name: of the endpoint; that of the configuration, or a made-up one, by default.
        on_status: called with SageMaker's status each time it was looked up.
        timeout_s: seconds until it must be in service.

    Raises:
        ConfigError: a field is missing, or AWS refuses a request.
        CloudError: the endpoint failed; what was made is deleted, or the text says what is left.
        RemoteTimeout: it did not come in time; likewise.
        KeyboardInterrupt: with a text that says what keeps running, and how to end it.
    """
    check_config(config)
    aws = Aws(config.region)
    name = name or config.endpoint_name
    found = None if name is None else endpoint_status(aws, name)
    if name is not None and found is not None:
        if found not in (*_READY, *_COMING):
            raise CloudError(
                f"endpoint {name} is {found}: delete it with `agentgpt cloud stop {name}`, or name another one"
            )
        _await(aws, name, on_status, timeout_s)
        return name
    name = name or unique_name("policy")
    requests = deployment_requests(config, name)
    require(check_deployment(aws, config))
    made: list[Request] = []
    try:
        for request in requests:
            aws.send(request, f"make the {request.operation.removeprefix('Create').lower()} of endpoint {name}")
            made.append(request)
        _await(aws, name, on_status, timeout_s)
    except KeyboardInterrupt:
        if len(made) == len(requests):
            raise
        _roll_back(aws, made)
        raise
    except AgentGPTError as error:
        left = _roll_back(aws, made)
        if left:
            raise type(error)(f"{error}. Still there: {left}; `agentgpt cloud stop {name}` removes it") from error
        raise
    return name


def endpoint_status(aws: Aws, name: str) -> str | None:
    """Return an endpoint's status, or None where there is no such endpoint."""
    told = _describe(aws, name)
    return None if told is None else str(told["EndpointStatus"])


def _describe(aws: Aws, name: str) -> dict[str, Any] | None:
    client = aws.client("sagemaker")
    with explained(f"look up the endpoint {name}"):
        try:
            return dict(client.describe_endpoint(EndpointName=name))
        except ClientError as error:
            if error_code(error) == "ValidationException" and "not find" in str(error):
                return None
            raise


def _await(aws: Aws, name: str, on_status: Callable[[str], None] | None, timeout_s: float) -> None:
    """Wait until an endpoint is in service."""
    deadline = time.monotonic() + timeout_s
    poll_s = _REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S
    try:
        while True:
            told = _describe(aws, name)
            status = "Deleted" if told is None else str(told["EndpointStatus"])
            if on_status is not None:
                on_status(status)
            if status in _READY:
                return
            if status not in _COMING:
                reason = "" if told is None else told.get("FailureReason", "")
                raise CloudError(f"endpoint {name} is {status}: {reason or 'SageMaker gives no reason'}")
            if time.monotonic() > deadline:
                raise RemoteTimeout(f"endpoint {name} is still {status} after {timeout_s:.0f} s")
            time.sleep(poll_s)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"endpoint {name} goes on being made, and is paid for until it expires: `agentgpt cloud stop {name}` "
            "ends it"
        ) from None


def _roll_back(aws: Aws, made: list[Request]) -> str:
    """Delete what was made, the last first; return what could not be deleted."""
    left: list[str] = []
    for request in reversed(made):
        service, method, argument = _UNDO[request.operation]
        if left:
            break  # the endpoint is still there: its expiry and what it is made of must be, too
        try:
            getattr(aws.client(service), method)(**{argument: request.arguments[argument]})
        except (ClientError, BotoCoreError) as error:
            left.append(f"{request.operation.removeprefix('Create')} {request.arguments[argument]} ({error})")
    return ", ".join(left)


def _wait_until_deletable(aws: Aws, name: str, timeout_s: float) -> None:
    """Wait while an endpoint is being made or changed: SageMaker deletes none in that time."""
    deadline = time.monotonic() + timeout_s
    while endpoint_status(aws, name) in _COMING:
        if time.monotonic() > deadline:
            raise RemoteTimeout(
                f"endpoint {name} is still being made after {timeout_s:.0f} s, and can't be deleted until it is there; "
                "try again later, or leave it to its expiry"
            )
        time.sleep(_REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S)


def tear_down(aws: Aws, name: str, *, timeout_s: float = 900.0) -> list[str]:
    """Delete an endpoint with its configuration, its model and its schedule, and wait until it is gone.

    Returns:
        What was deleted.

    Raises:
        CloudError: there is nothing of that name, or something could not be deleted.
        RemoteTimeout: it is still being made, or still being deleted, after that time.
    """
    deleted = []
    _wait_until_deletable(aws, name, timeout_s)
    for service, method, argument, value in (
        ("sagemaker", "delete_endpoint", "EndpointName", name),
        ("sagemaker", "delete_endpoint_config", "EndpointConfigName", name),
        ("sagemaker", "delete_model", "ModelName", name),
        ("scheduler", "delete_schedule", "Name", expiry_name(name)),
    ):
        with explained(f"{method.replace('_', ' ')} {value}"):
            try:
                getattr(aws.client(service), method)(**{argument: value})
            except ClientError as error:
                if "not find" in str(error) or error_code(error) == "ResourceNotFoundException":
                    continue
                raise
        deleted.append(f"{method.removeprefix('delete_').replace('_', ' ')} {value}")
    if not deleted:
        raise CloudError(f"there is no endpoint {name!r} in {aws.region}; `agentgpt cloud status` lists what there is")
    deadline = time.monotonic() + timeout_s
    while endpoint_status(aws, name) is not None:
        if time.monotonic() > deadline:
            raise RemoteTimeout(f"endpoint {name} is still being deleted after {timeout_s:.0f} s; AWS goes on with it")
        time.sleep(_REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S)
    return deleted
