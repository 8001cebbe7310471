"""The ring KV cache equals recomputation, and the mask is causal, windowed and per episode."""

from __future__ import annotations

from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from agentgpt_remote.errors import ConfigError, UnsupportedSpace
from agentgpt_remote.policy.config import GPTConfig, GPTType
from agentgpt_remote.policy.features import ActionFeatures, ObservationFeatures
from agentgpt_remote.policy.model import PolicyModel

TYPES: tuple[GPTType, ...] = get_args(GPTType)
OBSERVATIONS = spaces.Dict(
    camera=spaces.Box(0, 255, (2, 3), np.uint8),
    place=spaces.Discrete(5, start=-2),
    flags=spaces.MultiBinary(3),
    nested=spaces.Tuple((spaces.MultiDiscrete([2, 4]), spaces.Box(-np.inf, np.inf, (2,), np.float64))),
)
ACTIONS = spaces.Tuple(
    (
        spaces.Discrete(4, start=1),
        spaces.Dict(torque=spaces.Box(-2.0, 3.0, (2,), np.float32), gear=spaces.MultiDiscrete([2, 3])),
        spaces.MultiBinary(2),
    )
)


def trained(model: PolicyModel) -> PolicyModel:
    """Return the model with positions and outputs that weigh as much as after long training."""
    with torch.no_grad():
        model.head.weight.mul_(30.0)
        for block in model.trunk.blocks:
            if hasattr(block, "position"):
                block.position.mul_(50.0)
    return model


def sample_batch(space: spaces.Space[Any], count: int) -> Any:
    return concatenate(space, [space.sample() for _ in range(count)], create_empty_array(space, count))


