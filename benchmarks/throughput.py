"""Trained tokens per second of PPO's training steps, beside the same forward and backward passes written bare.

Usage, from the repository's root: ``python -m benchmarks.throughput [2L/d64 5L/d256]``. All run on the CPU with one
torch thread, in turns in this process, on the rollout of a real environment. A training step is a minibatch with its
losses, gradients, clipping and optimizer. Bare is ``benchmarks.bare_gpt``: forward, a plain loss, backward, over
minibatches of the same shapes that lie ready. A size is that of both networks, actor and critic. The bar: 0.85 of
bare's tokens per second (median of the turns).

Beside it, without a bar, a whole update: the steps of every epoch, and before and after them chunks, values, targets,
the statistics of observations and the cache that acting goes on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agentgpt_remote.policy.features import ObservationFeatures
from agentgpt_remote.policy.model import SequenceModel
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.ppo import PPO
from agentgpt_remote.trainer.sampler import Window, cut_chunks
from agentgpt_remote.trainer.session import TrainingSession
from benchmarks.bare_gpt import BareModel
from benchmarks.common import parse_overrides, parser, write_report
from benchmarks.contenders import Contender, Row, beside, compare, print_rows

BAR = 0.85
SIZES: dict[str, dict[str, Any]] = {
    "2L/d64": {"num_layers": 2, "critic_num_layers": 2, "d_model": 64, "num_heads": 2},
    "5L/d256": {"num_layers": 5, "critic_num_layers": 5, "d_model": 256, "num_heads": 8},
}


@contextmanager
def session_with_rollout(values: dict[str, Any], env_id: str) -> Iterator[TrainingSession]:
    """Yield a session that has collected a rollout, and trains on each step in every epoch."""
    told = {"device": "cpu", "target_kl": 1e9, "max_steps": 10**9, "algorithm": "ppo", **values}
    with closing(gym.make_vec(env_id, num_envs=Hyperparameters().envs_per_host)) as envs:
        continuous = isinstance(envs.single_action_space, gym.spaces.Box)
        resolved = Hyperparameters(**told).resolve("cpu", continuous=continuous, num_agents=envs.num_envs)
        lane = Lane("envs", envs, ObservationFeatures(envs.single_observation_space), 60.0)
        session = TrainingSession(resolved, [lane], envs.single_observation_space, envs.single_action_space)
        session.start()
        session.collector.collect(session.rollout_tokens(), lambda: False)
        yield session


class OurUpdates:
    """Updates on the same rollout again and again."""

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        self._trained, self._version = session.store.trained.copy(), session.collector.version

    def update(self) -> float:
        """Learn from the rollout once more; return how many tokens were trained on, over all epochs."""
        self._session.store.trained[:] = self._trained
        self._session.collector.version = self._version
        return self._session.update()["train/trained_tokens"]

    def __call__(self, seconds: float) -> float:
        """Run for so many seconds; return trained tokens per second."""
        return _rate(self.update, seconds)


class OurSteps(OurUpdates):
    """The training steps of the same updates."""

    def __init__(self, session: TrainingSession) -> None:
        super().__init__(session)
        self._spent_s = 0.0

    def __call__(self, seconds: float) -> float:
        """Run for so many seconds; return tokens per second of training steps."""
        learner, self._spent_s = self._session.learner, 0.0
        assert isinstance(learner, PPO)
        train_epochs = learner.train_epochs

        def timed(*told: Any) -> dict[str, float]:
            start = time.perf_counter()
            metrics = train_epochs(*told)
            self._spent_s += time.perf_counter() - start
            return metrics

        with mock.patch.object(learner, "train_epochs", timed):
            return _rate(self.update, seconds, lambda: self._spent_s)


class Minibatch(NamedTuple):
    """Inputs that lie ready: numeric (B, T, n), categories (B, T, m), the mask, actions (B, steps, 1 or Fa)."""

    numeric: Tensor
    categories: Tensor
    mask: Tensor
    action: Tensor


class BareUpdates:
    """Forward and backward of actor and critic over the minibatches of the same rollout."""

    def __init__(self, session: TrainingSession) -> None:
        learner = session.learner
        self.models = [bare_twin(learner.actor), bare_twin(learner.critic)]
        self._discrete = bool(learner.actor.actions.category_sizes)
        self._batches = minibatches(session)
        self._steps = self._batches[0].action.shape[1]

    def update(self) -> float:
        """Go over the rollout once; return how many tokens that were."""
        for batch in self._batches:
            actor, critic = (self._outputs(model, batch) for model in self.models)
            loss = self._actor_loss(actor, batch.action) + critic.square().mean()
            for model in self.models:
                model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        return float(sum(batch.action.shape[0] * batch.action.shape[1] for batch in self._batches))

    def __call__(self, seconds: float) -> float:
        """Run for so many seconds; return tokens per second."""
        return _rate(self.update, seconds)

    def _outputs(self, model: BareModel, batch: Minibatch) -> Tensor:
        """Leave out what only a deeper model needs of the context, as our chunks do."""
        skip = batch.mask.shape[1] - -(-self._steps // model.config.max_input_states) - model.config.num_layers
        first = skip * model.config.max_input_states
        outputs: Tensor = model(batch.numeric[:, first:], batch.categories[:, first:], batch.mask[:, skip:])
        return outputs[:, : self._steps]

    def _actor_loss(self, outputs: Tensor, action: Tensor) -> Tensor:
        if self._discrete:
            return F.cross_entropy(outputs.flatten(0, 1), action.flatten().long())
        return (outputs - action).square().mean()


def bare_twin(model: SequenceModel) -> BareModel:
    """Return the model written bare, with the same weights."""
    encoder = model.encoder
    numeric = 0 if encoder.numeric is None else encoder.numeric.in_features
    bare = BareModel(model.config, numeric, encoder.table.shape[0], model.head.out_features)
    wanted = bare.state_dict().keys()
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if name in wanted})
    return bare


def minibatches(session: TrainingSession) -> list[Minibatch]:
    """Return an epoch's minibatches of the rollout that waits in the store, as PPO cuts them."""
    learner, store, hp = session.learner, session.store, session.hp
    window = Window.of(store)
    blocks = max(learner.actor.config.num_layers, learner.critic.config.num_layers)
    chunks = cut_chunks(store, window, int(hp.chunk_steps or 1), learner.actor, blocks, session.device)
    count, steps = chunks.column.shape
    parts = max(1, round(count / max(1, round(int(hp.batch_size or 1) / steps))))
    action = torch.from_numpy(window.gather(store, store.action)[chunks.stream[:, None], chunks.column])
    batches = []
    for part in np.array_split(np.arange(count), parts):
        index = torch.from_numpy(part)
        numeric, categories = chunks.inputs.numeric[index], chunks.inputs.categories[index]
        batches.append(Minibatch(numeric, categories, chunks.mask[index], action[index]))
    return batches


