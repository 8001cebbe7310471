"""The training loop: collect, learn, report, checkpoint."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.trainer.algorithm import choose_algorithm
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.compatibility import check_compatible
from agentgpt_remote.trainer.evaluator import Evaluator
from agentgpt_remote.trainer.failures import check_losses, failing_disk, failing_update
from agentgpt_remote.trainer.hosts import OpenedHosts, Tokens, open_hosts
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.plots import write_learning_curve
from agentgpt_remote.trainer.reporting import Averages, Progress, Reporter
from agentgpt_remote.trainer.run_folder import (
    CONFIG_NAME,
    CONFIG_VERSION,
    RESULT_NAME,
    saved_hyperparameters,
    write_json,
)
from agentgpt_remote.trainer.session import TrainingSession
from agentgpt_remote.trainer.signals import stop_on_signals
from agentgpt_remote.trainer.sinks import require_wandb
from agentgpt_remote.trainer.watching import Spent, host_metrics, time_metrics

logger = logging.getLogger("agentgpt_remote.trainer")
_REPORT_STEPS = 1000
Envs = Sequence[VectorEnv[Any, Any, Any] | str]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        run_dir: the run's folder.
        bundle: folder of the trained policy.
        env_steps: environment steps of the run, those before a resume included.
        wall_s: seconds of training, those before a resume included.
        episodes: finished episodes.
        episode_return: mean return of the last 20 training episodes (sampled actions); None before the first.
        policy_env_steps: environment steps after which the bundle's weights were taken.
        stopped: ended before ``max_steps``, by a signal or the stop event.
    """

    run_dir: Path
    bundle: Path
    env_steps: int
    wall_s: float
    episodes: int
    episode_return: float | None
    policy_env_steps: int
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"run_dir": str(self.run_dir), "bundle": str(self.bundle)}


