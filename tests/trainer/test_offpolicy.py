"""Off-policy learning: replay, critics, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.distributions import ActionHead, JointDistribution
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.algorithm import choose_algorithm, measure_supply
from agentgpt_remote.trainer.checkpoint import load_checkpoint
from agentgpt_remote.trainer.critics import ActionCritic, DiscreteCritic
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.replay import draw
from agentgpt_remote.trainer.results import TrainingResult
from agentgpt_remote.trainer.streams import StreamStore
from tests.trainer.test_sampler import fill
from tests.trainer.tiny_envs import Echo

SMALL: dict[str, Any] = {
    **{"algorithm": "offpolicy", "d_model": 32, "num_heads": 2, "num_layers": 1, "max_input_states": 4},
    **{"chunk_steps": 7, "batch_size": 56, "learning_starts": 64, "use_tensorboard": False},
}


def run(run_dir: Path, make: Any = Echo, **values: Any) -> TrainingResult:
    envs = SyncVectorEnv([make] * 8)
    try:
        return train(Hyperparameters(**{**SMALL, **values}), run_dir=run_dir, envs=[envs])
    finally:
        envs.close()


@pytest.mark.parametrize("capacity", [256, 64])
def test_drawn_sequences_are_what_was_stored(model: PolicyModel, capacity: int) -> None:
    store = StreamStore(3, capacity, 3, 1)
    fill(store, model, [100, 40, 7], seed=0)
    replay = draw(
        store,
        np.random.default_rng(1),
        sequences=200,
        steps=6,
        model=model,
        context_blocks=2,
        recent_fraction=0.0,
        version=3,
        device=torch.device("cpu"),
    )
    weight = replay.weight.bool()
    assert replay.lag == 3.0
    assert 0.5 < float(weight.float().mean()) <= 1.0
    # Where the context is held, the policy gives the very probability with which it acted.
    own = model.distribution(replay.outputs(model)).log_prob(replay.action)[:, :-1]
    close = (own - replay.log_prob[:, :-1]).abs()[weight] < 1e-4
    assert float(close.float().mean()) > (0.99 if capacity == 256 else 0.6)
    assert (replay.cut[:, -1] == 1).all()
    assert (replay.cut[replay.terminated.bool()] == 1).all()
    ended = np.isin(replay.reward[replay.terminated.bool()].numpy(), store.reward[store.terminated].astype(np.float32))
    assert ended.all()


def test_part_of_a_batch_is_of_the_newest_steps(model: PolicyModel) -> None:
    store = StreamStore(3, 256, 3, 1)
    fill(store, model, [200, 200, 200], seed=0)
    store.reward[:] = np.arange(256)
    given = {
        "steps": 6,
        "recent_steps": 30,
        "model": model,
        "context_blocks": 2,
        "version": 0,
        "device": torch.device("cpu"),
    }
    replay = draw(store, np.random.default_rng(1), sequences=400, recent_fraction=0.25, **given)
    recent = (replay.reward >= 190).all(-1)
    assert recent[:100].all()
    assert float(recent[100:].float().mean()) < 0.1


def test_twin_critics_share_nothing_and_tell_actions_apart() -> None:
    torch.manual_seed(0)
    space = spaces.Dict(pick=spaces.Discrete(3), push=spaces.Box(-1, 1, (2,)))
    critic = ActionCritic(spaces.Box(-1, 1, (3,)), space, GPTConfig(d_model=32, num_heads=2), memory=False)
    state = torch.randn(4, 5, 32)
    actions = torch.cat((torch.randn(4, 5, 2), torch.randint(3, (4, 5, 1)).float()), -1)
    values = critic.action_values(state, actions)
    assert values.shape == (2, 4, 5)
    assert not torch.allclose(values[0], values[1])
    other = actions.clone()
    other[..., 2] = (other[..., 2] + 1) % 3
    assert not torch.allclose(critic.action_values(state, other), values)
    one = torch.autograd.grad(values[0].sum(), critic.values.parameters())
    assert all((part[1] == 0).all() for part in one)


def test_dueling_values_keep_the_mean_of_the_state() -> None:
    critic = DiscreteCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), GPTConfig(d_model=32, num_heads=2))
    outputs = torch.randn(6, 7, 2 * 5)
    values = critic.action_values(outputs)
    assert values.shape == (2, 6, 7, 4)
    torch.testing.assert_close(values.mean(-1), torch.stack((outputs[..., 0], outputs[..., 5])))


def test_squashed_gaussian_equals_the_transformed_one() -> None:
    head = ActionHead(ActionFeatures(spaces.Box(-2, 2, (2,), np.float32)), squashed=True)
    params = 0.5 * torch.randn(50, 4)
    policy = JointDistribution(head, params, torch.zeros(2))
    sample = policy.sample(torch.Generator().manual_seed(0))
    assert (sample.abs() < 1).all()
    base = torch.distributions.Normal(params[:, :2], policy._log_std.exp())
    expected = torch.distributions.TransformedDistribution(base, torch.distributions.TanhTransform()).log_prob(sample)
    torch.testing.assert_close(policy.log_prob(sample), expected.sum(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(policy.mode(), torch.tanh(params[:, :2]))
    drawn, density = policy.sample_numeric(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, sample)
    torch.testing.assert_close(density, expected.sum(-1), rtol=1e-3, atol=1e-3)


class Bandit(gym.Env[Any, Any]):
    """Reward 1 for repeating a sign; episodes of 8 steps."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        wanted = self._sign > 0
        right = float(np.mean((np.asarray(action) > 0) == wanted))
        self._steps += 1
        return self._observe(), right, False, self._steps == 8, {}

    def _observe(self) -> Any:
        self._sign = float(self.np_random.integers(2)) * 2 - 1
        return np.array([self._sign], np.float32)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(2), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2,), np.float32)],
    ids=["Discrete", "MultiDiscrete", "MultiBinary", "Box"],
)
def test_every_kind_of_action_is_learned(space: spaces.Space[Any], tmp_path: Path) -> None:
    result = run(tmp_path, lambda: Bandit(space), max_steps=3000, replay_ratio=8, lr_init=3e-3)
    assert result.episode_return is not None
    assert result.episode_return > 6.5  # 4 at random, 8 at best


