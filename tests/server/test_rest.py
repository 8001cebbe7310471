"""REST over real sockets: what a client in any language gets; every answer fits the OpenAPI description."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import httpx
import msgspec
import numpy as np
import pytest
import schemathesis
from gymnasium.spaces import Box, Discrete, Graph, OneOf, Sequence, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from starlette.applications import Starlette

from agentgpt_remote.errors import InvalidAction
from agentgpt_remote.jsonable import from_json, info_to_json, to_json
from agentgpt_remote.server import rest
from agentgpt_remote.server.openapi import describe
from agentgpt_remote.server.rest import rest_routes
from agentgpt_remote.server.rest_messages import MAX_BODY_BYTES, SECRET_HEADER
from agentgpt_remote.server.sessions import HostLimits, SessionTable
from agentgpt_remote.server.sources import Source, resolve_source
from agentgpt_remote.serving import BackgroundServer, ServerOptions
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from tests.conftest import ServeFunction
from tests.support import wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import cutting_proxy
from tests.wrappers.odd_envs import (
    CountingEnv,
    FragileEnv,
    LargeEnv,
    SlowEnv,
    StuckEnv,
    TangledEnv,
    UnsendableEnv,
    make_counting,
)

ROOT = Path(__file__).parent.parent.parent
SCHEMA = schemathesis.openapi.from_dict(describe())
JSON = {"content-type": "application/json"}


class Client:
    """What a program in another language does; every answer is checked against the OpenAPI description."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.http = httpx.Client(base_url=url.replace("ws://", "http://"), timeout=30.0)
        if token is not None:
            self.http.headers["authorization"] = f"Bearer {token}"
        self.session = "/v1/sessions/none"

    def ask(self, method: str, operation: str, body: Any = None, **options: Any) -> httpx.Response:
        """Send a request; ``operation`` is the rest of a session's path."""
        if body is not None:
            options["json"] = body
        response = self.http.request(method, self.session + operation, **options)
        SCHEMA["/v1/sessions/{session_id}" + operation][method].validate_response(response)
        return response

    def open(self, **request: Any) -> httpx.Response:
        response = self.http.post("/v1/sessions", json=request)
        SCHEMA["/v1/sessions"]["POST"].validate_response(response)
        return response

    def make(self, **request: Any) -> dict[str, Any]:
        made: dict[str, Any] = succeeded(self.open(**request), 201)
        self.session = f"/v1/sessions/{made['session_id']}"
        self.http.headers[SECRET_HEADER] = made["secret"]
        return made

    def reset(self, **request: Any) -> Any:
        return succeeded(self.ask("POST", "/reset", request))

    def step(self, action: Any, **request: Any) -> Any:
        return succeeded(self.ask("POST", "/step", {"action": to_json(action), **request}))


def succeeded(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx.Response, status: int, kind: str, message: str = "") -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == kind
    assert re.search(message, error["message"]), error["message"]
    return error


Connect = Callable[..., Client]


@pytest.fixture
def connect(serve_here: ServeFunction) -> Iterator[Connect]:
    """Start a host and return a client of it."""
    with ExitStack() as stack:

        def start(source: Any, **options: Any) -> Client:
            client = Client(serve_here(source, **options).url)
            stack.callback(client.http.close)
            return client

        yield start


class VariableEnv(CountingEnv):
    """Spaces whose values differ in length; observes the action that it was given."""

    def __init__(self) -> None:
        super().__init__(length=10**6)
        graph = Graph(Box(-1, 1, (2,)), Discrete(3))
        self.action_space = Tuple((OneOf([Discrete(3), Text(5)]), Sequence(Box(-1, 1, (2,))), graph))  # type: ignore[assignment]
        self.observation_space = self.action_space  # type: ignore[assignment]
        self.action = self.action_space.sample()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.action, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return action, 0.0, False, False, {}


class NotFiniteEnv(CountingEnv):
    """Observes and rewards what JSON has no number for."""

    def _observe(self, action: float) -> np.ndarray:
        return np.array([np.nan, np.inf, -np.inf])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(0), -np.inf, False, False, {"loss": np.float32("nan"), "raw": b"\x00", "self": self}


