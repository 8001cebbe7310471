"""SB3VecEnv is to Stable-Baselines3 what its own DummyVecEnv of local environments is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DDPG, DQN, PPO, HerReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import tile_images

from agentgpt_remote.errors import ConfigError, RemoteEnvError
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.sb3 import SB3VecEnv
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
from tests.wrappers.odd_envs import CountingEnv, TangledEnv

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class FlatTangledEnv(TangledEnv):
    """Dict observations, Box actions, and infos of every kind; cut off after five steps."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict(
            {"image": self.observation_space["image"], "kind": gym.spaces.Discrete(5)}
        )
        self.action_space = gym.spaces.Box(-1, 1, (2,))

    def _observe(self) -> Any:
        seen = super()._observe()
        return {"image": seen["image"], "kind": seen["body"][0] + 2}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._observe(), float(action.sum()), self.count >= 7, False, self._info()


class MaskedEnv(CountingEnv):
    """Action 2 is never allowed."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])

    def step(self, action: Any) -> Any:
        assert action != 2
        return super().step(action)


MAKERS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "CartPole-v1": lambda: gym.make("CartPole-v1"),
    "Pendulum-v1": lambda: TimeLimit(gym.make("Pendulum-v1"), 11),
    "FrozenLake-v1": lambda: gym.make("FrozenLake-v1", is_slippery=False),
    "counting": lambda: TimeLimit(CountingEnv(4), 4),
    "dict": lambda: TimeLimit(FlatTangledEnv(), 5),
    "monitored": lambda: Monitor(gym.make("CartPole-v1")),
}
N = 3


def _without_time(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for info in infos:
        if "episode" in info:  # Monitor's wall clock
            del info["episode"]["t"]
    return infos


def _plain(observations: Any) -> Any:
    return dict(observations) if isinstance(observations, dict) else observations


def _as_vector_infos(infos: Any) -> Any:
    """Return infos with all numbers of one type: Gymnasium batches them in the type that the first env has."""
    if isinstance(infos, dict):
        return {key: _as_vector_infos(value) for key, value in infos.items() if key != "TimeLimit.truncated"}
    if isinstance(infos, list) and all(isinstance(info, dict) for info in infos):
        return [_as_vector_infos(info) for info in infos]
    return float(infos) if isinstance(infos, (int, float, np.number, np.bool_)) else infos


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_those_of_dummy_vec_env(name: str, serve_here: ServeFunction) -> None:
    local = DummyVecEnv([MAKERS[name]] * N)
    with SB3VecEnv.make(url=serve_here(MAKERS[name]).url, num_envs=N) as remote:
        assert (remote.observation_space, remote.action_space) == (local.observation_space, local.action_space)
        for envs in (local, remote):
            envs.seed(3)
        assert exactly_equal(_plain(remote.reset()), _plain(local.reset()))
        remote.action_space.seed(1)
        ended = 0
        for _ in range(60):
            actions = np.stack([remote.action_space.sample() for _ in range(N)])
            ours, theirs = remote.step(actions), local.step(actions)
            assert exactly_equal(_plain(ours[0]), _plain(theirs[0]))
            assert exactly_equal(ours[1:3], theirs[1:3])
            infos, expected = _without_time(ours[3]), _without_time(theirs[3])
            for key in ("TimeLimit.truncated", "terminal_observation"):
                assert exactly_equal([info.get(key) for info in infos], [info.get(key) for info in expected])
            assert exactly_equal(_as_vector_infos(infos), _as_vector_infos(expected))
            assert exactly_equal(_as_vector_infos(remote.reset_infos), _as_vector_infos(local.reset_infos))
            ended += int(theirs[2].sum())
        assert ended >= N
    local.close()


def _parameters(algorithm: Callable[..., Any], envs: VecEnv, **options: Any) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    model = algorithm("MlpPolicy", envs, seed=7, device="cpu", **options)
    model.learn(512)
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [(PPO, {"n_steps": 64, "batch_size": 64}), (DQN, {"learning_starts": 32, "train_freq": 1, "batch_size": 16})],
)
def test_learns_the_same_parameters_as_on_dummy_vec_env(
    algorithm: Any, options: Any, serve_here: ServeFunction
) -> None:
    local = _parameters(algorithm, DummyVecEnv([lambda: gym.make("CartPole-v1")] * 4), **options)
    with SB3VecEnv(
        RemoteVectorEnv("CartPole-v1", 4, url=serve_here("CartPole-v1").url, autoreset_mode="SameStep")
    ) as envs:
        remote = _parameters(algorithm, envs, **options)
    assert remote.keys() == local.keys()
    for name, value in local.items():
        assert torch.equal(remote[name], value), name


def test_wrappers_of_sb3_see_what_they_see_locally(serve_here: ServeFunction) -> None:
    def wrapped(envs: VecEnv) -> VecEnv:
        return VecFrameStack(VecNormalize(VecMonitor(envs), clip_obs=5.0), 3)

    local = wrapped(DummyVecEnv([lambda: gym.make("CartPole-v1")] * N))
    remote = wrapped(SB3VecEnv.make("CartPole-v1", N, url=serve_here("CartPole-v1").url))
    for envs in (local, remote):
        envs.seed(0)
    assert exactly_equal(remote.reset(), local.reset())
    episodes = 0
    for step in range(80):
        actions = np.arange(N) + step // 3 & 1
        ours, theirs = remote.step(actions), local.step(actions)
        assert exactly_equal(ours[:3], theirs[:3])
        for info, expected in zip(_without_time(ours[3]), _without_time(theirs[3]), strict=True):
            assert exactly_equal(info.get("episode"), expected.get("episode"))
            episodes += "episode" in info
    assert episodes >= N
    local.close()
    remote.close()


@pytest.mark.parametrize("monitored", [True, False])
def test_evaluate_policy_returns_what_it_returns_locally(monitored: bool, serve_here: ServeFunction) -> None:
    def make() -> gym.Env[Any, Any]:
        env = gym.make("CartPole-v1")
        return Monitor(env) if monitored else env

    local = DummyVecEnv([make] * N)
    with SB3VecEnv.make(url=serve_here(make).url, num_envs=N) as remote:
        assert remote.env_is_wrapped(Monitor, indices=[0, 2]) == local.env_is_wrapped(Monitor, indices=[0, 2])
        model = PPO("MlpPolicy", remote, seed=1, device="cpu")
        returns = []
        for envs in (local, remote):
            envs.seed(5)
            returns.append(evaluate_policy(model, envs, n_eval_episodes=7, warn=False, return_episode_rewards=True))
    assert returns[0] == returns[1]
    assert len(returns[1][0]) == 7
    local.close()


def test_maskable_ppo_takes_no_forbidden_action(serve_here: ServeFunction) -> None:
    with SB3VecEnv.make(url=serve_here(MaskedEnv).url, num_envs=2) as envs:
        assert is_masking_supported(envs)
        assert get_action_masks(envs).tolist() == [[True, True, False]] * 2
        MaskablePPO("MlpPolicy", envs, n_steps=32, batch_size=32, device="cpu").learn(128)
    with SB3VecEnv.make(url=serve_here(CountingEnv).url, num_envs=2) as envs:
        assert not is_masking_supported(envs)


def test_options_of_each_env_reach_it_once(serve_here: ServeFunction) -> None:
    with SB3VecEnv.make(url=serve_here(CountingEnv).url, num_envs=3) as envs:
        envs.seed(4)
        envs.set_options([{"goal": 1}, {}, {"goal": 2}])
        observations = envs.reset()
        assert [info["options"] or {} for info in envs.reset_infos] == [{"goal": 1}, {}, {"goal": 2}]
        assert [info["seed"] for info in envs.reset_infos] == [4, 5, 6]
        assert observations[:, 1].tolist() == [0, 0, 0]
        envs.set_options({"goal": 3})
        envs.reset()
        assert [info["options"] for info in envs.reset_infos] == [{"goal": 3}] * 3
        envs.reset()
        assert [info["options"] for info in envs.reset_infos] == [None] * 3


def test_attributes_and_methods_by_index(serve_here: ServeFunction) -> None:
    with SB3VecEnv.make(url=serve_here(CountingEnv).url, num_envs=3) as envs:
        assert envs.get_attr("length") == [5, 5, 5]
        envs.set_attr("length", 2, indices=[1])
        envs.set_attr("limits", [1, 2])  # one value, which is a list
        assert envs.get_attr("length", indices=[2, 1]) == [5, 2]
        assert envs.get_attr("limits", 0) == [[1, 2]]
        envs.reset()
        assert envs.step(np.array([0, 1, 2]))[2].tolist() == [False, False, False]
        assert envs.step(np.array([0, 1, 2]))[2].tolist() == [False, True, False]
        assert envs.env_method("add", 1, times=10) == [12, 10, 12]
        assert envs.env_method("add", 1, indices=[1, 0, 2]) == [1, 3, 3]
        assert envs.env_method("add", 1, indices=[2]) == envs.env_method("add", 1, indices=-1) == [3]
        with pytest.raises(ConfigError, match=r"indices=\[3\] are out of range: expected 0 to 2"):
            envs.env_method("add", 1, indices=3)
        assert (envs.has_attr("add"), envs.has_attr("nothing")) == (True, False)
        with pytest.raises(AttributeError, match="nothing"):
            envs.get_attr("nothing")
        with pytest.raises(RemoteEnvError, match="TypeError"):
            envs.env_method("add")


class ReachEnv(gym.Env[Any, Any]):
    """A point on a line that is to reach a goal; hindsight computes rewards with its method."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-10, 10, (1,))
        self.observation_space = gym.spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = gym.spaces.Box(-1, 1, (1,))

    def _observe(self) -> dict[str, np.ndarray]:
        return {"observation": self.at, "achieved_goal": self.at, "desired_goal": self.goal}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.goal = np.zeros(1, np.float32), self.np_random.uniform(-3, 3, 1).astype(np.float32)
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.at = self.at + action
        reward = float(self.compute_reward(self.at, self.goal, {}))
        return self._observe(), reward, False, False, {"is_success": reward == 0.0}

    def compute_reward(self, achieved: Any, desired: Any, _: Any) -> Any:
        return -(np.abs(achieved - desired).max(-1) > 0.5).astype(np.float32)


