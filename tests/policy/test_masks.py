"""Action masks: every form they come in, what is wrong with others, and that they are obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agentgpt_remote.errors import InvalidObservation
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.model import PolicyModel

MULTI = spaces.MultiDiscrete([2, 3])
NEST = spaces.Dict(
    gear=spaces.Discrete(3, start=2),
    push=spaces.Box(-1, 1, (2,)),
    rest=spaces.Tuple((spaces.MultiBinary(2), MULTI)),
)


def reader(space: spaces.Space[Any]) -> ActionMasks:
    return ActionMasks(ActionFeatures(space))


@pytest.mark.parametrize(
    ("space", "mask", "row"),
    [
        (spaces.Discrete(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Discrete(3), [True, False, False], [1, 0, 0]),
        (spaces.Discrete(3), None, [1, 1, 1]),
        (MULTI, np.array([0, 1, 1, 1, 0], bool), [0, 1, 1, 1, 0]),
        (MULTI, (np.array([0, 1]), np.array([1, 1, 0], np.int8)), [0, 1, 1, 1, 0]),
        (MULTI, [[0, 1], [1, 1, 0]], [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([[2, 2], [2, 2]]), (((1, 0), (1, 1)), ((0, 1), (1, 0))), [1, 0, 1, 1, 0, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 2]), np.array([[1, 0], [0, 1]]), [1, 0, 0, 1]),
        (NEST, {"gear": [0, 0, 1]}, [0, 0, 1, 1, 1, 1, 1, 1]),
        (NEST, {"gear": None, "push": None, "rest": (None, [1, 0, 0, 1, 1])}, [1, 1, 1, 1, 0, 0, 1, 1]),
    ],
)
def test_read_takes_the_mask_of_one_agent(space: spaces.Space[Any], mask: Any, row: list[int]) -> None:
    rows = reader(space).read([mask, None], ["a", "b"])
    assert rows.dtype == np.bool_
    assert rows.astype(int).tolist() == [row, [1] * len(row)]


def test_read_takes_what_vector_environments_hold() -> None:
    present = np.array([True, False])
    rows = reader(spaces.Discrete(2)).read(np.array([[1, 0], [0, 0]], np.int8), "ab", present=present)
    assert rows.tolist() == [[True, False], [True, True]]
    batched = {
        "gear": np.array([[1, 0, 0], [0, 0, 0]]),
        "_gear": present,
        "rest": np.array([(None, np.ones(5)), None], object),
    }
    rows = reader(NEST).read(batched, "ab")
    assert rows.astype(int).tolist() == [[1, 0, 0, 1, 1, 1, 1, 1], [1] * 8]


@pytest.mark.parametrize(
    ("space", "mask", "text"),
    [
        (spaces.Discrete(3), [1, 0], r"action_mask of agent 'b' has shape \(2,\): expected \(3,\)"),
        (
            spaces.Discrete(3),
            [0, 0, 0],
            r"action_mask of agent 'b' allows no action: expected shape \(3,\) with at least",
        ),
        (spaces.Discrete(3), [0, 2, 0], "agent 'b' holds 2: expected 0 or 1"),
        (spaces.Discrete(3), "abc", r"agent 'b' has shape \(0,\)"),
        (MULTI, [1, 1, 1], r"agent 'b' has shape \(3,\): expected \(5,\) or one each of \(2,\), \(3,\)"),
        (MULTI, ([1, 1, 1], [1, 1]), r"has shape \(3,\), \(2,\)"),
        (MULTI, [1, 1, 0, 0, 0], r"agent 'b' allows no action in column 1: expected shape \(2,\) \+ \(3,\)"),
        (NEST, {"gears": [1]}, r"agent 'b' has the keys \['gears'\]: expected a dict with keys of"),
        (NEST, {"push": [1, 1]}, r"action_mask\['push'\] of agent 'b' is of Box"),
        (NEST, {"rest": ([1],)}, r"action_mask\['rest'\] of agent 'b' is a tuple: expected a tuple of 2"),
    ],
)
def test_wrong_mask_names_agent_and_shape(space: spaces.Space[Any], mask: Any, text: str) -> None:
    with pytest.raises(InvalidObservation, match=text):
        reader(space).read([None, mask], ["a", "b"])


def test_wrong_number_of_masks_is_named() -> None:
    with pytest.raises(InvalidObservation, match=r"a ndarray of shape \(3, 2\): expected an array of shape \(2, 2\)"):
        reader(spaces.Discrete(2)).read(np.ones((3, 2)), "ab")


def test_an_agent_at_the_end_of_its_episode_needs_no_action() -> None:
    final = np.array([True, False])
    assert reader(MULTI).read(np.array([[0, 0, 0, 1, 0], [1, 0, 1, 0, 0]]), "ab", final=final).astype(int).tolist() == [
        [1, 1, 0, 1, 0],
        [1, 0, 1, 0, 0],
    ]
    with pytest.raises(InvalidObservation, match="agent 'b'"):
        reader(MULTI).read(np.zeros((2, 5)), "ab", final=final)


def test_masked_distribution_is_that_of_the_allowed_actions() -> None:
    torch.manual_seed(0)
    model = PolicyModel(spaces.Discrete(2), spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (1,)))), GPTConfig())
    params = torch.randn(2000, 5, requires_grad=True)
    mask = torch.rand(2000, 4) < 0.5
    mask[:, 2] |= ~mask.any(1)
    joint = model.distribution(params, mask)
    actions = joint.sample(torch.Generator().manual_seed(0))
    chosen = actions[:, 1:].long()
    assert mask.gather(1, chosen).all()
    assert mask.gather(1, joint.mode()[:, 1:].long()).all()
    only = torch.distributions.Categorical(logits=params[:, 1:].masked_fill(~mask, float("-inf")))
    normal = torch.distributions.Normal(params[:, 0], model.log_std.exp())
    wanted = only.log_prob(chosen[:, 0]) + normal.log_prob(actions[:, 0])
    torch.testing.assert_close(joint.log_prob(actions), wanted)
    probabilities = only.probs
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum(1) + normal.entropy()
    torch.testing.assert_close(joint.entropy(), entropy)
    (gradient,) = torch.autograd.grad((joint.log_prob(actions) + joint.entropy()).sum(), params)
    assert gradient.isfinite().all()
    assert not gradient[:, 1:][~mask].any()


@pytest.mark.parametrize("where", ["local", "served"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_policy_obeys_masks(where: str, deterministic: bool, bundles: dict[str, Path], served: dict[str, str]) -> None:
    rng, ids = np.random.default_rng(0), ["a", "b", "c"]
    with GPTPolicy((bundles if where == "local" else served)["multi"], deterministic=deterministic, seed=1) as policy:
        for _ in range(20):
            observations = [policy.observation_space.sample() for _ in ids]
            masks = rng.random((3, 7)) < 0.4
            masks[:, [1, 4]] |= ~np.stack([masks[:, :2].any(1), masks[:, 2:].any(1)], 1)
            actions = policy.select_action(ids, observations, action_masks=masks)
            index = actions - [1, -1]  # the columns begin there
            assert masks[range(3), index[:, 0]].all()
            assert masks[range(3), 2 + index[:, 1]].all()
            one = (np.eye(2, dtype=bool)[1], np.eye(5, dtype=bool)[3])
            assert policy(observations[0], action_mask=one).tolist() == [2, 2]
            action, state = policy.predict(observations[0], action_masks=one, deterministic=deterministic)
            assert action.tolist() == [2, 2]
            batch, _ = policy.predict(np.stack(observations), action_masks=[one, None, one])
            assert batch[[0, 2]].tolist() == [[2, 2]] * 2
            del state
        with pytest.raises(InvalidObservation, match="agent 'b' allows no action"):
            policy.select_action(ids, observations, action_masks=[None, [0] * 7, None])


def test_masks_change_nothing_else(bundles: dict[str, Path], served: dict[str, str]) -> None:
    space = GPTPolicy(bundles["nested"]).observation_space
    observations = [space.sample() for _ in range(6)]
    acted = []
    for source in (bundles["nested"], served["nested"]):
        with GPTPolicy(source) as policy:
            allowed = {"gear": (np.array([0, 1, 1, 0]), None)}
            acted.append([policy(obs, action_mask=allowed if t % 2 else None) for t, obs in enumerate(observations)])
    assert [action["gear"][0] for action in acted[0]] == [action["gear"][0] for action in acted[1]]
    assert {int(action["gear"][0]) for action in acted[0][1::2]} <= {1, 2}


def test_invocations_take_masks(served: dict[str, str]) -> None:
    url = served["cartpole"].replace("ws://", "http://") + "/invocations"
    body = {"observations": [[0, 0, 0, 0]] * 3, "action_masks": [[1, 0], [0, 1], None]}
    answer = httpx.post(url, json=body)
    assert answer.json()["actions"][:2] == [0, 1]
    refused = httpx.post(url, json=body | {"action_masks": [[1, 0], [0, 0], None]})
    assert refused.status_code == 400
    assert "allows no action" in json.dumps(refused.json())
