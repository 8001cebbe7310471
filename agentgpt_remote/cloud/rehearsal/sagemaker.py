"""A stand-in for SageMaker's and the scheduler's APIs over real HTTP, as strict as their service models.

boto3 is pointed at it by ``AWS_ENDPOINT_URL_SAGEMAKER``, ``..._SAGEMAKER_RUNTIME``, ``..._SCHEDULER`` and
``..._SERVICE_QUOTAS``.
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

from agentgpt_remote.cloud.rehearsal.control_plane import ControlPlane, Refusal
from agentgpt_remote.cloud.rehearsal.endpoints import Endpoint
from agentgpt_remote.cloud.rehearsal.surroundings import ACCOUNT, Surroundings
from agentgpt_remote.cloud.strict import service_model, violations
from agentgpt_remote.serving import BackgroundServer, ServerOptions

_SESSION, _NEW = "x-amzn-sagemaker-session-id", "x-amzn-sagemaker-new-session-id"
_CLOSED = "x-amzn-sagemaker-closed-session-id"
_MAX_BODY_BYTES = 6_291_456
_INVOKE_TIMEOUT_S = 60.0
_DELETE_ENDPOINT = "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
logger = logging.getLogger("agentgpt_remote.cloud")


class SageMaker(ControlPlane):
    """The APIs, and what was made through them.

    Args:
        folder: for the containers' files.
        surroundings: the rest of AWS.
        environment: variables for the containers.

    Attributes:
        url: where it answers.
        calls: operations so far, with their requests.
        schedules: requests of CreateSchedule by name.
        refusing: code of an error that every call is answered with, such as ``"ExpiredTokenException"``.
    """

    def __init__(self, folder: Path, surroundings: Surroundings, environment: dict[str, str]) -> None:
        super().__init__(folder, surroundings, environment)
        self.schedules: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refusing: str | None = None
        self._lock = threading.RLock()
        self._ahead_s = 0.0
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
        prefix, _, operation = request.headers.get("x-amz-target", "").partition(".")
        service = "service-quotas" if prefix.startswith("ServiceQuotas") else "sagemaker"
        try:
            self._authorise(request)
            body = json.loads(await request.body() or b"{}")
            answer = await run_in_threadpool(self._perform, service, operation, body)
        except Refusal as refusal:
            return _refuse(refusal)
        return JSONResponse(answer, headers={"content-type": "application/x-amz-json-1.1"})

    def _authorise(self, request: Request) -> None:
        if self.refusing is not None:
            raise Refusal(self.refusing, "The security token included in the request is expired")
        if not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            raise Refusal("MissingAuthenticationTokenException", "Missing Authentication Token", 403)

    def _perform(self, service: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        handler: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"do_{operation}", None)
        if handler is None:
            raise Refusal("UnknownOperationException", f"the rehearsal does not know {operation}")
        _validate(service, operation, body)
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
            self.check_role(body["Target"]["RoleArn"])
            self._due(body)
            self.schedules[name] = body
            return {"ScheduleArn": f"arn:aws:scheduler:{self.surroundings.region}:{ACCOUNT}:schedule/default/{name}"}
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
        try:
            self._perform("sagemaker", "DeleteEndpoint", json.loads(schedule["Target"]["Input"]))
        except Refusal as refusal:
            logger.info("rehearsed schedule=%s %s", name, refusal)
            if "in-progress" in str(refusal):  # tried again until it can be done, as by the scheduler
                return
        if schedule.get("ActionAfterCompletion") == "DELETE":
            del self.schedules[name]

    async def _invoke(self, request: Request) -> Response:
        """Answer the runtime API: a request for one of an endpoint's machines."""
        name, body = request.path_params["name"], await request.body()
        try:
            self._authorise(request)
            endpoint = self.endpoints.get(name)
            if endpoint is None or endpoint.status not in ("InService", "Updating"):
                raise Refusal("ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
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
        home.num_requests += 1
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

    def close(self) -> None:
        """End every job and endpoint, and the server."""
        self._closing.set()
        self._clock.join(5)
        super().close()
        self._server.close()


def _validate(service: str, operation: str, body: dict[str, Any]) -> None:
    shape = service_model(service).operation_model(operation).input_shape
    faults = [] if shape is None else list(violations(shape, body))
    if faults:
        raise Refusal("ValidationException", f"{len(faults)} validation error detected: {'; '.join(faults)}")


def _refuse(refusal: Refusal) -> JSONResponse:
    fields = {"__type": refusal.code, "message": str(refusal), "Message": str(refusal)}
    return JSONResponse(fields, refusal.status, headers={"x-amzn-errortype": refusal.code})
