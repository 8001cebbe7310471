"""The OpenAPI description of the REST interface, made from its operations and their messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agentgpt_remote._version import __version__
from agentgpt_remote.server.rest_messages import (
    MAX_BODY_BYTES,
    SECRET_HEADER,
    Health,
    MadeSession,
    MakeRequest,
    Problem,
    Refused,
    RenderReply,
    ResetReply,
    ResetRequest,
    SessionInfo,
    Spaces,
    StepReply,
    StepRequest,
)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        name: operation id; of the handler too.
        method: HTTP method.
        path: with ``{session_id}`` where it is about a session.
        summary: what it does.
        status: of success.
        reply: body of success, ``None`` for none.
        request: body of the request, ``None`` for none.
        errors: other statuses.
    """

    name: str
    method: str
    path: str
    summary: str
    status: int = 200
    reply: type[msgspec.Struct] | None = None
    request: type[msgspec.Struct] | None = None
    errors: tuple[int, ...] = ()


_SESSION: Final = "/v1/sessions/{session_id}"
_ENV: Final = (404, 500, 503, 504)
_BODY: Final = (400, 408, 413, 415, 422)
OPERATIONS: Final = (
    Operation(
        name="make",
        method="POST",
        path="/v1/sessions",
        summary="Make environments in a session of their own.",
        status=201,
        reply=MadeSession,
        request=MakeRequest,
        errors=(*_BODY, *_ENV, 409, 429),
    ),
    Operation(
        name="inspect",
        method="GET",
        path=_SESSION,
        summary="Tell what a session holds and which sequence number is next.",
        reply=SessionInfo,
        errors=(404,),
    ),
    Operation(
        name="close",
        method="DELETE",
        path=_SESSION,
        summary="Close the environments and end the session.",
        status=204,
        errors=_ENV,
    ),
    Operation(
        name="spaces",
        method="GET",
        path=f"{_SESSION}/spaces",
        summary="Describe the observation and action spaces.",
        reply=Spaces,
        errors=(404,),
    ),
    Operation(
        name="reset",
        method="POST",
        path=f"{_SESSION}/reset",
        summary="Begin new episodes.",
        reply=ResetReply,
        request=ResetRequest,
        errors=(*_BODY, *_ENV, 409),
    ),
    Operation(
        name="step",
        method="POST",
        path=f"{_SESSION}/step",
        summary="Take one step.",
        reply=StepReply,
        request=StepRequest,
        errors=(*_BODY, *_ENV, 409),
    ),
    Operation(
        name="render",
        method="GET",
        path=f"{_SESSION}/render",
        summary="Render the environments in the render mode that they were made with.",
        reply=RenderReply,
        errors=(*_ENV, 409),
    ),
)
_HEALTH: Final = Operation(
    name="health", method="GET", path="/health", summary="Tell that the host is alive; needs no token.", reply=Health
)
_AT_THE_DOOR: Final = (401, 403)
_REASONS: Final = {
    400: "The body is not JSON, or nested too deeply.",
    401: "A token is missing or wrong.",
    403: "The session's secret is missing or wrong, or this host without a token takes local requests only.",
    404: "There is no such session (any more), or the host serves another environment.",
    408: "The body did not arrive in time.",
    409: "The environment can't take it: a step before a reset, an action outside its space, arguments that it "
    "refuses, or a sequence number that is not the next.",
    413: f"The body is over the limit: {MAX_BODY_BYTES} bytes, or the host's max_frame_bytes where that is less.",
    415: "The content type is not application/json.",
    422: "The body does not match this description.",
    429: "The host is at its limit, which the message names.",
    500: "The environment raised an error.",
    503: "The host is shutting down.",
    504: "The environment took longer than the host's step_timeout_s; its session has ended where it hangs.",
}


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description."""
    bodies = [kind for operation in (*OPERATIONS, _HEALTH) for kind in (operation.request, operation.reply) if kind]
    kinds: list[type[msgspec.Struct]] = [*dict.fromkeys(bodies), Problem, Refused]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    refs = dict(zip(kinds, schemas, strict=True))
    problems = {
        str(status): {"description": reason, "content": _json(refs[Refused if status in _AT_THE_DOOR else Problem])}
        for status, reason in _REASONS.items()
    }
    paths: dict[str, dict[str, Any]] = {}
    for operation in (*OPERATIONS, _HEALTH):
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentgpt-remote environment host",
            "version": __version__,
            "description": "Gymnasium environments over HTTP. Floats that are not finite are the strings "
            '"NaN", "Infinity" and "-Infinity".',
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": problems,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The host's token. A host that was started without one needs none.",
                }
            },
        },
        "security": [{}, {"token": []}],
    }


def _describe(operation: Operation, refs: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    reply: dict[str, Any] = {"description": "Success."}
    if operation.reply is not None:
        reply["content"] = _json(refs[operation.reply])
    if operation.reply is MadeSession:
        parameters = {
            "path.session_id": "$response.body#/session_id",
            f"header.{SECRET_HEADER}": "$response.body#/secret",
        }
        others = [other.name for other in OPERATIONS if _SESSION in other.path]
        reply["links"] = {name: {"operationId": name, "parameters": parameters} for name in others}
    errors = sorted((*operation.errors, *(() if operation is _HEALTH else _AT_THE_DOOR)))
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(operation.status): reply}
        | {str(status): {"$ref": f"#/components/responses/{status}"} for status in errors},
    }
    if "{session_id}" in operation.path:
        secret = {"type": "string", "description": "What make answered as secret."}
        described["parameters"] = [
            {"name": "session_id", "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": SECRET_HEADER, "in": "header", "required": True, "schema": secret},
        ]
    if operation.request is not None:
        required = any(field.required for field in msgspec.structs.fields(operation.request))
        described["requestBody"] = {"required": required, "content": _json(refs[operation.request])}
    if operation is _HEALTH:
        described["security"] = []
    return described


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
