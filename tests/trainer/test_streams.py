from __future__ import annotations

import numpy as np
import pytest

from agentgpt_remote.trainer.streams import StreamStore

NO = np.zeros(1, np.bool_)
YES = np.ones(1, np.bool_)


def fill(store: StreamStore, stream: int, count: int) -> None:
    """Complete tokens whose observation is their number, with one more token open."""
    at = slice(stream, stream + 1)
    for token in range(count + 1):
        store.open(at, np.full((1, 1), token), YES if token == 0 else NO)
        if token < count:
            store.act(at, np.full((1, 1), -token), np.full(1, token), token)
            store.complete(at, np.full(1, token), NO, NO, YES)


def observations(store: StreamStore, stream: int) -> list[int]:
    """Return what the stream holds, open token included."""
    tokens = np.arange(store.oldest()[stream], store.position[stream] + 1)
    return [int(value) for value in store.obs[stream, tokens % store.capacity, 0]]


@pytest.mark.parametrize("capacity", [6, 16, 40])
@pytest.mark.parametrize(("context", "replay"), [(0, 0), (3, 0), (0, 5), (2, 100)])
def test_checkpoint_keeps_what_is_untrained_its_context_and_the_replay(
    capacity: int, context: int, replay: int
) -> None:
    store = StreamStore(3, capacity=16, obs_width=1, action_width=1)
    fill(store, 0, 30)
    fill(store, 1, 9)
    store.trained[:] = [26, 9, 0]
    other = StreamStore(3, capacity=capacity, obs_width=1, action_width=1)
    other.load_state_dict(store.state_dict(context, replay))
    assert other.position.tolist() == [30, 9, 0]
    assert other.opened.tolist() == [True, True, False]
    for stream, (position, trained) in enumerate([(30, 26), (9, 9), (0, 0)]):
        first = max(0, min(trained - context, position - replay), position - 15, position - capacity + 1)
        expected = list(range(first, position + 1))
        assert observations(other, stream) == (expected if stream < 2 else [0])
        rows = np.arange(first, position)
        assert other.reward[stream, rows % capacity].tolist() == rows.tolist()
        assert other.trained[stream] == max(trained, first)


def test_restart_ends_the_episode_at_its_open_token_as_truncated() -> None:
    store = StreamStore(2, capacity=8, obs_width=1, action_width=1)
    fill(store, 0, 3)
    store.restart(slice(0, 2))
    store.restart(slice(0, 2))
    assert store.position.tolist() == [4, 0], "a stream that never began has nothing to end"
    assert store.truncated[0, :4].tolist() == [False, False, True, False]
    assert store.valid[0, :4].tolist() == [True, True, True, False]
    store.open(slice(0, 1), np.full((1, 1), 7), YES)
    assert observations(store, 0) == [0, 1, 2, 3, 7]


def test_restart_keeps_a_termination() -> None:
    store = StreamStore(1, capacity=8, obs_width=1, action_width=1)
    fill(store, 0, 1)
    store.act(slice(0, 1), np.zeros((1, 1)), np.zeros(1), 0)
    store.complete(slice(0, 1), np.zeros(1), YES, NO, YES)
    store.open(slice(0, 1), np.zeros((1, 1)), NO)
    store.restart(slice(0, 1))
    assert store.terminated[0, :3].tolist() == [False, True, False]
    assert not store.truncated.any()
