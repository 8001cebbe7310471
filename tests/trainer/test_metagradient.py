"""Gamma and lambda by meta-gradient: the gradient itself, its limits, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.metagradient import LIMIT, DiscountTuner, HorizonEncoder, meta_gradient
from agentgpt_remote.trainer.retrace import retrace_targets
from agentgpt_remote.trainer.targets import generalized_advantages
from tests.trainer.test_exact_resume import last_state, run, same_bits, stable
from tests.trainer.tiny_envs import Echo


def tuner_of(model: PolicyModel, **values: Any) -> DiscountTuner:
    defaults: dict[str, Any] = {"gamma_init": 0.95, "lambda_init": 0.8, "learn_gamma": True, "learn_lambda": True}
    critic = ValueModel(model.observation_space, model.action_space, GPTConfig(d_model=32, num_heads=2))
    return DiscountTuner(Hyperparameters(**{**defaults, **values}), critic)


class Rollout:
    """Numbers of some streams, with values that a two-layer network can be trained towards."""

    def __init__(self, seed: int, streams: int = 3, steps: int = 20) -> None:
        rng = np.random.default_rng(seed)
        self.features = torch.from_numpy(rng.normal(size=(streams, steps, 4)))
        self.action = torch.from_numpy(rng.integers(0, 3, (streams, steps)))
        self.reward, self.value = rng.normal(size=(streams, steps)), rng.normal(size=(streams, steps + 1))
        self.terminated = rng.random((streams, steps)) < 0.1
        self.truncated = (rng.random((streams, steps)) < 0.1) & ~self.terminated
        self.trace = torch.from_numpy(rng.random((streams, steps)))

    def advantage(self, gamma: float, lambda_: float) -> Tensor:
        valid = np.ones_like(self.terminated)
        flags = (self.terminated, self.truncated, valid)
        got = generalized_advantages(self.reward, self.value, *flags, gamma=gamma, lambda_=lambda_)
        return torch.from_numpy((got - got.mean()) / got.std())

    def retrace(self, gamma: float, lambda_: float) -> Tensor:
        reward, terminated = torch.from_numpy(self.reward), torch.from_numpy(self.terminated).double()
        cut, value = terminated + torch.from_numpy(self.truncated), torch.from_numpy(self.value)[:, 1:]
        return retrace_targets(reward, terminated, cut, value, 0.5 * value, self.trace, gamma=gamma, lambda_=lambda_)


class PolicyStep:
    """Targets of an actor: advantages, normalised; the surrogate of probabilities' ratios."""

    def __init__(self, network: nn.Module, rollout: Rollout) -> None:
        self.network, self.rollout, self.target = network, rollout, rollout.advantage
        with torch.no_grad():
            self.behaviour = self._log_prob()

    def _log_prob(self) -> Tensor:
        log_probs = self.network(self.rollout.features).log_softmax(-1)
        return log_probs.gather(-1, self.rollout.action[..., None])[..., 0]

    def score(self) -> Tensor:
        return (self._log_prob() - self.behaviour).exp()

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        return -(target * score).sum()


