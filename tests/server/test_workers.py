"""Worker processes of a host: equal trajectories, and a crash or a hang that stays where it happened."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import ConfigError, InvalidAction, RemoteEnvError
from agentgpt_remote.server.sources import EnvRequest, resolve_source
from agentgpt_remote.server.workers import WorkerPool
from agentgpt_remote.wrappers.offers import ask_health
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.support import is_running, wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.doomed_envs import CRASH, HANG, DoomedEnv
from tests.wrappers.odd_envs import (
    CountingEnv,
    FragileEnv,
    OwnVectorEnv,
    ProcessEnv,
    SlowEnv,
    TangledEnv,
    UnsendableEnv,
)


def _actions(*actions: int) -> np.ndarray:
    return np.array(actions, dtype=np.int64)


def _health(url: str) -> dict[str, Any]:
    told: dict[str, Any] = ask_health(url)
    return told


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_in_workers_equals_a_local_one(mode: AutoresetMode, serve_here: ServeFunction) -> None:
    local = SyncVectorEnv([TangledEnv] * 3, autoreset_mode=mode)
    local.action_space.seed(1)
    host = serve_here(TangledEnv, workers=2)
    with RemoteVectorEnv(url=host.url, num_envs=3, autoreset_mode=mode) as remote:
        assert _health(host.url)["workers"] == 2
        assert remote.observation_space == local.observation_space
        assert remote.action_space == local.action_space
        assert exactly_equal(remote.reset(seed=3), local.reset(seed=3))
        for _ in range(30):
            actions = local.action_space.sample()
            step = local.step(actions)
            assert exactly_equal(remote.step(actions), step)
            if mode is AutoresetMode.DISABLED and (step[2] | step[3]).any():
                masks = [{"reset_mask": step[2] | step[3]} for _ in range(2)]
                assert exactly_equal(remote.reset(options=masks[0]), local.reset(options=masks[1]))
    local.close()


def test_single_env_in_a_worker_equals_a_local_one(serve_here: ServeFunction) -> None:
    with gym.make("CartPole-v1") as local, RemoteEnv(url=serve_here("CartPole-v1", workers=1).url) as remote:
        assert remote.spec is not None
        assert remote.spec.id == "agentgpt/CartPole-v1"
        assert remote.spec.reward_threshold == 475.0
        assert exactly_equal(remote.reset(seed=5), local.reset(seed=5))
        for index in range(300):
            step = local.step(index % 2)
            assert exactly_equal(remote.step(index % 2), step)
            if step[2]:
                assert exactly_equal(remote.reset(), local.reset())


def test_calls_attributes_and_frames_reach_the_workers(serve_here: ServeFunction) -> None:
    host = serve_here(CountingEnv, workers=2)
    with RemoteVectorEnv(url=host.url, num_envs=3, render_mode="ansi") as envs:
        envs.reset()
        envs.step(_actions(0, 0, 0))
        assert envs.call("add", 10, times=2) == (21, 21, 21)
        envs.set_attr("length", [7, 8, 9])
        assert envs.get_attr("length") == (7, 8, 9)
        assert envs.render() == ("step 1",) * 3
    with RemoteEnv(url=host.url, render_mode="rgb_array") as env:
        env.reset()
        env.set_attr("length", 4)
        assert (env.get_attr("length"), env.call("add", 1)) == (4, 1)
        assert env.render().shape == (4, 6, 3)


def test_errors_of_an_environment_come_through_as_they_are(serve_here: ServeFunction) -> None:
    host = serve_here(FragileEnv, workers=2)
    with pytest.raises(RemoteEnvError, match="no licence"):
        RemoteVectorEnv(url=host.url, num_envs=2, broken=True)
    with RemoteVectorEnv(url=host.url, num_envs=2) as envs:
        envs.reset()
        with pytest.raises(RemoteEnvError, match="burnt out") as raised:
            envs.step(_actions(0, 2))
        assert "odd_envs.py" in raised.value.remote_traceback
        with pytest.raises(InvalidAction, match="no such action 7"):
            envs.step(_actions(7, 0))
        assert envs.step(_actions(0, 0))[0].shape == (2, 3)


def test_worker_that_dies_truncates_its_environments_only_and_is_started_again(serve_here: ServeFunction) -> None:
    host = serve_here(DoomedEnv, workers=2)
    with RemoteVectorEnv(url=host.url, num_envs=4) as envs, RemoteEnv(url=host.url) as other:
        envs.reset()
        other.reset()
        before = envs.call("process_id")
        assert before[0] == before[1] != before[2] == before[3]
        kept = other.call("process_id")
        doomed = 2 if kept == before[0] else 0
        envs.step(_actions(0, 0, 0, 0))
        actions = _actions(0, 0, 0, 0)
        actions[doomed] = CRASH
        observations, _, _, truncations, infos = envs.step(actions)
        lost = [env // 2 == doomed // 2 for env in range(4)]
        assert truncations.tolist() == lost
        assert "they say" in infos["host_loss"][doomed]
        assert observations[:, 1].tolist() == [1 if is_lost else 2 for is_lost in lost]
        observations, *_ = envs.step(_actions(0, 0, 0, 0))
        assert observations[:, 1].tolist() == [0 if is_lost else 3 for is_lost in lost]
        after = envs.call("process_id")
        assert [one == two for one, two in zip(before, after, strict=True)] == [not is_lost for is_lost in lost]
        assert other.step(0)[0].tolist() == [1, 1, 0]
        assert _health(host.url)["workers"] == 2


def test_worker_that_hangs_is_ended_and_the_host_answers_meanwhile(serve_here: ServeFunction) -> None:
    host = serve_here(DoomedEnv, workers=1, step_timeout_s=1.0)
    with RemoteVectorEnv(url=host.url, num_envs=2) as envs:
        envs.reset()
        envs.step_async(_actions(0, HANG))
        before = time.monotonic()
        assert _health(host.url)["status"] == "ok"
        assert time.monotonic() - before < 0.9
        _, _, _, truncations, infos = envs.step_wait(20.0)
        assert truncations.all()
        assert "within 1 s" in infos["host_loss"][0]
        assert envs.step(_actions(0, 0))[0][:, 1].tolist() == [0, 0]


def test_single_env_whose_worker_dies_is_truncated(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(DoomedEnv, workers=1).url) as env:
        env.reset()
        env.step(0)
        observation, reward, terminated, truncated, info = env.step(CRASH)
        assert (observation.tolist(), reward, terminated, truncated) == ([1, 1, 0], 0.0, False, True)
        assert "exit code 9" in info["host_loss"]
        with pytest.raises(gym.error.ResetNeeded):
            env.step(0)
        assert env.reset()[0].tolist() == [1, 0, -1]


def test_sessions_share_the_workers_evenly_and_leave_nothing_behind(serve_here: ServeFunction) -> None:
    host = serve_here(ProcessEnv, workers=2)
    envs = [RemoteEnv(url=host.url) for _ in range(4)]
    processes = [env.call("process_id") for env in envs]
    assert sorted(processes.count(process) for process in set(processes)) == [2, 2]
    for env in envs:
        env.close()
    host.close()
    wait_until(lambda: not any(map(is_running, processes)), what="the end of the workers")


def test_environments_of_a_closed_session_are_closed_in_the_workers(serve_here: ServeFunction) -> None:
    host = serve_here(CountingEnv, workers=1)
    with RemoteVectorEnv(url=host.url, num_envs=3):
        workers = [child for child in psutil.Process().children() if "agentgpt_remote.server" in child.cmdline()]
        urls = [
            f"ws://127.0.0.1:{one.laddr.port}"
            for child in workers
            for one in child.net_connections("tcp")
            if one.status == "LISTEN"
        ]
        assert [_health(url)["envs"] for url in urls] == [3]
    wait_until(lambda: _health(urls[0])["envs"] == 0, what="the end of the session in the worker")


def _pool(source: Any, workers: int | None = None) -> WorkerPool:
    return WorkerPool(resolve_source(source), workers, 60.0)


def test_number_of_workers_follows_the_measured_step() -> None:
    slow = _pool(SlowEnv)
    slow._size = 3  # as on a machine with three processors
    cases = [(8, 0.01, 3), (2, 0.01, 2), (8, 0.0001, 0), (20, 0.00011, 3)]
    for envs, seconds, workers in cases:
        assert slow._count(EnvRequest(num_envs=envs, kwargs={"seconds": seconds})) == workers
    assert slow._count(EnvRequest(num_envs=None, kwargs={"seconds": 0.01})) == 0
    assert _pool("CartPole-v1")._count(EnvRequest(num_envs=64)) == 0
    assert _pool(OwnVectorEnv)._count(EnvRequest(num_envs=64)) == 0
    assert _pool(FragileEnv)._count(EnvRequest(num_envs=64, kwargs={"broken": True})) == 0


def test_workers_that_were_asked_for_are_used_whatever_was_measured() -> None:
    assert _pool(CountingEnv, 2)._count(EnvRequest(num_envs=64)) == 2
    assert _pool(CountingEnv, 2)._count(EnvRequest(num_envs=None)) == 1
    assert _pool(OwnVectorEnv, 2)._count(EnvRequest(num_envs=64)) == 1
    assert _pool(CountingEnv, 0)._count(EnvRequest(num_envs=64, kwargs={})) == 0


def test_slow_environments_are_spread_without_being_asked(
    serve_here: ServeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with RemoteVectorEnv(url=serve_here(SlowEnv).url, num_envs=4, seconds=0.05) as envs:
        envs.reset()
        start = time.perf_counter()
        envs.step(_actions(0, 0, 0, 0))
        assert time.perf_counter() - start < 0.05 * 4


def test_workers_out_of_range_and_instances_are_refused(serve_here: ServeFunction) -> None:
    for workers in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=r"workers=.* is out of range"):
            serve_here(CountingEnv, workers=workers)
    with pytest.raises(ConfigError, match="can't move to another process"):
        serve_here(CountingEnv(), workers=1)
    with pytest.raises(ConfigError, match="pass a factory"):
        RemoteEnv(CountingEnv(), workers=1)


@pytest.mark.parametrize("num_envs", [None, 3])
def test_what_an_info_lacks_is_told_once_through_the_workers(num_envs: int | None, serve_here: ServeFunction) -> None:
    url = serve_here(UnsendableEnv, workers=2).url
    env: Any = RemoteEnv(url=url) if num_envs is None else RemoteVectorEnv(url=url, num_envs=num_envs)
    actions = 0 if num_envs is None else np.zeros(num_envs, np.int64)
    with env:
        env.reset()
        with pytest.warns(UserWarning, match="simulator"):
            step = env.step(actions)
        assert "simulator" not in step[4]
        assert "simulator" not in env.step(actions)[4]  # a second warning would be an error
