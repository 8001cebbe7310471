"""Eight clients at once behind a network that cuts, delays, splits and stalls."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import ConnectionLost, RemoteTimeout
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import ChaoticProxy, port_of
from tests.wrappers.odd_envs import CountingEnv, LargeEnv, TangledEnv

CLIENTS, STEPS = 8, 150
KINDS = (TangledEnv, CountingEnv, LargeEnv)


def make_kind(kind: int) -> Any:
    return KINDS[kind]()


def _make(url: str, token: str, rng: random.Random) -> tuple[Any, Any]:
    """Return a remote environment of some kind, or a vector of them, and its local twin."""
    kind = rng.randrange(len(KINDS))
    if rng.random() < 0.4:
        return RemoteEnv(url=url, token=token, kind=kind), KINDS[kind]()
    mode = rng.choice([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
    groups = rng.choice([1, 2])
    remote = RemoteVectorEnv(url=url, token=token, num_envs=2, groups=groups, autoreset_mode=mode, kind=kind)
    return remote, SyncVectorEnv([KINDS[kind]] * 2, autoreset_mode=mode)


def _play(remote: Any, twin: Any, rng: random.Random, deadline: float) -> int:
    """Compare a trajectory with its undisturbed twin; return its length."""
    seed = rng.randrange(1000)
    twin.action_space.seed(seed)
    assert exactly_equal(remote.reset(seed=seed), twin.reset(seed=seed))
    for step in range(STEPS):
        action = twin.action_space.sample()
        there, here = remote.step(action), twin.step(action)
        assert exactly_equal(there, here), f"step {step}: {there} is not {here}"
        if rng.random() < 0.05:
            assert exactly_equal(remote.reset(), twin.reset())
        if rng.random() < 0.1:
            count = twin.get_attr("count") if isinstance(twin, SyncVectorEnv) else twin.count
            assert exactly_equal(remote.get_attr("count"), count)
        if time.monotonic() > deadline:
            return step
    return STEPS


@pytest.mark.parametrize("seconds", [6.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_every_trajectory_equals_its_undisturbed_twin(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    steps = [0] * CLIENTS
    failures: list[BaseException] = []

    def client(number: int, proxy: ChaoticProxy, token: str) -> None:
        rng = random.Random(number)
        while time.monotonic() < deadline and not failures:
            with contextlib.suppress(ConnectionLost):  # cut before it is open, there is nothing to resume
                remote, twin = _make(proxy.url, token, rng)
                try:
                    steps[number] += _play(remote, twin, rng, deadline)
                except BaseException as error:  # noqa: BLE001 - reported by the main thread
                    failures.append(error)
                remote.close()

    with (
        LocalHost("tests.wrappers.test_chaos:make_kind") as host,
        contextlib.closing(ChaoticProxy(port_of(host.url), seed=5)) as proxy,
    ):
        threads = [threading.Thread(target=client, args=(number, proxy, host.token)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 60.0)
            assert not thread.is_alive(), "a client hangs"
        connections = proxy.connections
    assert failures == []
    assert min(steps) > 10
    assert connections > 5 * seconds


@pytest.mark.parametrize("workers", [0, 2])
def test_groups_in_flight_equal_their_undisturbed_twins(workers: int) -> None:
    groups = 3
    rng = random.Random(1)
    twins = [SyncVectorEnv([TangledEnv] * 2) for _ in range(groups)]
    actions: dict[int, Any] = {}
    with (
        LocalHost(TangledEnv, workers=workers) as host,
        contextlib.closing(ChaoticProxy(port_of(host.url), seed=3, cuts=0.03)) as proxy,
    ):
        while True:
            with contextlib.suppress(ConnectionLost):
                envs = RemoteVectorEnv(url=proxy.url, token=host.token, num_envs=2 * groups, groups=groups)
                break
        with envs:
            envs.reset(seed=5)
            for group, twin in enumerate(twins):
                twin.reset(seed=5 + 2 * group)
                actions[group] = twin.action_space.sample()
                envs.send(group, actions[group])
            for _ in range(300):
                try:
                    group, step = envs.recv(timeout_s=rng.choice([0.005, 20.0]))
                except RemoteTimeout:
                    continue  # nothing is lost by asking again
                assert exactly_equal(step, twins[group].step(actions[group]))
                actions[group] = twins[group].action_space.sample()
                envs.send(group, actions[group])
        assert proxy.connections > 2 * groups
