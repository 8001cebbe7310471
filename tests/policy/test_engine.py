"""Slots: used again, grown only when they must be, and never shown to another agent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agentgpt_remote.errors import CapacityReached
from agentgpt_remote.policy.agent_table import AgentTable
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.engine import DEFAULT_MAX_AGENTS, MAX_CACHE_BYTES, PolicyEngine
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.options import ActOptions
from tests.policy.conftest import make_model


def _model() -> PolicyModel:
    """Return a model whose actions stay between the bounds, so that a difference shows."""
    model = make_model("continuous").eval().requires_grad_(False)
    model.head.weight.mul_(0.02)
    return model


def _act(table: AgentTable, ids: tuple[str, ...], rows: np.ndarray, ended: tuple[str, ...] = ()) -> np.ndarray:
    return np.asarray(table.act(ids, rows, ended, True))


def test_agent_whose_first_call_failed_does_not_inherit_a_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    model = _model()
    table = AgentTable(PolicyEngine(model), 0)
    for _ in range(3):
        _act(table, ("old",), rng.normal(size=(1, 3)))
    table.forget(["old"])
    with monkeypatch.context() as patch:
        patch.setattr(model, "act_step", _fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            _act(table, ("new",), rng.normal(size=(1, 3)))
    assert table.agent_ids == []
    row = rng.normal(size=(1, 3))
    clean = _act(AgentTable(PolicyEngine(_model()), 0), ("new",), row)
    assert np.abs(clean).max() < 2
    np.testing.assert_allclose(_act(table, ("new",), row), clean, atol=1e-6)


def _fail(*_: object) -> torch.Tensor:
    raise RuntimeError("out of memory")


def test_failed_call_keeps_agents_that_were_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    table = AgentTable(PolicyEngine(model), 0)
    _act(table, ("a", "b"), np.zeros((2, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(model, "act_step", _fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            _act(table, ("a",), np.zeros((1, 3)), ("b",))
        with pytest.raises(RuntimeError, match="out of memory"):
            _act(table, ("a", "c", "d"), np.zeros((3, 3)), ("b",))
    assert table.agent_ids == ["a", "b"]
    assert table.engine.num_agents == 2


def test_agents_that_take_the_places_of_others_stay_in_consecutive_slots() -> None:
    engine = PolicyEngine(_model(), max_agents=4)
    table = AgentTable(engine)
    _act(table, ("a", "b", "c", "d"), np.zeros((4, 3)))
    batch = np.random.default_rng(0).normal(size=(4, 3))
    joined = ("a", "e", "c", "f")
    prepared = table.prepare(joined, batch, ("d", "b"), ActOptions(deterministic=True))
    assert prepared.decision.index.at == slice(0, 4)
    table.roll_back(prepared)
    actions = _act(table, joined, batch, ("d", "b"))
    assert sorted(table.agent_ids) == sorted(joined)
    alone = _act(AgentTable(PolicyEngine(_model())), ("f",), batch[3:])
    np.testing.assert_allclose(actions[3:], alone, atol=1e-6)
    _act(table, ("g",), batch[:1])  # makes room for itself at the expense of one that acted before
    assert engine.num_dropped == 1
    assert len(table.dropped) == 1


def test_churning_agents_use_slots_again_and_act_as_if_alone() -> None:
    rng = np.random.default_rng(0)
    engine = PolicyEngine(_model(), max_agents=32)
    table = AgentTable(engine, 0)
    alone = {}
    ids = [f"agent-{index}" for index in range(20)]
    for step in range(60):
        ended = tuple(ids[:2]) if step else ()
        if step:
            ids = [*ids[2:], f"agent-{18 + 2 * step}", f"agent-{19 + 2 * step}"]
        rows = rng.normal(size=(20, 3))
        actions = _act(table, tuple(ids), rows, ended)
        watched = ids[-1] if step % 10 == 0 else None
        if watched:
            alone[watched] = AgentTable(PolicyEngine(_model()), 0)
        for agent, single in list(alone.items()):
            if agent not in ids:
                del alone[agent]
                continue
            index = ids.index(agent)
            np.testing.assert_allclose(
                actions[index : index + 1], _act(single, (agent,), rows[index : index + 1]), atol=1e-5
            )
    assert len(table.held) == 20


def test_too_many_agents_change_nothing() -> None:
    table = AgentTable(PolicyEngine(_model(), max_agents=3), 0)
    _act(table, ("a", "b"), np.zeros((2, 3)))
    with pytest.raises(CapacityReached, match="at most 3"):
        _act(table, ("a", "b", "c", "d"), np.zeros((4, 3)))
    assert table.agent_ids == ["a", "b"]
    assert _act(table, ("a", "b", "c"), np.zeros((3, 3))).shape == (3, 2)


def test_default_limit_bounds_the_memory_of_the_cache() -> None:
    assert PolicyEngine(_model()).max_agents == DEFAULT_MAX_AGENTS
    config = GPTConfig(num_layers=5, d_model=256, num_heads=8, max_input_states=64)
    large = PolicyModel(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), config)
    cache = large.make_cache(1)
    engine = PolicyEngine(large)
    slot_bytes = cache.keys.nbytes + cache.values.nbytes + engine.history.slot_bytes
    held = engine.max_agents * slot_bytes
    assert slot_bytes < 1.2 * (cache.keys.nbytes + cache.values.nbytes)
    assert 0.99 * MAX_CACHE_BYTES < held <= MAX_CACHE_BYTES
