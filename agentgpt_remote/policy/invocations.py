"""``POST /invocations``: acting by JSON, for people and for SageMaker.

The request is an object::

    {"observations": [...],            one observation per agent, nested lists; dict and tuple spaces as
                                       objects and lists
     "agent_ids": ["a", "b"],          optional; "0", "1", ... by default
     "terminated_agent_ids": ["a"],    optional: agents whose episode has ended
     "deterministic": true}            optional

and the answer ``{"actions": [...], "agent_ids": [...]}``, one action per agent. Without a session each
request begins with empty memories. ``X-Amzn-SageMaker-Session-Id: NEW_SESSION`` opens a session; the
answer's header ``X-Amzn-SageMaker-New-Session-Id`` names it, and later requests with that id go on where
it left off. An error is ``{"error": text}`` with status 400 (413 for a body over the limit).
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from gymnasium import Space, spaces

from agentgpt_remote.errors import AgentGPTError, InvalidObservation, UnknownAgent
from agentgpt_remote.policy.bundle import Bundle
from agentgpt_remote.policy.engine import AgentTable, PolicyEngine
from agentgpt_remote.policy.observations import batch_observations, first_of
from agentgpt_remote.policy.wire import check_ended, check_ids

SESSION_HEADER = "x-amzn-sagemaker-session-id"
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
MAX_SESSIONS = 1024
SESSION_LIFETIME_S = 3600.0

Answer = tuple[int, dict[str, Any], dict[str, str]]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    observations: list[Any]
    agent_ids: list[str] | None = None
    terminated_agent_ids: list[str] = []
    deterministic: bool = True


class Invocations:
    """Answers JSON requests, in sessions; the least recently used one makes room for a new one.

    Args:
        engine: shared with all other sessions.
        bundle: the policy.
    """

    max_body_bytes = 6_291_456  # SageMaker's limit

    def __init__(self, engine: PolicyEngine, bundle: Bundle) -> None:
        self._engine, self._bundle = engine, bundle
        self._sessions: OrderedDict[str, tuple[AgentTable, float]] = OrderedDict()

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return status, fields and headers of the answer.

        Args:
            body: the request's body.
            headers: its headers, in lower case.
        """
        if len(body) > self.max_body_bytes:
            return 413, {"error": f"the body is over the limit of {self.max_body_bytes} bytes"}, {}
        try:
            request = msgspec.json.decode(body, type=_Request)
            agents, answer_headers, once = self._agents(headers.get(SESSION_HEADER))
            try:
                return 200, self._act(agents, request), answer_headers
            finally:
                if once:
                    agents.clear()
        except (AgentGPTError, msgspec.MsgspecError) as error:
            return 400, {"error": str(error)}, {}

    def _agents(self, session_id: str | None) -> tuple[AgentTable, dict[str, str], bool]:
        """Return the agents of a session, headers that name a new one, and whether they are for one request only."""
        now = time.time()
        for old in [name for name, (_, expires) in self._sessions.items() if expires < now]:
            self._sessions.pop(old)[0].clear()
        if session_id is None:
            return AgentTable(self._engine), {}, True
        headers = {}
        if session_id == "NEW_SESSION":
            session_id, agents = secrets.token_urlsafe(24), AgentTable(self._engine)
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + SESSION_LIFETIME_S))
            headers[NEW_SESSION_HEADER] = f"{session_id}; Expires={expires}"
        elif session_id in self._sessions:
            agents = self._sessions[session_id][0]
        else:
            raise UnknownAgent("the session is unknown or has expired: ask for a new one with NEW_SESSION")
        self._sessions[session_id] = (agents, now + SESSION_LIFETIME_S)
        self._sessions.move_to_end(session_id)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)[1][0].clear()
        return agents, headers, False

    def _act(self, agents: AgentTable, request: _Request) -> dict[str, Any]:
        count = len(request.observations)
        given = request.agent_ids if request.agent_ids is not None else [str(index) for index in range(count)]
        ids, ended = check_ids(given), check_ids(request.terminated_agent_ids, "terminated_agent_ids")
        check_ended(ended, agents.agent_ids)
        if not ids and not count:
            agents.forget(list(ended))
            return {"actions": [], "agent_ids": []}
        space = self._bundle.observation_space
        values = [_from_json(space, observation, "observation") for observation in request.observations]
        batch = batch_observations(space, values, ids)
        actions = agents.act(ids, batch, ended, request.deterministic)
        rows = [_to_json(first_of(self._bundle.action_space, _from_row(actions, row))) for row in range(count)]
        return {"actions": rows, "agent_ids": list(ids)}


def _from_json(space: Space[Any], value: Any, where: str) -> Any:
    """Return a JSON value as one observation of a space."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or value.keys() != space.spaces.keys():
            raise InvalidObservation(f"{where} is {_short(value)}: expected an object with {sorted(space.spaces)}")
        return {key: _from_json(child, value[key], f"{where}[{key!r}]") for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, list) or len(value) != len(space.spaces):
            raise InvalidObservation(f"{where} is {_short(value)}: expected a list of {len(space.spaces)}")
        return tuple(_from_json(child, value[i], f"{where}[{i}]") for i, child in enumerate(space.spaces))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidObservation(f"{where} has rows of different lengths: expected shape {space.shape}") from error
    if array.dtype.kind not in "biuf":
        raise InvalidObservation(f"{where} is {_short(value)}: expected numbers of shape {space.shape}")
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_row(batch: Any, row: int) -> Any:
    """Return the batch without the rows before ``row``."""
    if isinstance(batch, dict):
        return {key: _from_row(value, row) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_from_row(value, row) for value in batch)
    return batch[row:]


def _to_json(action: Any) -> Any:
    if isinstance(action, dict):
        return {key: _to_json(value) for key, value in action.items()}
    if isinstance(action, tuple):
        return [_to_json(value) for value in action]
    return action.tolist()
