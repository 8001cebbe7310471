"""GPTPolicy: one suite, run against a folder and against servers over real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector.utils import batch_space

from agentgpt_remote import errors
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from tests.policy.conftest import SPACES, Open


def _observations(name: str, steps: int, n: int, seed: int = 0) -> list[Any]:
    """Batches of random observations."""
    batched = batch_space(gym.spaces.Box(-1, 1, (3,), np.float64) if name == "continuous" else SPACES[name][0], n)
    batched.seed(seed)
    return [batched.sample() for _ in range(steps)]


def _flat(actions: Any) -> np.ndarray:
    if isinstance(actions, dict):
        return np.concatenate([_flat(value) for value in actions.values()], axis=-1)
    if isinstance(actions, tuple):
        return np.concatenate([_flat(value) for value in actions], axis=-1)
    array = np.asarray(actions)
    return array.reshape(array.shape[0] if array.ndim else 1, -1).astype(np.float64)


@pytest.mark.parametrize("name", SPACES)
def test_select_action_returns_actions_of_the_space(open_policy: Open, name: str) -> None:
    policy = open_policy(name)
    assert policy.observation_space == SPACES[name][0]
    assert policy.action_space == SPACES[name][1]
    batched = batch_space(SPACES[name][1], 3)
    for observations in _observations(name, 10, 3):
        actions = policy.select_action(["a", "b", "c"], observations)
        assert batched.contains(actions), actions


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_call_returns_one_action_of_the_space(open_policy: Open, name: str, deterministic: bool) -> None:
    policy = open_policy(name, deterministic=deterministic, seed=1)
    space = gym.spaces.Box(-1, 1, (3,), np.float64) if name == "continuous" else SPACES[name][0]
    space.seed(0)
    for _ in range(10):
        action = policy(space.sample())
        assert policy.action_space.contains(action), action
        if isinstance(policy.action_space, gym.spaces.Discrete):
            assert type(action) is np.int64
    assert policy.get_agent_ids() == ["agent"]
    policy.reset()
    assert policy.get_num_agents() == 0


@pytest.mark.parametrize("name", SPACES)
def test_every_source_acts_like_the_folder(open_policy: Open, bundles: dict[str, Path], name: str) -> None:
    policy = open_policy(name, deterministic=False, seed=3)
    with GPTPolicy(bundles[name], deterministic=False, seed=3) as local:
        for observations in _observations(name, 12, 4):
            one, other = (p.select_action(["a", "b", "c", "d"], observations) for p in (policy, local))
            np.testing.assert_allclose(_flat(one), _flat(other), rtol=1e-5, atol=1e-5)


def test_agents_join_leave_and_return_with_memories_of_their_own(open_policy: Open) -> None:
    policy, alone = open_policy("continuous"), open_policy("continuous")
    stream = _observations("continuous", 9, 3)
    for step, batch in enumerate(stream):
        ids = ["a", "b", "c"] if step not in (3, 4) else ["c", "a"]
        rows = batch[: len(ids)]
        ended = ["b"] if step == 3 else None
        actions = policy.select_action(ids, rows, ended)
        expected = [
            alone.select_action([agent], rows[i : i + 1], ended if i == 0 else None) for i, agent in enumerate(ids)
        ]
        np.testing.assert_allclose(actions, np.concatenate(expected), atol=1e-5)
    assert set(policy.get_agent_ids()) == {"a", "b", "c"}


def test_terminated_agent_begins_a_new_episode(open_policy: Open) -> None:
    policy, fresh = open_policy("continuous"), open_policy("continuous")
    first, second, third = _observations("continuous", 3, 1)
    policy.select_action(["a"], first)
    policy.select_action(["a"], second)
    assert not np.allclose(policy.select_action(["a"], third), fresh.select_action(["a"], third))
    np.testing.assert_allclose(
        policy.select_action(["a"], third, ["a"]), fresh.select_action(["a"], third, ["a"]), atol=1e-6
    )


def test_select_action_takes_lists_of_single_observations(open_policy: Open) -> None:
    one, other = open_policy("nested"), open_policy("nested")
    space = SPACES["nested"][0]
    space.seed(0)
    singles = [space.sample() for _ in range(2)]
    batched = {
        "pose": np.stack([s["pose"] for s in singles]),
        "mode": tuple(np.stack([s["mode"][i] for s in singles]) for i in range(2)),
    }
    a, b = one.select_action(["x", "y"], singles), other.select_action(["x", "y"], batched)
    np.testing.assert_array_equal(_flat(a), _flat(b))


def test_sampling_follows_the_seed(open_policy: Open) -> None:
    batch = _observations("continuous", 1, 8)[0]
    ids = [str(index) for index in range(8)]
    draws = [open_policy("continuous", deterministic=False, seed=seed).select_action(ids, batch) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_many_agents_outgrow_the_first_slots(open_policy: Open) -> None:
    policy, small = open_policy("continuous"), open_policy("continuous")
    few, many = [str(index) for index in range(3)], [str(index) for index in range(200)]
    for batch in _observations("continuous", 3, 200):
        np.testing.assert_allclose(policy.select_action(few, batch[:3]), small.select_action(few, batch[:3]), atol=1e-5)
    batch = _observations("continuous", 1, 200, seed=9)[0]
    grown = policy.select_action(many, batch)
    np.testing.assert_allclose(grown[:3], small.select_action(few, batch[:3]), atol=1e-5)
    policy.reset_agents()
    assert policy.get_num_agents() == 0
    np.testing.assert_allclose(policy.select_action(many, batch)[3:], grown[3:], atol=1e-5)


def test_predict_keeps_memory_in_its_state(open_policy: Open) -> None:
    policy, reference = open_policy("continuous"), open_policy("continuous")
    stream = _observations("continuous", 6, 2)
    state = None
    for step, batch in enumerate(stream):
        starts = np.array([step == 0, step in (0, 3)])
        actions, state = policy.predict(batch, state=state, episode_start=starts)
        ended = ["1"] if step == 3 else None
        np.testing.assert_allclose(actions, reference.select_action(["0", "1"], batch, ended), atol=1e-5)
    single, _ = policy.predict(stream[0][0])
    assert single.shape == (2,)


def test_predict_frees_the_memory_of_states_that_are_gone(open_policy: Open) -> None:
    policy = open_policy("cartpole")
    batch = _observations("cartpole", 1, 4)[0]
    for _ in range(50):
        policy.predict(batch)
    assert policy.get_num_agents() <= 8


def test_predict_works_with_evaluate_policy(open_policy: Open) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec.DummyVecEnv([lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))] * 2)
    mean, _ = evaluation.evaluate_policy(open_policy("cartpole"), envs, n_eval_episodes=4, warn=False)
    assert mean > 0
    envs.close()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3, np.float32), r"shape \(1, 3\): expected \(1, 4\)"),
        (np.array([0, 1, np.nan, 0], np.float32), "agent 'agent' holds nan: expected finite"),
        (np.array(["a", "b", "c", "d"]), "dtype <U1, which can't be cast safely: expected float32"),
        (None, "expected"),
    ],
)
def test_wrong_observation_is_refused_and_named(open_policy: Open, observation: Any, message: str) -> None:
    with pytest.raises(errors.InvalidObservation, match=message):
        open_policy("cartpole")(observation)


def test_refused_call_leaves_other_agents_intact(open_policy: Open) -> None:
    policy, reference = open_policy("continuous"), open_policy("continuous")
    stream = _observations("continuous", 4, 2)
    for batch in stream[:2]:
        policy.select_action(["a", "b"], batch)
        reference.select_action(["a", "b"], batch)
    bad = stream[2].copy()
    bad[1, 0] = np.inf
    for ids, batch, ended in [
        (["a", "b"], bad, None),
        (["a", "a"], stream[2], None),
        (["a", "b"], stream[2][:1], None),
        (["a", "b"], stream[2], ["stranger"]),
        (["a", 7], stream[2], None),
        (["a", "c"], bad, ["b"]),
    ]:
        with pytest.raises((errors.InvalidObservation, errors.UnknownAgent)):
            policy.select_action(ids, batch, ended)  # type: ignore[arg-type]
    assert policy.get_agent_ids() == ["a", "b"]
    np.testing.assert_allclose(
        policy.select_action(["a", "b"], stream[3]), reference.select_action(["a", "b"], stream[3]), atol=1e-6
    )


def test_category_out_of_range_is_refused(open_policy: Open) -> None:
    with pytest.raises(errors.InvalidObservation, match="holds 3: expected -2 to 2"):
        open_policy("offset")(3)
    with pytest.raises(errors.InvalidObservation, match=r"observation\['mode'\]\[0\].*holds 9"):
        open_policy("nested")({"pose": np.zeros((2, 3), np.float32), "mode": (9, np.zeros(2, np.int8))})
    with pytest.raises(errors.InvalidObservation, match="keys"):
        open_policy("nested").select_action(["a"], [{"pose": 1}])


def test_terminate_agents_names_one_that_is_unknown(open_policy: Open) -> None:
    policy = open_policy()
    policy.select_action(["a", "b"], np.zeros((2, 4), np.float32))
    with pytest.raises(errors.UnknownAgent, match="'x' is not known"):
        policy.terminate_agents(["a", "x"])
    policy.terminate_agents(["a"])
    assert policy.get_agent_ids() == ["b"]
    assert policy.select_action([], np.zeros((0, 4), np.float32), ["b"]).shape == (0,)
    assert policy.get_num_agents() == 0


def test_use_after_close_raises(open_policy: Open) -> None:
    policy = open_policy()
    policy.close()
    policy.close()
    with pytest.raises(ClosedEnvironmentError, match="closed"):
        policy(np.zeros(4, np.float32))


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_wrong_seed_is_refused(open_policy: Open, seed: Any) -> None:
    with pytest.raises(errors.ConfigError, match="seed"):
        open_policy(seed=seed)