@pytest.mark.parametrize("source", ["CartPole-v1", "Pendulum-v1", TangledEnv, VariableEnv])
def test_trajectory_equals_the_local_one(source: Any, connect: Connect) -> None:
    env = gym.make(source) if isinstance(source, str) else source()
    client = connect(source)
    spaces = client.make()["spaces"]
    space = space_from_dict(spaces["observation_space"])
    assert space == env.observation_space
    assert space_from_dict(spaces["action_space"]) == env.action_space
    env.action_space.seed(1)
    reply, (observation, info) = client.reset(seed=3), env.reset(seed=3)
    for _ in range(30):
        if not isinstance(env, VariableEnv) or "reward" in reply:  # its first observation is random
            assert exactly_equal(from_json(space, reply["observation"], "observation", InvalidAction), observation)
        assert (reply["info"], reply["dropped_info"]) == info_to_json(info)
        if reply.get("terminated") or reply.get("truncated"):
            reply, (observation, info) = client.reset(), env.reset()
        action = env.action_space.sample()
        reply, (observation, reward, terminated, truncated, info) = client.step(action), env.step(action)
        assert reply["reward"] == float(reward)
        assert (reply["terminated"], reply["truncated"]) == (terminated, truncated)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_trajectory_equals_the_local_one(mode: AutoresetMode, connect: Connect) -> None:
    with closing(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)) as envs:
        client = connect("CartPole-v1")
        made = client.make(num_envs=3, autoreset_mode=mode.value)
        assert made["num_envs"] == 3
        assert space_from_dict(made["spaces"]["batched_observation_space"]) == envs.observation_space
        envs.action_space.seed(1)
        reply, (observations, infos) = client.reset(seed=[1, 2, 3]), envs.reset(seed=[1, 2, 3])
        for _ in range(40):
            assert reply["observation"] == observations.tolist()
            assert reply["info"] == info_to_json(infos)[0]
            actions = envs.action_space.sample()
            reply, (observations, rewards, terminated, truncated, infos) = client.step(actions), envs.step(actions)
            assert reply["reward"] == rewards.tolist()
            assert reply["terminated"] == terminated.tolist()
            assert reply["truncated"] == truncated.tolist()


def test_reset_mask_resets_some_environments(connect: Connect) -> None:
    client = connect(CountingEnv)
    client.make(num_envs=2, autoreset_mode="Disabled", kwargs={"length": 100})
    client.reset()
    client.step([0, 0])
    assert client.reset(options={"reset_mask": [False, True]})["observation"] == [[1, 1, 0], [2, 0, -1]]
    refused(client.ask("POST", "/reset", {"options": {"reset_mask": [True]}}), 409, "InvalidAction", "reset_mask")


def test_floats_that_are_not_finite_are_words_and_what_json_lacks_is_named(connect: Connect) -> None:
    client = connect(NotFiniteEnv)
    client.make()
    client.reset()
    reply = client.step(0)
    assert reply["observation"] == ["NaN", "Infinity", "-Infinity"]
    assert reply["reward"] == "-Infinity"
    assert reply["info"] == {"loss": "NaN"}
    assert sorted(reply["dropped_info"]) == ["raw", "self"]


def test_info_that_is_no_dict_is_told_and_the_session_goes_on(connect: Connect) -> None:
    class SloppyEnv(CountingEnv):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, info if action else None

    client = connect(SloppyEnv)
    client.make()
    client.reset()
    error = refused(client.ask("POST", "/step", {"action": 0}), 500, "NotSendable", "info is None")
    assert error["next_sequence"] == 3
    assert client.step(1)["observation"] == [1, 2, 1]


def test_dropped_infos_are_named_in_each_reply(connect: Connect) -> None:
    client = connect(UnsendableEnv)
    client.make()
    assert client.reset()["dropped_info"] == []
    for _ in range(2):
        reply = client.step(0)
        assert reply["dropped_info"] == ["simulator"]
        assert "count" in reply["info"]


def test_keys_of_the_same_text_are_one_kept_and_one_named(connect: Connect) -> None:
    class NumberingEnv(CountingEnv):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"1": "text", 1: "number"}

    client = connect(NumberingEnv)
    client.make()
    client.reset()
    reply = client.step(0)
    assert (reply["info"], reply["dropped_info"]) == ({"1": "text"}, ["1"])


