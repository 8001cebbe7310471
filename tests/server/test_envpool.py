"""EnvPool's environments as a source are Gymnasium environments, local and remote."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled, NameNotFound, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import agentgpt_remote.registration
from agentgpt_remote.errors import ConfigError, InvalidAction
from agentgpt_remote.server.sources import resolve_source
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.sb3 import SB3VecEnv
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal

agentgpt_remote.registration.install()
IS_INSTALLED = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not IS_INSTALLED, reason='needs `pip install "agentgpt-remote[envpool]"`')
# Said by EnvPool's own declarations of spaces.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")
N = 4


def test_missing_envpool_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(
        DependencyNotInstalled, match=r'CartPole-v1 needs EnvPool.*pip install "agentgpt-remote\[envpool'
    ):
        resolve_source("envpool:CartPole-v1")


@pytest.fixture(scope="module")
def envpool() -> types.ModuleType:
    return importlib.import_module("envpool")


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("Walker2d-v4", {"max_episode_steps": 30}),
        ("CartPole-v1", {}),
        ("FrozenLake-v1", {}),
        ("CartpoleBalance-v1", {}),
    ],
)
def test_remote_steps_are_those_of_the_pool(
    env_id: str, options: dict[str, Any], envpool: Any, serve_here: ServeFunction
) -> None:
    pool = envpool.make_gymnasium(env_id, num_envs=N, seed=[9, 10, 11, 12], **options)
    with RemoteVectorEnv(url=serve_here(f"envpool:{env_id}").url, num_envs=N, **options) as envs:
        assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        assert envs.spec is not None
        observations, infos = envs.reset(seed=9)
        expected, _ = pool.reset()
        envs.action_space.seed(0)
        ended = 0
        for step in range(200):
            for key, value in expected.items() if isinstance(expected, dict) else [(None, expected)]:
                ours = observations if key is None else observations[key]
                assert np.array_equal(ours, value, equal_nan=True)
            assert envs.observation_space.contains(observations)
            assert infos["elapsed_step"].shape == (N,)
            assert infos["_elapsed_step"].tolist() == [True] * N
            assert "env_id" not in infos
            actions = envs.action_space.sample()
            observations, rewards, terminations, truncations, infos = envs.step(actions)
            expected, their_rewards, *flags, _ = pool.step(actions)
            assert exactly_equal(rewards, their_rewards.astype(np.float64)), step
            assert exactly_equal([terminations, truncations], flags)
            ended += int((terminations | truncations).sum())
        assert ended or env_id == "CartpoleBalance-v1"


@needs_envpool
def test_seeds_are_those_of_a_reset(serve_here: ServeFunction) -> None:
    url = serve_here("envpool:CartPole-v1").url
    with RemoteVectorEnv(url=url, num_envs=2) as one, RemoteVectorEnv(url=url, num_envs=2) as other:
        assert not np.array_equal(one.reset()[0], other.reset()[0])
        assert exactly_equal(one.reset(seed=2**31 - 1), other.reset(seed=[2**31 - 1, 2**31]))
        again = one.reset()[0]
        assert exactly_equal(again, other.reset()[0])
        assert not np.array_equal(again, one.reset(seed=2**31 - 1)[0])
        assert exactly_equal(one.reset(seed=[3, None])[0][0], other.reset(seed=3)[0][0])
        for seed in ([-1, 0], 2**32, [1]):
            with pytest.raises(ConfigError, match="seed"):
                one.reset(seed=seed)


@needs_envpool
def test_same_step_resets_where_an_episode_ends(serve_here: ServeFunction) -> None:
    url = serve_here("envpool:CartPole-v1").url
    with (
        RemoteVectorEnv(url=url, num_envs=N, autoreset_mode="SameStep") as same,
        RemoteVectorEnv(url=url, num_envs=1) as single,
    ):
        observations, _ = same.reset(seed=5)
        lone, _ = single.reset(seed=5)
        ended = 0
        for step in range(60):
            assert exactly_equal(observations[:1], lone)
            actions = np.full(N, step // 2 % 2)
            observations, _, terminations, truncations, infos = same.step(actions)
            lone, _, lone_terminations, _, _ = single.step(actions[:1])
            dones = terminations | truncations
            if lone_terminations[0]:
                assert exactly_equal(infos["final_obs"][0], lone[0])
                lone = single.step(actions[:1])[0]  # EnvPool resets in this one
            if dones.any():
                assert exactly_equal(infos["_final_obs"], dones)
                assert [final is not None for final in infos["final_obs"]] == dones.tolist()
                assert (infos["final_info"]["elapsed_step"][dones] > 0).all()
                assert (infos["elapsed_step"][dones] == 0).all()
            ended += int(dones[0])
        assert ended


@needs_envpool
def test_stable_baselines3_sees_terminal_observations_of_the_pool(serve_here: ServeFunction) -> None:
    with SB3VecEnv.make("envpool:CartPole-v1", N, url=serve_here("envpool:CartPole-v1").url) as envs:
        assert not envs.has_attr("action_masks")
        observations = envs.reset()
        ended = 0
        for _ in range(40):
            observations, rewards, dones, infos = envs.step(np.ones(N, np.int64))
            assert rewards.tolist() == [1.0] * N
            for observation, done, info in zip(observations, dones, infos, strict=True):
                assert ("terminal_observation" in info) == done
                assert abs(observation[2]) < 0.21  # within the angle that ends an episode
                assert not done or abs(info["terminal_observation"][2]) > 0.2
                ended += int(done)
        assert ended >= N


@needs_envpool
def test_reset_mask_resets_some(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here("envpool:CartPole-v1").url, num_envs=3) as envs:
        mask = np.array([False, True, False])
        with pytest.raises(ConfigError, match="needs a reset of all"):
            envs.reset(options={"reset_mask": mask})
        envs.reset(seed=0)
        before = envs.step(np.array([0, 1, 0]))[0]
        after, infos = envs.reset(options={"reset_mask": mask})
        assert exactly_equal(after[[0, 2]], before[[0, 2]])
        assert not np.array_equal(after[1], before[1])
        assert exactly_equal(infos["_elapsed_step"], mask)
        assert envs.step(np.array([0, 1, 0]))[4]["elapsed_step"].tolist() == [2, 1, 2]
        with pytest.raises(ConfigError, match="takes no seeds"):
            envs.reset(seed=1, options={"reset_mask": mask})
        with pytest.raises(ConfigError, match=r"\['goal'\].*no options but 'reset_mask'"):
            envs.reset(options={"goal": 1})


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*observation space m.*imum value is:UserWarning")
def test_single_env_is_one_that_gymnasium_accepts(envpool: Any, serve_here: ServeFunction) -> None:
    env = gym.make("agentgpt/envpool:CartPole-v1", url=serve_here("envpool:CartPole-v1").url)
    check_env(env.unwrapped, skip_render_check=True)
    pool = envpool.make_gymnasium("CartPole-v1", num_envs=1, seed=[8])
    observation, info = env.reset(seed=8)
    assert exactly_equal(observation, pool.reset()[0][0])
    assert info == {"elapsed_step": 0}
    observation, reward, terminated, truncated, info = env.step(1)
    assert exactly_equal(observation, pool.step(np.array([1]))[0][0])
    assert (reward, terminated, truncated, info) == (1.0, False, False, {"elapsed_step": 1})
    env.close()


@needs_envpool
def test_frames_are_rendered_on_the_host(serve_here: ServeFunction) -> None:
    url = serve_here("envpool:CartPole-v1").url
    with RemoteVectorEnv(url=url, num_envs=2, render_mode="rgb_array") as envs:
        with pytest.raises(ResetNeeded):
            envs.render()
        envs.reset(seed=0)
        frames = envs.render()
        assert frames is not None
        assert [(frame.dtype, frame.ndim, frame.shape[2]) for frame in frames] == [(np.uint8, 3, 3)] * 2
    with pytest.raises(ConfigError, match="'rgb_array' only"):
        RemoteEnv(url=url, render_mode="ansi")


@needs_envpool
def test_wrong_ids_options_and_modes_are_named(serve_here: ServeFunction) -> None:
    with pytest.raises(NameNotFound, match=r"`Walker2-v4`.*Did you mean: `envpool:Walker2d-v\d`"):
        resolve_source("envpool:Walker2-v4")
    url = serve_here("envpool:Walker2d-v4").url
    with pytest.raises(ConfigError, match=r"no option 'max_steps'; it has .*max_episode_steps"):
        RemoteVectorEnv(url=url, num_envs=2, max_steps=3)
    with pytest.raises(ConfigError, match=r"batch_size=1 is not for .*every step is one of all"):
        RemoteVectorEnv(url=url, num_envs=2, batch_size=1)
    with pytest.raises(ConfigError, match=r"DISABLED.*expected NEXT_STEP or SAME_STEP"):
        RemoteVectorEnv(url=url, num_envs=2, autoreset_mode="Disabled")
    with pytest.raises(NameNotFound, match="which serves `envpool:Walker2d-v4`"):
        RemoteEnv("CartPole-v1", url=url)
    with pytest.raises(ConfigError, match="several players"):
        RemoteVectorEnv(url=serve_here("envpool:Go9x9-v1").url, num_envs=1)


@needs_envpool
def test_actions_that_the_pool_would_misread_are_refused(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(url=serve_here("envpool:CartPole-v1").url, num_envs=2) as envs:
        with pytest.raises(ResetNeeded):
            envs.step(np.array([0, 1]))
        envs.reset(seed=0)
        for actions in (np.array([0, 7]), np.array([[0, 1], [1, 0]]), np.array([0.0, 1.0])):
            with pytest.raises(InvalidAction):
                envs.step(actions)
        envs.step(np.array([0, 1]))
    with RemoteVectorEnv(url=serve_here("envpool:Walker2d-v4").url, num_envs=2) as envs:
        envs.reset(seed=0)
        with pytest.raises(InvalidAction, match="shape"):
            envs.step(np.zeros((2, 5)))
        envs.step(np.full((2, 6), 3.0))  # beyond the bounds, which Gymnasium's own takes too
