"""Remote and local trajectories are equal to the bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
from tests.wrappers.env_ids import ids_of
from tests.wrappers.odd_envs import CountingEnv, TangledEnv

IDS = [
    pytest.param(env_id, marks=pytest.mark.slow if env_id == "CarRacing-v3" else ())
    for env_id in ids_of("classic_control", "toy_text", "mujoco", "box2d")
]
QUIET = pytest.mark.filterwarnings("ignore")  # the environments' own warnings are not of interest here


def _with_python_flags(step: tuple[Any, ...]) -> tuple[Any, ...]:
    observation, reward, terminated, truncated, info = step
    return observation, reward, bool(terminated), bool(truncated), info


def _compare_single(local: gym.Env[Any, Any], remote: gym.Env[Any, Any], steps: int) -> None:
    assert local.observation_space == remote.observation_space
    assert local.action_space == remote.action_space
    local.action_space.seed(0)
    remote.action_space.seed(0)
    assert exactly_equal(remote.reset(seed=3), local.reset(seed=3))
    for index in range(steps):
        action = local.action_space.sample()
        assert exactly_equal(remote.action_space.sample(), action)
        there, here = remote.step(action), _with_python_flags(local.step(action))
        assert exactly_equal(there, here), f"step {index}: {there} is not {here}"
        if there[2] or there[3]:
            assert exactly_equal(remote.reset(), local.reset())


def _compare_vector(local: SyncVectorEnv, remote: RemoteVectorEnv, steps: int) -> None:
    assert local.observation_space == remote.observation_space
    assert local.action_space == remote.action_space
    assert local.metadata["autoreset_mode"] is remote.metadata["autoreset_mode"]
    local.action_space.seed(0)
    remote.action_space.seed(0)
    assert exactly_equal(remote.reset(seed=5), local.reset(seed=5))
    for index in range(steps):
        actions = local.action_space.sample()
        assert exactly_equal(remote.action_space.sample(), actions)
        there, here = remote.step(actions), local.step(actions)
        assert exactly_equal(there, here), f"step {index}: {there} is not {here}"


@QUIET
@pytest.mark.parametrize("env_id", IDS)
def test_remote_trajectory_of_one_env_equals_the_local_one(env_id: str, serve_here: ServeFunction) -> None:
    with RemoteEnv(env_id, url=serve_here(env_id).url) as remote, gym.make(env_id) as local:
        _compare_single(local, remote, 400)


@QUIET
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", IDS)
def test_remote_trajectory_of_three_envs_equals_the_local_one(
    env_id: str, mode: AutoresetMode, serve_here: ServeFunction
) -> None:
    local = gym.make_vec(env_id, 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    with RemoteVectorEnv(env_id, 3, url=serve_here(env_id).url, autoreset_mode=mode) as remote:
        assert isinstance(local, SyncVectorEnv)
        _compare_vector(local, remote, 150)
    local.close()


def test_nested_spaces_and_tangled_infos_of_one_env_are_exact(serve_here: ServeFunction) -> None:
    with RemoteEnv(url=serve_here(TangledEnv).url) as remote:
        _compare_single(TangledEnv(), remote, 60)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_nested_spaces_and_tangled_infos_of_a_vector_are_exact(mode: AutoresetMode, serve_here: ServeFunction) -> None:
    local = SyncVectorEnv([TangledEnv] * 3, autoreset_mode=mode)
    with RemoteVectorEnv(url=serve_here(TangledEnv).url, num_envs=3, autoreset_mode=mode) as remote:
        _compare_vector(local, remote, 40)


def test_disabled_autoreset_with_a_reset_mask_is_exact_and_keeps_the_options(serve_here: ServeFunction) -> None:
    local = SyncVectorEnv([CountingEnv] * 3, autoreset_mode=AutoresetMode.DISABLED)
    with RemoteVectorEnv(url=serve_here(CountingEnv).url, num_envs=3, autoreset_mode=AutoresetMode.DISABLED) as remote:
        assert exactly_equal(remote.reset(seed=[1, 2, 3]), local.reset(seed=[1, 2, 3]))
        actions = np.array([0, 1, 2])
        for _ in range(12):
            there, here = remote.step(actions), local.step(actions)
            assert exactly_equal(there, here)
            done = here[2] | here[3]
            if done.any():
                options = {"reset_mask": done}
                assert exactly_equal(remote.reset(options=options), local.reset(options={"reset_mask": done}))
                assert list(options) == ["reset_mask"]


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