def test_session_is_described(connect: Connect) -> None:
    client = connect("CartPole-v1")
    made = client.make(source="CartPole-v1")
    assert made["spec"]["max_episode_steps"] == 500
    assert made["metadata"]["render_fps"] == 50
    client.reset()
    told = succeeded(client.ask("GET", ""))
    assert told["next_sequence"] == 2
    assert told | {"next_sequence": 1, "secret": made["secret"]} == made
    assert succeeded(client.ask("GET", "/spaces")) == made["spaces"]


def test_repeated_request_is_answered_and_not_executed_again(connect: Connect) -> None:
    client = connect(CountingEnv)
    client.make()
    assert client.reset(sequence=1) == client.reset(sequence=1)
    replies = [client.step(1, sequence=2) for _ in range(3)]
    assert replies[0] == replies[1] == replies[2]
    assert replies[0]["next_sequence"] == 3
    assert client.step(1)["observation"] == [1, 2, 1]  # without a number: the next
    for request in ({"action": 1, "sequence": 2}, {"action": 1, "sequence": 5}, {"action": 2, "sequence": 3}):
        refused(client.ask("POST", "/step", request), 409, "WrongSequence", "expected 4 for a new request, or 3")
    refused(client.ask("POST", "/reset", {"sequence": 3}), 409, "WrongSequence")


def test_repeated_request_gets_the_same_error_again(connect: Connect) -> None:
    client = connect(FragileEnv)
    client.make()
    client.reset()
    failures = [client.ask("POST", "/step", {"action": 2, "sequence": 2}) for _ in range(2)]
    assert failures[0].content == failures[1].content
    error = refused(failures[0], 500, "RuntimeError", "the motor burnt out")
    assert error["next_sequence"] == 3
    assert "test_rest" not in error["traceback"]
    assert 'raise RuntimeError("the motor burnt out")' in error["traceback"]
    assert client.step(1, sequence=3)["observation"] == [1, 1, 1]


@pytest.mark.parametrize("way", ["up", "down"])
def test_step_whose_connection_drops_is_repeated_without_harm(way: str, connect: Connect) -> None:
    client = connect(CountingEnv)
    with cutting_proxy(str(client.http.base_url), lambda _: None) as proxy:
        far = Client(proxy.url)
        far.make(kwargs={"length": 100})
        far.reset(sequence=1)
        for count in range(1, 20):
            proxy.cut_after(way, 7 * count)  # of a request, this is less than the whole; of a reply, sometimes more
            request = {"action": 1, "sequence": count + 1}
            try:
                reply = succeeded(far.ask("POST", "/step", request))
            except httpx.TransportError:
                reply = succeeded(far.ask("POST", "/step", request))
            assert reply["observation"] == [1, count, 1]
        assert proxy.connections > 10
        far.http.close()


def test_secret_is_required(connect: Connect) -> None:
    client = connect(CountingEnv)
    secret = client.make()["secret"]
    for method, operation in [("GET", ""), ("GET", "/spaces"), ("GET", "/render"), ("POST", "/reset"), ("DELETE", "")]:
        refused(client.ask(method, operation, headers={SECRET_HEADER: "x"}), 403, "AuthError", "is wrong")
        refused(
            client.ask(method, operation, headers={SECRET_HEADER: secret.encode() + b"\xe9"}),
            403,
            "AuthError",
            "is wrong",
        )
    bare = Client(str(client.http.base_url))
    bare.session = client.session
    refused(bare.ask("GET", ""), 403, "AuthError", SECRET_HEADER)
    bare.session = "/v1/sessions/0123456789abcdef"
    refused(bare.ask("GET", "", headers={SECRET_HEADER: secret}), 404, "UnknownSession", "0123456789abcdef")
    bare.http.close()
    assert client.reset()["observation"] == [1, 0, -1]


def test_token_is_required(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, token="letmein").url
    for client in (Client(url), Client(url, "wrong")):
        response = client.open()
        assert response.status_code == 401
        assert "token" in response.json()["error"]
        assert client.http.get("/openapi.json").status_code == 401
        client.http.close()
    client = Client(url, "letmein")
    client.make()
    assert client.reset()["observation"] == [1, 0, -1]
    client.http.close()