class CriticStep:
    """Targets of a critic: Retrace's; half the squared error."""

    def __init__(self, network: nn.Module, rollout: Rollout) -> None:
        self.network, self.rollout, self.target = network, rollout, rollout.retrace

    def score(self) -> Tensor:
        values: Tensor = self.network(self.rollout.features)
        return values.gather(-1, self.rollout.action[..., None])[..., 0]

    def loss(self, score: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (score - target).square().sum()


@pytest.mark.parametrize("kind", [PolicyStep, CriticStep])
def test_meta_gradient_equals_differences_of_the_whole_two_steps(model: PolicyModel, kind: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inner, outer = kind(network, Rollout(1)), kind(network, Rollout(2))
    tuner, parameters, step = tuner_of(model), list(network.parameters()), 0.02
    tuner.follow([1.0, -1.0])  # somewhere else than at the initial values
    before = [parameter.detach().clone() for parameter in parameters]

    def whole(offsets: list[float]) -> float:
        """Return the outer loss after an inner step under some gamma and lambda."""
        loss = inner.loss(inner.score(), inner.target(*tuner._at(offsets)))
        gradient = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter -= step * part
            result = outer.loss(outer.score(), outer.target(*tuner.fixed)).item()
            for parameter, saved in zip(parameters, before, strict=True):
                parameter.copy_(saved)
        return float(result)

    score = inner.score()
    got = meta_gradient(
        parameters,
        inner_loss=inner.loss(score, inner.target(tuner.gamma, tuner.lambda_)),
        score=score,
        tangents=tuner.tangents(inner.target),
        outer_loss=lambda: outer.loss(outer.score(), outer.target(*tuner.fixed)),
        step=step,
    )
    here, wanted = tuner._values(), []
    for index in range(2):
        up, down = list(here), list(here)
        up[index], down[index] = here[index] + 1e-4, here[index] - 1e-4
        wanted.append((whole(up) - whole(down)) / 2e-4)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert all(math.isfinite(value) and value != 0.0 for value in got)
    for parameter, saved in zip(parameters, before, strict=True):
        assert torch.equal(parameter, saved)


def advantages_by_autograd(rollout: Rollout, gamma: Tensor, lambda_: Tensor) -> Tensor:
    """Return normalised advantages with a graph to gamma and lambda."""
    reward, value = torch.from_numpy(rollout.reward), torch.from_numpy(rollout.value)
    goes_on = 1.0 - torch.from_numpy(rollout.terminated).double()
    uncut = goes_on - torch.from_numpy(rollout.truncated).double()
    running, columns = torch.zeros(len(reward), dtype=torch.float64), []
    for t in reversed(range(reward.shape[1])):
        delta = reward[:, t] + gamma * goes_on[:, t] * value[:, t + 1] - value[:, t]
        running = delta + gamma * lambda_ * uncut[:, t] * running
        columns.append(running)
    advantage = torch.stack(columns[::-1], 1)
    return (advantage - advantage.mean()) / advantage.std(correction=0)


def test_meta_gradient_equals_a_second_derivative(model: PolicyModel) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inner, outer = PolicyStep(network, Rollout(1)), PolicyStep(network, Rollout(2))
    tuner, parameters = tuner_of(model), list(network.parameters())
    score = inner.score()
    got = meta_gradient(
        parameters,
        inner_loss=inner.loss(score, inner.target(tuner.gamma, tuner.lambda_)),
        score=score,
        tangents=tuner.tangents(inner.target),
        outer_loss=lambda: outer.loss(outer.score(), outer.target(*tuner.fixed)),
        step=1e-9,  # the outer gradient is taken where the inner one is, which a second derivative gives
    )
    horizon = torch.tensor(math.log(1 / (1 - 0.95)), dtype=torch.float64, requires_grad=True)
    logit = torch.tensor(math.log(0.8 / 0.2), dtype=torch.float64, requires_grad=True)
    target = advantages_by_autograd(inner.rollout, 1 - (-horizon).exp(), torch.sigmoid(logit))
    gradient = torch.autograd.grad(inner.loss(inner.score(), target), parameters, create_graph=True)
    ahead = torch.autograd.grad(outer.loss(outer.score(), outer.target(*tuner.fixed)), parameters)
    product = sum((a * b).sum() for a, b in zip(ahead, gradient, strict=True))
    wanted = torch.autograd.grad(product, (horizon, logit))
    np.testing.assert_allclose(np.array(got) / -1e-9, [float(value) for value in wanted], rtol=1e-5)


def test_what_is_not_learned_is_the_initial_value_to_the_bit(model: PolicyModel) -> None:
    tuner = tuner_of(model, learn_gamma=False, learn_lambda=False, gamma_init=0.993)
    assert (tuner.gamma, tuner.lambda_) == (0.993, 0.8)
    assert not tuner.due(1.0)
    assert tuner.state_dict() == {}
    assert tuner.metrics() == {"train/gamma": 0.993, "train/lambda": 0.8}
    only = tuner_of(model, learn_gamma=False)
    only.follow([1.0])
    assert only.gamma == 0.95
    assert only.lambda_ < 0.8


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.999])
def test_horizon_and_odds_stay_within_their_limits(model: PolicyModel, sign: float, gamma: float) -> None:
    tuner = tuner_of(model, gamma_init=gamma, meta_lr=0.5)
    assert tuner.gamma == pytest.approx(gamma)
    for _ in range(20):
        tuner.follow([sign, sign])
    factor = 4.0**-sign
    assert 1 / (1 - tuner.gamma) == pytest.approx(max(factor / (1 - gamma), 1.0), rel=1e-5)
    assert tuner.lambda_ / (1 - tuner.lambda_) == pytest.approx(4.0 * factor, rel=1e-5)
    assert 0.0 <= tuner.gamma < 1.0