def test_a_hybrid_action_is_learned_and_the_bundle_acts(tmp_path: Path) -> None:
    result = run(tmp_path, max_steps=5000, replay_ratio=8, lr_init=3e-3, critic_lr_factor=1.0)
    assert result.episode_return is not None
    assert result.episode_return > 17  # 12 at random, 24 at best
    with GPTPolicy(str(result.bundle)) as policy:
        greedy = evaluate_source(policy, "tests.trainer.tiny_envs:echo", episodes=16, seed=0)
    assert greedy.mean > 18


def test_replay_ratio_is_the_number_of_times_that_a_step_is_trained_on(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2000, replay_ratio=2.0)
    learner = load_checkpoint(sorted((tmp_path / "checkpoints").glob("step-*.pt"))[-1])["learner"]
    trained = learner["updates"] * SMALL["batch_size"] * 8 / 9  # an episode's last token is no step
    assert trained / (2000 - SMALL["learning_starts"]) == pytest.approx(2.0, rel=0.1)


def test_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name, max_steps=1200, seed=3)
    rows = [
        [{k: v for k, v in row.items() if not k.startswith(("time/", "remote/"))} for row in read_metrics(path)]
        for path in (tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1] != []


def test_a_run_resumes_with_its_optimizers(tmp_path: Path) -> None:
    first = run(tmp_path, max_steps=1200)
    before = load_checkpoint(sorted((tmp_path / "checkpoints").glob("step-*.pt"))[-1])["learner"]["updates"]
    with pytest.raises(ConfigError, match=r"algorithm='ppo'.*has algorithm='offpolicy'"):
        run(tmp_path, max_steps=2400, resume_training=True, algorithm="ppo")
    second = run(tmp_path, max_steps=2400, resume_training=True, algorithm="auto")
    after = load_checkpoint(sorted((tmp_path / "checkpoints").glob("step-*.pt"))[-1])["learner"]["updates"]
    assert second.env_steps > first.env_steps
    assert after > before > 0


def lane(action_space: spaces.Space[Any]) -> Lane:
    envs = SyncVectorEnv([lambda: Bandit(action_space)] * 2)
    return Lane("here", envs, PolicyModel(Bandit.observation_space, action_space, GPTConfig()).observations, 5.0)


def test_auto_takes_ppo_where_steps_are_plentiful_and_offpolicy_where_they_are_dear(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    push = spaces.Box(-1, 1, (1,), np.float32)
    open_lane = lane(push)
    assert measure_supply([open_lane]) > 1000
    with caplog.at_level("INFO", "agentgpt_remote.trainer"):
        assert choose_algorithm(Hyperparameters(), [open_lane], continuous=True)[0].algorithm == "ppo"
        monkeypatch.setattr("agentgpt_remote.trainer.algorithm.measure_supply", lambda _: 100.0)
        dear, reason = choose_algorithm(Hyperparameters(), [open_lane], continuous=True)
        assert dear.algorithm == "offpolicy"
        assert reason == "chosen by auto: 100 environment steps per second, at most 500"
        assert choose_algorithm(Hyperparameters(), [open_lane], continuous=False)[0].algorithm == "ppo"
        assert choose_algorithm(Hyperparameters(algorithm="ppo"), [], continuous=True)[0].algorithm == "ppo"
    assert "100 environment steps per second, at most 500" in caplog.text


@pytest.mark.slow
def test_pendulum_is_solved_within_12000_steps(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(env_id="Pendulum-v1", algorithm="offpolicy", max_steps=12_000)
    result = train(hyperparameters, run_dir=tmp_path)
    with GPTPolicy(str(result.bundle)) as policy:
        assert evaluate_source(policy, "Pendulum-v1", episodes=20, seed=0).mean > -200
