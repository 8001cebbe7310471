"""Unity players as environments of many agents, over the real protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from agentgpt_remote.agents import row_of
from agentgpt_remote.errors import ConfigError, InvalidAction
from agentgpt_remote.wrappers.unity.agents import UnityAgents
from agentgpt_remote.wrappers.unity.env import UnityEnv
from tests.unity.echo import answers, wrong_actions
from tests.unity.stand_in import picture, write_player


def _env(folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> UnityAgents:
    return UnityAgents(write_player(folder, **settings), **(options or {}))


def _numbers(ids: tuple[str, ...]) -> list[int]:
    return [int(one.rpartition("#")[2]) for one in ids]


def test_agents_respawn_under_new_ids_and_get_their_own_actions(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=5, length=7, death=0.1, periods=(1, 2, 3))
    turns, alive, seen = env.reset(), set(), set()
    for _ in range(120):
        for turn in turns.values():
            for agent, begins in zip(turn.acting.agent_ids, turn.acting.begins, strict=True):
                assert begins == (agent not in alive)
                assert not (begins and agent in seen)
                alive.add(agent)
                seen.add(agent)
        turns = env.step(answers(env, turns))
        for turn in turns.values():
            alive -= set(turn.ended.agent_ids)
    assert len(seen) > 30
    assert len(alive) <= 5
    assert wrong_actions(env) == 0
    env.close()


def test_agents_decide_at_their_own_pace(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=2, periods=(1, 4), length=1000)
    turns, acted = env.reset(), {0: 0, 1: 0}
    for _ in range(40):
        for number in _numbers(turns["Walker?team=0"].acting.agent_ids):
            acted[number] += 1
        turns = env.step(answers(env, turns))
    assert acted == {0: 40, 1: 10}
    assert wrong_actions(env) == 0
    env.close()


def test_episode_that_ends_and_begins_in_one_step_tells_both_observations(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=2, respawn="same", length=3)
    turns = env.reset()
    for _ in range(3):
        turns = env.step(answers(env, turns))
    turn = turns["Walker?team=0"]
    assert turn.ended.agent_ids == turn.acting.agent_ids
    assert turn.acting.begins.all()
    assert not np.array_equal(turn.ended.observations, turn.acting.observations)
    assert turn.ended.rewards.tolist() == [1.0, 1.0]  # of the last step, and none of it in the new episode
    assert turn.acting.rewards.tolist() == [0.0, 0.0]
    env.close()


def test_interrupted_is_truncated_and_death_is_terminated(tmp_path: Path) -> None:
    env = _env(tmp_path / "a", agents=1, length=3)
    turns = env.reset()
    for _ in range(3):
        turns = env.step(answers(env, turns))
    ended = turns["Walker?team=0"].ended
    assert (ended.terminated.tolist(), ended.truncated.tolist()) == ([False], [True])
    env.close()
    env = _env(tmp_path / "b", agents=1, length=3, death=1.0)
    ended = env.step(answers(env, env.reset()))["Walker?team=0"].ended
    assert (ended.terminated.tolist(), ended.truncated.tolist()) == ([True], [False])
    env.close()


def test_nobody_deciding_passes_in_one_call(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=2, length=1000)
    turns = env.reset()
    env.send_raw(b"fault 9")
    turns = env.step(answers(env, turns))
    assert len(turns["Walker?team=0"].acting.agent_ids) == 2
    env.close()


def test_two_behaviours_have_spaces_of_their_own_and_more_may_appear(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=2, behaviors=("Red?team=0", "Blue?team=1"), late=4)
    turns = env.reset()
    assert list(turns) == ["Red?team=0", "Blue?team=1"]
    for _ in range(6):
        turns = env.step(answers(env, turns))
    assert "Late?team=0" in env.behaviors
    assert wrong_actions(env) == 0
    env.close()


@pytest.mark.parametrize(
    ("continuous", "branches", "space"),
    [
        (2, (), spaces.Box(-1, 1, (2,), np.float32)),
        (0, (5,), spaces.Discrete(5)),
        (0, (3, 2), spaces.MultiDiscrete([3, 2])),
        (
            2,
            (3, 2),
            spaces.Dict({"continuous": spaces.Box(-1, 1, (2,), np.float32), "discrete": spaces.MultiDiscrete([3, 2])}),
        ),
        (
            1,
            (4,),
            spaces.Dict({"continuous": spaces.Box(-1, 1, (1,), np.float32), "discrete": spaces.Discrete(4)}),
        ),
    ],
)
def test_actions_of_every_kind_reach_their_agents(
    tmp_path: Path, continuous: int, branches: tuple[int, ...], space: spaces.Space[Any]
) -> None:
    env = _env(tmp_path, agents=3, continuous=continuous, branches=branches, length=5)
    turns = env.reset()
    assert env.behaviors["Walker?team=0"].action_space == space
    for _ in range(20):
        turns = env.step(answers(env, turns))
    assert wrong_actions(env) == 0
    env.close()


def test_masks_tell_what_is_allowed(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=3, continuous=0, branches=(3, 2), masks=True)
    turns = env.reset()
    behavior = env.behaviors["Walker?team=0"]
    assert behavior.mask_width == 5
    for _ in range(10):
        actions = answers(env, turns)
        mask = turns["Walker?team=0"].acting.action_mask
        assert mask is not None
        for row, (first, second) in enumerate(actions["Walker?team=0"]):
            assert mask[row].sum() == 3  # one of each branch is not allowed
            assert mask[row, first]
            assert mask[row, 3 + second]
            assert not mask[row, (first + 1) % 3]
        turns = env.step(actions)
    env.close()


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
def test_images_in_both_layouts_are_height_width_channels(
    tmp_path: Path, layout: str, told: bool, compressed: bool
) -> None:
    env = _env(
        tmp_path,
        {"visual": "uint8"},
        agents=2,
        observations=("vector", "image", "grey"),
        image_layout=layout,
        tell_layout=told,
        compressed=compressed,
    )
    turns = env.reset()
    space = env.behaviors["Walker?team=0"].observation_space
    assert isinstance(space, spaces.Dict)
    assert space["camera"] == spaces.Box(0, 255, (12, 16, 3), np.uint8)
    assert space["depth"] == spaces.Box(0, 255, (12, 16, 1), np.uint8)
    acting = turns["Walker?team=0"].acting
    for row, number in enumerate(_numbers(acting.agent_ids)):
        seen = row_of(acting.observations, row)
        assert space.contains(seen)
        assert np.array_equal(seen["camera"], picture(number, 12, 16, 3))
        assert np.array_equal(seen["depth"], picture(number, 12, 16, 1))
    turns = env.step(answers(env, turns))
    assert wrong_actions(env) == 0
    env.close()


def test_images_are_float_from_0_to_1_by_default(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=1, observations=("image",), continuous=1)
    acting = env.reset()["Walker?team=0"].acting
    assert env.behaviors["Walker?team=0"].observation_space == spaces.Box(0, 1, (12, 16, 3), np.float32)
    assert np.array_equal(acting.observations[0], picture(0, 12, 16, 3).astype(np.float32) / np.float32(255))
    env.close()


def test_large_observations_pass(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=8, observations=("vector", "image"), size=256, compressed=False)
    turns = env.step(answers(env, env.reset()))  # 8 x 256 x 260 x 3 x 4 bytes: six times gRPC's own limit
    assert turns["Walker?team=0"].acting.observations["camera"].shape == (8, 256, 260, 3)
    env.close()


@pytest.mark.parametrize(("option", "expected"), [("add", [1.5, 2.0]), ("info", [1.0, 1.0])])
def test_group_rewards_are_added_or_told(tmp_path: Path, option: str, expected: list[float]) -> None:
    env = _env(tmp_path, {"group_reward": option}, agents=2, groups=True)
    acting = env.step(answers(env, env.reset()))["Walker?team=0"].acting
    assert acting.rewards.tolist() == expected
    assert list(acting.infos.values()) == [
        {"group_id": 1, "group_reward": 0.5},
        {"group_id": 2, "group_reward": 1.0},
    ]
    env.close()


def test_side_channels_reach_the_player_and_back(tmp_path: Path) -> None:
    env = _env(tmp_path, {"parameters": {"gravity": 4.5}, "time_scale": 7.0}, agents=1)
    turns = env.reset(options={"parameters": {"wind": 2.0}})
    env.send_raw(b"hello")
    env.set_engine(target_frame_rate=30)
    env.step(answers(env, turns))
    stats = env.stats()
    assert stats["parameter/gravity"] == [(4.5, "most_recent")]
    assert stats["parameter/wind"] == [(2.0, "most_recent")]
    assert stats["engine/2"][0][0] == 7.0
    assert env.received_raw() == [b"olleh"]
    assert env.received_raw() == []
    with pytest.raises(ConfigError, match="unknown engine setting 'vsync'"):
        env.set_engine(vsync=True)
    env.close()


def test_seed_is_the_players_own(tmp_path: Path) -> None:
    def trace(env: UnityAgents, seed: int) -> list[float]:
        turns, seen = env.reset(seed=seed), []
        for _ in range(5):
            seen += turns["Walker?team=0"].acting.observations[:, 0].tolist()
            turns = env.step(answers(env, turns))
        return seen

    env = _env(tmp_path, agents=2)
    first, other, again = trace(env, 3), trace(env, 4), trace(env, 3)
    assert first == again != other
    env.close()


def test_reset_in_the_middle_begins_new_episodes(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=3, length=5)
    env.step(answers(env, env.reset()))
    turn = env.reset()["Walker?team=0"]
    assert turn.acting.begins.all()
    assert turn.ended.agent_ids == ()
    for _ in range(12):
        turns = env.step(answers(env, {"Walker?team=0": turn}))
        turn = turns["Walker?team=0"]
    assert wrong_actions(env) == 0
    env.close()


def test_wrong_number_of_actions_names_who_needs_one(tmp_path: Path) -> None:
    env = _env(tmp_path, agents=2)
    with pytest.raises(ResetNeeded):
        env.step({})
    turns = env.reset()
    with pytest.raises(InvalidAction, match=r"got 1 actions: expected 2, .*Walker\?team=0#1"):
        env.step({"Walker?team=0": answers(env, turns)["Walker?team=0"][:1]})
    with pytest.raises(InvalidAction, match="'Runner'"):
        env.step({"Runner": []})
    env.step(answers(env, turns))  # nothing of that was sent
    assert wrong_actions(env) == 0
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


def test_single_agent_build_is_a_gymnasium_env(tmp_path: Path) -> None:
    env = UnityEnv(write_player(tmp_path, agents=1, length=4, continuous=0, branches=(3, 2), masks=True, delay=3))
    for _ in range(3):
        obs, info = env.reset()
        rewards = []
        while True:
            assert [part.shape for part in info["action_mask"]] == [(3,), (2,)]
            from tests.unity.echo import answer

            obs, reward, terminated, truncated, info = env.step(answer(env.action_space, obs))
            rewards.append(reward)
            if terminated or truncated:
                break
        assert rewards == [1.0] * 4
        assert truncated
        assert not terminated
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())
    assert wrong_actions(env) == 0
    env.close()


def test_build_of_many_agents_is_no_gymnasium_env(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 3 agents \(3 of Walker\?team=0\): use RemoteParallelEnv"):
        UnityEnv(write_player(tmp_path, agents=3))


def test_two_players_are_apart(tmp_path: Path) -> None:
    one, other = _env(tmp_path / "a", agents=2), _env(tmp_path / "b", agents=3)
    assert one.player_pid != other.player_pid
    assert len(one.reset()["Walker?team=0"].acting.agent_ids) == 2
    assert len(other.reset()["Walker?team=0"].acting.agent_ids) == 3
    one.close()
    other.step(answers(other, {"Walker?team=0": other.reset()["Walker?team=0"]}))
    other.close()
