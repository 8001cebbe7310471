"""RemoteVectorEnv's contract beyond trajectories."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode

from agentgpt_remote.errors import CapacityReached, ConfigError, InvalidAction, RemoteEnvError, RemoteTimeout
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready
from tests.conftest import ServeFunction
from tests.wrappers.odd_envs import CountingEnv, FragileEnv, OwnVectorEnv, SlowEnv


def test_host_decides_how_many_where_the_client_does_not_say(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(CountingEnv, num_envs=5).url) as envs:
        assert envs.num_envs == 5
    with RemoteVectorEnv(url=serve_here(CountingEnv).url) as envs:
        assert envs.num_envs == 1


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True, "4"])
def test_num_envs_out_of_range_is_refused(num_envs: Any) -> None:
    with pytest.raises(ConfigError, match="num_envs"):
        RemoteVectorEnv("CartPole-v1", num_envs)


def test_num_envs_may_be_a_numpy_integer(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=np.int64(2)) as envs:  # type: ignore[arg-type]
        assert (envs.num_envs, type(envs.num_envs)) == (2, int)


def test_more_envs_than_the_host_offers_are_refused_and_freed_ones_are_not(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, num_envs=4).url
    with pytest.raises(CapacityReached, match=r"asked for 5 .* num_envs=4, 0 of them in use"):
        RemoteVectorEnv(url=url, num_envs=5)
    with RemoteVectorEnv(url=url, num_envs=3), pytest.raises(CapacityReached, match="3 of them in use"):
        RemoteVectorEnv(url=url, num_envs=2)
    deadline = time.monotonic() + 10.0
    while True:
        try:
            RemoteVectorEnv(url=url, num_envs=4).close()
            break
        except CapacityReached:
            assert time.monotonic() < deadline


def test_session_limit_is_named(serve_here: ServeFunction) -> None:
    url = serve_here(CountingEnv, max_sessions=1).url
    with RemoteVectorEnv(url=url), pytest.raises(CapacityReached, match="max_sessions=1"):
        RemoteVectorEnv(url=url)


@pytest.mark.parametrize(
    "actions", [np.array([0, 1]), np.array([0, 1, 0, 1]), [0, 1], np.array(1), 1, np.zeros((2, 3), np.int64)]
)
def test_wrong_number_of_actions_is_refused_before_any_env_steps(actions: Any, serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=3) as envs:
        envs.reset()
        with pytest.raises(InvalidAction, match="expected one for each of 3 environments"):
            envs.step(actions)
        assert envs.step(np.array([0, 1, 2]))[0][:, 1].tolist() == [1.0, 1.0, 1.0]


def test_action_outside_the_space_and_raising_env_are_clear(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(FragileEnv).url, num_envs=2) as envs:
        envs.reset()
        with pytest.raises(InvalidAction, match="no such action 9"):
            envs.step(np.array([0, 9]))
        with pytest.raises(RemoteEnvError, match="burnt out"):
            envs.step(np.array([0, 2]))
        envs.reset()
        assert envs.step([1, 1])[0][:, 2].tolist() == [1.0, 1.0]


def test_calls_attributes_and_frames_of_each_env(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=2, render_mode="rgb_array") as envs:
        envs.reset()
        envs.set_attr("length", [3, 4])
        assert envs.get_attr("length") == (3, 4)
        envs.step(np.array([0, 0]))
        assert envs.call("add", 1) == (2, 2)
        frames = envs.render()
        assert frames is not None
        assert [frame.shape for frame in frames] == [(4, 6, 3)] * 2


def test_async_halves_and_their_misuse(serve_here: ServeFunction) -> None:
    envs = RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=2)
    with pytest.raises(NoAsyncCallError, match="step_wait"):
        envs.step_wait()
    envs.reset_async(seed=1)
    with pytest.raises(AlreadyPendingCallError, match="reset_wait"):
        envs.step_async(np.array([0, 0]))
    with pytest.raises(NoAsyncCallError):
        envs.step_wait()
    envs.reset_wait()
    envs.step_async(np.array([0, 0]))
    assert envs.step_wait()[0].shape == (2, 3)
    envs.close()
    envs.close()
    for use in (envs.reset, envs.step_wait, envs.render):
        with pytest.raises(ClosedEnvironmentError):
            use()


def test_step_wait_times_out_and_can_be_called_again(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(SlowEnv).url, num_envs=1, seconds=0.4) as envs:
        envs.reset()
        envs.step_async(np.array([1]))
        with pytest.raises(RemoteTimeout):
            envs.step_wait(timeout_s=0.05)
        assert envs.step_wait(timeout_s=10.0)[0][0].tolist() == [1.0, 1.0, 1.0]


def test_wait_ready_returns_the_fast_before_the_slow(serve_here: ServeFunction) -> None:
    slow = RemoteVectorEnv(url=serve_here(SlowEnv).url, num_envs=1, seconds=1.0)
    fast = RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=1)
    with slow, fast:
        for envs in (slow, fast):
            envs.reset()
        assert wait_ready([slow, fast], 0.01) == []
        slow.step_async(np.array([0]))
        fast.step_async(np.array([0]))
        assert wait_ready([slow, fast], 10.0) == [fast]
        assert wait_ready([slow], 0.01) == []
        assert fast.step_wait(0.01)[0].shape == (1, 3)
        assert wait_ready([slow, fast], 10.0) == [slow]
        slow.step_wait(0.01)


def test_vector_env_instance_is_served_from_this_process() -> None:
    with RemoteVectorEnv(OwnVectorEnv(4)) as envs:
        assert envs.num_envs == 4
        assert envs.reset(seed=2)[1] == {"seed": 2}


def test_unknown_autoreset_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'NextStep'"):
        RemoteVectorEnv("CartPole-v1", autoreset_mode="sometimes")
    assert AutoresetMode("NextStep") is AutoresetMode.NEXT_STEP
