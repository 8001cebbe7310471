"""A dropped connection resumes with no step lost and none doubled; lost sessions are reaped."""

from __future__ import annotations

import random
import time

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
from tests.support import wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import cutting_proxy
from tests.wrappers.odd_envs import CountingEnv, LargeEnv, SlowEnv, TangledEnv


def _health(url: str) -> dict[str, int]:
    fields: dict[str, int] = httpx.get(url.replace("ws://", "http://") + "/health").json()
    return fields


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_after_any_byte_of_a_step_loses_and_doubles_nothing(way: str, serve_here: ServeFunction) -> None:
    """Cut the first connection at every byte around some steps, in each direction."""
    server = serve_here(CountingEnv)
    sizes: dict[str, int] = {}
    for cut_at in range(1, 400, 7):
        first = (way, 1200 + cut_at) if way == "down" else (way, 700 + cut_at)
        with (
            cutting_proxy(server.url, lambda number, first=first: first if number == 0 else None) as proxy,
            RemoteEnv(url=proxy.url, length=1000) as env,
        ):
            env.reset()
            counts = [int(env.step(0)[0][1]) for _ in range(12)]
            assert counts == list(range(1, 13))
            sizes[str(cut_at)] = proxy.connections
    assert 2 in sizes.values()  # some of the cuts hit


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
            thief.send(encode_handshake(Resume(session_id=session_id, secret=secret)))
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
