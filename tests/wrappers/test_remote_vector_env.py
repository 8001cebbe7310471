"""RemoteVectorEnv's contract beyond trajectories."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, NormalizeObservation, RecordEpisodeStatistics

from agentgpt_remote.errors import (
    CapacityReached,
    ConfigError,
    ConnectionLost,
    InvalidAction,
    RemoteEnvError,
    RemoteTimeout,
)
from agentgpt_remote.server import serve
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
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


MODES = pytest.mark.parametrize("mode", AutoresetMode)
Twins = Callable[..., tuple[RemoteVectorEnv, SyncVectorEnv]]


@pytest.fixture(scope="module", params=["one session", "two groups", "worker processes"])
def layout(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Serve environments in one of the ways in which a vector of them may lie; return what a client says to get it."""
    workers = 2 if request.param == "worker processes" else 0
    with serve(CountingEnv, workers=workers, port=0, block=False) as server:
        yield {"url": server.url, "groups": 2 if request.param == "two groups" else 1}


@pytest.fixture
def twins(layout: dict[str, Any]) -> Iterator[Twins]:
    """Make a remote vector environment of four and its local twin."""
    with ExitStack() as stack:

        def make(mode: AutoresetMode = AutoresetMode.NEXT_STEP, **kwargs: Any) -> tuple[RemoteVectorEnv, SyncVectorEnv]:
            remote = stack.enter_context(RemoteVectorEnv(num_envs=4, autoreset_mode=mode, **layout, **kwargs))
            return remote, SyncVectorEnv([partial(CountingEnv, **kwargs)] * 4, autoreset_mode=mode)

        yield make


def _outcome(function: Callable[[], Any]) -> Any:
    """Return what the function returns, or the name of what an environment raised."""
    try:
        return function()
    except RemoteEnvError as error:
        return error.remote_type
    except Exception as error:  # noqa: BLE001 - whatever Gymnasium raises is what is expected
        return type(error).__name__


@MODES
@pytest.mark.parametrize("seed", [None, 7, 0, [1, 2, 3, 4], (5, 6, 7, 8), np.arange(4), -1, [1, 2, 3, -4], "seed"])
def test_reset_takes_the_seeds_that_a_local_vector_takes(seed: Any, mode: AutoresetMode, twins: Twins) -> None:
    remote, local = twins(mode)
    expected = _outcome(lambda: local.reset(seed=seed))
    assert exactly_equal(_outcome(lambda: remote.reset(seed=seed)), expected)
    if not isinstance(expected, str):
        assert exactly_equal(remote.step(np.zeros(4, np.int64)), local.step(np.zeros(4, np.int64)))


def test_reset_takes_none_among_the_seeds(serve_here: ServeFunction) -> None:
    local: Any = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    with RemoteVectorEnv(url=serve_here("CartPole-v1").url, num_envs=3) as remote:
        there, here = remote.reset(seed=[4, None, 5])[0], local.reset(seed=[4, None, 5])[0]
        assert exactly_equal(there[[0, 2]], here[[0, 2]])
        assert not np.array_equal(there[1], there[0])
    local.close()


def test_seeds_of_the_wrong_number_are_refused_and_the_session_goes_on(twins: Twins) -> None:
    remote, _ = twins()
    for seeds in ([1, 2], [1, 2, 3, 4, 5], []):
        with pytest.raises((ConfigError, RemoteEnvError), match=r"num_envs=4|each of 4 environments"):
            remote.reset(seed=seeds)
    assert remote.reset(seed=1)[0].shape == (4, 3)


@MODES
@pytest.mark.parametrize(
    "mask",
    [[True, False, False, False], [False, True, True, False], [False, False, True, True], [True] * 4],
    ids=["first", "middle", "second half", "all"],
)
def test_reset_mask_resets_those_environments_only(mask: list[bool], mode: AutoresetMode, twins: Twins) -> None:
    remote, local = twins(mode, length=3)
    assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
    for steps in (1, 2):
        for _ in range(steps):
            actions = np.array([0, 1, 2, 0])
            assert exactly_equal(remote.step(actions), local.step(actions))
        options: dict[str, Any] = {"reset_mask": np.array(mask), "level": {"deep": [1]}}
        expected = local.reset(seed=[1, 2, 3, 4], options={**options})
        assert exactly_equal(remote.reset(seed=[1, 2, 3, 4], options=options), expected)
        assert exactly_equal(options, {"reset_mask": np.array(mask), "level": {"deep": [1]}})
    if mode is not AutoresetMode.DISABLED or all(mask):
        assert exactly_equal(remote.step(np.zeros(4, np.int64)), local.step(np.zeros(4, np.int64)))


