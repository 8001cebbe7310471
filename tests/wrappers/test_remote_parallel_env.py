"""PettingZoo environments on hosts, over real sockets."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from pettingzoo.test import parallel_api_test, parallel_seed_test

from agentgpt_remote import RemoteEnv, RemoteParallelEnv, RemoteVectorEnv
from agentgpt_remote.errors import ConfigError, InvalidAction, RemoteEnvError, UnknownAgent
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from tests.conftest import ServeFunction
from tests.wrappers.many_agents import Crowd

SPREAD = "pettingzoo:mpe2.simple_spread_v3"


def _play(env: Any, steps: int, seed: int = 3) -> list[Any]:
    """Return everything that an environment tells, with actions that follow from a seed."""
    told: list[Any] = [env.reset(seed=seed)]
    spaces = {agent: copy.deepcopy(env.action_space(agent)) for agent in env.possible_agents}
    for number, space in enumerate(spaces.values()):
        space.seed(seed + number)
    for _ in range(steps):
        if not env.agents:
            told.append(env.reset())
        actions = {agent: spaces[agent].sample() for agent in env.agents}
        observations, rewards, *flags, infos = env.step(actions)
        # Some environments tell numpy's scalars, and PettingZoo's type is float.
        rewards = {agent: float(reward) for agent, reward in rewards.items()}
        flags = [{agent: bool(flag) for agent, flag in part.items()} for part in flags]
        told += [actions, observations, rewards, *flags, infos, list(env.agents)]
    return told


def test_parallel_env_passes_pettingzoos_own_tests() -> None:
    with RemoteParallelEnv(SPREAD) as env:
        parallel_api_test(env, 60)
        parallel_seed_test(lambda: RemoteParallelEnv(url=env._remote._sessions.hosts[0]), 30)


@pytest.mark.parametrize("module", ["simple_spread_v3", "simple_tag_v3", "simple_speaker_listener_v4"])
def test_trajectory_equals_the_local_one(module: str, serve_here: ServeFunction) -> None:
    import importlib

    host = serve_here(f"pettingzoo:mpe2.{module}")
    local = importlib.import_module(f"mpe2.{module}").parallel_env()
    with RemoteParallelEnv(url=host.url) as remote:
        assert remote.possible_agents == local.possible_agents
        expected, told = _play(local, 60), _play(remote, 60)
        assert data_equivalence(told, expected, exact=True)


def test_agents_that_come_and_go_are_told_as_they_are_here(serve_here: ServeFunction) -> None:
    host = serve_here("tests.wrappers.many_agents:crowd")
    with RemoteParallelEnv(url=host.url, length=9) as remote:
        expected, told = _play(Crowd(length=9), 40), _play(remote, 40)
        assert data_equivalence(told, expected, exact=True)
        assert {name: item.agent_ids for name, item in remote.behaviors.items()} == {
            "runner": ("runner_0", "runner_1", "runner_2"),
            "picker": ("picker_0", "picker_1"),
        }
        assert remote.behavior_of("picker_1") == "picker"


def test_instance_is_served_from_this_process() -> None:
    crowd = Crowd()
    with warnings.catch_warnings():  # an agent appears after the first step
        warnings.simplefilter("ignore")
        with RemoteParallelEnv(crowd) as env:
            parallel_api_test(env, 30)
            assert np.array_equal(env.state(), crowd.state())
            assert env.length == 12
    assert crowd.closed


def test_render_mode_and_attributes_reach_the_host(serve_here: ServeFunction) -> None:
    host = serve_here("tests.wrappers.many_agents:crowd")
    with RemoteParallelEnv(url=host.url, render_mode="rgb_array") as env:
        env.reset(seed=0)
        assert env.render().shape == (2, 2, 3)
        assert env.render_mode == "rgb_array"
        assert env.metadata["name"] == "crowd"
        with pytest.raises(AttributeError, match="no attribute 'lenght'"):
            _ = env.lenght


def test_agents_that_take_turns_show_their_latest_observation() -> None:
    with RemoteParallelEnv("pettingzoo:pettingzoo.classic.tictactoe_v3") as env:
        observations, _ = env.reset(seed=0)
        assert env.acting == ["player_1"]
        observations, rewards, *_, infos = env.step({"player_1": 0})
        assert env.acting == ["player_2"]
        assert infos["player_1"] == {"acts": False}
        assert rewards == {"player_1": 0.0, "player_2": 0.0}
        for player, cell in (("player_2", 3), ("player_1", 1), ("player_2", 4), ("player_1", 2)):
            observations, rewards, terminations, _, _ = env.step({player: cell})
        assert rewards == {"player_1": 1.0, "player_2": -1.0}
        assert terminations == {"player_1": True, "player_2": True}
        assert env.agents == []
        assert observations["player_2"]["action_mask"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_idle_agents_can_be_left_out() -> None:
    with RemoteParallelEnv("pettingzoo:pettingzoo.classic.tictactoe_v3", idle="leave_out") as env:
        env.reset(seed=0)
        observations, *_ = env.step({"player_1": 0})
        assert list(observations) == ["player_2"]


def test_wrong_actions_name_the_agent(serve_here: ServeFunction) -> None:
    host = serve_here("tests.wrappers.many_agents:crowd")
    with RemoteParallelEnv(url=host.url) as env:
        with pytest.raises(ResetNeeded):
            env.step({})
        env.reset(seed=0)
        actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        with pytest.raises(InvalidAction, match="no action for 'picker_1'"):
            env.step({agent: action for agent, action in actions.items() if agent != "picker_1"})
        with pytest.raises(InvalidAction, match="'runner_2', which is not alive"):
            env.step({**actions, "runner_2": actions["runner_0"]})
        with pytest.raises(UnknownAgent, match="walker"):
            env.observation_space("walker")
        assert len(env.step(actions)[0]) == 4  # nothing of that was sent


def test_an_environment_of_the_other_kind_names_the_class_to_use(serve_here: ServeFunction) -> None:
    with pytest.raises(ConfigError, match="use RemoteParallelEnv"):
        RemoteEnv(url=serve_here(SPREAD).url)
    with pytest.raises(ConfigError, match="use RemoteParallelEnv"):
        RemoteVectorEnv(url=serve_here(SPREAD).url, num_envs=2)
    with pytest.raises(ConfigError, match="use RemoteEnv or RemoteVectorEnv"):
        RemoteParallelEnv(url=serve_here("CartPole-v1").url)


def test_wrong_sources_say_what_there_is(serve_here: ServeFunction) -> None:
    with pytest.raises(ConfigError, match=r"import mpe2\.simple_sprad_v3"):
        serve_here("pettingzoo:mpe2.simple_sprad_v3")
    with pytest.raises(ConfigError, match=r"has no callable 'paralel_env'.*Did you mean"):
        serve_here("pettingzoo:mpe2.simple_spread_v3:paralel_env")
    with pytest.raises(ConfigError, match="unknown idle='skip'"):
        RemoteParallelEnv(SPREAD, idle="skip")  # type: ignore[arg-type]


def test_closed_env_says_so(serve_here: ServeFunction) -> None:
    env = RemoteParallelEnv(url=serve_here("tests.wrappers.many_agents:crowd").url)
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


def test_error_of_the_environment_arrives_with_its_traceback(serve_here: ServeFunction) -> None:
    with RemoteParallelEnv(url=serve_here("tests.wrappers.many_agents:crowd").url) as env:
        with pytest.raises(RemoteEnvError, match="ValueError"):
            env.reset(seed=-1)
        env.reset(seed=1)


def test_several_environments_step_together_and_begin_anew(serve_here: ServeFunction) -> None:
    host = serve_here("tests.wrappers.many_agents:crowd")
    local = [Crowd(length=7), Crowd(length=7)]
    with RemoteAgents(url=host.url, num_envs=2, length=7) as env:
        turns = env.reset(seed=5)
        expected: list[Any] = [one.reset(seed=5 + index) for index, one in enumerate(local)]
        for _ in range(15):
            _check_rows(turns, expected)
            actions = {
                name: [env.behaviors[name].action_space.sample() for _ in turn.acting.agent_ids]
                for name, turn in turns.items()
            }
            heard = {
                agent: action
                for name, turn in turns.items()
                for agent, action in zip(turn.acting.agent_ids, actions[name], strict=True)
            }
            turns, expected = env.step(actions), []
            for index, one in enumerate(local):
                told = one.step({agent: heard[f"{index}/{agent}"] for agent in one.agents})
                ended = {agent for agent in told[0] if told[2][agent] or told[3][agent]}
                assert {f"{index}/{agent}" for agent in ended} == {
                    agent for turn in turns.values() for agent in turn.ended.agent_ids if agent[0] == str(index)
                }
                expected.append(told if one.agents else one.reset())


def _check_rows(turns: Any, expected: list[Any]) -> None:
    rows = 0
    for name, turn in turns.items():
        for row, agent in enumerate(turn.acting.agent_ids):
            index, inner = agent.split("/")
            seen, info = expected[int(index)][0][inner], expected[int(index)][-1][inner]
            rows += 1
            if name == "runner":
                assert np.array_equal(turn.acting.observations[row], seen)
            else:
                assert np.array_equal(turn.acting.observations["image"][row], seen["image"])
                assert np.array_equal(turn.acting.action_mask[row], info["action_mask"])
    assert rows > 0
