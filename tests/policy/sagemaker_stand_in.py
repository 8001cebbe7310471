"""A stand-in for SageMaker's runtime API in front of policy servers: `POST /endpoints/NAME/invocations`."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentgpt_remote.serving import BackgroundServer, ServerOptions

_SESSION, _NEW = "x-amzn-sagemaker-session-id", "x-amzn-sagemaker-new-session-id"
_CLOSED = "x-amzn-sagemaker-closed-session-id"
_MAX_BODY_BYTES = 6_291_456


class SageMakerStandIn:
    """Endpoints by name, each of some instances, with sticky sessions.

    Attributes:
        url: for ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME``.
        doubled: apply each request twice, as a retry of a client whose reply was lost would.
        calls: requests so far.
    """

    def __init__(self) -> None:
        self._instances: dict[str, list[str]] = {}
        self._homes: dict[str, str] = {}
        self._tokens: dict[str, dict[str, str]] = {}
        self.doubled = False
        self.calls = 0
        route = Route("/endpoints/{name}/invocations", self._invoke, methods=["POST"])
        app = Starlette(routes=[route], lifespan=self._lifespan)
        self._server = BackgroundServer(app, ServerOptions(port=0))
        self.url = self._server.url.replace("ws://", "http://")

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=30) as self._client:
            yield

    def deploy(self, name: str, *urls: str, token: str = "") -> None:
        """Have an endpoint of these instances, which want a token."""
        self._tokens[name] = {"authorization": f"Bearer {token}"} if token else {}
        self._instances[name] = [url.replace("ws://", "http://") for url in urls]

    def rename_sessions(self, change: Callable[[str], str]) -> None:
        """Lose the homes of all sessions, as when instances are replaced."""
        self._homes = {change(session): home for session, home in self._homes.items()}

    async def _invoke(self, request: Request) -> Response:
        self.calls += 1
        body, name = await request.body(), request.path_params["name"]
        if not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            return _error(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        if name not in self._instances:
            return _error(400, "ValidationError", f"Endpoint {name} of account 123456789012 not found.")
        if len(body) > _MAX_BODY_BYTES:
            return _error(413, "ValidationError", "Request size limit exceeded.")
        session = request.headers.get(_SESSION)
        instances = self._instances[name]
        home = secrets.choice(instances)
        if session not in (None, "NEW_SESSION"):
            home = self._homes.get(str(session), "")
            if home not in instances:
                return _error(400, "ValidationError", "The session does not exist or has expired.")
        headers = {
            "content-type": request.headers["content-type"],
            **({_SESSION: session} if session else {}),
            **self._tokens[name],
        }
        try:
            for _ in range(2 if self.doubled and session != "NEW_SESSION" else 1):
                answer = await self._client.post(f"{home}/invocations", content=body, headers=headers)
        except httpx.HTTPError:
            return _error(503, "ServiceUnavailable", "the instance is gone")
        if answer.status_code != 200:
            return _error(424, "ModelError", answer.text, OriginalStatusCode=answer.status_code)
        passed = {key: answer.headers[key] for key in (_NEW, _CLOSED, "content-type") if key in answer.headers}
        if _NEW in passed:
            self._homes[passed[_NEW].partition(";")[0]] = home
        return Response(answer.content, headers=passed)

    def close(self) -> None:
        self._server.close()


def _error(status: int, code: str, message: str, **fields: object) -> JSONResponse:
    return JSONResponse({"Message": message, **fields}, status, headers={"x-amzn-errortype": code})
