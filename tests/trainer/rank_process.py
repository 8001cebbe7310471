"""One of several processes that learn together; started by test_ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.policy.distributions import JointDistribution
from agentgpt_remote.policy.encoder import TokenInputs
from agentgpt_remote.policy.model import PolicyModel, ValueModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.loop import train
from agentgpt_remote.trainer.offpolicy import OffPolicy, make_critic
from agentgpt_remote.trainer.ppo import PPO
from agentgpt_remote.trainer.ranks import ALONE, Ranks, join_ranks
from agentgpt_remote.trainer.replay import Replay, draw
from agentgpt_remote.trainer.streams import StreamStore
from tests.trainer.test_sampler import fill
from tests.trainer.tiny_envs import Echo
from tests.trainer.train_process import SMALL

UPDATES, STREAMS, STEPS = 4, 4, 24
SEEDS = (0, 1)
BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = {"discrete": spaces.Discrete(3), "continuous": spaces.Box(-1, 1, (1,), np.float32)}
RULES = [("ppo", "discrete"), ("ppo", "continuous"), ("offpolicy", "discrete"), ("offpolicy", "continuous")]
_ARRAYS = ("obs", "action", "is_first", "log_prob", "reward", "terminated", "truncated", "valid", "position", "opened")
Learner = PPO | OffPolicy


def make_learner(rule: str, kind: str, ranks: Ranks, seed: int, scale: int = 1, *, tuned: bool = False) -> Learner:
    """Return a learner with the same first weights whatever the seed; ``scale`` enlarges the batch."""
    torch.manual_seed(0)
    hp = Hyperparameters(
        **{"algorithm": rule, "num_layers": 1, "d_model": 32, "num_heads": 2, "max_input_states": 5},  # type: ignore[arg-type]
        chunk_steps=8,
        batch_size=32 * scale,
        replay_ratio=3.0 if rule == "ppo" else 0.7,
        learning_starts=0,
        target_kl=10.0,
        lr_warmup_updates=0,
        learn_gamma=tuned,
        learn_lambda=tuned,
    ).resolve("cpu", continuous=kind == "continuous")
    actor = PolicyModel(BOX, ACTIONS[kind], hp.model_config())
    if rule == "ppo":
        return PPO(actor, ValueModel(BOX, ACTIONS[kind], hp.critic_config()), hp, seed, ranks)
    return OffPolicy(actor, make_critic(BOX, ACTIONS[kind], hp), hp, seed, ranks)


def make_store(actor: PolicyModel, seed: int) -> StreamStore:
    """Return what two ranks have collected; one of them has decided less often."""
    store = StreamStore(2 * STREAMS, 128, 3, 1)
    with torch.no_grad():
        fill(store, actor, [STEPS] * (2 * STREAMS), seed)
    store.valid[:STREAMS, 5:15] = False
    store.reward[STREAMS:] += 2.0
    return store


def half(store: StreamStore, rank: int) -> StreamStore:
    """Return one rank's streams."""
    own = StreamStore(STREAMS, store.capacity, 3, 1)
    for name in _ARRAYS:
        getattr(own, name)[:] = getattr(store, name)[rank * STREAMS : (rank + 1) * STREAMS]
    return own


def learn(learner: Learner, store: StreamStore, update: int) -> dict[str, float]:
    return learner.update(store, reward_scale=0.5, reward_clip=10.0, version=1, progress=update / UPDATES)


