"""Which agent has which stream, where there are fewer of them than agents in an episode's time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agentgpt_remote.agents import Behavior, Turn, TurnRows
from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.agent_streams import AgentStreams
from agentgpt_remote.trainer.exploration import Explorer
from agentgpt_remote.trainer.normalization import RewardScaler
from agentgpt_remote.trainer.streams import StreamStore

BEHAVIOR = Behavior(
    name="walker", observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32), action_space=spaces.Discrete(2)
)


def _streams(count: int) -> AgentStreams:
    config = GPTConfig(num_layers=1, d_model=16, num_heads=1, max_input_states=4)
    model = PolicyModel(BEHAVIOR.observation_space, BEHAVIOR.action_space, config)
    store = StreamStore(count, 50, model.observations.width, model.actions.width)
    explorer = Explorer({}, 0, model.actions.numeric_width, count, torch.Generator())
    return AgentStreams(BEHAVIOR, model, store, RewardScaler(count, 0.99), explorer, 1000, "refuse")


def _turn(acting: list[str] = [], ended: list[str] = [], *, begins: bool = False) -> Turn:  # noqa: B006 - not changed
    rows = TurnRows(BEHAVIOR)
    for agent in acting:
        rows.act(agent, np.array([int(agent), 0], np.float32), 1.0, begins, None, {})
    for agent in ended:
        rows.end(agent, np.array([int(agent), 1], np.float32), 5.0, True, False, {})
    return rows.turn()


def test_new_id_takes_a_free_stream() -> None:
    streams = _streams(2)
    for turn in (_turn(["1", "2"], begins=True), _turn(["1"], ["2"]), _turn(["1", "3"])):
        streams.take("a", turn)
        streams.act("a")
    assert streams.num_agents == 2
    assert streams.evicted == 0
    store = streams.store
    stream = int(np.flatnonzero(store.obs[:, 2, 0] == 3)[0])  # after the two tokens of agent 2
    assert store.obs[stream, :3, 0].tolist() == [2, 2, 3]
    assert store.is_first[stream, :3].tolist() == [True, False, True]
    assert store.terminated[stream, 0]
    assert store.reward[stream, 0] == 5.0
    assert streams.episodes.returns[0] == 5.0


def test_more_agents_than_streams_take_those_of_the_idle(caplog: pytest.LogCaptureFixture) -> None:
    streams = _streams(2)
    for turn in (_turn(["1", "2"], begins=True), _turn(["2"]), _turn(["3"])):
        streams.take("a", turn)
        streams.act("a")
    assert streams.evicted == 1
    assert "set max_agents" in caplog.text
    store = streams.store
    stream = int(np.flatnonzero(store.obs[:, 1, 0] == 3)[0])  # that of agent 1, which acted longer ago than agent 2
    assert store.obs[stream, :2, 0].tolist() == [1, 3]
    assert not store.valid[stream, 0]  # its reward never came
    assert store.is_first[stream, 1]
    streams.take("a", _turn(["1"]))  # a new agent to the trainer, in the place of agent 2
    assert streams.evicted == 2


def test_more_agents_at_once_than_streams_name_the_setting() -> None:
    streams = _streams(2)
    with pytest.raises(TrainingFailed, match="more than 2 agents that act at once: set max_agents"):
        streams.take("a", _turn(["1", "2", "3"], begins=True))


def test_agents_of_equal_ids_on_two_hosts_are_apart() -> None:
    streams = _streams(4)
    for lane in ("a", "b"):
        streams.take(lane, _turn(["1", "2"], begins=True))
        streams.act(lane)
    assert streams.num_agents == 4
    streams.drop("a")
    assert streams.num_agents == 2
    streams.take("b", _turn(["1"], ["2"]))
    assert streams.num_agents == 1
    assert streams.taken == 2


def test_lost_lane_cuts_its_episodes() -> None:
    streams = _streams(2)
    for turn in (_turn(["1", "2"], begins=True), _turn(["1", "2"])):
        streams.take("a", turn)
        streams.act("a")
    streams.drop("a")
    store = streams.store
    assert store.truncated[:, 0].all()  # bootstrapped from the open token, which became the last
    assert not store.valid[:, 1].any()
    assert store.position.tolist() == [2, 2]
    assert not store.opened.any()