def train(
    hyperparameters: Hyperparameters,
    *,
    run_dir: str | Path,
    envs: Envs | None = None,
    token: Tokens = None,
    replace_run: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    stop_event: threading.Event | None = None,
) -> TrainingResult:
    """Train a policy until ``max_steps``, a signal or the stop event.

    Args:
        hyperparameters: what to learn on, and how; with ``resume_training`` the run continues from the last
            checkpoint in ``run_dir``, or begins where there is none yet.
        run_dir: the run's folder, made if it is missing. The caller checks that it may be used; see
            :func:`~agentgpt_remote.trainer.run_folder.prepare_run_folder`.
        envs: environments instead of ``env_id`` and ``env_hosts``: vector environments under NEXT_STEP
            autoreset (they stay the caller's to close) or URLs of hosts.
        token: of the hosts: one for all, or one per URL, where the empty URL stands for all others.
        replace_run: delete what ``run_dir`` holds, once nothing more can be refused.
        on_progress: called after every update.
        stop_event: ends the run with a checkpoint and a bundle when it is set. SIGINT and SIGTERM do the
            same when this runs in the main thread.

    Raises:
        ConfigError: no environment is named, or the hosts serve different ones.
        UnsupportedSpace: a space that can't be learned from.
        HostUnreachable: no host answers.
        DependencyNotInstalled: Weights & Biases is asked for and not installed.
        TrainingFailed: every host was lost, or a number is not finite. A checkpoint and a bundle are written
            as far as there is something to keep.
    """
    if hyperparameters.wandb_project is not None:
        require_wandb()
    run = _Run(Path(run_dir), hyperparameters, on_progress, stop_event or threading.Event())
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_on_signals(run.stop))
        hosts = open_hosts(hyperparameters, envs, token, stack, run.stop.is_set)
        with failing_disk(run.run_dir):
            run.prepare(hosts, replace_run=replace_run)
            stack.enter_context(_threads(run.hp.torch_threads))
            stack.callback(run.session.collector.close)
            stack.callback(run.reporter.close)
            return run.execute()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(wanted: str) -> str:
    """Return the torch device for a hyperparameter's value."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(
        self,
        run_dir: Path,
        hyperparameters: Hyperparameters,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event,
    ) -> None:
        self.run_dir, self.hp, self.on_progress, self.stop = run_dir, hyperparameters, on_progress, stop
        self.bundle = run_dir / "policy"
        self._began = time.perf_counter()
        self._wall_before = 0.0
        self._last_checkpoint = -1
        self._best_saved = float("-inf")
        self._reported_steps = 0
        self._reported_at = self._learn_s = 0.0
        self._learned = Averages()

    def prepare(self, hosts: OpenedHosts, *, replace_run: bool) -> None:
        """Resolve, build, restore and save the configuration."""
        env = hosts.lanes[0].envs
        self.description = hosts.description
        actions = ActionFeatures(env.single_action_space)
        continuous = bool(actions.numeric_width) and not (actions.binary_width or actions.category_sizes)
        if self.hp.resume_training and (self.run_dir / CONFIG_NAME).exists() and self.hp.algorithm == "auto":
            self.hp = replace(self.hp, algorithm=saved_hyperparameters(self.run_dir)["algorithm"])
        self.hp, reason = choose_algorithm(self.hp, hosts.lanes, continuous=continuous)
        self.hp = self.hp.resolve(pick_device(self.hp.device), continuous=continuous, num_agents=hosts.num_agents)
        check_compatible(self.hp, env.single_observation_space, env.single_action_space, hosts.num_agents)
        self.session = TrainingSession(
            self.hp, hosts.lanes, env.single_observation_space, env.single_action_space, absent=hosts.absent
        )
        # The folder is touched when nothing more can be refused: a wrong call leaves none behind and loses none.
        if replace_run and self.run_dir.exists():
            shutil.rmtree(self.run_dir)
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", self.hp.keep_checkpoints)
        state = self.checkpoints.load_last() if self.hp.resume_training else None
        if state is not None:
            self.session.load_state_dict(state)
            self._wall_before = float(state["wall_s"])
            self._reported_steps = int(state["reported"]["env_steps"])
            self._learned.load_state_dict(state["reported"]["learned"])
            self._best_saved = float(state["best_saved"])
            logger.info("resumed run=%s env_steps=%d", self.run_dir, self.session.collector.env_steps)
        config = {
            "format_version": CONFIG_VERSION,
            "package_version": __version__,
            "source": hosts.description,
            "num_agents": hosts.num_agents,
            "lanes": [lane.name for lane in hosts.lanes],
            "algorithm": f"{self.hp.algorithm} ({reason})",
            "hyperparameters": self.hp.to_dict(),
        }
        write_json(self.run_dir / CONFIG_NAME, config)
        resumed_at = self.session.collector.env_steps if state is not None else None
        self.reporter = Reporter(self.run_dir, self.hp, resumed_at=resumed_at)
        self.evaluator = Evaluator(
            self.session.model, hosts.lanes, self.hp, env_steps=resumed_at or 0, should_stop=self.stop.is_set
        )
        logger.info("training source=%s agents=%d %s", hosts.description, hosts.num_agents, self._resolved_line())

    def _resolved_line(self) -> str:
        shown = ("algorithm", "device", "torch_threads", "num_layers", "d_model", "max_input_states", "lr_init")
        return " ".join(f"{name}={getattr(self.hp, name)}" for name in shown)

    def execute(self) -> TrainingResult:
        """Run the loop and end with a checkpoint, a bundle and a picture."""
        self.session.start()
        saved = time.perf_counter()
        self._reported_at = saved
        while not self._should_stop():
            self._collect()
            if self._too_little():
                break
            collected = time.perf_counter()
            self._learned.add(self._update())
            self._learn_s += time.perf_counter() - collected
            if not self._is_due():
                continue
            self._report(self._learned.take())
            if self._last_checkpoint < 0 or time.perf_counter() - saved > self.hp.checkpoint_interval_s:
                self.save()
                saved = time.perf_counter()
        return self._finish()

    def _collect(self) -> None:
        try:
            self.session.collector.collect(self.session.rollout_tokens(), self._should_stop)
        except TrainingFailed:
            # The environments failed, not the learner: what was learned is worth keeping.
            if self.session.collector.version:
                self.save()
                write_learning_curve(self.run_dir, self.description)
            raise

    def _update(self) -> dict[str, float]:
        with failing_update(self.session.collector.env_steps, self.checkpoints):
            metrics = self.session.update()
            check_losses(metrics)
        return metrics

    def _should_stop(self) -> bool:
        # Every agent may take one more step before this is asked again: do not overshoot.
        slack = min(self.session.collector.num_agents, self.hp.max_steps) - 1
        return self.stop.is_set() or self.session.collector.env_steps + slack >= self.hp.max_steps

    def _too_little(self) -> bool:
        """Return whether too little was collected to learn from, as when the run is being stopped."""
        return self.stop.is_set() and self.session.store.new_tokens() < self.session.rollout_tokens()

    def _is_due(self) -> bool:
        """Return whether enough has happened to be reported: an update of ppo, or many small ones of offpolicy."""
        if self.hp.algorithm == "ppo":
            return True
        return self.session.collector.env_steps - self._reported_steps >= _REPORT_STEPS

    def _report(self, metrics: dict[str, float]) -> None:
        collector, now = self.session.collector, time.perf_counter()
        total_s, self._reported_at = now - self._reported_at, now
        learn_s, self._learn_s = self._learn_s, 0.0
        episodes, times = collector.episodes, collector.times
        fresh = episodes.fresh
        mean_return = episodes.mean_return()
        steps = collector.env_steps - self._reported_steps
        self._reported_steps = collector.env_steps
        hosts = collector.watch.take(total_s)
        remote = host_metrics(hosts)
        spent = Spent(wait_s=times["env_s"], act_s=times["act_s"], learn_s=learn_s, total_s=total_s)
        values: dict[str, float | None] = {
            "rollout/episode_return": mean_return,
            "rollout/episode_length": float(np.mean(episodes.lengths)) if episodes.lengths else None,
            "rollout/episodes": float(episodes.count),
            "rollout/fresh_return": float(np.mean(fresh)) if fresh else None,
            **self.evaluator.metrics(collector.env_steps, collector.lost),
            **self.session.learner.tuner.metrics(),
            "train/reward_scale": self.session.rewards.scale(),
            **metrics,
            **time_metrics(spent, env_steps=steps, learned=metrics, remote=remote),
            "time/wall_s": self.wall_s(),
            "remote/lanes": float(collector.num_lanes),
            "remote/lanes_away": float(collector.num_away),
            "rollout/clipped": float(collector.clipped),
            **remote,
        }
        times.update(env_s=0.0, act_s=0.0)
        fresh.clear()
        if mean_return is not None and len(episodes.returns) == episodes.returns.maxlen:
            self.session.best.offer(mean_return, collector.env_steps, self.session.model)
        self.reporter.write(collector.env_steps, values)
        if self.on_progress is not None:
            progress = Progress(
                env_steps=collector.env_steps,
                max_steps=self.hp.max_steps,
                wall_s=self.wall_s(),
                episode_return=mean_return,
                episodes=episodes.count,
                metrics=values,
                hosts=hosts,
            )
            self.on_progress(progress)

    def wall_s(self) -> float:
        """Return seconds of training so far."""
        return self._wall_before + time.perf_counter() - self._began

    def save(self) -> int:
        """Write a checkpoint and the bundle; return the steps after which the bundle's weights were taken."""
        session, env_steps = self.session, self.session.collector.env_steps
        training_return = session.collector.episodes.mean_return()
        if env_steps != self._last_checkpoint:
            best = training_return is not None and training_return >= self._best_saved
            best_saved = training_return if best and training_return is not None else self._best_saved
            reported = {"env_steps": self._reported_steps, "learned": self._learned.state_dict()}
            told = {
                "wall_s": self.wall_s(),
                "training_return": training_return,
                "best_saved": best_saved,
                "reported": reported,
            }
            self.checkpoints.save({**session.state_dict(), **told}, env_steps, best=best)
            self._best_saved, self._last_checkpoint = best_saved, env_steps
        model = session.best.preferred(session.model, list(session.collector.episodes.returns))
        policy_steps = env_steps if model is session.model else session.best.env_steps
        provenance = {
            "source": self.description,
            "env_steps": env_steps,
            "policy_env_steps": policy_steps,
            "episode_return": training_return,
            "seed": self.hp.seed,
            "package_version": __version__,
            "hyperparameters": self.hp.to_dict(),
        }
        save_bundle(self.bundle, model, provenance=provenance)
        return policy_steps

    def _finish(self) -> TrainingResult:
        collector = self.session.collector
        policy_steps = self.save()
        self.reporter.close()
        result = TrainingResult(
            run_dir=self.run_dir,
            bundle=self.bundle,
            env_steps=collector.env_steps,
            wall_s=self.wall_s(),
            episodes=collector.episodes.count,
            episode_return=collector.episodes.mean_return(),
            policy_env_steps=policy_steps,
            stopped=self.stop.is_set(),
        )
        write_learning_curve(self.run_dir, self.description)
        write_json(self.run_dir / RESULT_NAME, result.to_dict())
        return result
