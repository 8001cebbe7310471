"""Remote and local trajectories are equal to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
from tests.wrappers.env_ids import ids_of
from tests.wrappers.odd_envs import CountingEnv, TangledEnv

FAMILIES = ("classic_control", "toy_text", "mujoco", "box2d")
STEPS = 1010  # beyond the time limit of most, 1000
NUM_ENVS = 2
NEWEST = ids_of(*FAMILIES)
QUIET = pytest.mark.filterwarnings("ignore")  # the environments' own warnings are not of interest here


def _cases(*thorough: AutoresetMode | None) -> list[Any]:
    """Return ids, modes (``None``: a single env) and steps; the rest of what ``thorough`` does not name is slow."""
    cases = []
    for mode in (None, *AutoresetMode):
        for env_id in ids_of(*FAMILIES, all_versions=True):
            costly = env_id == "CarRacing-v3"  # 100 times the step time of the others
            slow = costly or (env_id not in NEWEST and mode not in thorough)
            name = f"{env_id}-{'single' if mode is None else mode.value}"
            cases.append(pytest.param(env_id, mode, STEPS, id=name, marks=pytest.mark.slow if slow else ()))
            if costly:
                cases.append(pytest.param(env_id, mode, 40, id=f"{name}-short"))
    return cases


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    """A process of its own, so that the environments share no state with their twins."""
    with LocalHost("tests.wrappers.env_ids:make_any") as running:
        yield running


def _with_python_flags(step: tuple[Any, ...]) -> tuple[Any, ...]:
    observation, reward, terminated, truncated, info = step
    return observation, reward, bool(terminated), bool(truncated), info


def _compare_spaces(local: Any, remote: Any) -> None:
    for name in ("observation_space", "action_space"):
        here, there = getattr(local, name), getattr(remote, name)
        assert here == there
        assert here.dtype == there.dtype
        here.seed(0)
        there.seed(0)
        assert exactly_equal(there.sample(), here.sample())


def _compare_single(local: gym.Env[Any, Any], remote: gym.Env[Any, Any], steps: int) -> None:
    _compare_spaces(local, remote)
    assert exactly_equal(remote.reset(seed=3), local.reset(seed=3))
    for index in range(steps):
        action = local.action_space.sample()
        there, here = remote.step(action), _with_python_flags(local.step(action))
        assert exactly_equal(there, here), f"step {index}: {there} is not {here}"
        if there[2] or there[3]:
            assert exactly_equal(remote.reset(), local.reset())


def _compare_vector(local: SyncVectorEnv, remote: RemoteVectorEnv, steps: int) -> None:
    _compare_spaces(local, remote)
    mode = local.metadata["autoreset_mode"]
    assert remote.metadata["autoreset_mode"] is mode
    assert exactly_equal(remote.reset(seed=5), local.reset(seed=5))
    for index in range(steps):
        actions = local.action_space.sample()
        remote.step_async(actions)
        here = local.step(actions)
        there = remote.step_wait()
        assert exactly_equal(there, here), f"step {index}: {there} is not {here}"
        ended = here[2] | here[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            options = {"reset_mask": ended}
            assert exactly_equal(remote.reset(options=options), local.reset(options=options.copy()))
            assert list(options) == ["reset_mask"]


@QUIET
@pytest.mark.parametrize(("env_id", "mode", "steps"), _cases(None, AutoresetMode.NEXT_STEP))
def test_remote_trajectory_equals_the_local_one(
    env_id: str, mode: AutoresetMode | None, steps: int, host: LocalHost
) -> None:
    if mode is None:
        with RemoteEnv(url=host.url, token=host.token, env_id=env_id) as env, gym.make(env_id) as twin:
            _compare_single(twin, env, steps)
        return
    local = gym.make_vec(env_id, NUM_ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    assert isinstance(local, SyncVectorEnv)
    with RemoteVectorEnv(
        url=host.url, token=host.token, num_envs=NUM_ENVS, autoreset_mode=mode, env_id=env_id
    ) as remote:
        _compare_vector(local, remote, steps)
    local.close()


def test_nested_spaces_and_tangled_infos_of_one_env_are_exact(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(TangledEnv).url) as remote:
        _compare_single(TangledEnv(), remote, 60)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("make", [TangledEnv, CountingEnv])
def test_nested_spaces_and_tangled_infos_of_a_vector_are_exact(
    make: type[gym.Env[Any, Any]], mode: AutoresetMode, serve_here: ServeFunction
) -> None:
    local = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    with RemoteVectorEnv(url=serve_here(make).url, num_envs=3, autoreset_mode=mode) as remote:
        _compare_vector(local, remote, 60)


@pytest.mark.parametrize("action", [1, np.int64(1), np.int32(1), np.array(1)])
def test_actions_arrive_with_their_own_type(action: Any, serve_here: ServeFunction) -> None:
    class Telling(CountingEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return (*super().step(action)[:4], {"type": type(action).__name__, "action": action})

    with RemoteEnv(Telling()) as remote:
        remote.reset()
        info = remote.step(action)[4]
    assert info["type"] == type(action).__name__
    assert exactly_equal(info["action"], action)


def test_large_observations_are_writable_and_apart_from_each_other() -> None:
    class Camera(CountingEnv):
        def __init__(self) -> None:
            super().__init__(length=100)
            self.observation_space = gym.spaces.Box(0, 255, (210, 160, 3), dtype=np.uint8)  # type: ignore[assignment]

        def _observe(self, action: float) -> np.ndarray:
            return np.full((210, 160, 3), self.count, dtype=np.uint8)

    with RemoteEnv(lambda: Camera()) as remote:
        first = remote.reset()[0]
        second = remote.step(0)[0]
        first += 7
        assert (second == 1).all()
        third = remote.step(0)[0]
        assert (first == 7).all()
        assert (third == 2).all()
        assert not np.shares_memory(second, third)