def test_hindsight_replay_learns_the_same_as_on_dummy_vec_env(serve_here: ServeFunction) -> None:
    def make() -> gym.Env[Any, Any]:
        return TimeLimit(ReachEnv(), 8)

    def learn(envs: VecEnv) -> dict[str, torch.Tensor]:
        model = DDPG(
            "MultiInputPolicy", envs, replay_buffer_class=HerReplayBuffer, learning_starts=40, seed=3, device="cpu"
        )
        model.learn(200)
        return {name: value.clone() for name, value in model.policy.state_dict().items()}

    local = learn(DummyVecEnv([make] * 2))
    with SB3VecEnv.make(url=serve_here(make).url, num_envs=2) as envs:
        remote = learn(envs)
    for name, value in local.items():
        assert torch.equal(remote[name], value), name


def test_frames_are_tiled_as_sb3_tiles_them(serve_here: ServeFunction) -> None:
    with SB3VecEnv.make(url=serve_here(CountingEnv).url, num_envs=2, render_mode="rgb_array") as envs:
        envs.reset()
        envs.step(np.array([0, 0]))
        frames = envs.get_images()
        assert [(frame.shape, frame.dtype, frame.max()) for frame in frames] == [((4, 6, 3), np.uint8, 1)] * 2  # type: ignore[union-attr]
        assert exactly_equal(envs.render(), tile_images(frames))  # type: ignore[arg-type]
    with (
        SB3VecEnv.make(url=serve_here(CountingEnv).url, num_envs=2) as envs,
        pytest.warns(UserWarning, match="make it with 'rgb_array'"),
    ):
        assert envs.get_images() == [None, None]


def test_another_autoreset_mode_is_refused(serve_here: ServeFunction) -> None:
    with (
        RemoteVectorEnv(url=serve_here(CountingEnv).url) as envs,
        pytest.raises(ConfigError, match=r"NEXT_STEP.*autoreset_mode='SameStep'"),
    ):
        SB3VecEnv(envs)


def test_own_host_ends_with_the_adapter() -> None:
    envs = SB3VecEnv.make("CartPole-v1", 2)
    envs.reset()
    url = envs.envs.url
    envs.close()
    envs.close()
    with pytest.raises(ConnectionError):
        RemoteVectorEnv(url=url, connect_timeout_s=0.5)
