"""Gymnasium's and Stable-Baselines3's checkers accept remote environments, and Gymnasium's wrappers work on them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import agentgpt_remote.registration
from tests.conftest import ServeFunction
from tests.wrappers.env_ids import ids_of

agentgpt_remote.registration.install()
IDS = ids_of("classic_control", "toy_text", "mujoco")


@pytest.mark.filterwarnings("ignore")  # the checkers advise on the environments themselves
@pytest.mark.parametrize("env_id", IDS)
def test_check_env_of_both_libraries_pass(env_id: str, serve_here: ServeFunction) -> None:
    url = serve_here(env_id).url
    with gym.make(f"agentgpt/{env_id}", url=url) as env:
        check_env(env.unwrapped, skip_render_check=True)
    with gym.make(f"agentgpt/{env_id}", url=url) as env:
        sb3_check_env(env, skip_render_check=True)
        assert env.spec is not None
        assert env.spec.id == f"agentgpt/{env_id}"


@pytest.mark.filterwarnings("ignore")
def test_check_env_passes_with_rendering() -> None:
    with gym.make("agentgpt/CartPole-v1", render_mode="rgb_array") as env:
        check_env(env.unwrapped)
        sb3_check_env(env)
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        assert frame.shape == (400, 600, 3)


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="RecordVideo needs moviepy")
@pytest.mark.filterwarnings("ignore")  # moviepy's own
def test_record_video_writes_a_film(tmp_path: Path) -> None:
    env = RecordVideo(gym.make("agentgpt/CartPole-v1", render_mode="rgb_array"), str(tmp_path), disable_logger=True)
    with env:
        env.reset(seed=0)
        for _ in range(10):
            env.step(env.action_space.sample())
    (film,) = tmp_path.glob("*.mp4")
    assert film.stat().st_size > 1000


def test_record_episode_statistics_counts_episodes(serve_here: ServeFunction) -> None:
    with RecordEpisodeStatistics(gym.make("agentgpt/CartPole-v1", url=serve_here("CartPole-v1").url)) as env:
        env.reset(seed=0)
        terminated, length = False, 0
        while not terminated:
            _, _, terminated, _, info = env.step(0)
            length += 1
    assert info["episode"]["l"] == length
    assert info["episode"]["r"] == float(length)
