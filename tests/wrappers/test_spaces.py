"""Environments with every kind of space over a socket equal their local twins, as observations and as actions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agentgpt_remote.errors import InvalidAction
from agentgpt_remote.server import serve
from agentgpt_remote.serving import BackgroundServer
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.wire.spaces_samples import EMPTY_SPACES, SAMPLED_SPACES
from tests.wrappers.test_trajectories import _compare_single, _compare_vector

SINGLE_SPACES = SAMPLED_SPACES + EMPTY_SPACES
NUM_ENVS = 3
LENGTH = 4


class SpaceEnv(gym.Env[Any, Any]):
    """Observations and actions of one space; infos hold the action as it arrived, and nests of what was seen."""

    def __init__(self, index: int) -> None:
        space = SINGLE_SPACES[index]
        self.observation_space, self.action_space = copy.deepcopy(space), copy.deepcopy(space)
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {"options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        # In tuples, because arrays of several shapes don't fit into one array of a vector's infos.
        info = {"action": (action,), "deep": {"count": self.count, "type": type(action).__name__}}
        if self.count % 2:
            info["odd"] = {"seen": (self.observation_space.sample(),), "none": None}
        return self.observation_space.sample(), self.count * 0.1, self.count >= LENGTH, False, info


@pytest.fixture(scope="module")
def host() -> Iterator[BackgroundServer]:
    with serve(SpaceEnv, port=0, block=False, workers=0) as running:
        yield running


@pytest.mark.parametrize("index", range(len(SINGLE_SPACES)), ids=map(str, SINGLE_SPACES))
def test_env_of_every_space_equals_its_local_twin(index: int, host: BackgroundServer) -> None:
    with RemoteEnv(url=host.url, index=index) as remote:
        _compare_single(SpaceEnv(index), remote, 3 * LENGTH)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("index", range(len(SAMPLED_SPACES)), ids=map(str, SAMPLED_SPACES))
def test_vector_of_every_space_equals_its_local_twin(index: int, mode: AutoresetMode, host: BackgroundServer) -> None:
    local = SyncVectorEnv([partial(SpaceEnv, index)] * NUM_ENVS, autoreset_mode=mode)
    with RemoteVectorEnv(url=host.url, num_envs=NUM_ENVS, autoreset_mode=mode, index=index) as remote:
        _compare_vector(local, remote, 3 * LENGTH)


@pytest.mark.parametrize("index", range(len(SAMPLED_SPACES)), ids=map(str, SAMPLED_SPACES))
def test_groups_of_every_space_equal_one_vector(index: int, host: BackgroundServer) -> None:
    local = SyncVectorEnv([partial(SpaceEnv, index)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    with RemoteVectorEnv(
        url=host.url, num_envs=4, groups=2, autoreset_mode=AutoresetMode.SAME_STEP, index=index
    ) as remote:
        _compare_vector(local, remote, 3 * LENGTH)


def _index(space: gym.Space[Any]) -> int:
    return next(index for index, known in enumerate(SINGLE_SPACES) if known == space)


def test_action_outside_a_packed_space_is_named_and_the_session_goes_on(host: BackgroundServer) -> None:
    index = _index(Tuple((Text(2), Text(3))))
    with RemoteVectorEnv(url=host.url, num_envs=2, index=index) as envs:
        envs.reset(seed=1)
        with pytest.raises(InvalidAction, match=r"actions\[0\] holds 3 values, expected one for each of 2"):
            envs.step((("a", "b", "c"), ("a", "b")))
        with pytest.raises(InvalidAction, match="outside the action space"):
            envs.step(7 * np.ones(2))
        assert envs.step((("a", "b"), ("c", "d")))[4]["deep"]["count"].tolist() == [1, 1]


def test_keys_of_a_fixed_layout_arrive_in_the_order_of_the_space(host: BackgroundServer) -> None:
    space = Dict({"b": Discrete(3), "a": Box(-1, 1, (2,))}, sort_keys=False)
    index = next(i for i, known in enumerate(SINGLE_SPACES) if known == space and not getattr(known, "sort_keys", True))
    with RemoteEnv(url=host.url, index=index) as remote:
        assert list(remote.reset(seed=0)[0]) == ["b", "a"]
