"""A GPT learns to balance in the stand-in player, from two players at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentgpt_remote import GPTPolicy, Hyperparameters
from agentgpt_remote.trainer.agent_evaluation import evaluate_agents_of
from agentgpt_remote.trainer.loop import train
from tests.conftest import ServeFunction
from tests.unity.stand_in import write_player

LENGTH = 100  # steps of an episode, each of which is paid with 1: the optimum


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gpt_learns_to_balance_from_two_hosts(tmp_path: Path, serve_here: ServeFunction, seed: int) -> None:
    # 12 agents that ask at different paces; one that falls comes back three steps later under another id.
    path = write_player(tmp_path, agents=12, task="balance", continuous=1, periods=(1, 2, 3), length=LENGTH, delay=3)
    urls = [serve_here(f"unity:{path}").url for _ in range(2)]
    result = train(Hyperparameters(max_steps=40_000, seed=seed), run_dir=tmp_path / "run", envs=urls)
    policies = GPTPolicy.of_behaviors(result.bundle)
    evaluation = evaluate_agents_of(policies, urls[0], episodes=60, seed=1000 + seed)
    assert evaluation.together.mean >= 0.95 * LENGTH