@pytest.mark.parametrize("mask", [np.zeros(4, bool), np.ones(3, bool), np.ones(4), [True] * 4, np.ones((4, 1), bool)])
def test_reset_mask_that_makes_no_sense_is_refused_and_the_session_goes_on(mask: Any, twins: Twins) -> None:
    remote, local = twins()
    assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
    with pytest.raises((ConfigError, RemoteEnvError), match="reset_mask"):
        remote.reset(options={"reset_mask": mask})
    assert exactly_equal(remote.step(np.zeros(4, np.int64)), local.step(np.zeros(4, np.int64)))


def test_frames_calls_and_attributes_are_those_of_a_local_vector(twins: Twins) -> None:
    remote, local = twins(render_mode="rgb_array")
    for envs in (remote, local):
        envs.reset(seed=2)
        envs.step(np.array([0, 1, 2, 0]))
        envs.set_attr("length", [3, 4, 5, 6])
        envs.set_attr("level", (1, 2, 3, 4))
        envs.set_attr("mood", {"good": [1]})
    assert remote.render_mode == local.render_mode
    assert exactly_equal(remote.render(), local.render())
    for name in ("length", "level", "mood", "render_mode", "count", "np_random_seed"):
        assert exactly_equal(remote.get_attr(name), local.get_attr(name))
    assert exactly_equal(remote.call("add", 2, times=3), local.call("add", 2, times=3))
    assert exactly_equal(remote.call("count"), local.call("count"))
    for envs in (remote, local):
        for use in (
            partial(envs.get_attr, "nothing"),
            partial(envs.call, "add"),
            partial(envs.set_attr, "length", [1]),
        ):
            assert _outcome(use) in ("AttributeError", "TypeError", "ValueError", "ConfigError")
    assert exactly_equal(remote.step(np.array([0, 1, 2, 0])), local.step(np.array([0, 1, 2, 0])))


def test_spaces_and_metadata_are_those_of_a_local_vector(twins: Twins) -> None:
    for mode in AutoresetMode:
        remote, local = twins(mode)
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            assert getattr(remote, name) == getattr(local, name)
        assert remote.num_envs == local.num_envs
        assert remote.metadata["autoreset_mode"] is mode
        assert remote.metadata["render_fps"] == local.metadata["render_fps"]
        assert remote.unwrapped is remote


def test_close_with_a_request_under_way_ends_it_and_is_idempotent(twins: Twins) -> None:
    remote, _ = twins()
    remote.reset()
    remote.step_async(np.zeros(4, np.int64))
    remote.close()
    remote.close()
    assert remote.closed
    for use in (remote.step_wait, lambda: remote.call("count"), lambda: remote.set_attr("length", 1)):
        with pytest.raises(ClosedEnvironmentError):
            use()


def test_failed_step_leaves_nothing_pending(twins: Twins) -> None:
    remote, local = twins()
    assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
    for actions in (np.array([0, 1, 2]), np.array([0, 1, 2, 9]), np.array([9, 1, 2, 0]), [0, 1, 2, object()]):
        with pytest.raises(InvalidAction):
            remote.step(actions)
        with pytest.raises(NoAsyncCallError):
            remote.step_wait()
    remote.reset(seed=2)
    assert remote.step(np.zeros(4, np.int64))[0].shape == (4, 3)


def test_every_use_after_one_of_the_hosts_was_lost_says_so() -> None:
    with LocalHost(CountingEnv) as staying, LocalHost(CountingEnv) as leaving:
        tokens = {host.url: host.token for host in (staying, leaving)}
        with RemoteVectorEnv(url=list(tokens), token=tokens, num_envs=4, resume_window_s=0.2) as envs:
            envs.reset()
            leaving.kill()
            for use in (
                partial(envs.step, np.zeros(4, np.int64)),
                envs.reset,
                envs.render,
                partial(envs.call, "count"),
            ):
                with pytest.raises(ConnectionLost, match=leaving.url):
                    use()
                with pytest.raises(NoAsyncCallError):
                    envs.step_wait()


def test_gymnasiums_vector_wrappers_see_what_they_see_of_a_local_vector(serve_here: ServeFunction) -> None:
    def wrapped(envs: Any) -> Any:
        return DictInfoToList(ClipReward(NormalizeObservation(RecordEpisodeStatistics(envs)), 0.0, 0.5))

    local = wrapped(SyncVectorEnv([partial(CountingEnv, length=3)] * 3))
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=3, length=3) as envs:
        remote = wrapped(envs)
        assert remote.unwrapped is envs
        assert exactly_equal(remote.reset(seed=1), local.reset(seed=1))
        for _ in range(20):
            there, here = remote.step(np.array([0, 1, 2])), local.step(np.array([0, 1, 2]))
            for infos in (there[-1], here[-1]):
                for info in infos:
                    info.get("episode", {}).pop("t", None)  # measured
            assert exactly_equal(there, here)
