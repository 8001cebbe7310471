"""Hosts and trainers that meet at a relay: the same trajectories, spread over hosts, with nothing lost or doubled."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import httpx
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import agentgpt_remote  # noqa: F401 - makes remote ids known
from agentgpt_remote.errors import CapacityReached, ConfigError, ConnectionLost, HostUnreachable, ProtocolMismatch
from agentgpt_remote.server import serve
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.tokens import Keyring, Role
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.reach.conftest import Guarded
from tests.reach.processes import SECRET, Attempt, free_port, start_host, start_relay
from tests.support import wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import cutting_proxy
from tests.wrappers.odd_envs import CountingEnv, LargeEnv, TangledEnv

Serve = Callable[..., Any]


def test_trajectory_through_a_relay_is_that_of_local_envs(guarded: Guarded) -> None:
    token = guarded.token(Role.TRAINER)
    local = SyncVectorEnv([partial(CountingEnv, length=7)] * 6)
    with RemoteVectorEnv(url=guarded.room, token=token, num_envs=6, length=7) as remote:
        assert exactly_equal(remote.reset(seed=3), local.reset(seed=3))
        local.action_space.seed(0)
        for _ in range(50):
            actions = local.action_space.sample()
            assert exactly_equal(remote.step(actions), local.step(actions))


def test_nested_spaces_and_large_frames_go_through(guarded: Guarded, serve_into: Serve) -> None:
    for room, source in (("tangled", TangledEnv), ("large", LargeEnv)):
        url = f"{guarded.relay.url}/{room}"
        serve_into(url, source, token=guarded.token(Role.HOST, room))
        local = source()
        with RemoteEnv(url=url, token=guarded.token(Role.TRAINER, room)) as remote:
            assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
            local.action_space.seed(0)
            for _ in range(20):
                action = local.action_space.sample()
                assert exactly_equal(remote.step(action), local.step(action))


def test_make_vec_spreads_over_the_hosts_of_a_room(serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/lab"
        hosts = [serve_into(room, "CartPole-v1", num_envs=count, name=f"host-{count}") for count in (4, 8)]
        envs = gym.make_vec("agentgpt/CartPole-v1", num_envs=12, url=room)
        local = gym.make_vec("CartPole-v1", num_envs=12, vectorization_mode="sync")
        assert set(envs.unwrapped.url) == {host.url for host in hosts}
        assert exactly_equal(envs.reset(seed=5)[0], local.reset(seed=5)[0])
        for _ in range(30):
            actions = local.action_space.sample()
            assert exactly_equal(envs.step(actions)[:4], local.step(actions)[:4])
        described = httpx.get(room.replace("ws://", "http://") + "/hosts").json()["hosts"]
        assert [(host["name"], host["relayed_sessions"], host["offers"]["envs"]) for host in described] == [
            ("host-4", 1, 4),
            ("host-8", 1, 8),
        ]
        envs.close()
        single = gym.make("agentgpt/CartPole-v1", url=room)
        assert single.reset(seed=0)[0].shape == (4,)
        single.close()


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_anywhere_between_trainer_and_relay_loses_and_doubles_nothing(way: str, guarded: Guarded) -> None:
    with cutting_proxy(guarded.relay.url, lambda _: None) as proxy:
        url = f"{proxy.url}/lab"
        with RemoteVectorEnv(url=url, token=guarded.token(Role.TRAINER), num_envs=2, length=10**6) as envs:
            envs.reset()
            for count, cut in zip(range(1, 30), itertools.cycle(range(0, 100, 7)), strict=False):
                proxy.cut_after(way, cut)
                assert envs.step(np.array([1, 2]))[0][:, 1].tolist() == [count, count]


def test_cut_between_host_and_relay_loses_and_doubles_nothing(serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay, cutting_proxy(relay.url, lambda _: None) as proxy:
        serve_into(f"{proxy.url}/lab", num_envs=2)
        with RemoteVectorEnv(url=f"{relay.url}/lab", num_envs=2, length=10**6) as envs:
            envs.reset()
            for count in range(1, 4):
                proxy.cut_all()
                assert envs.step(np.array([1, 2]))[0][:, 1].tolist() == [count, count]


def test_relay_that_is_killed_and_restarted_costs_no_step() -> None:
    port = free_port()
    room = f"ws://127.0.0.1:{port}/lab"
    stop = threading.Event()
    with start_relay(port, AGENTGPT_RELAY_SECRET=SECRET) as first:
        keyring = Keyring(SECRET)
        host_token, token = keyring.make(Role.HOST, "lab"), keyring.make(Role.TRAINER, "lab")
        with (
            start_host(room, AGENTGPT_TOKEN=host_token) as host,
            RemoteVectorEnv(url=room, token=token, num_envs=4, length=10**9) as envs,
        ):
            envs.reset()
            count = 0

            def step() -> None:
                nonlocal count
                while not stop.is_set():
                    counts = envs.step(np.array([0, 1, 2, 0]))[0][:, 1].tolist()
                    count += 1
                    assert counts == [count] * 4

            stepping = Attempt(step)
            wait_until(lambda: count > 100)
            first.kill()
            before = count
            with start_relay(port, AGENTGPT_RELAY_SECRET=SECRET) as second:
                wait_until(lambda: count > before + 100, 30.0)
                assert second.end(signal.SIGTERM) == 0
                before = count
            with start_relay(port, AGENTGPT_RELAY_SECRET=SECRET):
                wait_until(lambda: count > before + 100, 30.0)
                stop.set()
                stepping.finish(30.0)
                assert host.process.poll() is None
                assert host_token not in host.output
                assert host.end(signal.SIGINT) == 0


def test_trainer_that_was_stopped_comes_back_within_the_window(guarded: Guarded) -> None:
    code = (
        "import sys, numpy as np\n"
        "from agentgpt_remote import RemoteVectorEnv\n"
        "envs = RemoteVectorEnv(url=sys.argv[1], num_envs=2, length=10**9)\n"
        "envs.reset()\n"
        "for count in range(1, 10**9):\n"
        "    counts = envs.step(np.array([0, 1]))[0][:, 1].tolist()\n"
        "    assert counts == [count, count], (count, counts)\n"
        "    if count % 100 == 0: print(count, flush=True)\n"
    )
    with cutting_proxy(guarded.relay.url, lambda _: None) as proxy:
        trainer = subprocess.Popen(
            [sys.executable, "-c", code, f"{proxy.url}/lab"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "AGENTGPT_TOKEN": guarded.token(Role.TRAINER)},
        )
        assert trainer.stdout is not None
        with trainer.stdout:
            assert trainer.stdout.readline() == "100\n"
            trainer.send_signal(signal.SIGSTOP)
            proxy.cut_all()
            time.sleep(0.5)  # the host notices that it is gone
            trainer.send_signal(signal.SIGCONT)
            read = [int(trainer.stdout.readline()) for _ in range(20)]
            assert read[-1] - read[0] == 1900
            trainer.kill()
            trainer.wait(20)


def test_host_that_comes_later_takes_over_from_one_that_was_killed(guarded: Guarded) -> None:
    room, host_token = f"{guarded.relay.url}/elastic", guarded.token(Role.HOST, "elastic")
    token = guarded.token(Role.TRAINER, "elastic")
    with start_host(room, AGENTGPT_TOKEN=host_token) as first:
        envs = RemoteVectorEnv(
            url=room, token=token, num_envs=2, length=10**6, on_host_loss="truncate", resume_window_s=1.0
        )
        with envs:
            envs.reset()
            envs.step(np.array([0, 1]))
            first.kill()
            envs._sessions.timeouts = type(envs._sessions.timeouts)(resume_s=60.0)
            with start_host(room, AGENTGPT_TOKEN=host_token):
                _, _, _, truncations, infos = envs.step(np.array([0, 1]))
                assert truncations.all()
                assert "host_loss" in infos
                assert envs.step(np.array([0, 1]))[0][:, 1].tolist() == [0, 0]
                assert envs.step(np.array([0, 1]))[0][:, 1].tolist() == [1, 1]


def test_room_without_hosts_waits_and_then_says_so(guarded: Guarded, serve_into: Serve) -> None:
    room, token = f"{guarded.relay.url}/empty", guarded.token(Role.TRAINER, "empty")
    before = time.monotonic()
    with pytest.raises(HostUnreachable, match=r"no host came to room 'empty' .* within 0\.5 s.*agentgpt serve SOURCE"):
        RemoteEnv(url=room, token=token, connect_timeout_s=0.5)
    assert 0.4 < time.monotonic() - before < 5.0
    later = threading.Timer(0.5, serve_into, (room,), {"token": guarded.token(Role.HOST, "empty")})
    later.start()
    with RemoteEnv(url=room, token=token, connect_timeout_s=20.0) as env:
        assert env.reset()[0][0] == 1.0
    later.join()


def test_room_with_too_few_envs_says_how_many_there_are(guarded: Guarded) -> None:
    with pytest.raises(CapacityReached, match="asked for 100 environments: the host offers num_envs=64"):
        RemoteVectorEnv(url=guarded.room, token=guarded.token(Role.TRAINER), num_envs=100, connect_timeout_s=0.3)


def test_room_whose_hosts_serve_different_spaces_names_them(serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/mixed"
        serve_into(room, "CartPole-v1", num_envs=2, name="cart")
        serve_into(room, "Acrobot-v1", num_envs=2, name="acro")
        with pytest.raises(
            ConfigError, match=r"host '(cart|acro)' at .*has single_observation_space .* host '(cart|acro)'"
        ):
            RemoteVectorEnv(url=room, num_envs=4)


def test_relay_that_is_not_there_is_named_with_the_next_step() -> None:
    port = free_port()
    with pytest.raises(HostUnreachable, match=f"nothing listens at ws://127.0.0.1:{port}/lab .*agentgpt relay"):
        RemoteEnv(url=f"ws://127.0.0.1:{port}/lab")


def test_host_waits_for_a_relay_that_comes_later(serve_into: Serve) -> None:
    port = free_port()
    room = f"ws://127.0.0.1:{port}/lab"
    starting = Attempt(partial(serve_into, room))
    time.sleep(0.5)
    assert starting.is_alive()
    with serve_relay(port=port, block=False):
        starting.finish(20.0)
        with RemoteEnv(url=room) as env:
            env.reset()


def test_host_that_dials_what_is_no_relay_is_told_so(serve_into: Serve) -> None:
    with serve(CountingEnv, port=0, block=False) as other, pytest.raises(ProtocolMismatch, match="use /session"):
        serve_into(f"{other.url}/lab")
    with pytest.raises(ConfigError, match="names no room"):
        serve_into("ws://127.0.0.1:1")


def test_url_without_a_room_is_told_to_name_one(guarded: Guarded) -> None:
    with pytest.raises(ProtocolMismatch, match=r"this is a relay: name a room, as in wss://RELAY/ROOM"):
        RemoteEnv(url=guarded.relay.url, token=guarded.token(Role.TRAINER))


def test_host_that_is_closed_leaves_the_room_and_its_sessions_end(serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        room = f"{relay.url}/lab"
        host = serve_into(room)
        env = RemoteEnv(url=room, resume_window_s=0.5)
        env.reset()
        host.close()
        assert not host.running
        wait_until(lambda: httpx.get(room.replace("ws://", "http://") + "/hosts").json()["hosts"] == [])
        with pytest.raises(ConnectionLost):
            env.step(0)
        env.close()


def _metrics(guarded: Guarded) -> str:
    return httpx.get(guarded.relay.url.replace("ws://", "http://") + "/metrics").text


def test_status_and_metrics_tell_of_rooms_and_bytes(guarded: Guarded) -> None:
    with RemoteEnv(url=guarded.room, token=guarded.token(Role.TRAINER)) as env:
        env.reset()
        admin = {"AGENTGPT_TOKEN": guarded.keyring.make(Role.ADMIN)}
        words = [sys.executable, "-m", "agentgpt_remote", "relay", "status", guarded.relay.url]
        environment = {**os.environ, **admin}
        told = subprocess.run([*words, "--json"], env=environment, capture_output=True, text=True, timeout=60)
        (host,) = json.loads(told.stdout)["rooms"]["lab"]
        assert host["relayed_sessions"] == 1
        assert host["to_trainer_bytes"] > 100
        shown = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60).stdout
        assert "room lab: 1 hosts" in shown
        assert "1 of 64 envs" in shown
        metrics = _metrics(guarded)
        assert "agentgpt_relay_hosts 1\n" in metrics
        assert "agentgpt_relay_sessions 1\n" in metrics
        assert "lab" not in metrics
    wait_until(
        lambda: "agentgpt_relay_sessions 0\n" in httpx.get(guarded.relay.url.replace("ws", "http") + "/metrics").text
    )
