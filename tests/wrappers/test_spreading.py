"""One vector environment over several hosts and groups, and what happens when a host is lost."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import (
    AuthError,
    CapacityReached,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    InvalidAction,
    RemoteEnvError,
    RemoteTimeout,
)
from agentgpt_remote.server import serve
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
from tests.wrappers.doomed_envs import CRASH, HANG, DoomedEnv
from tests.wrappers.odd_envs import (
    CountingEnv,
    FragileEnv,
    OwnVectorEnv,
    SlowEnv,
    SometimesEnv,
    TangledEnv,
    UnsendableEnv,
)

DOOMED = "tests.wrappers.doomed_envs:DoomedEnv"


def _actions(*actions: int) -> np.ndarray:
    return np.array(actions, dtype=np.int64)


def _zeros(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int64)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("groups", [1, 5])
def test_vector_over_two_hosts_equals_one_of_them_all(
    mode: AutoresetMode, groups: int, serve_here: ServeFunction
) -> None:
    urls = [serve_here(TangledEnv, num_envs=3).url, serve_here(TangledEnv, num_envs=2).url]
    local = SyncVectorEnv([TangledEnv] * 5, autoreset_mode=mode)
    local.action_space.seed(1)
    with RemoteVectorEnv(url=urls, num_envs=5, groups=groups, autoreset_mode=mode) as remote:
        assert remote.url == urls
        assert (remote.num_envs, remote.groups) == (5, groups)
        for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
            assert getattr(remote, name) == getattr(local, name)
        for seed in (3, [5, None, 7, None, 9]):
            seeds = seed if isinstance(seed, int) else [0 if one is None else one for one in seed]
            assert exactly_equal(remote.reset(seed=seeds), local.reset(seed=seeds))
        for _ in range(40):
            actions = local.action_space.sample()
            step = local.step(actions)
            assert exactly_equal(remote.step(actions), step)
            done = step[2] | step[3]
            if mode is AutoresetMode.DISABLED and done.any():
                mask = done & (np.arange(5) < 4) if done[:4].any() else done
                options = {"reset_mask": mask.copy()}
                assert exactly_equal(remote.reset(options=options), local.reset(options={"reset_mask": mask.copy()}))
                assert list(options) == ["reset_mask"]
                mask = done & ~mask
                if mask.any():
                    assert exactly_equal(
                        remote.reset(options={"reset_mask": mask.copy()}),
                        local.reset(options={"reset_mask": mask.copy()}),
                    )
        local.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("seeds", [[0, 2, 1, 2], [2, 1, 2, 1], [2, 2, 2, 0]])
def test_infos_that_some_environments_lack_are_those_of_one_vector(
    seeds: list[int], mode: AutoresetMode, serve_here: ServeFunction
) -> None:
    urls = [serve_here(SometimesEnv, num_envs=2).url, serve_here(SometimesEnv, num_envs=2).url]
    local = SyncVectorEnv([SometimesEnv] * 4, autoreset_mode=mode)
    with RemoteVectorEnv(url=urls, num_envs=4, autoreset_mode=mode) as remote:
        assert exactly_equal(remote.reset(seed=seeds), local.reset(seed=seeds))
        for _ in range(5):
            assert exactly_equal(remote.step(_zeros(4)), local.step(_zeros(4)))


@pytest.mark.parametrize("groups", [1, 2])
def test_info_that_cannot_be_sent_is_one_warning_for_all_hosts_and_groups(
    groups: int, serve_here: ServeFunction
) -> None:
    urls = [serve_here(UnsendableEnv, num_envs=2).url, serve_here(UnsendableEnv, num_envs=2).url]
    with RemoteVectorEnv(url=urls, num_envs=4, groups=groups) as envs:
        envs.reset()
        with pytest.warns(UserWarning, match="simulator") as caught:
            envs.step(_zeros(4))
        assert len(caught) == 1
        envs.step(_zeros(4))  # a warning is an error here


def test_reset_mask_of_one_host_leaves_the_others_where_they_are(serve_here: ServeFunction) -> None:
    urls = [serve_here(CountingEnv, num_envs=2).url, serve_here(CountingEnv, num_envs=2).url]
    with RemoteVectorEnv(url=urls, num_envs=4, autoreset_mode="Disabled") as envs:
        envs.reset()
        envs.step(_zeros(4))
        observations, _ = envs.reset(options={"reset_mask": np.array([True, False, False, False])})
        assert observations[:, :2].tolist() == [[2, 0], [1, 1], [1, 1], [1, 1]]
        for mask in ([True], np.ones(4), np.zeros(4, np.bool_), np.ones(3, np.bool_)):
            with pytest.raises(ConfigError, match="reset_mask"):
                envs.reset(options={"reset_mask": mask})


def test_environments_are_spread_in_proportion_to_what_hosts_offer(serve_here: ServeFunction) -> None:
    hosts = [serve_here(CountingEnv, num_envs=count) for count in (6, 2)]
    urls = [host.url for host in hosts]
    with RemoteVectorEnv(url=urls, num_envs=4) as envs:
        assert [lent.num_envs for lent in envs.lend()] == [3, 1]
        with pytest.raises(CapacityReached, match=r"asked for 5 environments: the hosts have 3, 1 free"):
            RemoteVectorEnv(url=urls, num_envs=5)
    with RemoteVectorEnv(url=urls) as envs:
        assert envs.num_envs == 8


def test_calls_attributes_and_frames_come_from_every_host_in_order(serve_here: ServeFunction) -> None:
    urls = [serve_here(CountingEnv, num_envs=2).url, serve_here(CountingEnv, num_envs=1).url]
    with RemoteVectorEnv(url=urls, num_envs=3, render_mode="ansi") as envs:
        envs.reset()
        envs.step(_zeros(3))
        assert envs.call("add", 10, times=2) == (21, 21, 21)
        envs.set_attr("length", [7, 8, 9])
        assert envs.get_attr("length") == (7, 8, 9)
        assert envs.render() == ("step 1",) * 3


def test_hosts_of_different_environments_are_refused(serve_here: ServeFunction) -> None:
    urls = [serve_here(CountingEnv).url, serve_here("Pendulum-v1").url]
    with pytest.raises(ConfigError, match="expected every host to serve the same environment"):
        RemoteVectorEnv(url=urls, num_envs=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": []}, "names no host"),
        ({"groups": 0}, "groups=0 is out of range"),
        ({"groups": 3}, "num_envs=4 can't be split into groups=3"),
        ({"on_host_loss": "retry"}, "expected 'error' or 'truncate'"),
        ({"url": "ws://127.0.0.1:1", "workers": 2}, "workers= is for a host that is started here"),
        ({"spin_wait": -1}, "spin_wait"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    source = None if "url" in options else CountingEnv
    with pytest.raises(ConfigError, match=message):
        RemoteVectorEnv(source, num_envs=4, **options)


def test_groups_step_independently_and_the_fast_come_first(serve_here: ServeFunction) -> None:
    slow, fast = serve_here(SlowEnv), serve_here(CountingEnv)
    with RemoteVectorEnv(url=[slow.url, fast.url], num_envs=4, groups=2) as envs:
        envs.reset()
        assert [envs.group_slice(group) for group in range(2)] == [slice(0, 2), slice(2, 4)]
        envs.send(0, _zeros(2))
        for count in range(1, 4):
            envs.send(1, _actions(1, 2))
            group, (observations, rewards, _, _, infos) = envs.recv(10.0)
            assert group == 1
            assert observations.tolist() == [[1, count, 1], [1, count, 2]]
            assert rewards == pytest.approx([0.1 * count] * 2)
            assert infos["count"].tolist() == [count] * 2
        with pytest.raises(AlreadyPendingCallError):
            envs.send(0, _zeros(2))
        with pytest.raises(AlreadyPendingCallError):
            envs.step(_zeros(4))
        group, step = envs.recv(10.0)
        assert (group, step[0].tolist()) == (0, [[1, 1, 0], [1, 1, 0]])
        with pytest.raises(NoAsyncCallError):
            envs.recv()
        assert envs.step(_zeros(4))[0][:, 1].tolist() == [2, 2, 4, 4]


def test_recv_has_a_deadline_and_can_be_called_again(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(SlowEnv).url, num_envs=2, groups=2) as envs:
        envs.reset()
        envs.send(1, _zeros(1))
        with pytest.raises(RemoteTimeout, match=r"no group is ready within 0\.05 s"):
            envs.recv(0.05)
        assert envs.recv(10.0)[0] == 1


def test_wrong_group_or_actions_are_refused_and_nothing_is_sent(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=4, groups=2) as envs:
        envs.reset()
        with pytest.raises(ConfigError, match="group=2 is out of range: expected 0 to 1"):
            envs.send(2, _zeros(2))
        with pytest.raises(InvalidAction, match="holds 3 values"):
            envs.send(0, _zeros(3))
        with pytest.raises(InvalidAction, match="holds 5 values, expected one for each of 4"):
            envs.step(_zeros(5))
        envs.send(0, _zeros(2))
        assert envs.recv(10.0)[0] == 0


def test_error_of_one_group_leaves_the_others_and_names_it(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here(FragileEnv).url, num_envs=2, groups=2) as envs:
        envs.reset()
        envs.send(1, _actions(2))
        with pytest.raises(RemoteEnvError, match="burnt out") as raised:
            envs.recv(10.0)
        assert "group 1" in raised.value.__notes__[0]
        with pytest.raises(RemoteEnvError, match="burnt out"):
            envs.step(_actions(0, 2))
        assert envs.step(_zeros(2))[0][:, 1].tolist() == [2, 1]


def test_timeout_of_a_step_over_several_hosts_keeps_what_has_arrived(serve_here: ServeFunction) -> None:
    urls = [serve_here(CountingEnv).url, serve_here(SlowEnv).url]
    with RemoteVectorEnv(url=urls, num_envs=2) as envs:
        envs.reset()
        envs.step_async(_zeros(2))
        with pytest.raises(RemoteTimeout):
            envs.step_wait(0.05)
        assert not envs.reply_ready
        assert wait_ready([envs], 10.0) == [envs]
        assert envs.step_wait(10.0)[0][:, 1].tolist() == [1, 1]


def test_own_infos_of_a_vector_environment_come_as_a_tuple(serve_here: ServeFunction) -> None:
    urls = [serve_here(OwnVectorEnv).url, serve_here(OwnVectorEnv).url]
    with RemoteVectorEnv(url=urls, num_envs=4) as envs:
        _, infos = envs.reset(seed=0)
        steps = envs.step(envs.action_space.sample())
        assert all(isinstance(value, (tuple, np.ndarray)) for value in [*infos.values(), *steps[4].values()])


def test_spec_makes_the_same_again(serve_here: ServeFunction) -> None:
    urls = [serve_here("CartPole-v1").url, serve_here("CartPole-v1").url]
    options = {"url": urls, "groups": 2, "on_host_loss": "truncate"}
    with gym.make_vec("agentgpt/CartPole-v1", num_envs=4, **options) as envs:
        assert envs.spec is not None
        assert {key: envs.spec.kwargs[key] for key in options} == options
        with gym.make_vec(envs.spec, num_envs=2) as again:
            assert again.unwrapped.url == urls


def test_lost_host_is_an_error_unless_truncation_is_asked_for() -> None:
    with LocalHost(CountingEnv) as first, LocalHost(CountingEnv) as second:
        urls = [first.url, second.url]
        with pytest.raises(AuthError, match=f"{second.url} refused the connection: the token is wrong"):
            RemoteVectorEnv(num_envs=2, url=urls, token=first.token)
        tokens = {first.url: first.token, second.url: second.token}
        with RemoteVectorEnv(num_envs=2, url=urls, token=tokens, resume_window_s=0.5) as envs:
            envs.reset()
            second.kill()
            with pytest.raises(ConnectionLost, match=second.url):
                envs.step(_zeros(2))
    with pytest.raises(HostUnreachable, match="nothing listens at"):
        RemoteVectorEnv(num_envs=2, url=urls, token="x")


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_lost_host_truncates_its_episodes_and_the_others_take_over(
    mode: AutoresetMode, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalHost(DoomedEnv, workers=0) as first, LocalHost(DoomedEnv, workers=0) as second:
        urls, token = [first.url, second.url], {first.url: first.token, second.url: second.token}
        with RemoteVectorEnv(
            url=urls, token=token, num_envs=4, on_host_loss="truncate", autoreset_mode=mode, resume_window_s=1.0
        ) as envs:
            envs.reset(seed=0)
            before = envs.step(_zeros(4))[0]
            first.kill()
            observations, rewards, terminations, truncations, infos = envs.step(_zeros(4))
            assert truncations.tolist() == [True, True, False, False]
            assert not terminations.any()
            assert rewards == pytest.approx([0, 0, 0.2, 0.2])
            assert infos["_host_loss"].tolist() == [True, True, False, False]
            assert "lost" in infos["host_loss"][0]
            assert infos["host_loss"][2] is None
            assert observations[2:].tolist() == [[1, 2, 0], [1, 2, 0]]
            assert "host lost" in caplog.text
            if mode is AutoresetMode.SAME_STEP:
                assert exactly_equal(list(infos["final_obs"]), [*before[:2], None, None])
                assert infos["final_info"]["host_loss"][0] == infos["host_loss"][0]
                assert observations[:2].tolist() == [[1, 0, -1]] * 2
            else:
                assert exactly_equal(observations[:2], before[:2])
            if mode is AutoresetMode.DISABLED:
                observations, _ = envs.reset(options={"reset_mask": truncations})
                assert observations[:, 1].tolist() == [0, 0, 2, 2]
            elif mode is AutoresetMode.NEXT_STEP:
                observations, rewards, terminations, truncations, _ = envs.step(_zeros(4))
                assert observations[:2].tolist() == [[1, 0, -1]] * 2
                assert rewards[:2].tolist() == [0.0, 0.0]
                assert not (terminations | truncations).any()
            assert envs.step(_zeros(4))[0][:2].tolist() == [[1, 1, 0]] * 2
            assert envs.call("process_id") == (second.pid,) * 4


def test_all_hosts_lost_is_an_error_in_time() -> None:
    with (
        LocalHost(CountingEnv) as host,
        RemoteVectorEnv(
            url=host.url, token=host.token, num_envs=2, on_host_loss="truncate", resume_window_s=0.5
        ) as envs,
    ):
        envs.reset()
        host.kill()
        assert envs.step(_zeros(2))[3].all()
        before = time.monotonic()
        for _ in range(2):
            with pytest.raises(ConnectionLost, match=r"no host took over from .* within 0\.5 s"):
                envs.reset()
        assert time.monotonic() - before < 10.0


def test_host_that_is_back_after_it_was_given_up_goes_on() -> None:
    with serve(CountingEnv, port=0, block=False) as host:
        envs = RemoteVectorEnv(url=host.url, num_envs=2, on_host_loss="truncate", resume_window_s=0.2)
        envs.reset()
    with envs:
        assert envs.step(_zeros(2))[3].all()
        with pytest.raises(ConnectionLost, match="no host took over"):
            envs.step(_zeros(2))
        with serve(CountingEnv, port=int(host.url.rpartition(":")[2]), block=False):
            envs.reset()
            observations, rewards, *_ = envs.step(_zeros(2))
            assert observations[:, 1].tolist() == [1, 1]
            assert rewards.tolist() == [0.1, 0.1]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_host_that_nobody_takes_over_from_leaves_nothing_pending(mode: AutoresetMode) -> None:
    with (
        LocalHost(CountingEnv, num_envs=2) as staying,
        LocalHost(CountingEnv, num_envs=2) as leaving,
        RemoteVectorEnv(
            url=[staying.url, leaving.url],
            token={host.url: host.token for host in (staying, leaving)},
            autoreset_mode=mode,
            on_host_loss="truncate",
            resume_window_s=0.2,
        ) as envs,
    ):
        envs.reset()
        leaving.kill()
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="no host took over"):
                envs.reset()
            with pytest.raises(NoAsyncCallError):
                envs.reset_wait()
        if mode is AutoresetMode.NEXT_STEP:
            infos = envs.step(_zeros(4))[4]
            assert "lost" in infos["host_loss"][2]
            for _ in range(2):
                with pytest.raises(ConnectionLost, match="no host took over"):
                    envs.step(_zeros(4))
                with pytest.raises(NoAsyncCallError):
                    envs.step_wait()


@pytest.mark.parametrize("num_envs", [None, 2])
def test_frames_between_the_loss_of_a_host_and_the_reset_are_the_latest(num_envs: int | None) -> None:
    options: dict[str, Any] = {"render_mode": "rgb_array", "on_host_loss": "truncate", "workers": 0}
    env: Any = RemoteEnv(DOOMED, **options) if num_envs is None else RemoteVectorEnv(DOOMED, num_envs, **options)
    with env:
        env.reset()
        for action in (0, 0, CRASH):
            before = env.render()
            assert before is not None
            env.step(action if num_envs is None else _actions(0, action))
        assert exactly_equal(env.render(), before)
        env.reset()
        assert not exactly_equal(env.render(), before)


def test_host_that_is_not_there_yet_is_left_out_where_losses_truncate(serve_here: ServeFunction) -> None:
    urls = ["ws://127.0.0.1:9", serve_here(CountingEnv).url]
    with pytest.raises(HostUnreachable):
        RemoteVectorEnv(url=urls, num_envs=2)
    with RemoteVectorEnv(url=urls, num_envs=2, on_host_loss="truncate") as envs:
        assert [lent.num_envs for lent in envs.lend()] == [None, 2]
        envs.reset()


def test_own_process_that_crashed_is_started_again() -> None:
    with RemoteEnv(DOOMED, on_host_loss="truncate", workers=0) as env:
        env.reset()
        before = env.step(0)[0]
        observation, reward, terminated, truncated, info = env.step(CRASH)
        assert exactly_equal(observation, before)
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert "they say" in info["host_loss"]
        with pytest.raises(gym.error.ResetNeeded):
            env.step(0)
        assert env.reset()[0].tolist() == [1, 0, -1]
        assert env.step(0)[0].tolist() == [1, 1, 0]


def test_own_process_that_hangs_is_started_again() -> None:
    with RemoteVectorEnv(DOOMED, 2, on_host_loss="truncate", request_timeout_s=0.5, workers=0) as envs:
        envs.reset()
        _, _, _, truncations, infos = envs.step(_actions(0, HANG))
        assert truncations.all()
        assert "hangs" in infos["host_loss"][0]
        assert envs.step(_zeros(2))[0][:, 1].tolist() == [0, 0]
