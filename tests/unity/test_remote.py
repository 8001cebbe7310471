"""Unity builds on hosts, over real sockets: what clients see of them."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import agentgpt_remote  # noqa: F401 - makes agentgpt/ ids known
from agentgpt_remote import RemoteEnv, RemoteParallelEnv, RemoteVectorEnv
from agentgpt_remote.errors import ConfigError, InvalidArgument, PlayerFailed
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from agentgpt_remote.wrappers.unity.agents import UnityAgents
from agentgpt_remote.wrappers.unity.player import EDITOR_PORT
from tests.conftest import ServeFunction
from tests.unity.echo import answer, answers
from tests.unity.stand_in import write_player

BUILD = os.environ.get("AGENTGPT_UNITY_BUILD")


def test_remote_agents_see_what_local_ones_see(tmp_path: Path, serve_here: ServeFunction) -> None:
    settings: dict[str, Any] = {
        "agents": 4,
        "behaviors": ("Red?team=0", "Blue?team=1"),
        "branches": (3, 2),
        "observations": ("vector", "image"),
        "masks": True,
        "groups": True,
        "periods": (1, 2),
        "death": 0.1,
        "length": 6,
    }
    path = write_player(tmp_path, **settings)
    local = UnityAgents(path, seed=5)
    with RemoteAgents(url=serve_here(f"unity:{path}").url, seed=5) as remote:
        here, there = local.reset(), remote.reset()
        for _ in range(30):
            assert list(here) == list(there)
            for name, turn in here.items():
                _check_equal(turn.acting, there[name].acting)
                _check_equal(turn.ended, there[name].ended)
            actions = answers(local, here)
            here, there = local.step(actions), remote.step(actions)
        assert remote.call("stats")["wrong_actions"][-1] == (0.0, "most_recent")
    local.close()


def _check_equal(one: Any, other: Any) -> None:
    for name in one._fields:
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, dict) and name == "observations":
            assert all(np.array_equal(first[key], second[key]) for key in first)
        elif isinstance(first, np.ndarray):
            assert first.dtype == second.dtype
            assert np.array_equal(first, second)
        else:
            assert first == second


def test_parallel_env_of_a_build(tmp_path: Path) -> None:
    path = write_player(tmp_path, agents=3, periods=(1, 3), length=5, respawn="same")
    with RemoteParallelEnv(f"unity:{path}") as env:
        observations, _ = env.reset(seed=1)
        assert len(env.agents) == 3
        ends = 0
        for _ in range(30):
            actions = {agent: answer(env.action_space(agent), observations[agent]) for agent in env.agents}
            observations, rewards, terminations, truncations, infos = env.step(actions)
            for agent in env.agents:
                if truncations[agent] and "final_obs" in infos[agent]:
                    ends += 1
                    assert not np.array_equal(infos[agent]["final_obs"], observations[agent])
                if not infos[agent].get("acts", True):
                    assert rewards[agent] == 0.0
            assert not any(terminations.values())
        assert ends > 0
        env.set_parameters(gravity=3.0)
        env.step({agent: answer(env.action_space(agent), observations[agent]) for agent in env.agents})
        stats = env.stats()
        assert stats["parameter/gravity"] == [(3.0, "most_recent")]
        assert stats["wrong_actions"][-1][0] == 0


def test_gym_make_takes_the_file_name(tmp_path: Path) -> None:
    path = write_player(tmp_path, agents=1, length=5, continuous=0, branches=(4,))
    with gym.make("agentgpt/Unity-v0", file_name=path, seed=3) as env:
        assert env.action_space == gym.spaces.Discrete(4)
        obs, _ = env.reset()
        rewards = []
        truncated = False
        while not truncated:
            obs, reward, terminated, truncated, _ = env.step(answer(env.action_space, obs))
            rewards.append(reward)
            assert not terminated
        assert rewards == [1.0] * 5
        assert env.unwrapped.call("stats")["wrong_actions"][-1][0] == 0


def test_vector_env_of_single_agent_builds_and_a_bare_path(tmp_path: Path) -> None:
    path = write_player(tmp_path, agents=1, length=4)
    with RemoteVectorEnv(path, num_envs=2) as envs:
        observations, _ = envs.reset(seed=2)
        total = np.zeros(2)
        for _ in range(9):
            actions = np.repeat(observations[:, :1], 2, axis=1)
            observations, rewards, _, _, _ = envs.step(actions)
            total += rewards
        assert total.tolist() == [8.0, 8.0]  # four steps, the reset, four steps


def test_players_of_one_session_step_together(tmp_path: Path, serve_here: ServeFunction) -> None:
    path = write_player(tmp_path, agents=3, periods=(1, 2), death=0.1, length=9)
    with RemoteAgents(url=serve_here(f"unity:{path}").url, num_envs=2) as env:
        turns = env.reset(seed=1)
        assert {agent[:2] for agent in turns["Walker?team=0"].acting.agent_ids} == {"0/", "1/"}
        for step in range(40):
            if step == 20:
                env.call("send_raw", b"fault 1")
            turns = env.step(answers(env, turns))
        assert env.call("relaunches") == [1, 1]
        assert all(told["wrong_actions"][-1][0] == 0 for told in env.call("stats"))


def test_many_agents_in_a_single_env_name_the_class_to_use(tmp_path: Path, serve_here: ServeFunction) -> None:
    host = serve_here(f"unity:{write_player(tmp_path)}")
    with pytest.raises(ConfigError, match="use RemoteParallelEnv"):
        RemoteEnv(url=host.url)


def test_source_unity_alone_waits_for_the_editor(tmp_path: Path, serve_here: ServeFunction) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", EDITOR_PORT)) == 0:
            pytest.skip(f"something listens on port {EDITOR_PORT}")
    host = serve_here("unity:")
    editor = subprocess.Popen([write_player(tmp_path, agents=2), "--mlagents-port", str(EDITOR_PORT)])
    with RemoteAgents(url=host.url, connect_timeout_s=30.0) as env:
        turns = env.reset()
        turns = env.step(answers(env, turns))
        assert len(turns["Walker?team=0"].acting.agent_ids) == 2
    assert editor.wait(10) == 0


def test_clients_reach_no_files_and_programs_of_the_host(tmp_path: Path, serve_here: ServeFunction) -> None:
    host = serve_here(f"unity:{write_player(tmp_path)}")
    for option in ({"log_dir": "/tmp/x"}, {"args": ("-x",)}, {"variables": {"A": "1"}}, {"path": "/bin/sh"}):
        with pytest.raises(InvalidArgument, match=f"no argument '{next(iter(option))}' from a client"):
            RemoteAgents(url=host.url, **option)


def test_player_that_does_not_start_tells_the_client_why(tmp_path: Path, serve_here: ServeFunction) -> None:
    host = serve_here(f"unity:{write_player(tmp_path, crash=1.0)}")
    with pytest.raises(PlayerFailed, match="the player gives up"):
        RemoteParallelEnv(url=host.url)


@pytest.mark.unity
@pytest.mark.skipif(BUILD is None, reason="AGENTGPT_UNITY_BUILD names no build")
def test_real_build_steps_and_survives_a_crash() -> None:
    with RemoteParallelEnv(f"unity:{BUILD}") as env:
        env.reset(seed=1)
        for _ in range(100):
            env.step({agent: env.action_space(agent).sample() for agent in env.agents})
        assert env.behaviors
        os.killpg(env.call("player_pid"), 9)
        *_, truncations, infos = env.step({agent: env.action_space(agent).sample() for agent in env.agents})
        assert any(truncations.values()) or any("final_info" in info for info in infos.values())
        env.step({agent: env.action_space(agent).sample() for agent in env.agents})
