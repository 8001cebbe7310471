"""The tasks of the learning benchmark, with a step budget and a bar for each update rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentgpt_remote import Exploration
from benchmarks.baselines import Baseline, ppo, recurrent_ppo, sac


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What one update rule must reach.

    Attributes:
        bar: the return, greedy, over 20 episodes at the end of the run.
        within: environment steps. A longer run must have crossed the bar with its training return by then.
        max_steps: environment steps of the run; by default no more than ``within``.
        hyperparameters: that the task sets under this rule, where the defaults are not meant for it.
    """

    bar: float
    within: int
    max_steps: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_steps(self) -> int:
        """Environment steps of the run."""
        return self.max_steps or self.within


@dataclass(frozen=True, kw_only=True)
class Task:
    """An environment and what must be reached on it.

    Attributes:
        name: on the command line.
        source: of the environment.
        goals: by update rule; a rule that is missing has no bar here.
        baseline: what runs beside it.
        wall_ratio: what our seconds to the bar may be of the baseline's.
    """

    name: str
    source: str
    goals: Mapping[str, Goal]
    baseline: Baseline | None = None
    wall_ratio: float | None = None


def _goals(bar: float, *, ppo: int | None = None, offpolicy: int | None = None) -> dict[str, Goal]:
    given = {"ppo": ppo, "offpolicy": offpolicy}
    return {rule: Goal(bar=bar, within=steps) for rule, steps in given.items() if steps is not None}


_LSTM: dict[str, Any] = {
    "lstm_hidden_size": 64,
    "enable_critic_lstm": True,
    "ortho_init": False,
    "net_arch": {"pi": [64], "vf": [64]},
}
_CARTPOLE: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98}

# Where one observation tells everything, and few environments are seen for long.
_OBSERVED: dict[str, Any] = {"num_envs": 8, "max_input_states": 8, "critic_memory": False}

# Only a push that lasts for many steps ever meets the reward.
_SWINGING: dict[str, Any] = {
    "critic_memory": False,
    "replay_ratio": 14.0,
    "lambda_init": 0.9,
    "exploration": {
        "continuous": Exploration(type="ornstein_uhlenbeck", initial=0.6, final=0.0, fraction=0.6),
    },
}

# Another task is one more entry; an environment of our own is a factory in examples/envs.py.
TASKS = {
    task.name: task
    for task in (
        Task(
            name="cartpole",
            source="CartPole-v1",
            goals=_goals(475, ppo=30_000, offpolicy=40_000),
            baseline=ppo(8, 100_000, learning_rate=1e-3, clip_range=0.2, falling=True, **_CARTPOLE),
            wall_ratio=0.8,
        ),
        Task(
            name="masked",
            source="examples.envs:masked_cartpole",
            goals={
                "ppo": Goal(bar=475, within=60_000),
                "offpolicy": Goal(bar=475, within=30_000, max_steps=60_000),
            },
            baseline=recurrent_ppo(
                8, 100_000, learning_rate=1e-3, clip_range=0.2, falling=True, normalize=True, policy=_LSTM, **_CARTPOLE
            ),
            wall_ratio=0.25,
        ),
        Task(
            name="acrobot",
            source="Acrobot-v1",
            goals=_goals(-100, ppo=75_000, offpolicy=75_000),
            baseline=ppo(16, 200_000, normalize=True, n_steps=256, gae_lambda=0.94, gamma=0.99, n_epochs=4),
            wall_ratio=0.8,
        ),
        Task(
            name="pendulum",
            source="Pendulum-v1",
            goals=_goals(-200, ppo=60_000, offpolicy=12_000),
            baseline=ppo(
                4, 200_000, n_steps=1024, gamma=0.9, learning_rate=1e-3, clip_range=0.2, use_sde=True, sde_sample_freq=4
            ),
            wall_ratio=0.8,
        ),
        Task(
            name="masked_pendulum",
            source="examples.envs:masked_pendulum",
            goals=_goals(-250, ppo=120_000, offpolicy=40_000),
        ),
        Task(
            name="mountaincarcontinuous",
            source="MountainCarContinuous-v0",
            goals={"offpolicy": Goal(bar=90, within=60_000, hyperparameters=_SWINGING)},
        ),
        Task(
            name="lunarlander",
            source="LunarLander-v3",
            goals=_goals(200, ppo=500_000, offpolicy=150_000),
            baseline=ppo(16, 1_000_000, n_steps=1024, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01),
            wall_ratio=0.8,
        ),
        Task(
            name="tmaze",
            source="examples.envs:t_maze",
            goals=_goals(0.9, ppo=25_000, offpolicy=10_000),
            baseline=recurrent_ppo(
                8, 100_000, learning_rate=1e-3, clip_range=0.2, falling=True, policy=_LSTM, **_CARTPOLE
            ),
            wall_ratio=0.25,
        ),
        Task(
            name="repeat_previous",
            source="examples.envs:repeat_previous",
            # A decision is worth what it gets at once.
            goals={"ppo": Goal(bar=0.9, within=65_000, hyperparameters={"gamma_init": 0.9})},
        ),
        Task(name="catch", source="examples.envs:catch", goals=_goals(0.9, ppo=50_000)),
        Task(name="dials", source="examples.envs:dials", goals=_goals(0.7, ppo=60_000)),
        Task(name="doors", source="examples.envs:doors", goals=_goals(0.95, ppo=12_000)),
        Task(
            name="halfcheetah",
            source="HalfCheetah-v5",
            goals={
                "ppo": Goal(bar=4000, within=1_000_000),
                "offpolicy": Goal(bar=2500, within=33_000, hyperparameters=_OBSERVED),
            },
        ),
        Task(
            name="halfcheetah_100k",
            source="HalfCheetah-v5",
            goals={
                "offpolicy": Goal(bar=2500, within=33_000, max_steps=100_000, hyperparameters=_OBSERVED),
            },
            baseline=sac(100_000, learning_starts=10_000),
        ),
        Task(name="hopper", source="Hopper-v5", goals=_goals(2300, ppo=1_000_000)),
        Task(name="walker2d", source="Walker2d-v5", goals=_goals(2300, ppo=1_000_000)),
    )
}
