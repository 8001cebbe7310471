"""``POST /invocations``: acting by HTTP, for people and for SageMaker.

The request is a JSON object::

    {"observations": [...],            one observation per agent, nested lists; dict and tuple spaces as
                                       objects and lists
     "agent_ids": ["a", "b"],          optional; "0", "1", ... by default
     "terminated_agent_ids": ["a"],    optional: agents whose episode has ended
     "deterministic": true,             optional
     "action_masks": [[1, 0], null]}   optional: what each agent may do; null allows everything

and the answer ``{"actions": [...], "agent_ids": [...]}``, one action per agent. Without a session each
request begins with empty memories. ``X-Amzn-SageMaker-Session-Id: NEW_SESSION`` opens a session; the
answer's header ``X-Amzn-SageMaker-New-Session-Id`` names it, and later requests with that id go on where
it left off. An error is ``{"error": text}`` with status 400 (413 for a body over the limit).

For speed, a body of type ``application/octet-stream`` is one request of the WebSocket's
(:mod:`agentgpt_remote.policy.wire`) and its answer that request's reply. In a session, a request whose
number is the last one's is answered once more and not executed again.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import AgentGPTError, InvalidObservation, UnknownAgent
from agentgpt_remote.jsonable import from_json, to_json
from agentgpt_remote.policy.bundle import Bundle
from agentgpt_remote.policy.engine import AgentTable, PolicyEngine
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import batch_observations, first_of
from agentgpt_remote.policy.wire import FAILED, PolicySession, check_ended, check_ids, pack_failure, unpack_frame

SESSION_HEADER = "x-amzn-sagemaker-session-id"
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
MAX_SESSIONS = 1024
SESSION_LIFETIME_S = 3600.0
JSON, BINARY = "application/json", "application/octet-stream"

Answer = tuple[int, bytes, dict[str, str]]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    observations: list[Any]
    agent_ids: list[str] | None = None
    terminated_agent_ids: list[str] = []
    deterministic: bool = True
    action_masks: list[Any] | None = None


class Invocations:
    """Answers HTTP requests, in sessions; the least recently used one makes room for a new one.

    Args:
        engine: shared with all other sessions.
        bundle: the policy.
        layouts: of the observation and of the action space.
    """

    max_body_bytes = 6_291_456  # SageMaker's limit

    def __init__(self, engine: PolicyEngine, bundle: Bundle, layouts: tuple[Layout, Layout]) -> None:
        self._engine, self._bundle, self._layouts = engine, bundle, layouts
        self._masks = ActionMasks(bundle.model.actions)
        self._sessions: OrderedDict[str, tuple[PolicySession, float]] = OrderedDict()

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return status, body and headers of the answer.

        Args:
            body: the request's body.
            headers: its headers, in lower case.
        """
        binary = headers.get("content-type", "").partition(";")[0].strip().lower() == BINARY
        if len(body) > self.max_body_bytes:
            error = InvalidObservation(f"the body is over the limit of {self.max_body_bytes} bytes")
            return 413, *_refusal(error, binary)
        try:
            request = None if binary else _parse(body)
            session, named, once = self._session(headers.get(SESSION_HEADER))
            try:
                if request is None:
                    reply = session.handle(body)
                    return 400 if unpack_frame(reply).kind == FAILED else 200, reply, {"content-type": BINARY, **named}
                answer = msgspec.json.encode(self._act(session.agents, request))
                return 200, answer, {"content-type": JSON, **named}
            finally:
                if once:
                    session.agents.clear()
        except AgentGPTError as error:
            return 400, *_refusal(error, binary)

    def _new_session(self) -> PolicySession:
        return PolicySession(self._engine, self._bundle, self._layouts)

    def _session(self, session_id: str | None) -> tuple[PolicySession, dict[str, str], bool]:
        """Return the session, headers that name it where it is new, and whether it is for one request only."""
        now = time.time()
        for old in [name for name, (_, expires) in self._sessions.items() if expires < now]:
            self._sessions.pop(old)[0].agents.clear()
        if session_id is None:
            return self._new_session(), {}, True
        headers = {}
        if session_id == "NEW_SESSION":
            session_id, session = secrets.token_urlsafe(24), self._new_session()
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + SESSION_LIFETIME_S))
            headers[NEW_SESSION_HEADER] = f"{session_id}; Expires={expires}"
        elif session_id in self._sessions:
            session = self._sessions[session_id][0]
        else:
            raise UnknownAgent("the session is unknown or has expired: ask for a new one with NEW_SESSION")
        self._sessions[session_id] = (session, now + SESSION_LIFETIME_S)
        self._sessions.move_to_end(session_id)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1][0].agents.clear()
        return session, headers, False

    def _act(self, agents: AgentTable, request: _Request) -> dict[str, Any]:
        count = len(request.observations)
        given = request.agent_ids if request.agent_ids is not None else [str(index) for index in range(count)]
        ids, ended = check_ids(given), check_ids(request.terminated_agent_ids, "terminated_agent_ids")
        check_ended(ended, agents.held)
        if not ids and not count:
            agents.forget(list(ended))
            return {"actions": [], "agent_ids": []}
        space = self._bundle.observation_space
        values = [
            from_json(space, observation, "observation", InvalidObservation) for observation in request.observations
        ]
        batch = batch_observations(space, values, ids)
        masks = None if request.action_masks is None else self._masks.read(request.action_masks, ids)
        actions = agents.act(ids, batch, ended, request.deterministic, masks)
        rows = [to_json(first_of(self._bundle.action_space, _from_row(actions, row))) for row in range(count)]
        return {"actions": rows, "agent_ids": list(ids)}


def _parse(body: bytes) -> _Request:
    """Return the request in a JSON body.

    Raises:
        InvalidObservation: it is not one.
    """
    try:
        return msgspec.json.decode(body, type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidObservation(f"the body is not a request: {error}") from error


def _refusal(error: AgentGPTError, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers that tell an error in the request's own form."""
    if binary:
        return pack_failure(0, error), {"content-type": BINARY}
    return msgspec.json.encode({"error": str(error)}), {"content-type": JSON}


def _from_row(batch: Any, row: int) -> Any:
    """Return the batch without the rows before ``row``."""
    if isinstance(batch, dict):
        return {key: _from_row(value, row) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_from_row(value, row) for value in batch)
    return batch[row:]
