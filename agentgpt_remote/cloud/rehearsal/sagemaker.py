"""A stand-in for SageMaker's and the scheduler's APIs over real HTTP, as strict as their service models.

boto3 is pointed at it by ``AWS_ENDPOINT_URL_SAGEMAKER``, ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME`` and
``AWS_ENDPOINT_URL_SCHEDULER``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentgpt_remote.cloud.rehearsal.endpoints import Endpoint
from agentgpt_remote.cloud.rehearsal.jobs import TrainingJob
from agentgpt_remote.cloud.rehearsal.surroundings import Surroundings
from agentgpt_remote.cloud.storage import split_uri
from agentgpt_remote.cloud.strict import service_model, violations
from agentgpt_remote.serving import BackgroundServer, ServerOptions

_SESSION, _NEW = "x-amzn-sagemaker-session-id", "x-amzn-sagemaker-new-session-id"
_CLOSED = "x-amzn-sagemaker-closed-session-id"
_MAX_BODY_BYTES = 6_291_456
_INVOKE_TIMEOUT_S = 60.0
_DELETE_ENDPOINT = "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
logger = logging.getLogger("agentgpt_remote.cloud")


class Refusal(Exception):
    """An error that AWS would answer.

    Attributes:
        code: AWS's, such as ``"ValidationException"``.
        status: of HTTP.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class SageMaker:
    """The APIs, and what was made through them.

    Args:
        folder: for the containers' files.
        surroundings: the rest of AWS.
        environment: variables for the containers; this class adds those of its own address.

    Attributes:
        url: where it answers.
        jobs: training jobs by name.
        endpoints: by name.
        calls: operations so far, with their requests.
        quotas: machines that the account may have by instance type; no limit where a type is missing.
        refusing: code of an error that every call is answered with, such as ``"ExpiredTokenException"``.
    """

    def __init__(self, folder: Path, surroundings: Surroundings, environment: dict[str, str]) -> None:
        self.jobs: dict[str, TrainingJob] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.quotas: dict[str, int] = {}
        self.refusing: str | None = None
        self._tags: dict[str, list[dict[str, str]]] = {}
        self._folder, self._surroundings, self._environment = folder, surroundings, environment
        self._lock = threading.RLock()
        self._ahead_s, self._number = 0.0, 0
        self._closing = threading.Event()
        routes = [
            Route("/", self._json, methods=["POST"]),
            Route("/endpoints/{name}/invocations", self._invoke, methods=["POST"]),
            Route("/schedules/{name}", self._schedule, methods=["POST", "GET", "DELETE"]),
        ]
        self._server = BackgroundServer(Starlette(routes=routes, lifespan=self._lifespan), ServerOptions(port=0))
        self.url = self._server.url.replace("ws://", "http://")
        self._clock = threading.Thread(target=self._watch_schedules, name="agentgpt-rehearsal-clock", daemon=True)
        self._clock.start()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=_INVOKE_TIMEOUT_S) as self._http:
            yield

    def advance(self, hours: float) -> None:
        """Have the scheduler's clock go forward."""
        self._ahead_s += hours * 3600

    # --- the APIs' forms -------------------------------------------------------------------------------------------

    async def _json(self, request: Request) -> Response:
        """Answer SageMaker's own API: JSON 1.1, the operation in a header."""
        operation = request.headers.get("x-amz-target", "").partition(".")[2]
        try:
            self._authorise(request)
            body = json.loads(await request.body() or b"{}")
            answer = await run_in_threadpool(self._perform, operation, body)
        except Refusal as refusal:
            return _refuse(refusal)
        return JSONResponse(answer, headers={"content-type": "application/x-amz-json-1.1"})

    def _authorise(self, request: Request) -> None:
        if self.refusing is not None:
            raise Refusal(self.refusing, "The security token included in the request is expired")
        if not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            raise Refusal("MissingAuthenticationTokenException", "Missing Authentication Token", 403)

    def _perform(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        handler: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"do_{operation}", None)
        if handler is None:
            raise Refusal("UnknownOperationException", f"the rehearsal does not know {operation}")
        _validate("sagemaker", operation, body)
        with self._lock:
            self.calls.append((operation, body))
            return handler(body)

    async def _schedule(self, request: Request) -> Response:
        """Answer the scheduler's API: REST, the name in the path."""
        name, method = request.path_params["name"], request.method
        operation = {"POST": "CreateSchedule", "GET": "GetSchedule", "DELETE": "DeleteSchedule"}[method]
        try:
            self._authorise(request)
            body = json.loads(await request.body() or b"{}") | {"Name": name}
            if method == "POST":
                body.pop("ClientToken", None)
            _validate("scheduler", operation, body)
            with self._lock:
                self.calls.append((operation, body))
                return JSONResponse(self._perform_schedule(operation, name, body))
        except Refusal as refusal:
            return _refuse(refusal)

    def _perform_schedule(self, operation: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if operation == "CreateSchedule":
            if name in self.schedules:
                raise Refusal("ConflictException", f"Schedule {name} already exists.", 409)
            if body["Target"]["Arn"] != _DELETE_ENDPOINT:
                raise Refusal("ValidationException", f"Provided Arn is not in correct format: {body['Target']['Arn']}")
            self._check_role(body["Target"]["RoleArn"])
            self._due(body)
            self.schedules[name] = body
            return {
                "ScheduleArn": f"arn:aws:scheduler:{self._surroundings.region}:123456789012:schedule/default/{name}"
            }
        if name not in self.schedules:
            raise Refusal("ResourceNotFoundException", f"Schedule {name} does not exist.", 404)
        return dict(self.schedules.pop(name) if operation == "DeleteSchedule" else self.schedules[name])

    @staticmethod
    def _due(schedule: dict[str, Any]) -> float:
        text = schedule["ScheduleExpression"]
        try:
            return datetime.strptime(text, "at(%Y-%m-%dT%H:%M:%S)").replace(tzinfo=UTC).timestamp()
        except ValueError as error:
            raise Refusal("ValidationException", f"Invalid Schedule Expression {text}.") from error

    def _watch_schedules(self) -> None:
        while not self._closing.wait(0.2):
            with self._lock:
                now = time.time() + self._ahead_s
                for name, schedule in list(self.schedules.items()):
                    if self._due(schedule) <= now:
                        self._fire(name, schedule)

    def _fire(self, name: str, schedule: dict[str, Any]) -> None:
        if schedule.get("ActionAfterCompletion") == "DELETE":
            del self.schedules[name]
        try:
            self._perform("DeleteEndpoint", json.loads(schedule["Target"]["Input"]))
        except Refusal as refusal:
            logger.info("rehearsed schedule=%s %s", name, refusal)

    async def _invoke(self, request: Request) -> Response:
        """Answer the runtime API: a request for one of an endpoint's machines."""
        name, body = request.path_params["name"], await request.body()
        try:
            self._authorise(request)
            endpoint = self.endpoints.get(name)
            if endpoint is None or endpoint.status not in ("InService", "Updating"):
                raise Refusal("ValidationError", f"Endpoint {name} of account 123456789012 not found.")
            if len(body) > _MAX_BODY_BYTES:
                raise Refusal("ValidationError", "Request size limit exceeded.", 413)
            return await self._pass_on(endpoint, request, body)
        except Refusal as refusal:
            return _refuse(refusal)

    async def _pass_on(self, endpoint: Endpoint, request: Request, body: bytes) -> Response:
        session = request.headers.get(_SESSION)
        known = session if session not in (None, "NEW_SESSION") else None
        home = endpoint.home(known)
        if home is None:
            raise Refusal("ValidationError", "The session does not exist or has expired.")
        headers = {"content-type": request.headers.get("content-type", ""), **({_SESSION: session} if session else {})}
        try:
            answer = await self._http.post(f"{home.url}/invocations", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Refusal("ServiceUnavailable", f"the instance is gone: {error!r}", 503) from error
        if answer.status_code != 200:
            fields = {"Message": answer.text, "OriginalStatusCode": answer.status_code}
            return JSONResponse(fields, 424, headers={"x-amzn-errortype": "ModelError"})
        passed = {key: answer.headers[key] for key in (_NEW, _CLOSED, "content-type") if key in answer.headers}
        if _NEW in passed:
            endpoint.remember(passed[_NEW].partition(";")[0], home)
        if _CLOSED in passed:
            endpoint.forget(passed[_CLOSED])
        return Response(answer.content, headers=passed)

    # --- training jobs ---------------------------------------------------------------------------------------------

    def do_CreateTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start a job."""
        name, resources = body["TrainingJobName"], body["ResourceConfig"]
        if name in self.jobs:
            raise Refusal("ResourceInUse", "Training job names must be unique within an AWS account and region")
        self._check_role(body["RoleArn"])
        self._check_bucket(body["OutputDataConfig"]["S3OutputPath"])
        if body.get("EnableManagedSpotTraining") and "MaxWaitTimeInSeconds" not in body["StoppingCondition"]:
            raise Refusal("ValidationException", "MaxWaitTimeInSeconds must be set for managed spot training")
        in_use = sum(
            job.request["ResourceConfig"]["InstanceCount"]
            for job in self.jobs.values()
            if not job.ended and job.request["ResourceConfig"]["InstanceType"] == resources["InstanceType"]
        )
        self._check_quota(resources["InstanceType"], "training job", in_use, resources["InstanceCount"])
        self.jobs[name] = TrainingJob(body, self._new_folder(), self._surroundings, self._variables())
        arn = self.jobs[name].describe()["TrainingJobArn"]
        self._tags[arn] = body.get("Tags", [])
        return {"TrainingJobArn": arn}

    def do_DescribeTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of a job."""
        return self._job(body).describe()

    def do_StopTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a job to end."""
        job = self._job(body)
        if job.status not in ("InProgress", "Stopping"):
            raise Refusal(
                "ValidationException", f"The request was rejected because the training job is in status {job.status}."
            )
        job.stop()
        return {}

    def do_ListTrainingJobs(self, body: dict[str, Any]) -> dict[str, Any]:
        """List jobs, the newest first."""
        found = [
            {
                key: told[key]
                for key in (
                    "TrainingJobName",
                    "TrainingJobArn",
                    "CreationTime",
                    "LastModifiedTime",
                    "TrainingJobStatus",
                )
            }
            for told in (job.describe() for job in reversed(self.jobs.values()))
            if body.get("NameContains", "") in told["TrainingJobName"]
            and body.get("StatusEquals", told["TrainingJobStatus"]) == told["TrainingJobStatus"]
        ]
        return {"TrainingJobSummaries": found[: body.get("MaxResults", 100)]}

    def _job(self, body: dict[str, Any]) -> TrainingJob:
        if body["TrainingJobName"] not in self.jobs:
            raise Refusal("ValidationException", "Requested resource not found.")
        return self.jobs[body["TrainingJobName"]]

    # --- models and endpoints --------------------------------------------------------------------------------------

    def do_CreateModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keep a model."""
        name = body["ModelName"]
        if name in self.models:
            raise Refusal("ValidationException", f'Cannot create already existing model "{self._arn("model", name)}".')
        self._check_role(body["ExecutionRoleArn"])
        self.models[name] = body
        self._tags[self._arn("model", name)] = body.get("Tags", [])
        return {"ModelArn": self._arn("model", name)}

    def do_DescribeModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of a model."""
        name = body["ModelName"]
        if name not in self.models:
            raise Refusal("ValidationException", f'Could not find model "{self._arn("model", name)}".')
        kept = {key: value for key, value in self.models[name].items() if key != "Tags"}
        return kept | {"ModelArn": self._arn("model", name), "CreationTime": time.time()}

    def do_DeleteModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Forget a model."""
        self.do_DescribeModel(body)
        del self.models[body["ModelName"]]
        return {}

    def do_CreateEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keep an endpoint configuration."""
        name = body["EndpointConfigName"]
        if name in self.configs:
            raise Refusal(
                "ValidationException",
                f'Cannot create already existing endpoint configuration "{self._arn("endpoint-config", name)}".',
            )
        for variant in body["ProductionVariants"]:
            self.do_DescribeModel({"ModelName": variant["ModelName"]})
        self.configs[name] = body
        return {"EndpointConfigArn": self._arn("endpoint-config", name)}

    def do_DescribeEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of an endpoint configuration."""
        name = body["EndpointConfigName"]
        if name not in self.configs:
            where = self._arn("endpoint-config", name)
            raise Refusal("ValidationException", f'Could not find endpoint configuration "{where}".')
        kept = {key: value for key, value in self.configs[name].items() if key != "Tags"}
        return kept | {"EndpointConfigArn": self._arn("endpoint-config", name), "CreationTime": time.time()}

    def do_DeleteEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Forget an endpoint configuration."""
        self.do_DescribeEndpointConfig(body)
        del self.configs[body["EndpointConfigName"]]
        return {}

    def do_CreateEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """Deploy an endpoint."""
        name, arn = body["EndpointName"], self._arn("endpoint", body["EndpointName"])
        self._bury()
        if name in self.endpoints:
            raise Refusal("ValidationException", f'Cannot create already existing endpoint "{arn}".')
        self.do_DescribeEndpointConfig(body)
        config = self.configs[body["EndpointConfigName"]]
        variant = config["ProductionVariants"][0]
        in_use = sum(
            len(endpoint.instances)
            for endpoint in self.endpoints.values()
            if endpoint.config["ProductionVariants"][0]["InstanceType"] == variant["InstanceType"]
        )
        self._check_quota(variant["InstanceType"], "endpoint", in_use, variant["InitialInstanceCount"])
        self.endpoints[name] = Endpoint(
            name, config, self.models, self._new_folder(), self._surroundings, self._variables()
        )
        self._tags[arn] = body.get("Tags", [])
        return {"EndpointArn": arn}

    def do_DescribeEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of an endpoint."""
        self._bury()
        name = body["EndpointName"]
        if name not in self.endpoints:
            raise Refusal("ValidationException", f'Could not find endpoint "{self._arn("endpoint", name)}".')
        return self.endpoints[name].describe()

    def do_DeleteEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """End an endpoint."""
        self.do_DescribeEndpoint(body)
        self.endpoints[body["EndpointName"]].delete()
        return {}

    def do_ListEndpoints(self, body: dict[str, Any]) -> dict[str, Any]:
        """List endpoints."""
        self._bury()
        found = [
            {
                key: told[key]
                for key in ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
            }
            for told in (endpoint.describe() for endpoint in self.endpoints.values())
            if body.get("NameContains", "") in told["EndpointName"]
        ]
        return {"Endpoints": found[: body.get("MaxResults", 100)]}

    def do_ListTags(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell the tags of something."""
        return {"Tags": self._tags.get(body["ResourceArn"], [])}

    def _bury(self) -> None:
        self.endpoints = {name: endpoint for name, endpoint in self.endpoints.items() if not endpoint.gone}

    # --- what AWS checks -------------------------------------------------------------------------------------------

    def _check_role(self, arn: str) -> None:
        if not self._surroundings.has_role(arn):
            raise Refusal(
                "ValidationException",
                f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role.",
            )

    def _check_bucket(self, uri: str) -> None:
        bucket, _ = split_uri(uri)
        client = self._surroundings.client("s3")
        try:
            client.head_bucket(Bucket=bucket)
        except client.exceptions.ClientError as error:
            raise Refusal("ValidationException", f"The S3 bucket {bucket} in S3OutputPath does not exist.") from error

    def _check_quota(self, instance_type: str, kind: str, in_use: int, wanted: int) -> None:
        limit = self.quotas.get(instance_type)
        if limit is not None and in_use + wanted > limit:
            raise Refusal(
                "ResourceLimitExceeded",
                f"The account-level service limit '{instance_type} for {kind} usage' is {limit} Instances, with "
                f"current utilization of {in_use} Instances and a request delta of {wanted} Instances.",
            )

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self._surroundings.region}:123456789012:{kind}/{name}"

    def _variables(self) -> dict[str, str]:
        return {**self._environment, "AWS_ENDPOINT_URL_SAGEMAKER": self.url}

    def _new_folder(self) -> Path:
        self._number += 1
        return self._folder / f"run-{self._number}"

    def close(self) -> None:
        """End every job and endpoint, and the server."""
        self._closing.set()
        self._clock.join(5)
        for endpoint in list(self.endpoints.values()):
            endpoint.delete()
        for job in self.jobs.values():
            job.close()
        for endpoint in list(self.endpoints.values()):
            endpoint.close()
        self._server.close()


def _validate(service: str, operation: str, body: dict[str, Any]) -> None:
    shape = service_model(service).operation_model(operation).input_shape
    faults = [] if shape is None else list(violations(shape, body))
    if faults:
        raise Refusal("ValidationException", f"{len(faults)} validation error detected: {'; '.join(faults)}")


def _refuse(refusal: Refusal) -> JSONResponse:
    fields = {"__type": refusal.code, "message": str(refusal), "Message": str(refusal)}
    return JSONResponse(fields, refusal.status, headers={"x-amzn-errortype": refusal.code})