DEEP = b'{"action": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"action": NaN}', 400, "not JSON"),
        (b'{"action": "\\ud800"}', 400, "not JSON"),
        (b'{"action": ' + b"[" * 100_000, 400, "not JSON"),
        (DEEP, 400, "deeper than 64 levels"),
        (b"", 422, "action"),
        (b"[]", 422, "expected `object`"),
        (b'{"actions": 1}', 422, "action"),
        (b'{"action": 1, "extra": 2}', 422, "extra"),
        (b'{"action": 1, "sequence": 0}', 422, ">= 1"),
        (b'{"action": 1, "sequence": 1.5}', 422, "multiple"),
        (b'{"action": 1e999}', 422, "out of range"),
        (b'{"action": "left"}', 409, "expected numbers"),
        (b'{"action": [1]}', 409, "shape"),
        (b'{"action": 0.5}', 409, "can't be cast safely"),
        (b'{"action": 7}', 409, "outside the action space"),
    ],
)
def test_bad_step_is_refused_and_the_session_goes_on(body: bytes, status: int, message: str, connect: Connect) -> None:
    client = connect("CartPole-v1")
    client.make()
    client.reset()
    response = client.ask("POST", "/step", content=body, headers=JSON)
    assert response.status_code == status
    assert re.search(message, response.json()["error"]["message"], re.IGNORECASE)
    assert client.step(1)["reward"] == 1.0


def test_other_bad_requests_are_refused(connect: Connect) -> None:
    client = connect("CartPole-v1", num_envs=4)
    refused(client.open(source="Pendulum-v1"), 404, "NameNotFound", "serves `CartPole-v1`")
    for request in ({"num_envs": 0}, {"num_envs": 1025}, {"autoreset_mode": "Never"}, {"kwargs": []}, {"seed": 1}):
        refused(client.open(**request), 422, "InvalidRequest")
    refused(client.open(kwargs={"lenght": 3}), 409, "InvalidArgument", "lenght")
    refused(client.http.post("/v1/sessions", content=b"{}"), 415, "UnsupportedMediaType", "application/json")
    client.make()
    refused(client.ask("POST", "/step", {"action": 1}), 409, "ResetNeeded")
    refused(client.ask("POST", "/reset", {"seed": [1]}), 409, "InvalidAction", "expected one number")
    refused(client.ask("POST", "/reset", {"seed": -1}), 422, "InvalidRequest", ">= 0")
    refused(client.ask("GET", "/render"), 409, "ConfigError", "render_mode")
    client.make(render_mode="rgb_array_list")
    client.make(num_envs=2)
    refused(client.ask("POST", "/reset", {"seed": [1, 2, 3]}), 409, "InvalidAction", "a list of 2")
    client.reset(seed=[1, None])
    refused(client.ask("POST", "/step", {"action": [1]}), 409, "InvalidAction", r"\(1,\): expected \(2,\)")


def test_constructor_that_raises_on_its_own_is_the_hosts_error(connect: Connect) -> None:
    client = connect(lambda: FragileEnv(broken=True))
    error = refused(client.open(), 500, "ZeroDivisionError", "no licence")
    assert "FragileEnv" not in error["type"]
    assert "odd_envs" in error["traceback"]


def test_path_and_method_that_do_not_exist_are_refused(connect: Connect) -> None:
    client = connect(CountingEnv)
    client.make()
    refused(client.http.get("/v1/nowhere"), 404, "NotFound", "/v1/nowhere")
    response = client.http.put(client.session)
    refused(response, 405, "MethodNotAllowed", "GET, DELETE")
    assert response.headers["allow"] == "GET, DELETE"


def test_large_body_is_refused_and_the_host_goes_on(connect: Connect) -> None:
    client = connect(CountingEnv, max_frame_bytes=5000)
    client.make()
    body = b'{"action": "' + b"x" * 6000 + b'"}'
    refused(client.ask("POST", "/step", content=body, headers=JSON), 413, "BodyTooLarge", "5000 bytes")
    assert client.reset()["observation"] == [1, 0, -1]
    client = connect(CountingEnv)
    client.make()
    body = b" " * (MAX_BODY_BYTES + 1)
    refused(client.ask("POST", "/reset", content=body, headers=JSON), 413, "BodyTooLarge", str(MAX_BODY_BYTES))
    assert client.reset()["observation"] == [1, 0, -1]