def make_streams(model: PolicyModel, agents: int, steps: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Return random observations, previous actions and episode starts, (agents, steps, ...)."""
    model.observation_space.seed(seed)
    model.action_space.seed(seed)
    obs = np.stack([model.observations.encode(sample_batch(model.observation_space, steps)) for _ in range(agents)])
    prev = np.stack([model.actions.encode(sample_batch(model.action_space, steps)) for _ in range(agents)])
    is_first = torch.from_numpy(np.random.default_rng(seed).random((agents, steps)) < 0.08)
    is_first[:, 0] = True
    return torch.from_numpy(obs), torch.from_numpy(prev), is_first


@pytest.mark.parametrize(("layers", "window"), [(1, 1), (1, 4), (3, 5), (2, 16)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("gpt_type", TYPES)
def test_act_step_equals_recompute_over_random_episodes(layers: int, window: int, seed: int, gpt_type: GPTType) -> None:
    torch.manual_seed(seed)
    sizes = GPTConfig(num_layers=layers, d_model=32, num_heads=4, max_input_states=window, gpt_type=gpt_type)
    model = trained(PolicyModel(OBSERVATIONS, ACTIONS, sizes))
    agents, steps = 5, 90
    obs, prev, is_first = make_streams(model, agents, steps, seed)
    cache = model.make_cache(agents + 2)
    slots = torch.tensor([6, 1, 3, 0, 5])
    with torch.no_grad():
        expected = model.distribution(model(obs, prev, is_first))
        actions = expected.sample()
        wanted = expected.log_prob(actions)
        for t in range(steps):
            params = model.act_step(obs[:, t], prev[:, t], is_first[:, t], cache, slots)
            got = model.distribution(params).log_prob(actions[:, t])
            torch.testing.assert_close(got, wanted[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gpt_type", TYPES)
def test_act_step_agents_may_come_in_any_group_and_order(gpt_type: GPTType) -> None:
    torch.manual_seed(0)
    sizes = GPTConfig(num_layers=2, d_model=32, max_input_states=4, gpt_type=gpt_type)
    model = trained(PolicyModel(OBSERVATIONS, ACTIONS, sizes))
    obs, prev, is_first = make_streams(model, 4, 60, 3)
    cache, position = model.make_cache(4), np.zeros(4, int)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        wanted = model(obs, prev, is_first)
        while position.min() < 40:
            group = rng.permutation(4)[: rng.integers(1, 5)]
            group = group[position[group] < 60]
            index, at = torch.from_numpy(group), torch.from_numpy(position[group])
            params = model.act_step(obs[index, at], prev[index, at], is_first[index, at], cache, index)
            torch.testing.assert_close(params, wanted[index, at], atol=1e-5, rtol=1e-5)
            position[group] += 1


def test_act_step_slice_equals_tensor_slots() -> None:
    torch.manual_seed(0)
    model = PolicyModel(OBSERVATIONS, ACTIONS, GPTConfig(d_model=32, max_input_states=4))
    obs, prev, is_first = make_streams(model, 3, 12, 0)
    first, second = model.make_cache(4), model.make_cache(4)
    with torch.no_grad():
        for t in range(12):
            a = model.act_step(obs[:, t], prev[:, t], is_first[:, t], first, slice(1, 4))
            b = model.act_step(obs[:, t], prev[:, t], is_first[:, t], second, torch.tensor([1, 2, 3]))
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gpt_type", TYPES)
def test_rebuilt_cache_continues_as_if_it_had_acted(gpt_type: GPTType) -> None:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=3, d_model=32, num_heads=4, max_input_states=5, gpt_type=gpt_type)
    model = trained(PolicyModel(OBSERVATIONS, ACTIONS, config))
    obs, prev, is_first = make_streams(model, 6, 60, 0)
    count = -(-config.context_tokens // 5) * 5
    end = 40
    tokens = slice(end - count, end)
    cache = model.make_cache(6)
    with torch.no_grad():
        wanted = model(obs, prev, is_first)
        inputs = model.encoder.prepare(obs[:, tokens], prev[:, tokens], is_first[:, tokens])
        model.rebuild_cache(inputs, is_first[:, tokens], cache, slice(0, 6))
        for t in range(end, 60):
            params = model.act_step(obs[:, t], prev[:, t], is_first[:, t], cache, slice(0, 6))
            torch.testing.assert_close(params, wanted[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gpt_type", TYPES)
def test_cache_positions_wrap_without_a_seam(gpt_type: GPTType) -> None:
    torch.manual_seed(0)
    sizes = GPTConfig(d_model=16, num_heads=2, max_input_states=4, gpt_type=gpt_type)
    model = trained(PolicyModel(OBSERVATIONS, ACTIONS, sizes))
    obs, prev, is_first = make_streams(model, 1, 30, 0)
    is_first[:, 1:] = False
    cache = model.make_cache(1)
    cache.clock[:] = cache.period - 12
    with torch.no_grad():
        wanted = model(obs, prev, is_first)
        for t in range(30):
            params = model.act_step(obs[:, t], prev[:, t], is_first[:, t], cache, slice(0, 1))
            torch.testing.assert_close(params, wanted[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gpt_type", TYPES)
def test_forward_sees_neither_the_future_nor_other_episodes_nor_beyond_the_context(gpt_type: GPTType) -> None:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=2, d_model=32, max_input_states=4, gpt_type=gpt_type)
    space = spaces.Box(-1, 1, (3,))
    model = PolicyModel(space, spaces.Discrete(2), config)
    obs, prev, is_first = torch.randn(1, 30, 3), torch.zeros(1, 30, 1), torch.zeros(1, 30, dtype=torch.bool)
    is_first[0, [0, 20]] = True
    with torch.no_grad():
        before = model(obs, prev, is_first)
        changed = obs.clone()
        changed[0, 10] += 1.0
        differs = (model(changed, prev, is_first) - before).abs().amax(-1)[0] > 0
    assert differs.nonzero().flatten().tolist() == list(range(10, 10 + config.context_tokens + 1))
    with torch.no_grad():
        changed = obs.clone()
        changed[0, 19] += 1.0
        differs = (model(changed, prev, is_first) - before).abs().amax(-1)[0] > 0
    assert differs.nonzero().flatten().tolist() == [19]


def test_previous_action_is_ignored_where_an_episode_begins() -> None:
    torch.manual_seed(0)
    model = PolicyModel(OBSERVATIONS, ACTIONS, GPTConfig(d_model=16, num_heads=2, max_input_states=4))
    obs, prev, _ = make_streams(model, 2, 1, 0)
    first = torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model(obs, prev, first), model(obs, torch.zeros_like(prev), first))


def test_distribution_matches_torch_on_every_leaf() -> None:
    torch.manual_seed(0)
    model = PolicyModel(OBSERVATIONS, ACTIONS, GPTConfig(d_model=16, num_heads=2))
    params = torch.randn(7, model.action_head.num_params)
    joint = model.distribution(params)
    actions = joint.sample(torch.Generator().manual_seed(1))
    parts = [torch.distributions.Independent(torch.distributions.Normal(params[:, :2], model.log_std.exp()), 1)]
    values = [actions[:, :2]]
    parts.append(torch.distributions.Independent(torch.distributions.Bernoulli(logits=params[:, 2:4]), 1))
    values.append(actions[:, 2:4])
    start = 4
    for column, size in enumerate(model.actions.category_sizes, start=4):
        parts.append(torch.distributions.Categorical(logits=params[:, start : start + size]))
        values.append(actions[:, column])
        start += size
    log_prob = sum(part.log_prob(value) for part, value in zip(parts, values, strict=True))
    torch.testing.assert_close(joint.log_prob(actions), log_prob)
    torch.testing.assert_close(joint.entropy(), sum(part.entropy() for part in parts))


def test_distribution_samples_as_often_as_it_says() -> None:
    model = PolicyModel(spaces.Discrete(2), spaces.Discrete(3), GPTConfig(d_model=16, num_heads=2))
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).expand(20_000, 3)
    joint = model.distribution(logits)
    counts = torch.bincount(joint.sample(torch.Generator().manual_seed(0))[:, 0].long()) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.2, 0.5, 0.3]), atol=0.02, rtol=0)
    assert joint.mode()[0, 0] == 1


def test_features_round_trip_actions() -> None:
    features = ActionFeatures(ACTIONS)
    ACTIONS.seed(0)
    batch = sample_batch(ACTIONS, 6)
    decoded = features.decode(features.encode(batch))
    for got, wanted in zip(
        iterate(batch_space(ACTIONS, 6), decoded), iterate(batch_space(ACTIONS, 6), batch), strict=True
    ):
        assert ACTIONS.contains(got)
        assert got[0] == wanted[0]
        np.testing.assert_allclose(got[1]["torque"], wanted[1]["torque"], rtol=1e-6)
        np.testing.assert_array_equal(got[1]["gear"], wanted[1]["gear"])
        np.testing.assert_array_equal(got[2], wanted[2])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-2.0, 2.0, (3,), np.float32),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Box(-np.inf, np.inf, (2,), np.float64),
        spaces.Box(np.array([0.1, -np.inf], np.float32), np.array([0.7, 3.0], np.float32)),
        spaces.Discrete(3, start=5),
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiBinary([2, 2]),
    ],
)
def test_decoded_actions_lie_in_the_space(space: spaces.Space[Any]) -> None:
    features = ActionFeatures(space)
    vectors = np.random.default_rng(0).normal(size=(8, features.width)).astype(np.float32) * 3
    first = features.numeric_width + features.binary_width
    vectors[:, features.numeric_width :] = 1
    assert first <= features.width
    for action in iterate(batch_space(space, 8), features.decode(vectors)):
        assert space.contains(action)


def test_features_encode_starts_and_types() -> None:
    features = ObservationFeatures(OBSERVATIONS)
    OBSERVATIONS.seed(0)
    value = OBSERVATIONS.sample()
    row = features.encode(concatenate(OBSERVATIONS, [value], create_empty_array(OBSERVATIONS, 1)))[0]
    assert row.dtype == np.float32
    assert features.width == 6 + 2 + 3 + 1 + 2
    np.testing.assert_array_equal(row[:6], value["camera"].reshape(-1))
    assert row[features.numeric_width + features.binary_width] == value["place"] + 2


@pytest.mark.parametrize(
    ("space", "where"),
    [
        (spaces.Text(5), "observation_space is"),
        (spaces.Dict(a=spaces.Box(0, 1), b=spaces.Sequence(spaces.Discrete(2))), r"observation_space\['b'\]"),
        (spaces.Tuple((spaces.Graph(spaces.Box(0, 1), None),)), r"observation_space\[0\]"),
    ],
)
def test_features_refuse_a_space_by_name(space: spaces.Space[Any], where: str) -> None:
    with pytest.raises(UnsupportedSpace, match=where):
        ObservationFeatures(space)


def test_features_work_on_a_vector_env_of_cartpole() -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=3)
    observations, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(ObservationFeatures(envs.single_observation_space).encode(observations), observations)
    envs.close()


@pytest.mark.parametrize("sizes", [{"d_model": 30, "num_heads": 4}, {"num_layers": 0}, {"max_input_states": 1.5}])
def test_config_refuses_sizes_that_do_not_work(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        GPTConfig(**sizes)


def test_config_unknown_field_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'd_model'"):
        GPTConfig.from_dict({"d_modle": 64})


@pytest.mark.parametrize("gpt_type", ["llama", "gpt2"])
@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_act_short_equals_the_last_output_of_forward(gpt_type: GPTType, length: int) -> None:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=2, d_model=32, num_heads=2, max_input_states=6, gpt_type=gpt_type)
    model = PolicyModel(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), config).eval()
    with torch.no_grad():
        model.head.weight.mul_(100.0)
        parts = torch.randn(40, length, 3), torch.randn(40, length, 2), torch.rand(40, length) < 0.3
        torch.testing.assert_close(model.act_short(*parts), model(*parts)[:, -1], atol=1e-5, rtol=1e-5)
