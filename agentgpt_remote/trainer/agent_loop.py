"""The training loop for environments of many agents: one policy for each behaviour, learned side by side."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import ConfigError, TrainingFailed
from agentgpt_remote.policy.bundle_group import save_bundles
from agentgpt_remote.trainer.agent_collector import AgentCollector
from agentgpt_remote.trainer.agent_hosts import AgentHosts
from agentgpt_remote.trainer.agent_session import BehaviorSession
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.failures import check_losses, failing_update
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.plots import write_learning_curve
from agentgpt_remote.trainer.reporting import Averages, Progress, Reporter
from agentgpt_remote.trainer.results import TrainingResult
from agentgpt_remote.trainer.revision import git_revision
from agentgpt_remote.trainer.run_folder import (
    CONFIG_NAME,
    CONFIG_VERSION,
    RESULT_NAME,
    saved_hyperparameters,
    write_json,
)
from agentgpt_remote.trainer.watching import Spent, host_metrics, time_metrics

logger = logging.getLogger("agentgpt_remote.trainer")
_REPORT_STEPS = 1000
_MAX_SEED = 2**31
BEHAVIORS_KEY = "behaviors"  # of checkpoints of such runs


class AgentRun:
    """One call of :func:`~agentgpt_remote.trainer.loop.train` on environments of many agents.

    Every agent is a stream; those of a behaviour share an actor and a critic. Each behaviour learns as soon as it has
    enough new steps. A resumed run goes on with its weights, optimizers, normalisers and what it has not learned from
    yet; agents begin new episodes.

    Args:
        run_dir: the run's folder.
        hyperparameters: of the run.
        device: torch device in use.
        on_progress: called after every report.
        stop: ends the run.
    """

    def __init__(
        self,
        run_dir: Path,
        hyperparameters: Hyperparameters,
        device: str,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event,
    ) -> None:
        self.run_dir, self.on_progress, self.stop = run_dir, on_progress, stop
        self.bundle = run_dir / "policy"
        reason = "as told"
        if hyperparameters.algorithm == "auto":
            chosen, reason = "ppo", "chosen by auto: many agents"
            if hyperparameters.resume_training and (run_dir / CONFIG_NAME).exists():
                chosen = saved_hyperparameters(run_dir)["algorithm"]
            hyperparameters = Hyperparameters.from_dict({**hyperparameters.to_dict(), "algorithm": chosen})
        self._reason = reason
        self.hp = replace(hyperparameters, device=device)
        self._began = time.perf_counter()
        self._wall_before, self._resumes = 0.0, 0
        self._last_checkpoint, self._best_saved = -1, float("-inf")
        self._reported_steps, self._reported_at, self._learn_s = 0, 0.0, 0.0
        self._learned: dict[str, Averages] = {}

    def prepare(self, hosts: AgentHosts, stack: contextlib.ExitStack, *, replace_run: bool) -> None:
        """Reset the environments, build, restore and save the configuration."""
        self.description = hosts.description
        self._revision = git_revision(Path.cwd())
        self.collector = AgentCollector(hosts.lanes, self.hp, self.stop.is_set)
        stack.callback(self.collector.close)
        folder = self.run_dir / "checkpoints"
        resumes = self.hp.resume_training and folder.exists()
        state = Checkpoints(folder, self.hp.keep_checkpoints).load_last() if resumes else None
        if state is not None:
            self._check_state(state)
            self._resumes = int(state["resumes"]) + 1
        self.collector.reset((self.hp.seed + 1_000_003 * self._resumes) % _MAX_SEED)
        if state is not None:
            self.collector.load_state_dict(state[BEHAVIORS_KEY], int(state["env_steps"]))
            self._wall_before, self._best_saved = float(state["wall_s"]), float(state["best_saved"])
            self._reported_steps = self.collector.env_steps
            logger.info("resumed run=%s env_steps=%d", self.run_dir, self.collector.env_steps)
        # The folder is touched when nothing more can be refused: a wrong call leaves none behind and loses none.
        if replace_run and self.run_dir.exists():
            shutil.rmtree(self.run_dir)
        self.checkpoints = Checkpoints(folder, self.hp.keep_checkpoints)
        self._write_config([lane.name for lane in hosts.lanes])
        resumed_at = self.collector.env_steps if state is not None else None
        self.reporter = Reporter(self.run_dir, self.hp, resumed_at=resumed_at)
        stack.callback(self.reporter.close)
        if self.hp.eval_interval_steps:
            logger.warning("eval_interval_steps has no effect: many agents are not evaluated while training goes on")
        logger.info("training source=%s behaviours=%s", self.description, ",".join(self.collector.sessions))

    def _check_state(self, state: dict[str, Any]) -> None:
        if BEHAVIORS_KEY not in state:
            raise ConfigError(
                f"{self.run_dir} was trained on an environment of one agent, {self.description} has many: "
                "resume it on what it was trained on, or start another run"
            )

    def _write_config(self, lanes: list[str]) -> None:
        sessions = self.collector.sessions
        config = {
            "format_version": CONFIG_VERSION,
            "package_version": __version__,
            "source": self.description,
            "num_agents": sum(session.store.num_streams for session in sessions.values()),
            "lanes": lanes,
            "algorithm": f"{self.hp.algorithm} ({self._reason})",
            "hyperparameters": self.hp.to_dict(),
            # What is open above is resolved for each behaviour.
            "behaviors": {name: session.hp.to_dict() for name, session in sessions.items()},
        }
        write_json(self.run_dir / CONFIG_NAME, config)

    def torch_threads(self) -> int | None:
        """Return how many threads torch is to use."""
        return max((session.hp.torch_threads or 1 for session in self.collector.sessions.values()), default=None)

    def execute(self) -> TrainingResult:
        """Run the loop and end with a checkpoint, a bundle and a picture."""
        saved = self._reported_at = time.perf_counter()
        try:
            self.collector.begin()
            while not self.collector.over and not self.stop.is_set():
                self.collector.collect()
                self._learn()
                if not self._is_due():
                    continue
                self._report()
                if self._last_checkpoint < 0 or time.perf_counter() - saved > self.hp.checkpoint_interval_s:
                    self.save()
                    saved = time.perf_counter()
        except TrainingFailed:
            if any(session.agents.version for session in self.collector.sessions.values()):
                self.save()
                write_learning_curve(self.run_dir, self.description)
            raise
        return self._finish()

    def _learn(self) -> None:
        """Update the behaviours that have enough to learn from; at the end, with what there is."""
        began = time.perf_counter()
        for name, session in self.collector.sessions.items():
            last = self.collector.over and session.agents.version == 0 and session.store.new_tokens() > 0
            if not session.due and not last:
                continue
            with failing_update(self.collector.env_steps, self.checkpoints):
                metrics = session.update()
                check_losses(metrics)
            self._learned.setdefault(name, Averages()).add(metrics)
        self._learn_s += time.perf_counter() - began

    def _is_due(self) -> bool:
        if self.hp.algorithm == "ppo":
            return bool(self._learned)
        return self.collector.env_steps - self._reported_steps >= _REPORT_STEPS

    def _report(self) -> None:
        collector, now = self.collector, time.perf_counter()
        total_s, self._reported_at = now - self._reported_at, now
        steps, self._reported_steps = collector.env_steps - self._reported_steps, collector.env_steps
        learned = {name: averages.take() for name, averages in self._learned.items()}
        self._learned = {}
        hosts = collector.watch.take(total_s)
        remote = host_metrics(hosts)
        times, learn_s, self._learn_s = collector.times, self._learn_s, 0.0
        spent = Spent(wait_s=times["env_s"], act_s=times["act_s"], learn_s=learn_s, total_s=total_s)
        tokens = sum(metrics.get("train/trained_tokens", 0.0) for metrics in learned.values())
        times.update(env_s=0.0, act_s=0.0)
        values: dict[str, float | None] = {
            "rollout/episode_return": self.mean_return(),
            "rollout/episodes": float(sum(one.agents.episodes.count for one in collector.sessions.values())),
            "rollout/agents": float(collector.num_agents),
            "rollout/clipped": float(sum(one.agents.clipped for one in collector.sessions.values())),
            "rollout/evicted": float(sum(one.agents.evicted for one in collector.sessions.values())),
            **time_metrics(spent, env_steps=steps, learned={"train/trained_tokens": tokens}, remote=remote),
            "time/wall_s": self.wall_s(),
            "remote/lanes": float(collector.num_lanes),
            "remote/lanes_away": float(collector.num_away),
            **remote,
        }
        several = len(collector.sessions) > 1
        for name, session in collector.sessions.items():
            own = self._behavior_metrics(session, learned.get(name, {}))
            values |= {f"{metric}/{name}": value for metric, value in own.items()} if several else own
        self.reporter.write(collector.env_steps, values)
        if self.on_progress is not None:
            progress = Progress(
                env_steps=collector.env_steps,
                max_steps=self.hp.max_steps,
                wall_s=self.wall_s(),
                episode_return=self.mean_return(),
                episodes=int(values["rollout/episodes"] or 0),
                metrics=values,
                hosts=hosts,
            )
            self.on_progress(progress)

    def _behavior_metrics(self, session: BehaviorSession, learned: dict[str, float]) -> dict[str, float | None]:
        episodes = session.agents.episodes
        mean = episodes.mean_return()
        values: dict[str, float | None] = {
            "rollout/episode_return": mean,
            "rollout/episode_length": float(np.mean(episodes.lengths)) if episodes.lengths else None,
            "rollout/fresh_return": float(np.mean(episodes.fresh)) if episodes.fresh else None,
            "train/reward_scale": session.rewards.scale(),
            **session.learner.tuner.metrics(),
            **learned,
        }
        episodes.fresh.clear()
        return values

    def mean_return(self) -> float | None:
        """Return the mean over behaviours of their agents' mean return in the last episodes."""
        means = [session.agents.episodes.mean_return() for session in self.collector.sessions.values()]
        known = [mean for mean in means if mean is not None]
        return sum(known) / len(known) if known else None

    def wall_s(self) -> float:
        """Return seconds of training so far."""
        return self._wall_before + time.perf_counter() - self._began

    def save(self) -> None:
        """Write a checkpoint and the bundle."""
        collector, env_steps = self.collector, self.collector.env_steps
        mean = self.mean_return()
        if env_steps != self._last_checkpoint:
            best = mean is not None and mean >= self._best_saved
            self._best_saved = mean if best and mean is not None else self._best_saved
            state = {
                BEHAVIORS_KEY: collector.state_dict(),
                "resumes": self._resumes,
                "wall_s": self.wall_s(),
                "training_return": mean,
                "best_saved": self._best_saved,
            }
            self.checkpoints.save(state, env_steps, best=best)
            self._last_checkpoint = env_steps
        # The latest weights: the return of agents that share a scene depends on all of them, and so says little of one.
        policies = {name: (one.model, self._provenance(name, one)) for name, one in collector.sessions.items()}
        if policies:
            save_bundles(self.bundle, policies)

    def _provenance(self, name: str, session: BehaviorSession) -> dict[str, Any]:
        return {
            "source": self.description,
            "env_id": self.hp.env_id,
            "behavior": name,
            "env_steps": self.collector.env_steps,
            "policy_env_steps": self.collector.env_steps,
            "episode_return": session.agents.episodes.mean_return(),
            "seed": session.hp.seed,
            "package_version": __version__,
            "commit": self._revision,
            "hyperparameters": session.hp.to_dict(),
        }

    def _finish(self) -> TrainingResult:
        self.save()
        result = TrainingResult(
            run_dir=self.run_dir,
            bundle=self.bundle,
            env_steps=self.collector.env_steps,
            wall_s=self.wall_s(),
            episodes=sum(session.agents.episodes.count for session in self.collector.sessions.values()),
            episode_return=self.mean_return(),
            policy_env_steps=self.collector.env_steps,
            stopped=self.stop.is_set(),
        )
        self.reporter.close()
        write_learning_curve(self.run_dir, self.description)
        write_json(self.run_dir / RESULT_NAME, result.to_dict())
        return result
