"""A dropped connection resumes with no step lost and none doubled; lost sessions are reaped."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import ConnectionLost
from agentgpt_remote.handshake import Refused, Resume, decode_from_host, encode_handshake
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready
from tests.conftest import ServeFunction
from tests.support import is_running, wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import cutting_proxy
from tests.wrappers.odd_envs import CountingEnv, LargeEnv, RecordingEnv, SlowEnv, TangledEnv


def _health(url: str) -> dict[str, int]:
    fields: dict[str, int] = httpx.get(url.replace("ws://", "http://") + "/health").json()
    return fields


class ClosingEnv(CountingEnv):
    """Remembers which of its kind were closed."""

    numbers: ClassVar[Iterator[int]] = itertools.count()
    closed: ClassVar[list[int]] = []

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = next(self.numbers)

    def close(self) -> None:
        self.closed.append(self.number)


def _step(env: Any) -> Any:
    return env.step(np.array([1, 2]) if hasattr(env, "num_envs") else 1)


def _add(env: Any) -> Any:
    return env.call("add", 2, times=3) if hasattr(env, "call") else env.add(2, times=3)


EXCHANGES: dict[str, Callable[[Any], Any]] = {
    "step": _step,
    "reset": lambda env: env.reset(options={"level": 3}),
    "render": lambda env: env.render(),
    "call": _add,
}


def _make(url: str, num_envs: int | None, render_mode: str | None) -> tuple[Any, Any]:
    """Return a remote environment and its local twin, a vector where ``num_envs`` is given."""
    make = partial(CountingEnv, length=1000, render_mode=render_mode)
    if num_envs is None:
        return RemoteEnv(url=url, render_mode=render_mode, length=1000), make()
    remote = RemoteVectorEnv(url=url, num_envs=num_envs, render_mode=render_mode, length=1000)
    return remote, SyncVectorEnv([make] * num_envs)


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("num_envs", [None, 2])
def test_cut_after_any_byte_of_an_exchange_loses_and_doubles_nothing(
    num_envs: int | None, name: str, serve_here: ServeFunction
) -> None:
    exchange = EXCHANGES[name]
    with cutting_proxy(serve_here(CountingEnv).url, lambda _: None) as proxy:
        env, twin = _make(proxy.url, num_envs, "rgb_array" if name == "render" else None)
        assert exactly_equal(env.reset(seed=1), twin.reset(seed=1))
        before = proxy.passed.copy()
        assert exactly_equal(exchange(env), exchange(twin))
        sizes = {way: proxy.passed[way] - before[way] for way in before}
        assert min(sizes.values()) > 30
        for way, size in sizes.items():
            for count in range(size + 1):
                connections = proxy.connections
                proxy.cut_after(way, count)
                assert exactly_equal(exchange(env), exchange(twin)), f"cut {way} after {count} bytes"
                assert exactly_equal(_step(env), _step(twin)), f"after a cut {way} after {count} bytes"
                assert proxy.connections == connections + 1
        env.close()


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_after_any_byte_of_resuming_is_resumed_again(stride: int, serve_here: ServeFunction) -> None:
    cuts: list[tuple[str, int]] = []
    with cutting_proxy(serve_here(CountingEnv).url, lambda _: cuts.pop() if cuts else None) as proxy:
        with RemoteEnv(url=proxy.url, length=100_000) as env:
            env.reset()
            before, count = proxy.passed.copy(), 1
            proxy.cut_all()
            assert env.step(0)[0][1] == count
            sizes = {way: proxy.passed[way] - before[way] for way in before}
            for way, size in sizes.items():
                for cut in range(0, size + 1, stride):
                    count += 1
                    cuts.append((way, cut))
                    proxy.cut_all()
                    assert env.step(0)[0][1] == count, f"cut {way} after {cut} bytes"
                    assert not cuts
        assert proxy.connections > 2 * sum(sizes.values()) / stride


@pytest.mark.parametrize("num_envs", [None, 2])
def test_env_whose_closing_was_cut_after_any_byte_is_closed_once_and_its_session_reaped(
    num_envs: int | None, serve_here: ServeFunction
) -> None:
    ClosingEnv.closed.clear()
    first = next(ClosingEnv.numbers)
    server = serve_here(ClosingEnv, resume_window_s=0.3, workers=0)
    with cutting_proxy(server.url, lambda _: None) as proxy:
        for way in ("up", "down"):
            for count in range(60):
                env = _make(proxy.url, num_envs, None)[0]
                env.reset()
                proxy.cut_after(way, count)
                env.close()
                env.close()
    wait_until(lambda: _health(server.url)["sessions"] == 0)
    made = next(ClosingEnv.numbers) - first - 1
    assert made == 120 * (num_envs or 1)
    assert sorted(ClosingEnv.closed) == list(range(first + 1, first + 1 + made))


def test_random_cuts_leave_the_trajectory_of_a_vector_as_it_is(serve_here: ServeFunction) -> None:
    rng = random.Random(0)
    server = serve_here(TangledEnv)
    local = SyncVectorEnv([TangledEnv] * 3)

    def next_cut(_: int) -> tuple[str, int]:
        return rng.choice(["up", "down"]), rng.randrange(600, 6000)

    with cutting_proxy(server.url, next_cut) as proxy:
        while True:
            try:
                remote = RemoteVectorEnv(url=proxy.url, num_envs=3)
                break
            except ConnectionLost:
                continue  # cut before the session was open
        with remote:
            local.action_space.seed(0)
            assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
            for _ in range(250):
                actions = local.action_space.sample()
                assert exactly_equal(remote.step(actions), local.step(actions))
        assert proxy.connections > 10


def test_cut_while_the_env_steps_is_answered_after_resuming(serve_here: ServeFunction) -> None:
    with cutting_proxy(serve_here(SlowEnv).url, lambda _: None) as proxy:
        with RemoteVectorEnv(url=proxy.url, num_envs=1, seconds=0.3) as envs:
            envs.reset()
            envs.step_async(np.array([1]))
            assert wait_ready([envs], 0.05) == []
            proxy.cut_all()
            assert wait_ready([envs], 5.0) == [envs]
            assert envs.step_wait()[0][0].tolist() == [1.0, 1.0, 1.0]
            assert envs.step(np.array([2]))[0][0].tolist() == [1.0, 2.0, 2.0]
        assert proxy.connections == 2


def test_idle_connection_that_was_cut_is_resumed_by_the_next_step(serve_here: ServeFunction) -> None:
    with cutting_proxy(serve_here(CountingEnv).url, lambda _: None) as proxy, RemoteEnv(url=proxy.url) as env:
        env.reset()
        for count in range(1, 4):
            proxy.cut_all()
            assert env.step(0)[0][1] == count


def test_host_that_stays_away_is_connection_lost_within_the_window(serve_here: ServeFunction) -> None:
    with cutting_proxy(serve_here(CountingEnv).url, lambda _: None) as proxy:
        env = RemoteEnv(url=proxy.url, resume_window_s=0.5)
        env.reset()
        proxy.refusing = True
        proxy.cut_all()
        start = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"not back within 0\.5 s"):
            env.step(0)
        assert time.monotonic() - start < 5.0
        with pytest.raises(ConnectionLost, match="not back"):
            env.step(0)
        env.close()


@pytest.mark.parametrize("status", [b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"])
def test_gateway_that_misses_the_host_for_a_while_is_waited_for(status: bytes, serve_here: ServeFunction) -> None:
    with cutting_proxy(serve_here(CountingEnv).url, lambda _: None) as proxy, RemoteEnv(url=proxy.url) as env:
        env.reset()
        proxy.refusal = b"HTTP/1.1 " + status + b"\r\ncontent-length: 4\r\nconnection: close\r\n\r\ngone"
        proxy.refusing = True
        proxy.cut_all()
        threading.Timer(0.3, setattr, (proxy, "refusing", False)).start()
        assert env.step(0)[0][1] == 1.0
        assert env.step(0)[0][1] == 2.0


def test_session_of_a_client_that_is_gone_is_reaped_and_cannot_be_resumed(serve_here: ServeFunction) -> None:
    server = serve_here(CountingEnv, resume_window_s=0.3)
    with cutting_proxy(server.url, lambda _: None) as proxy:
        env = RemoteEnv(url=proxy.url, resume_window_s=3.0)
        env.reset()
        assert _health(server.url)["sessions"] == 1
        proxy.cut_all()
        wait_until(lambda: _health(server.url)["sessions"] == 0)
        with pytest.raises(ConnectionLost, match="lost for longer than"):
            env.step(0)
        env.close()
    with RemoteEnv(url=server.url) as another:
        assert another.reset()[0][0] == 1.0


@pytest.mark.parametrize("workers", [0, 1])
def test_envs_of_a_client_that_is_gone_are_closed_wherever_they_run(
    workers: int, tmp_path: Path, serve_here: ServeFunction
) -> None:
    record = tmp_path / "closed"
    server = serve_here(RecordingEnv, resume_window_s=0.3, workers=workers)
    with cutting_proxy(server.url, lambda _: None) as proxy:
        envs = RemoteVectorEnv(url=proxy.url, num_envs=2, resume_window_s=0.1, record=str(record))
        envs.reset()
        processes = envs.call("process_id")
        assert (set(processes) == {os.getpid()}) is (workers == 0)
        proxy.refusing = True
        proxy.cut_all()
        wait_until(lambda: _health(server.url)["sessions"] == 0)
        wait_until(lambda: record.exists() and record.read_text() == "closed\n" * 2)
        with pytest.raises(ConnectionLost):
            envs.step(np.array([0, 1]))
        envs.close()
    server.close()
    assert workers == 0 or not any(map(is_running, processes))


def test_closed_session_frees_its_env_at_once(serve_here: ServeFunction) -> None:
    server = serve_here(CountingEnv)
    with RemoteEnv(url=server.url):
        assert _health(server.url)["envs"] == 1
    wait_until(lambda: _health(server.url)["envs"] == 0)


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_session_id_without_its_secret_is_refused_and_its_owner_undisturbed(
    secret: str, serve_here: ServeFunction
) -> None:
    server = serve_here(CountingEnv)
    with RemoteEnv(url=server.url) as env:
        env.reset()
        session_id = env._transport.opened.session_id
        with WebSocketConnection.connect(server.url, path="/session") as thief:
            thief.send(encode_handshake(Resume.of(session_id, secret, 1)))
            answer = decode_from_host(thief.recv(5.0))
        assert isinstance(answer, Refused)
        assert "belongs to another client" in answer.error["message"]
        assert env.step(0)[0][1] == 1.0


def test_reply_that_cuts_the_connection_whenever_it_is_sent_is_given_up_in_time(serve_here: ServeFunction) -> None:
    with cutting_proxy(serve_here(LargeEnv).url, lambda _: ("down", 100_000)) as proxy:
        with RemoteEnv(url=proxy.url, request_timeout_s=2.0) as env:
            before = time.monotonic()
            with pytest.raises(ConnectionLost, match=r"dropped \d+ times while one reply was awaited"):
                env.reset()
            assert time.monotonic() - before < 20.0
        assert proxy.connections < 100