def test_a_meta_gradient_that_is_not_finite_is_skipped_and_counted(model: PolicyModel) -> None:
    tuner = tuner_of(model)
    tuner.follow([0.5, 0.5])
    before = (tuner.gamma, tuner.lambda_)
    for bad in (math.nan, math.inf):
        tuner.follow([bad, 0.5])
    assert (tuner.gamma, tuner.lambda_) == before
    assert tuner.metrics()["train/meta_skipped"] == 2.0


def test_state_goes_on_to_the_bit(model: PolicyModel) -> None:
    tuner, other = tuner_of(model), tuner_of(model)
    tuner.follow([0.3, -0.2])
    other.load_state_dict(tuner.state_dict())
    for both in (tuner, other):
        both.follow([-0.1, 0.4])
    assert (tuner.gamma, tuner.lambda_) == (other.gamma, other.lambda_)
    assert other._encoder is not None
    assert float(other._encoder.horizon) == pytest.approx(other._values()[0] / LIMIT)


def test_the_critic_sees_the_horizon_once_it_has_moved(model: PolicyModel) -> None:
    critic = ValueModel(model.observation_space, model.action_space, GPTConfig(d_model=32, num_heads=2))
    weights = {name: value.clone() for name, value in critic.state_dict().items()}
    seen = (torch.randn(2, 16, 3), torch.zeros(2, 16, 1), torch.zeros(2, 16, dtype=torch.bool))
    before = critic(*seen)
    tuner = DiscountTuner(Hyperparameters(lambda_init=0.9, learn_gamma=True), critic)
    assert isinstance(critic.encoder, HorizonEncoder)
    assert torch.equal(critic.head.weight, weights["head.weight"])
    assert set(critic.state_dict()) - set(weights) >= {"encoder.weight", "encoder.horizon"}
    nn.init.normal_(critic.encoder.weight)
    inner = critic.encoder.tokens
    critic.encoder.prepare = inner.prepare  # type: ignore[assignment]
    assert torch.equal(critic(*seen), before)
    tuner.follow([-1.0])
    assert not torch.equal(critic(*seen), before)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"learn_gamma": True, "gamma_init": 1.0}, r"gamma_init=1.0: expected more than 0 .* learn_gamma=false"),
        ({"learn_gamma": True, "gamma_init": 0.0}, r"gamma_init=0.0: expected more than 0 and less than 1"),
        ({"learn_lambda": True, "lambda_init": 0.0}, r"lambda_init=0.0: .*set lambda_init=0.9"),
        ({"learn_lambda": True, "lambda_init": 1.0, "algorithm": "offpolicy"}, r"lambda_init=1.0"),
    ],
)
def test_values_that_leave_no_room_are_refused(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        run(tmp_path / "run", Echo, **values)
    assert not (tmp_path / "run").exists()


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", max_episode_steps=70)


LEARNED: dict[str, Any] = {"learn_gamma": True, "learn_lambda": True, "meta_lr": 0.05}
OFF_POLICY: dict[str, Any] = {
    **{"algorithm": "offpolicy", "rollout_steps": None, "chunk_steps": 7, "batch_size": 56, "replay_ratio": 4.0},
    **{"learning_starts": 100, "max_steps": 1200, "lambda_init": 0.9},
}


@pytest.mark.parametrize(
    ("make", "values"),
    [(Echo, {}), (pendulum, {}), (Echo, OFF_POLICY), (pendulum, OFF_POLICY)],
    ids=["ppo", "ppo continuous", "offpolicy", "offpolicy continuous"],
)
def test_learned_values_are_logged_and_a_stopped_run_goes_on_exactly(
    tmp_path: Path, make: Callable[[], gym.Env[Any, Any]], values: dict[str, Any]
) -> None:
    chosen = {**LEARNED, **values}
    run(tmp_path / "whole", make, **chosen)
    for stop_at in (101, 130):
        assert run(tmp_path / "parts", make, stop_at, resume_training=True, **chosen).stopped
    run(tmp_path / "parts", make, resume_training=True, **chosen)
    same_bits(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    assert stable(tmp_path / "whole") == stable(tmp_path / "parts")
    last = list(read_metrics(tmp_path / "whole" / "metrics.jsonl"))[-1]
    assert last["train/gamma"] != 0.99
    assert last["train/meta_skipped"] == 0.0
    assert 1 / (1 - 0.99) / 4 <= 1 / (1 - last["train/gamma"]) <= 4 / (1 - 0.99)


def watched(monkeypatch: pytest.MonkeyPatch, module: str) -> list[dict[str, Any]]:
    """Return what meta-gradients of a run are taken of, as they are."""
    calls: list[dict[str, Any]] = []

    def watch(parameters: Any, **told: Any) -> list[float]:
        outer = told["outer_loss"]()
        calls.append({**told, "gradient": meta_gradient(parameters, **told), "outer": outer})
        return list(calls[-1]["gradient"])

    monkeypatch.setattr(f"agentgpt_remote.trainer.{module}.meta_gradient", watch)
    return calls


def test_ppo_takes_the_surrogate_of_fresh_data_where_it_was_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(monkeypatch, "ppo")
    run(tmp_path, pendulum, **LEARNED)
    assert len(calls) == 8  # one for each rollout: none ends within the first tenth
    for call in calls:
        used = call["tangents"][0] != 0.0
        assert call["score"].shape == (8, 16)  # half of four agents' four chunks
        torch.testing.assert_close(call["score"][used], torch.ones(int(used.sum())), atol=1e-3, rtol=0)
        assert float(call["tangents"][1].abs().sum()) > 0.0
        assert all(value != 0.0 for value in call["gradient"])


@pytest.mark.parametrize("make", [Echo, pendulum])
def test_offpolicy_takes_the_critics_error_every_eight_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], gym.Env[Any, Any]]
) -> None:
    calls = watched(monkeypatch, "offpolicy")
    run(tmp_path, make, **{**LEARNED, **OFF_POLICY, "max_steps": 500})
    trained = last_state(tmp_path)["learner"]["updates"]
    assert trained // 8 - 2 <= len(calls) <= trained // 8
    for call in calls:
        assert call["score"].shape == (2, 8, 7)
        assert call["tangents"][0].shape == (8, 7)
        assert all(math.isfinite(value) and value != 0.0 for value in call["gradient"])
        assert math.isfinite(call["outer"].item())


def test_nothing_moves_in_the_first_tenth_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, Echo, **{**LEARNED, "rollout_steps": 64, "max_steps": 1000})
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    still = [row["train/gamma"] for row in rows if row["env_steps"] < 100]
    assert still == [pytest.approx(0.99, abs=1e-12)] * len(still) != []
    moving = [row["train/gamma"] for row in rows if row["env_steps"] >= 100]
    assert len({*still, *moving}) == len(moving) + 1


def test_a_run_is_not_resumed_with_another_choice_of_what_is_learned(tmp_path: Path) -> None:
    run(tmp_path, Echo, 150)
    with pytest.raises(ConfigError, match=r"learn_gamma=True: the run to resume has learn_gamma=False"):
        run(tmp_path, Echo, resume_training=True, learn_gamma=True)