def test_body_that_does_not_arrive_is_given_up(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_BODY_TIMEOUT_S", 0.2)
    client = connect(CountingEnv)
    with socket.create_connection((client.http.base_url.host, client.http.base_url.port or 0), 10.0) as connection:
        connection.sendall(b"POST /v1/sessions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"within 0.2 s" in answer


def test_closed_session_is_gone_and_its_room_free(connect: Connect) -> None:
    client = connect(CountingEnv, num_envs=1)
    for _ in range(3):
        client.make()
        assert client.ask("DELETE", "").status_code == 204
        refused(client.ask("DELETE", ""), 404, "UnknownSession")
        refused(client.ask("POST", "/step", {"action": 1}), 404, "UnknownSession")
        wait_until(lambda: client.http.get("/health").json()["sessions"] == 0)


def test_capacity_is_named(connect: Connect) -> None:
    client = connect(CountingEnv, num_envs=4, max_sessions=2)
    refused(client.open(num_envs=5), 429, "CapacityReached", "num_envs=4")
    client.make(num_envs=2)
    client.make()
    refused(client.open(), 429, "CapacityReached", "max_sessions=2")
    health = client.http.get("/health")
    SCHEMA["/health"]["GET"].validate_response(health)
    assert (health.json()["sessions"], health.json()["envs"]) == (2, 3)


def test_env_that_hangs_ends_its_session_only(connect: Connect) -> None:
    client = connect(StuckEnv, step_timeout_s=0.3)
    other = Client(str(client.http.base_url))
    other.make()
    client.make()
    client.reset()
    refused(client.ask("POST", "/step", {"action": 1}), 504, "RemoteTimeout", "step_timeout_s=0.3")
    refused(client.ask("POST", "/step", {"action": 1}), 404, "UnknownSession")
    assert other.reset()["observation"][0] == 1
    other.http.close()


def test_health_answers_while_an_env_steps_and_its_session_waits_in_line(connect: Connect) -> None:
    client = connect(SlowEnv)
    client.make(kwargs={"seconds": 0.3, "length": 100})
    client.reset()
    counts: list[float] = []

    def step() -> None:
        counts.append(client.step(0)["observation"][1])

    threads = [threading.Thread(target=step) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    assert client.http.get("/health").json()["status"] == "ok"
    assert time.monotonic() - start < 0.9
    for thread in threads:
        thread.join(30)
    assert sorted(counts) == [1, 2, 3, 4]


def test_many_sessions_step_at_once(connect: Connect) -> None:
    url = str(connect(CountingEnv).http.base_url)
    results: list[list[float]] = []

    def use(length: int) -> None:
        client = Client(url)
        client.make(kwargs={"length": 1000})
        client.reset()
        results.append([client.step(0)["observation"][1] for _ in range(length)])
        client.http.close()

    threads = [threading.Thread(target=use, args=(20 + n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(len, results)) == [20 + n for n in range(6)]
    assert all(result == [i + 1 for i in range(len(result))] for result in results)


def test_rest_and_websocket_share_a_host(connect: Connect) -> None:
    client = connect(CountingEnv, num_envs=2)
    with RemoteEnv(url=str(client.http.base_url).replace("http://", "ws://")) as env:
        client.make()
        refused(client.open(), 429, "CapacityReached")
        client.reset()
        env.reset()
        assert client.step(1)["observation"] == env.step(1)[0].tolist()


def _rest_host(source: Source, idle_timeout_s: float = 300.0, shutdown_timeout_s: float = 5.0) -> BackgroundServer:
    table = SessionTable(resolve_source(source), HostLimits(num_envs=1))
    app = Starlette(routes=rest_routes(table, idle_timeout_s))
    return BackgroundServer(app, ServerOptions(port=0, shutdown_timeout_s=shutdown_timeout_s))


def test_request_in_flight_is_answered_when_the_host_ends() -> None:
    stepping = threading.Event()

    class Telling(SlowEnv):
        def step(self, action: Any) -> Any:
            stepping.set()
            return super().step(action)

    with _rest_host(Telling, shutdown_timeout_s=1.0) as server:
        client = Client(server.url)
        client.make(kwargs={"seconds": 3.0})
        client.reset()
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.ask("POST", "/step", {"action": 0})))
        thread.start()
        assert stepping.wait(10)
        server.close()
        thread.join(10)
    refused(answers[0], 503, "ConnectionLost", "shutting down")
    client.http.close()


def test_idle_session_ends_and_requests_keep_it() -> None:
    with _rest_host(SlowEnv, idle_timeout_s=0.4) as server:
        client = Client(server.url)
        assert client.make(kwargs={"seconds": 1.0})["idle_timeout_s"] == 0.4
        client.reset()
        client.step(0)  # takes longer than the idle time
        assert client.ask("GET", "").status_code == 200
        wait_until(lambda: client.open().status_code == 201, what="the idle session's end")
        refused(client.ask("GET", ""), 404, "UnknownSession", "idle for too long")
        client.http.close()


def test_render_returns_text_and_images(connect: Connect) -> None:
    client = connect(make_counting)
    refused(client.open(render_mode="rgb"), 409, "ConfigError", r"'rgb': expected one of \['rgb_array', 'ansi'")
    client.make(render_mode="ansi")
    client.reset()
    assert succeeded(client.ask("GET", "/render")) == {"frames": [{"text": "step 0"}]}
    client.make(render_mode="rgb_array", num_envs=2)
    client.reset()
    client.step([0, 0])
    frames = succeeded(client.ask("GET", "/render"))["frames"]
    assert len(frames) == 2
    image = base64.b64decode(frames[0]["png"])
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", image[16:24]) == (6, 4)
    length = struct.unpack(">I", image[33:37])[0]
    assert zlib.decompress(image[41 : 41 + length]) == (b"\x00" + b"\x01" * 18) * 4


def test_large_observation_arrives_whole(connect: Connect) -> None:
    client = connect(LargeEnv)
    client.make()
    client.reset()
    observation = np.array(client.step(0)["observation"], np.uint8)
    assert observation.shape == (1024, 1024)
    assert (observation == 1).all()


def test_description_is_served_and_names_every_operation(connect: Connect) -> None:
    served = connect(CountingEnv).http.get("/openapi.json").json()
    assert served == json.loads(msgspec.json.encode(describe()))
    assert served["openapi"].startswith("3.1")
    assert set(served["paths"]) >= {"/health", "/v1/sessions", "/v1/sessions/{session_id}/step"}


@pytest.mark.parametrize("source", ["CartPole-v1", "tests.wrappers.odd_envs:CountingEnv"])
def test_schemathesis_finds_no_failure(source: str, serve_here: ServeFunction, tmp_path: Path) -> None:
    server = serve_here(source, num_envs=64)
    command = [
        Path(sys.executable).parent / "schemathesis",
        "run",
        server.url.replace("ws:", "http:") + "/openapi.json",
    ]
    options = ["--checks=all", "--seed=1", "--max-examples=8", "--no-color"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "8 selected / 8 total" in done.stdout
    assert int(re.findall(r"(\d+) generated, \1 passed", done.stdout)[0]) > 200


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="the JavaScript example needs Node.js")


@needs_node
def test_javascript_example_steps_like_python(connect: Connect) -> None:
    client = connect("CartPole-v1")
    with cutting_proxy(str(client.http.base_url), _cut_sometimes) as proxy:
        command = ["node", str(ROOT / "examples" / "rest_client.mjs"), proxy.url, "100"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert proxy.connections > 3  # it went on after each lost one
    result = json.loads(done.stdout)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    for _ in range(100):
        observation, *_ = env.step(int(observation[2] + 0.5 * observation[3] > 0))
    assert result == {"steps": 100, "return": 100, "observation": observation.tolist()}
    wait_until(lambda: client.http.get("/health").json()["sessions"] == 0)


def _cut_sometimes(connection: int) -> tuple[str, int] | None:
    """Let the first connection make the environment and lose a later reply; the second one's, and so on."""
    return ("down", 4000 + 600 * connection) if connection < 4 else None


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's commands need curl")
def test_commands_of_the_guide_run(serve_here: ServeFunction, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", guide, flags=re.MULTILINE | re.DOTALL)
    script = "\n".join(block for block in blocks if "agentgpt serve" not in block)
    assert script.count("curl") >= 6
    url = serve_here("CartPole-v1").url.replace("ws://", "http://")
    assert "http://127.0.0.1:8000" in script
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"reward":1.0' in done.stdout
    assert (tmp_path / "frame.png").read_bytes().startswith(b"\x89PNG")
