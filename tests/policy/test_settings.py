"""What can be changed while a policy acts: one suite for every kind of source."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space

from agentgpt_remote import errors
from agentgpt_remote.policy.bundle import load_bundle
from agentgpt_remote.policy.control import neutral_action
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.observations import as_batch_of_one
from tests.policy.conftest import SPACES, Open

IDS = ["a", "b", "c"]
STREAM = np.random.default_rng(0).normal(size=(14, 3, 3))


def _recomputed(model: PolicyModel, observations: np.ndarray, actions: list[np.ndarray]) -> np.ndarray:
    """Return the action of a model that is given these steps and nothing before them.

    Args:
        model: the actor.
        observations: of one agent, oldest first, (T, 3).
        actions: those taken after each of them but the last, T - 1 of shape (2,).
    """
    obs = torch.tensor(model.observations.encode(observations))[None]
    previous = torch.zeros(1, len(observations), model.actions.width)
    if actions:
        previous[0, 1:] = torch.tensor(model.actions.encode(np.stack(actions)))
    first = torch.zeros(1, len(observations), dtype=torch.bool)
    first[0, 0] = True
    with torch.no_grad():
        mode = model.distribution(model(obs, previous, first)[0, -1]).mode()
    return np.asarray(model.actions.decode(mode[None].numpy())[0])


@pytest.mark.parametrize("window", [1, 2, 3])
def test_short_memory_equals_a_model_that_was_given_only_those_steps(
    open_policy: Open, bundles: dict[str, Path], window: int
) -> None:
    policy, model = open_policy("smooth"), load_bundle(bundles["smooth"]).model
    policy.set_num_input_states(window)
    assert policy.get_num_input_states() == window
    taken: list[np.ndarray] = []
    for step, batch in enumerate(STREAM):
        actions = policy.select_action(IDS, batch, ["b"] if step == 5 else None)
        for row in range(3):
            begin = max(0, step + 1 - window, 5 if row == 1 and step >= 5 else 0)
            expected = _recomputed(model, STREAM[begin : step + 1, row], [a[row] for a in taken[begin:step]])
            np.testing.assert_allclose(actions[row], expected, atol=1e-5)
        taken.append(actions)
    assert np.abs(np.array(taken)).max() < 2


def test_memory_may_change_while_agents_act_and_none_is_lost(open_policy: Open, bundles: dict[str, Path]) -> None:
    policy, full, model = open_policy("smooth"), open_policy("smooth"), load_bundle(bundles["smooth"]).model
    taken: list[np.ndarray] = []
    for step, batch in enumerate(STREAM):
        window = (4, 1, 3, 4, 4, 2)[step // 2 % 6]
        policy.set_num_input_states(window)
        actions = policy.select_action(IDS, batch)
        if window < 4:
            begin = max(0, step + 1 - window)
            for row in range(3):
                expected = _recomputed(model, STREAM[begin : step + 1, row], [a[row] for a in taken[begin:step]])
                np.testing.assert_allclose(actions[row], expected, atol=1e-5)
        else:  # as if it had never been less
            rows = [_recomputed(model, STREAM[: step + 1, row], [a[row] for a in taken]) for row in range(3)]
            np.testing.assert_allclose(actions, rows, atol=1e-5)
        taken.append(actions)
    assert policy.get_agent_ids() == IDS
    full.select_action(IDS, STREAM[0])
    assert full.get_num_input_states() == full.get_max_input_states() == 4


@pytest.mark.parametrize("number", [0, -1, 5, 1.5, True, "2"])
def test_wrong_num_input_states_is_named(open_policy: Open, number: Any) -> None:
    policy = open_policy("smooth")
    with pytest.raises(errors.ConfigError, match=r"num_input_states=.*expected an integer from 1 to 4"):
        policy.set_num_input_states(number)
    assert policy.get_num_input_states() == 4


@pytest.mark.parametrize("name", SPACES)
def test_agent_without_control_takes_the_neutral_action(open_policy: Open, name: str) -> None:
    policy = open_policy(name)
    policy.set_control_value(control_value=0)
    space = gym.spaces.Box(-1, 1, (3,), np.float64) if name == "continuous" else policy.observation_space
    space.seed(0)
    for _ in range(3):
        action = policy(space.sample())
        assert policy.action_space.contains(action)
        expected = as_batch_of_one(policy.action_space, neutral_action(policy.action_space))
        assert str(as_batch_of_one(policy.action_space, action)) == str(expected)


def test_control_is_the_share_of_steps_in_which_the_policy_acts(open_policy: Open) -> None:
    policy, trained = open_policy("smooth", seed=5), open_policy("smooth", seed=5)
    ids = [str(index) for index in range(40)]
    batch = np.random.default_rng(1).normal(size=(40, 3))
    expected = trained.select_action(ids, batch)
    shares = {}
    for value in (0.0, 0.25, 0.75, 1.0):
        policy.set_control_value(control_value=value)
        acting = []
        for _ in range(10):
            policy.reset_agents()
            actions = policy.select_action(ids, batch)
            idle = (actions == 0).all(axis=1)
            np.testing.assert_allclose(actions[~idle], expected[~idle], atol=1e-5)
            acting.append(1 - idle.mean())
        shares[value] = np.mean(acting)
    assert (shares[0.0], shares[1.0]) == (0, 1)
    assert abs(shares[0.25] - 0.25) < 0.1
    assert abs(shares[0.75] - 0.75) < 0.1


def test_control_draws_follow_the_seed_and_the_agent_alone(open_policy: Open) -> None:
    one, other = open_policy("smooth", seed=5), open_policy("smooth", seed=5)
    for policy in (one, other):
        policy.set_control_value(control_value=0.5)
    for batch in STREAM[:6]:
        together = one.select_action(IDS, batch)
        alone = other.select_action(["c"], batch[2:])
        assert ((together[2:] == 0) == (alone == 0)).all()


def test_control_per_agent_and_for_all(open_policy: Open) -> None:
    policy = open_policy("smooth")
    policy.select_action(IDS, STREAM[0])
    policy.set_control_value(["a", "b"], 0.0)
    assert policy.get_control_value(["b", "c"]) == {"b": 0.0, "c": 1.0}
    assert policy.get_control_value() == 1.0
    actions = policy.select_action(IDS, STREAM[1], ["a"])
    assert (actions[:2] == 0).all()
    assert (actions[2] != 0).all()
    assert policy.status(["a"])["agents"]["a"] == {"status": "active", "steps": 1, "control_value": 0.0}
    policy.terminate_agents(["b"])
    policy.select_action(IDS, STREAM[2])
    assert policy.get_control_value(["b"]) == {"b": 1.0}  # its own value ended when it left
    policy.set_control_value(control_value=0.5)
    assert set(policy.get_control_value(IDS).values()) == {policy.get_control_value()} == {0.5}


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "1", True])
def test_wrong_control_value_is_named(open_policy: Open, value: Any) -> None:
    policy = open_policy("smooth")
    with pytest.raises(errors.ConfigError, match=r"control_value=.*from 0 to 1"):
        policy.set_control_value(control_value=value)
    policy.select_action(["a"], STREAM[0][:1])
    with pytest.raises(errors.UnknownAgent, match="'b' is not known"):
        policy.set_control_value(["a", "b"], 0.5)
    with pytest.raises(errors.UnknownAgent, match="'b' is not known"):
        policy.get_control_value(["b"])
    assert policy.get_control_value(["a"]) == {"a": 1.0}


def test_control_respects_action_masks(open_policy: Open) -> None:
    policy = open_policy("multi")
    policy.set_control_value(control_value=0)
    mask = np.array([[0, 1, 0, 0, 1, 1, 0]], np.int8)
    actions = policy.select_action(["a"], np.zeros((1, 2), np.int64), action_masks=mask)
    assert actions.tolist() == [[2, 1]]


def test_limit_of_agents_drops_those_that_have_not_acted_for_longest(open_policy: Open) -> None:
    policy, fresh = open_policy("smooth"), open_policy("smooth")
    policy.reset_agents(max_agents=2)
    policy.select_action(["a", "b"], STREAM[0][:2])
    policy.select_action(["a"], STREAM[1][:1])
    policy.select_action(["c"], STREAM[1][:1])
    assert policy.get_agent_ids() == ["a", "c"]
    status = policy.status(["a", "b", "never"])
    assert {name: agent["status"] for name, agent in status["agents"].items()} == {
        "a": "active",
        "b": "dropped",
        "never": "unknown",
    }
    assert status["max_agents"] == 2
    expected = fresh.select_action(["b"], STREAM[2][:1])
    np.testing.assert_allclose(policy.select_action(["b"], STREAM[2][:1]), expected, atol=1e-5)
    assert policy.get_agent_ids() == ["c", "b"]
    with pytest.raises(errors.CapacityReached, match=r"3 agents at once.*at most 2"):
        policy.select_action(IDS, STREAM[0])
    assert policy.get_agent_ids() == ["c", "b"]


@pytest.mark.parametrize("most", [0, -1, 1.5, 10**9, True])
def test_wrong_limit_of_agents_is_named(open_policy: Open, most: Any) -> None:
    policy = open_policy("smooth")
    policy.select_action(["a"], STREAM[0][:1])
    with pytest.raises(errors.ConfigError, match="max_agents="):
        policy.reset_agents(max_agents=most)
    assert policy.get_num_agents() == 1


def test_status_tells_of_the_policy_and_its_agents(open_policy: Open) -> None:
    policy = open_policy("smooth")
    for batch in STREAM[:3]:
        policy.select_action(IDS, batch)
    policy.set_num_input_states(2)
    status = policy.status()
    assert (status["num_agents"], status["num_input_states"], status["max_input_states"]) == (3, 2, 4)
    assert status["agents"]["b"] == {"status": "active", "steps": 3, "control_value": 1.0}
    assert status["server"]["agents"] >= 3
    with pytest.raises(errors.UnknownAgent, match="expected a list of ids"):
        policy.status("b")


@pytest.mark.parametrize("name", SPACES)
def test_samples_lie_in_the_spaces_and_follow_the_seed(open_policy: Open, name: str) -> None:
    one, other = open_policy(name, seed=3), open_policy(name, seed=3)
    for space, method in ((one.action_space, "sample_action"), (one.observation_space, "sample_observation")):
        assert space.contains(getattr(one, method)())
        batch = getattr(one, method)(5)
        assert batch_space(space, 5).contains(batch)
        getattr(other, method)()
        assert str(getattr(other, method)(5)) == str(batch)
    one.select_action(["a", "b"], one.sample_observation(2))
    with pytest.raises(errors.ConfigError, match="num_agents=0"):
        one.sample_action(0)


def test_asynchronous_calls_act_in_order(open_policy: Open) -> None:
    policy, reference = open_policy("smooth"), open_policy("smooth")

    async def play() -> list[np.ndarray]:
        calls = [policy.aselect_action(IDS, batch, ["b"] if step == 3 else None) for step, batch in enumerate(STREAM)]
        return list(await asyncio.gather(*calls))

    actions = asyncio.run(play())
    for step, batch in enumerate(STREAM):
        expected = reference.select_action(IDS, batch, ["b"] if step == 3 else None)
        np.testing.assert_allclose(actions[step], expected, atol=1e-5)

    async def wrong() -> None:
        with pytest.raises(errors.UnknownAgent, match="twice"):
            await policy.aselect_action(["a", "a"], STREAM[0][:2])

    asyncio.run(wrong())


def test_prefetch_returns_the_actions_of_the_call_before(open_policy: Open) -> None:
    policy, reference = open_policy("smooth"), open_policy("smooth")
    late = policy.prefetch()
    expected = [reference.select_action(IDS, batch) for batch in STREAM[:4]]
    frame = STREAM[0].copy()
    np.testing.assert_allclose(late.select_action(IDS, frame), expected[0], atol=1e-5)  # there is none before
    for step in range(1, 4):
        frame[:] = STREAM[step]  # a loop that uses its memory again
        np.testing.assert_allclose(late.select_action(IDS, frame), expected[step - 1], atol=1e-5)
    mixed = late.select_action(["c", "a"], STREAM[4][:2])
    np.testing.assert_allclose(mixed, expected[3][[2, 0]], atol=1e-5)
    reference.select_action(["c", "a"], STREAM[4][:2])
    fresh = late.select_action(["a", "d"], STREAM[5][:2])  # d has none: it is waited for
    np.testing.assert_allclose(fresh, reference.select_action(["a", "d"], STREAM[5][:2]), atol=1e-5)
    again = late.select_action(["a", "d"], STREAM[6][:2], ["d"])
    np.testing.assert_allclose(again, reference.select_action(["a", "d"], STREAM[6][:2], ["d"]), atol=1e-5)
    late.select_action(["a"], STREAM[7][:1], ["x"])
    with pytest.raises(errors.UnknownAgent, match="'x' is not known"):  # told one frame late as well
        late.select_action(["a"], STREAM[7][:1])


def test_prefetch_of_one_agent_begins_episodes_anew(open_policy: Open) -> None:
    policy, reference = open_policy("smooth"), open_policy("smooth")
    late = policy.prefetch()
    expected = [reference(STREAM[step, 0]) for step in range(3)]
    got = [late(STREAM[step, 0]) for step in range(3)]
    np.testing.assert_allclose(got, [expected[0], *expected[:2]], atol=1e-5)
    late.reset()
    reference.reset()
    np.testing.assert_allclose(late(STREAM[3, 0]), reference(STREAM[3, 0]), atol=1e-5)
