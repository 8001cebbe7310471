"""HTTP requests beyond the JSON examples: the binary form, sessions by it, and bodies that are no request."""

from __future__ import annotations

from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from agentgpt_remote import errors
from agentgpt_remote.codec import Layout
from agentgpt_remote.policy import wire
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.invocations import BINARY, SESSION_HEADER, Invocations
from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy
from tests.policy.conftest import SPACES

ROWS = np.random.default_rng(0).normal(size=(2, 3))


def _url(served: dict[str, str], name: str) -> str:
    return served[name].replace("ws://", "http://") + "/invocations"


def _post(url: str, request_id: int, rows: np.ndarray, ids: list[str], first: bool, **headers: str) -> httpx.Response:
    parts: list[np.ndarray] = []
    assert Layout(SPACES["continuous"][0]).batch_parts(rows, len(rows), parts)
    tail = msgspec.msgpack.encode(wire.Agents(ids, [], ids if first else []))
    body = wire.pack_frame(wire.ACT, wire.DETERMINISTIC, request_id, len(ids), parts, tail)
    return httpx.post(url, content=body, headers={"content-type": BINARY, **headers})


def _actions(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == BINARY
    frame = wire.unpack_frame(answer.content)
    return Layout(SPACES["continuous"][1]).decode_batch(frame.message, wire.RAW_OFFSET, frame.count, copy=True)


def test_binary_invocation_acts_like_the_policy(served: dict[str, str], bundles: dict[str, Path]) -> None:
    actions = _actions(_post(_url(served, "continuous"), 1, ROWS, ["a", "b"], True))
    with GPTPolicy(bundles["continuous"]) as policy:
        np.testing.assert_allclose(actions, policy.select_action(["a", "b"], ROWS), atol=1e-5)


def test_binary_session_remembers_and_answers_a_repeated_request_once(
    served: dict[str, str], bundles: dict[str, Path]
) -> None:
    url = _url(served, "continuous")
    opened = _post(url, 1, ROWS, ["a", "b"], True, **{SESSION_HEADER: "NEW_SESSION"})
    session = {SESSION_HEADER: opened.headers["X-Amzn-SageMaker-New-Session-Id"].partition(";")[0]}
    second = _actions(_post(url, 2, -ROWS, ["a", "b"], False, **session))
    repeated = _actions(_post(url, 2, -ROWS, ["a", "b"], False, **session))
    third = _actions(_post(url, 3, ROWS, ["a", "b"], False, **session))
    np.testing.assert_array_equal(repeated, second)
    with GPTPolicy(bundles["continuous"]) as policy:
        expected = [policy.select_action(["a", "b"], rows) for rows in (ROWS, -ROWS, ROWS)]
    for actions, wanted in zip((_actions(opened), second, third), expected, strict=True):
        np.testing.assert_allclose(actions, wanted, atol=1e-5)


def test_binary_invocation_tells_errors_in_its_own_form(served: dict[str, str]) -> None:
    url = _url(served, "continuous")
    answers = [
        _post(url, 1, np.full((1, 3), np.nan), ["a"], True),
        httpx.post(url, content=b"", headers={"content-type": BINARY}),
    ]
    kinds = (errors.InvalidObservation, errors.ProtocolError)
    for answer, kind in zip(answers, kinds, strict=True):
        assert answer.status_code == 200
        with pytest.raises(kind):
            wire.raise_failure(wire.unpack_frame(answer.content))
    lost = wire.unpack_frame(_post(url, 1, ROWS[:1], ["a"], False).content)
    assert (lost.kind, msgspec.msgpack.decode(lost.tail, type=wire.AgentList).ids) == (wire.LOST, ["a"])
    stale = wire.unpack_frame(_post(url, 1, ROWS[:1], ["a"], True, **{SESSION_HEADER: "stale"}).content)
    assert (stale.kind, msgspec.msgpack.decode(stale.tail, type=wire.AgentList).ids) == (wire.LOST, None)
    large = httpx.post(url, content=b" " * (Invocations.max_body_bytes + 1), headers={"content-type": BINARY})
    assert large.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x01",
        b'{"observations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"observations": [[1, 1, 1]], "agent_ids": ["\xff"]}',
        b'{"observations": [[1, 1, 1]], "agent_ids": ["\\ud800"]}',
        b'{"observations": [[NaN, 1, 1]]}',
        b'{"observations": [[1' + b"0" * 400 + b", 1, 1]]}",
    ],
)
def test_body_that_is_no_request_is_refused(served: dict[str, str], body: bytes) -> None:
    answer = httpx.post(_url(served, "continuous"), content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_number_that_would_overflow_is_refused(served: dict[str, str]) -> None:
    answer = httpx.post(_url(served, "cartpole"), content=b'{"observations": [[1e300, 1, 1, 1]]}')
    assert answer.status_code == 400
    assert "float32 can't hold" in answer.json()["error"]


def test_ping_tells_nothing_of_the_machine(served: dict[str, str], bundles: dict[str, Path]) -> None:
    answer = httpx.get(_url(served, "cartpole").replace("/invocations", "/ping"))
    assert answer.status_code == 200
    assert str(bundles["cartpole"].parent) not in answer.text


SESSION = "X-Amzn-SageMaker-New-Session-Id"


def _opened(url: str, body: dict[str, object]) -> tuple[httpx.Response, dict[str, str]]:
    answer = httpx.post(url, json=body, headers={SESSION_HEADER: "NEW_SESSION"})
    assert answer.status_code == 200
    return answer, {SESSION_HEADER: answer.headers[SESSION].partition(";")[0]}


def test_repeated_json_request_is_answered_once(served: dict[str, str], bundles: dict[str, Path]) -> None:
    url = _url(served, "smooth")
    rows = np.random.default_rng(3).normal(size=(3, 1, 3))
    answers, session = [], {}
    for number, row in enumerate(rows):
        body = {"observations": row.tolist(), "request_id": number}
        if number == 0:
            _, session = _opened(url, body)
        answers.append([httpx.post(url, json=body, headers=session).json()["actions"][0] for _ in range(2)])
    with GPTPolicy(bundles["smooth"]) as policy:
        for row, (one, other) in zip(rows, answers, strict=True):
            assert one == other
            np.testing.assert_allclose(one, policy.select_action(["0"], row)[0], atol=1e-5)


def test_json_session_closes_and_says_so(served: dict[str, str]) -> None:
    url, body = _url(served, "smooth"), {"observations": [[1, 2, 3]]}
    _, session = _opened(url, body)
    closed = httpx.post(url, json={"close": True}, headers=session)
    assert closed.headers["X-Amzn-SageMaker-Closed-Session-Id"] == session[SESSION_HEADER]
    assert httpx.post(url, json=body, headers=session).status_code == 400


def test_json_takes_memory_control_and_seed(served: dict[str, str], bundles: dict[str, Path]) -> None:
    url = _url(served, "smooth")
    rows = np.random.default_rng(3).normal(size=(4, 2, 3))
    _, session = _opened(url, {"observations": rows[0].tolist(), "num_input_states": 2})
    with GPTPolicy(bundles["smooth"]) as policy:
        policy.set_num_input_states(2)
        policy.select_action(["0", "1"], rows[0])
        for row in rows[1:]:
            answer = httpx.post(url, json={"observations": row.tolist(), "num_input_states": 2}, headers=session)
            np.testing.assert_allclose(answer.json()["actions"], policy.select_action(["0", "1"], row), atol=1e-5)
    body = {"observations": rows[0].tolist(), "control_value": [0.0, 1.0]}
    actions = httpx.post(url, json=body).json()["actions"]
    assert actions[0] == [0, 0] != actions[1]
    sampled = {"observations": rows[0].tolist(), "deterministic": False, "seed": 3}
    assert httpx.post(url, json=sampled).json() == httpx.post(url, json=sampled).json()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_input_states", 5, "expected 1 to 4"),
        ("num_input_states", 0, "at least 1"),
        ("control_value", 1.5, "from 0 to 1"),
        ("control_value", [0.5, 0.5], "one for each of 1 agents"),
        ("seed", -1, "seed=-1"),
    ],
)
def test_json_settings_out_of_range_are_named(served: dict[str, str], field: str, value: object, message: str) -> None:
    answer = httpx.post(_url(served, "smooth"), json={"observations": [[1, 2, 3]], field: value})
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_json_names_agents_that_were_dropped_to_make_room(bundles: dict[str, Path]) -> None:
    options = PolicyServerOptions(max_agents=2)
    with serve_policy(bundles["smooth"], port=0, block=False, options=options) as server:
        url = server.url.replace("ws://", "http://") + "/invocations"
        body = {"observations": [[1, 2, 3]], "agent_ids": ["a"]}
        first, session = _opened(url, body)
        assert "dropped" not in httpx.post(url, json=body, headers=session).json()
        other = {"observations": [[1, 2, 3]] * 2, "agent_ids": ["x", "y"]}
        _opened(url, other)
        again = httpx.post(url, json=body, headers=session).json()
        assert again["dropped"] == ["a"]
        assert again["actions"] == first.json()["actions"]  # it began anew
        status = httpx.get(server.url.replace("ws://", "http://") + "/status").json()
        assert (status["agents"], status["max_agents"], status["dropped"]) == (2, 2, 2)
