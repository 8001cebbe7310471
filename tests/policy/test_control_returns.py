"""Control values of policies that can do something: returns do not decrease."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentgpt_remote import AgentGPT, Hyperparameters
from benchmarks.control import is_monotone, measure


def test_monotony_is_judged_beyond_chance() -> None:
    assert is_monotone([(0.0, 1.0, 0.1), (0.5, 0.9, 0.1), (1.0, 5.0, 0.1)])
    assert not is_monotone([(0.0, 1.0, 0.1), (0.5, 0.5, 0.1), (1.0, 5.0, 0.1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "max_steps"), [("CartPole-v1", 40_000), ("Pendulum-v1", 60_000), ("LunarLander-v3", 500_000)]
)
def test_returns_do_not_decrease_with_control(tmp_path: Path, env_id: str, max_steps: int) -> None:
    run = AgentGPT.train_on_local(Hyperparameters(env_id=env_id, max_steps=max_steps), runs_dir=tmp_path)
    run.wait()
    rows = measure(str(run.run_dir / "policy"), env_id, episodes=100, seed=7)
    assert is_monotone(rows), rows
    assert rows[-1][1] > rows[0][1]
