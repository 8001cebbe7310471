"""Chunks recompute exactly what the acting policy computed, whatever the streams' lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.sampler import Window, cut_chunks, window_values
from agentgpt_remote.trainer.streams import StreamStore


def fill(store: StreamStore, model: PolicyModel, steps: list[int], seed: int) -> None:
    """Let every stream act for so many tokens, with random episode ends, and open one more."""
    rng = np.random.default_rng(seed)
    cache = model.make_cache(store.num_streams)
    generator = torch.Generator().manual_seed(seed)
    for stream, count in enumerate(steps):
        prev, is_first = np.zeros((1, 1), np.float32), np.ones(1, bool)
        for t in range(count + 1):
            obs = rng.normal(size=(1, 3)).astype(np.float32)
            one = slice(stream, stream + 1)
            store.open(one, obs, is_first)
            if t == count:
                break
            with torch.no_grad():
                parts = torch.from_numpy(obs), torch.from_numpy(prev), torch.from_numpy(is_first)
                distribution = model.distribution(model.act_step(*parts, cache, one))
                action = distribution.sample(generator)
            store.act(one, action.numpy(), distribution.log_prob(action).numpy(), 0)
            ends = rng.random(1) < 0.1
            store.complete(one, rng.normal(size=1), ends, ends & False, ~ends | True)
            prev, is_first = action.numpy(), ends


@pytest.mark.parametrize("capacity", [128, 64])
def test_chunks_recompute_the_acting_log_probabilities(model: PolicyModel, capacity: int) -> None:
    store = StreamStore(4, capacity, 3, 1)
    fill(store, model, [60, 33, 50, 97], seed=1)
    store.trained[:] = [40, 0, 50, 70]
    window = Window.of(store)
    chunks = cut_chunks(store, window, 8, model, 3, torch.device("cpu"))
    with torch.no_grad():
        params = chunks.outputs(model)
    rows = chunks.stream[:, None]
    actions = torch.from_numpy(window.gather(store, store.action)[rows, chunks.column])
    wanted = window.gather(store, store.log_prob)[rows, chunks.column]
    got = model.distribution(params).log_prob(actions).numpy()
    assert chunks.inside.sum() == store.new_tokens() == 20 + 33 + 0 + 27
    np.testing.assert_allclose(got[chunks.inside], wanted[chunks.inside], atol=1e-5)


def test_window_values_equal_whole_recomputation(model: PolicyModel) -> None:
    store = StreamStore(3, 64, 3, 1)
    fill(store, model, [20, 7, 36], seed=2)
    store.trained[:] = [0, 3, 10]
    critic = ValueModel(model.observation_space, model.action_space, model.config)
    window = Window.of(store)
    chunks = cut_chunks(store, window, 8, model, 3, torch.device("cpu"))
    got = window_values(store, window, chunks, critic, torch.device("cpu"))
    for stream, (first, end) in enumerate([(0, 20), (3, 7), (10, 36)]):
        tokens = np.arange(end + 1)[None]
        parts = (
            store.obs[[stream], tokens],
            store.prev_action(np.array([[stream]]), tokens),
            store.is_first[[stream], tokens],
        )
        with torch.no_grad():
            wanted = critic(*map(torch.from_numpy, parts))[0, first:, 0].numpy()
        np.testing.assert_allclose(got[stream, : end - first + 1], wanted, atol=1e-5)


def test_cut_bootstraps_where_the_host_was_lost() -> None:
    store = StreamStore(2, 8, 1, 1)
    both, flags = slice(0, 2), np.zeros(2, bool)
    store.open(both, np.zeros((2, 1)), ~flags)
    store.complete(both, np.ones(2), np.array([True, False]), flags, ~flags)
    store.cut(both)
    assert store.truncated[:, 0].tolist() == [False, True]
