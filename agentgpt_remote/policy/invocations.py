"""``POST /invocations``: acting by HTTP, for people and for SageMaker.

The request is a JSON object::

    {"observations": [...],            one observation per agent, nested lists; dict and tuple spaces as
                                       objects and lists
     "agent_ids": ["a", "b"],          optional; "0", "1", ... by default
     "terminated_agent_ids": ["a"],    optional: agents whose episode has ended
     "deterministic": true,            optional
     "seed": 7,                        optional: of the draws of this request
     "action_masks": [[1, 0], null],   optional: what each agent may do; null allows everything
     "num_input_states": 8,            optional: how many steps the model sees
     "control_value": 0.5,             optional: one for all, or a list
     "request_id": 3,                  optional: a request that comes again is answered once more, not executed
     "close": false}                   optional: end the session

and the answer ``{"actions": [...], "agent_ids": [...]}``, one action per agent, with ``"dropped": [...]`` where agents
had been dropped to make room for others and began anew. Without a session each request begins with empty memories.
``X-Amzn-SageMaker-Session-Id: NEW_SESSION`` opens a session; the answer's header ``X-Amzn-SageMaker-New-Session-Id``
names it, and later requests with that id go on where it left off, until ``X-Amzn-SageMaker-Closed-Session-Id`` says
that it has ended. An error is ``{"error": text}`` with status 400 (413 for a body over the limit).

For speed, a body of type ``application/octet-stream`` is one request of the WebSocket's
(:mod:`agentgpt_remote.policy.wire`) and its answer, of status 200, that request's reply, errors included: SageMaker
hands on the bodies of successes only. A session that is not known is answered with LOST and no ids.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import msgspec
import numpy as np

from agentgpt_remote.errors import AgentGPTError, ConfigError, InvalidObservation, UnknownAgent
from agentgpt_remote.jsonable import from_json, to_json
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.agent_table import Prepared
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.observations import batch_observations, first_of
from agentgpt_remote.policy.options import ActOptions, Bools, agent_key, draw_control, mix
from agentgpt_remote.policy.session import Layouts, Pending, PolicySession

SESSION_HEADER = "x-amzn-sagemaker-session-id"
NEW_SESSION = "NEW_SESSION"
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"
MAX_SESSIONS = 1024
SESSION_LIFETIME_S = 3600.0
JSON, BINARY = "application/json", "application/octet-stream"

Answer = tuple[int, bytes, dict[str, str]]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    observations: list[Any] = []
    agent_ids: list[str] | None = None
    terminated_agent_ids: list[str] = []
    deterministic: bool = True
    seed: int | None = None
    action_masks: list[Any] | None = None
    num_input_states: int | None = None
    control_value: float | list[float] = 1.0
    request_id: int | None = None
    close: bool = False


class _HttpSession(PolicySession):
    """A session with what JSON requests add to it."""

    def __init__(
        self, engine: PolicyEngine, layouts: Layouts, describe: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        super().__init__(engine, layouts, describe)
        self.seed, self.draws = secrets.randbits(63), 0
        self.last_answer: tuple[int | None, dict[str, Any]] = (None, {})


class Invocations:
    """The sessions of HTTP requests; the least recently used one makes room for a new one.

    Args:
        engine: shared with all other sessions.
        layouts: of the observation and of the action space.
        describe: returns what the server tells of itself.
        lifetime_s: seconds without a request after which a session ends.
    """

    max_body_bytes = 6_291_456  # SageMaker's limit

    def __init__(
        self,
        engine: PolicyEngine,
        layouts: Layouts,
        describe: Callable[[], dict[str, Any]] | None = None,
        lifetime_s: float = SESSION_LIFETIME_S,
    ) -> None:
        self._lifetime_s = lifetime_s
        self.engine, self.masks = engine, ActionMasks(engine.model.actions)
        self._layouts, self._describe = layouts, describe
        self._sessions: OrderedDict[str, tuple[_HttpSession, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self._sessions)

    def session(self, session_id: str | None) -> tuple[_HttpSession, dict[str, str]]:
        """Return a session, and headers that name it where it is new.

        Raises:
            UnknownAgent: it is not known, or no longer.
        """
        now = time.time()
        for old in [name for name, (_, expires) in self._sessions.items() if expires < now]:
            self.end(old)
        if session_id is None:
            return _HttpSession(self.engine, self._layouts, self._describe), {}
        headers = {}
        if session_id == NEW_SESSION:
            session_id, session = secrets.token_hex(24), _HttpSession(self.engine, self._layouts, self._describe)
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + self._lifetime_s))
            headers[NEW_SESSION_HEADER] = f"{session_id}; Expires={expires}"
        elif session_id in self._sessions:
            session = self._sessions[session_id][0]
        else:
            raise UnknownAgent("the session is unknown or has expired: ask for a new one with NEW_SESSION")
        self._sessions[session_id] = (session, now + self._lifetime_s)
        self._sessions.move_to_end(session_id)
        while len(self._sessions) > MAX_SESSIONS:
            self.end(next(iter(self._sessions)))
        return session, headers

    def end(self, session_id: str) -> None:
        """End a session; one that is not known is ignored."""
        if session_id in self._sessions:
            self._sessions.pop(session_id)[0].agents.clear()


class Invocation:
    """One HTTP request: a job of the batcher, whose answer is status, body and headers.

    Args:
        invocations: the sessions.
        body: of the request.
        headers: of the request, in lower case.
    """

    def __init__(self, invocations: Invocations, body: bytes, headers: Mapping[str, str]) -> None:
        self._invocations, self._body = invocations, body
        self._session_id = headers.get(SESSION_HEADER)
        known = self._session_id not in (None, NEW_SESSION)
        self.owner: Hashable = self._session_id if known else None
        self._binary = headers.get("content-type", "").partition(";")[0].strip().lower() == BINARY
        self._headers: dict[str, str] = {"content-type": BINARY if self._binary else JSON}
        self._session: _HttpSession | None = None
        self._pending: Pending | None = None
        self._request = _Request()
        self._prepared: Prepared | None = None
        self._dropped: list[str] = []
        self._status, self._answer = 200, b""

    def begin(self) -> Prepared | None:
        """Understand the request."""
        try:
            return self._begin_binary() if self._binary else self._begin_json()
        except AgentGPTError as error:
            self._refuse(400, error)
            self._end()
            return None

    def _begin_binary(self) -> Prepared | None:
        if self._too_large():
            return None
        try:
            self._session, named = self._invocations.session(self._session_id)
        except UnknownAgent:
            request_id = wire.unpack_frame(self._body).request_id
            self._answer = wire.pack_frame(wire.LOST, 0, request_id, 0, (), wire.encode(wire.AgentList(None)))
            return None
        self._headers |= named
        result = self._session.begin(self._body)
        if isinstance(result, Pending):
            self._pending = result
            return result.prepared
        self._answer = result
        if len(self._body) >= wire.RAW_OFFSET and self._body[0] == wire.BYE:
            self._close_session()
        self._end()
        return None

    def _begin_json(self) -> Prepared | None:
        if self._too_large():
            return None
        request = self._request = _parse(self._body)
        session, named = self._invocations.session(self._session_id)
        self._session = session
        self._headers |= named
        if request.request_id is not None and request.request_id == session.last_answer[0]:
            self._reply(session.last_answer[1])
            return None
        count = len(request.observations)
        given = request.agent_ids if request.agent_ids is not None else [str(index) for index in range(count)]
        ids, ended = wire.check_ids(given), wire.check_ids(request.terminated_agent_ids, "terminated_agent_ids")
        wire.check_ended(ended, session.agents.held)
        if not ids and not count:
            if not ended and not request.close:
                raise InvalidObservation("the body is not a request: expected observations")
            session.agents.forget(list(ended))
            self._reply({"actions": [], "agent_ids": []})
            return None
        engine = self._invocations.engine
        space = engine.model.observation_space
        values = [
            from_json(space, observation, "observation", InvalidObservation) for observation in request.observations
        ]
        batch = batch_observations(space, values, ids)
        options = self._options(session, ids)
        self._dropped = [agent for agent in ids if agent in session.agents.dropped]
        self._prepared = session.agents.prepare(ids, batch, ended, options)
        return self._prepared

    def _options(self, session: _HttpSession, ids: tuple[str, ...]) -> ActOptions:
        request, masks = self._request, self._invocations.masks
        session.draws += 1
        seed = mix(session.seed, session.draws) if request.seed is None else request.seed
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed={seed}: expected an integer from 0 to 2**64 - 1")
        if request.num_input_states == 0:
            raise ConfigError("num_input_states=0: expected at least 1")
        num_input_states = self._invocations.engine.window(request.num_input_states or 0)
        return ActOptions(
            deterministic=request.deterministic,
            seed=seed,
            num_input_states=num_input_states,
            action_mask=None if request.action_masks is None else masks.read(request.action_masks, ids),
            in_control=_in_control(request.control_value, ids, seed),
        )

    def finish(self, vectors: Float32) -> None:
        """Answer with the engine's actions."""
        session = self._session
        if session is None:
            return
        if self._pending is not None:
            self._answer = session.finish(self._pending, vectors)
            self._end()
        elif self._prepared is not None:
            session.agents.commit(self._prepared)
            model = self._invocations.engine.model
            actions = model.actions.decode(vectors)
            rows = [to_json(first_of(model.action_space, _from_row(actions, row))) for row in range(len(vectors))]
            fields: dict[str, Any] = {"actions": rows, "agent_ids": list(self._prepared.agent_ids)}
            self._reply(fields | ({"dropped": self._dropped} if self._dropped else {}))

    def fail(self, prepared: Prepared) -> None:
        """Take note that the engine failed."""
        if self._session is not None:
            self._session.agents.roll_back(prepared)
            self._end()

    def answer(self) -> Answer:
        """Return status, body and headers."""
        return self._status, self._answer, self._headers

    def _reply(self, fields: dict[str, Any]) -> None:
        self._answer = msgspec.json.encode(fields)
        if self._session is not None:
            self._session.last_answer = (self._request.request_id, fields)
        if self._request.close:
            self._close_session()
        self._end()

    def _close_session(self) -> None:
        if self._session_id not in (None, NEW_SESSION):
            self._invocations.end(str(self._session_id))
            self._headers[CLOSED_SESSION_HEADER] = str(self._session_id)

    def _end(self) -> None:
        """Forget agents of a request that belongs to no session."""
        if self._session_id is None and self._session is not None:
            self._session.agents.clear()

    def _too_large(self) -> bool:
        limit = self._invocations.max_body_bytes
        if len(self._body) > limit:
            self._refuse(413, InvalidObservation(f"the body is over the limit of {limit} bytes"))
        return len(self._body) > limit

    def _refuse(self, status: int, error: AgentGPTError) -> None:
        """Tell an error in the request's own form."""
        if self._binary:
            self._status, self._answer = (status if status != 400 else 200), wire.pack_failure(0, error)
        else:
            self._status, self._answer = status, msgspec.json.encode({"error": str(error)})


def _in_control(value: float | list[float], ids: tuple[str, ...], seed: int) -> Bools | None:
    """Draw who acts; ``value`` is one control value or one for each agent."""
    values = np.full(len(ids), value, np.float64) if isinstance(value, int | float) else np.asarray(value, np.float64)
    if values.shape != (len(ids),) or not ((values >= 0) & (values <= 1)).all():
        raise ConfigError(
            f"control_value={value!r}: expected a number from 0 to 1, or one for each of {len(ids)} agents"
        )
    return draw_control(seed, [agent_key(agent) for agent in ids], values)


def _parse(body: bytes) -> _Request:
    """Return the request in a JSON body.

    Raises:
        InvalidObservation: it is not one.
    """
    try:
        return msgspec.json.decode(body, type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidObservation(f"the body is not a request: {error}") from error


def _from_row(batch: Any, row: int) -> Any:
    """Return the batch without the rows before ``row``."""
    if isinstance(batch, dict):
        return {key: _from_row(value, row) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_from_row(value, row) for value in batch)
    return batch[row:]