def weights(learner: Learner) -> dict[str, Tensor]:
    models = {"actor": learner.actor, "critic": learner.critic}
    named = {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
    return named | {"log_alpha": learner.log_alpha.detach() if isinstance(learner, OffPolicy) else torch.zeros(())}


def acting_without_noise() -> None:
    """Have a policy's samples be its mode: the ranks' noise could not be that of one process."""

    def sample_numeric(self: JointDistribution, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mode = self.mode() * 0.99
        return mode, self.log_prob(mode)

    JointDistribution.sample_numeric = sample_numeric  # type: ignore[method-assign]


class BothOrders:
    """Orders minibatches so that each holds what the ranks' minibatches of that number hold."""

    def __init__(self, parts: int) -> None:
        self._rngs = [np.random.default_rng(ALONE.seed(seed)) for seed in SEEDS]
        self._parts = parts

    def permutation(self, count: int) -> np.ndarray[Any, Any]:
        orders = [rng.permutation(count // 2) + index * (count // 2) for index, rng in enumerate(self._rngs)]
        split = [np.array_split(order, self._parts) for order in orders]
        return np.concatenate([part for pair in zip(*split, strict=True) for part in pair])


def draw_both(learner: OffPolicy, store: StreamStore, rngs: list[np.random.Generator]) -> Replay:
    """Return the sequences that the two ranks draw."""
    both = [
        draw(
            half(store, rank),
            rng,
            sequences=4,
            steps=8,
            model=learner.actor,
            context_blocks=1,
            recent_fraction=learner.hp.recent_fraction or 0.0,
            version=1,
            device=learner.device,
        )
        for rank, rng in enumerate(rngs)
    ]
    joined = {
        name: torch.cat([getattr(each, name) for each in both])
        for name in ("mask", "action", "log_prob", "reward", "terminated", "cut", "weight")
    }
    inputs = TokenInputs(*(torch.cat([each.inputs[i] for each in both]) for i in range(2)))  # type: ignore[misc]
    return both[0]._replace(**joined, inputs=inputs, total_weight=joined["weight"].sum())


def train_learner(rule: str, kind: str, ranks: Ranks) -> dict[str, Tensor]:
    """Return the weights after some updates, by one rank of two or by one process with both batches."""
    alone = ranks.size == 1
    learner = make_learner(rule, kind, ranks, SEEDS[ranks.rank], scale=2 if alone else 1)
    behaviour = make_learner(rule, kind, ALONE, 0).actor
    if alone and isinstance(learner, PPO):
        learner.rng = BothOrders(parts=3)  # type: ignore[assignment]
    rngs = [np.random.default_rng(seed) for seed in SEEDS]
    for update in range(UPDATES):
        store = make_store(behaviour, update)
        if alone and isinstance(learner, OffPolicy):
            learner.draw = lambda given, _: draw_both(learner, given, rngs)  # type: ignore[method-assign]
        metrics = learn(learner, store if alone else half(store, ranks.rank), update)
        assert metrics
    return weights(learner)


def tune(rule: str, ranks: Ranks) -> dict[str, Tensor]:
    """Return gamma and lambda after some updates on a store of each rank's own."""
    learner = make_learner(rule, "discrete", ranks, SEEDS[ranks.rank], tuned=True)
    for update in range(UPDATES):
        store = half(make_store(learner.actor, update), ranks.rank)
        if ranks.rank and rule == "ppo" and update == UPDATES - 1:
            # One chunk cannot be divided: this rank has no meta-gradient.
            store.trained[:] = store.position
            store.trained[0] -= 4
        learn(learner, store, update)
    return {name: torch.tensor(getattr(learner.tuner, name)) for name in ("gamma", "lambda_")}


def learners(out: str) -> None:
    torch.set_num_threads(1)
    acting_without_noise()
    with join_ranks() as ranks:
        results = {f"{rule}.{kind}": train_learner(rule, kind, ranks) for rule, kind in RULES}
        results |= {f"tuned.{rule}": tune(rule, ranks) for rule in ("ppo", "offpolicy")}
        torch.save(results, Path(out) / f"rank-{ranks.rank}.pt")


def run(run_dir: str, *changes: str) -> None:
    """Train on Echo, or on CartPole-v1 ``cartpole=N`` times.

    On rank 1 ``bad_step=N`` makes Echo fail after N steps, and ``unopened=1`` names a host that is not there.
    """
    values = {name: float(value) for name, _, value in (change.partition("=") for change in changes)}
    whole: dict[str, Any] = {name: int(value) if value.is_integer() else value for name, value in values.items()}
    count = whole.pop("cartpole", 0)
    whole |= {"algorithm": "offpolicy", "rollout_steps": None} if whole.pop("offpolicy", 0) else {}
    bad_step, unopened = whole.pop("bad_step", None), whole.pop("unopened", 0)
    if os.environ["RANK"] != "1":
        bad_step = unopened = None
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * count if count else [lambda: Echo(bad_step)] * 4)
    given: list[Any] = ["ws://127.0.0.1:9", "ws://127.0.0.1:9"] if unopened else [envs]
    told = {"torch_threads": 1, "use_tensorboard": False} if count else SMALL
    result = train(Hyperparameters(**{**told, **whole, "resume_training": True}), run_dir=run_dir, envs=given)
    sys.stdout.write(f"{result.env_steps} {result.episode_return}\n")


def main() -> int:
    what, *arguments = sys.argv[1:]
    try:
        {"learners": learners, "run": run}[what](*arguments)
    except AgentGPTError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