def _rate(update: Callable[[], float], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    tokens, spent_s, start = 0.0, 0.0, clock()
    while spent_s < seconds:
        tokens += update()
        spent_s = clock() - start
    return tokens / spent_s


def measure(size: str, *, seconds: float, repeats: int, env_id: str, overrides: dict[str, Any]) -> list[Row]:
    """Return the rows of one size."""
    with session_with_rollout({**SIZES[size], **overrides}, env_id) as session:
        bare = BareUpdates(session)  # takes its minibatches before an update marks them as trained
        contenders: dict[str, Contender] = {"step": OurSteps(session), "update": OurUpdates(session), "bare": bare}
        rates = compare(contenders, seconds, repeats)
    what = f"{env_id} {size}, tokens/s"
    return [
        beside(what, rates, ours="step", baseline="bare", bar=BAR),
        beside(what, rates, ours="update", baseline="bare"),
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("sizes", nargs="*", metavar="SIZE", help=f"which sizes; all of {', '.join(SIZES)} by default")
    options.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    options.add_argument("--repeats", type=int, default=5, help="turns")
    options.add_argument("--env-id", default="CartPole-v1")
    told = options.parse_args(arguments)
    unknown = [size for size in told.sizes if size not in SIZES]
    if unknown:
        options.error(f"unknown size {unknown[0]!r}: expected some of {', '.join(SIZES)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            row
            for size in told.sizes or SIZES
            for row in measure(
                size,
                seconds=told.seconds,
                repeats=told.repeats,
                env_id=told.env_id,
                overrides=parse_overrides(told.set),
            )
        ]
    finally:
        torch.set_num_threads(threads)
    print_rows(rows)
    report = [{"measure": row.measure, "bare": row.baseline, "ours": row.ours, "ratio": row.ratio} for row in rows]
    write_report(told.json, {"benchmark": "throughput", "bar": BAR, "rows": report})
    return 0 if all(row.reached is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
