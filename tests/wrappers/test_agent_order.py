"""An action reaches the agent whose observation it answers, whoever appears, vanishes, waits or begins anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgpt_remote.agents import Turns
from agentgpt_remote.errors import RemoteEnvError
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.server import serve
from agentgpt_remote.trainer.agent_streams import AgentStreams
from agentgpt_remote.trainer.exploration import Explorer, check_exploration
from agentgpt_remote.trainer.normalization import RewardScaler
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from tests.wrappers.scripted_agents import EVENTS, ScriptedAgents, echo

_SCRIPTS = st.lists(st.lists(st.sampled_from(EVENTS), min_size=5, max_size=5), min_size=3, max_size=12)
_ORDERS = st.lists(st.booleans(), min_size=15, max_size=15)


@pytest.fixture(scope="module")
def sessions() -> Iterator[list[RemoteAgents]]:
    """Two hosts, and two environments on each."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(serve(ScriptedAgents, port=0, block=False)) for _ in range(2)]
        yield [stack.enter_context(RemoteAgents(url=host.url, num_envs=2)) for host in hosts]


def _check_ids(turns: Turns) -> None:
    for turn in turns.values():
        for rows in turn:
            numbers = [float(agent.partition("/a")[2]) for agent in rows.agent_ids]
            assert numbers == [obs[0] for obs in rows.observations]
            assert len(set(rows.agent_ids)) == len(rows.agent_ids)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scripts=st.tuples(_SCRIPTS, _SCRIPTS),
    order=st.lists(st.booleans(), min_size=15, max_size=15),
    seed=st.integers(0, 99),
)
def test_every_action_reaches_the_agent_that_it_answers(
    sessions: list[RemoteAgents], scripts: tuple[Any, Any], order: list[bool], seed: int
) -> None:
    before = [sum(env.call("answered")) for env in sessions]
    turns = [env.reset(seed=seed, options={"script": script}) for env, script in zip(sessions, scripts, strict=True)]
    asked = [0, 0]
    for backwards in order:
        for index, env in enumerate(sessions):
            _check_ids(turns[index])
            actions = echo(turns[index])
            asked[index] += sum(len(batch) for batch in actions.values())
            env.step_async(actions)
        for index in (1, 0) if backwards else (0, 1):
            turns[index] = sessions[index].receive()
    after = [sum(env.call("answered")) for env in sessions]
    assert [later - earlier for earlier, later in zip(before, after, strict=True)] == asked


def test_the_environment_notices_a_swapped_action(sessions: list[RemoteAgents]) -> None:
    env = sessions[0]
    turns = env.reset(seed=1, options={"script": [["act"] * 5]})
    actions = echo(turns)
    actions["even"] = actions["even"][::-1].copy()
    with pytest.raises(RemoteEnvError, match="got the action of another"):
        env.step(actions)
    env.reset(seed=1, options={"script": [["act"] * 5]})


@settings(max_examples=60, deadline=None)
@given(script=_SCRIPTS, room=st.integers(5, 7))
def test_every_stream_of_training_holds_one_agent_after_the_other(script: list[list[str]], room: int) -> None:
    env = ScriptedAgents()
    turns = env.reset(seed=1, options={"script": script})
    behavior = env.behaviors["even"]
    config = GPTConfig(num_layers=1, d_model=16, num_heads=1, max_input_states=4)
    model = PolicyModel(behavior.observation_space, behavior.action_space, config)
    store = StreamStore(room, 200, model.observations.width, model.actions.width)
    explorer = Explorer(check_exploration({}), 0, model.actions.numeric_width, room, torch.Generator())
    streams = AgentStreams(behavior, model, store, RewardScaler(room, 0.99), explorer, 1000, "refuse")
    completed = 0
    for _ in range(2 * len(script)):
        completed += streams.take("lane", turns["even"])
        given_actions = streams.act("lane")
        asked = turns["even"].acting.agent_ids
        assert (given_actions is None) == (not asked)
        turns = env.step(echo(turns))
    assert streams.evicted == 0
    assert completed == streams.taken
    _check_store(store)


def _check_store(store: StreamStore) -> None:
    for stream in range(store.num_streams):
        number = seen = None
        for token in range(store.position[stream]):
            obs = store.obs[stream, token]
            if store.is_first[stream, token]:
                assert obs[1] == 1
                number = obs[0]
            else:
                assert obs[0] == number, "an episode holds the observations of two agents"
                assert obs[1] == seen + 1, "an episode lacks an observation, or has one twice"
            seen = obs[1]
            if store.valid[stream, token]:
                assert store.reward[stream, token] == seen, "a reward is of another decision"
