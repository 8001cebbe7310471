"""The training loop: collect, learn, report, checkpoint."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import ConfigError, ManyAgents, TrainingFailed
from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.registration import NAMESPACE
from agentgpt_remote.trainer.agent_hosts import check_alone, is_of_many_agents, open_agent_hosts
from agentgpt_remote.trainer.agent_loop import BEHAVIORS_KEY, AgentRun
from agentgpt_remote.trainer.algorithm import choose_algorithm
from agentgpt_remote.trainer.checkpoint import Checkpoints
from agentgpt_remote.trainer.compatibility import check_compatible
from agentgpt_remote.trainer.evaluator import Evaluator
from agentgpt_remote.trainer.failures import check_losses, failing_disk, failing_update
from agentgpt_remote.trainer.hosts import OpenedHosts, Tokens, divide_hosts, open_hosts
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.lane_counts import choose_lanes
from agentgpt_remote.trainer.lanes import Lane
from agentgpt_remote.trainer.pace import Pace, Word, first_failure
from agentgpt_remote.trainer.plots import write_learning_curve
from agentgpt_remote.trainer.rank_state import own_part, resumed_state
from agentgpt_remote.trainer.ranks import ALONE, Ranks, join_ranks
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
from agentgpt_remote.trainer.session import TrainingSession
from agentgpt_remote.trainer.signals import stop_on_signals
from agentgpt_remote.trainer.sinks import require_wandb
from agentgpt_remote.trainer.watching import Spent, host_metrics, hosts_of_all_ranks, time_metrics

logger = logging.getLogger("agentgpt_remote.trainer")
_REPORT_STEPS = 1000
Envs = Sequence[VectorEnv[Any, Any, Any] | str]


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

    In processes that torchrun started, all of them learn together; see :mod:`agentgpt_remote.trainer.ranks`. Each
    calls this with the same arguments, but for environments of its own in ``envs``, and each gets the result; the
    first one writes the run's folder.

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
        ConfigError: no environment is named, the hosts serve different ones, or several processes are to learn from
            environments of many agents.
        UnsupportedSpace: a space that can't be learned from.
        HostUnreachable: no host answers.
        DependencyNotInstalled: Weights & Biases is asked for and not installed.
        TrainingFailed: every host was lost, or a number is not finite. A checkpoint and a bundle are written
            as far as there is something to keep.
        RankLost: another of the processes that learn together has ended, or did not answer in time.
    """
    if hyperparameters.wandb_project is not None:
        require_wandb()
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks())
        stop = stop_event or threading.Event()
        stack.enter_context(stop_on_signals(stop))
        hosts = None
        if not is_of_many_agents(hyperparameters, envs):
            # Of other sources only a host can tell how many agents they have.
            with contextlib.suppress(ManyAgents), contextlib.ExitStack() as opening:
                own, mine = divide_hosts(hyperparameters, envs, ranks)
                lanes_per_host = ranks.decided(lambda: choose_lanes(own, mine, token))
                hosts = open_hosts(replace(own, lanes_per_host=lanes_per_host), mine, token, opening, stop.is_set)
                hyperparameters = replace(hyperparameters, lanes_per_host=lanes_per_host)
                stack.enter_context(opening.pop_all())
        if hosts is None:
            check_alone(ranks)
            many = AgentRun(Path(run_dir), hyperparameters, pick_device(hyperparameters.device), on_progress, stop)
            lanes = open_agent_hosts(hyperparameters, envs, token, stack, stop.is_set)
            with failing_disk(many.run_dir):
                many.prepare(lanes, stack, replace_run=replace_run)
                stack.enter_context(_threads(many.torch_threads()))
                return many.execute()
        run = _Run(Path(run_dir), hyperparameters, on_progress, stop, ranks)
        with failing_disk(run.run_dir):
            run.prepare(hosts, replace_run=replace_run)
            stack.enter_context(_threads(run.hp.torch_threads))
            stack.callback(run.session.collector.close)
            if run.reporter is not None:
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


def pick_device(wanted: str, ranks: Ranks = ALONE) -> str:
    """Return the torch device for a hyperparameter's value; each of several ranks of a machine has its own GPU."""
    device = wanted
    if wanted == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{ranks.local_rank}" if ranks.size > 1 and device.startswith("cuda") else device


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(
        self,
        run_dir: Path,
        hyperparameters: Hyperparameters,
        on_progress: Callable[[Progress], None] | None,
        stop: threading.Event,
        ranks: Ranks,
    ) -> None:
        self.run_dir, self.hp, self.on_progress, self.stop = run_dir, hyperparameters, on_progress, stop
        self.ranks = ranks
        self.reporter: Reporter | None = None  # of the first rank
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
        self.description = ", ".join(dict.fromkeys(self.ranks.share(hosts.description)))
        self._env_id = self.hp.env_id or (None if env.spec is None else env.spec.id.removeprefix(NAMESPACE))
        self._revision = git_revision(Path.cwd())
        agents = self.ranks.share(hosts.num_agents)
        actions = ActionFeatures(env.single_action_space)
        continuous = bool(actions.numeric_width) and not (actions.binary_width or actions.category_sizes)
        algorithm, reason = self.ranks.decided(lambda: self._algorithm(hosts.lanes, continuous=continuous))
        device = pick_device(self.hp.device, self.ranks)
        # Sizes that follow from the number of agents are the same for all ranks.
        self.hp = replace(self.hp, algorithm=algorithm).resolve(device, continuous=continuous, num_agents=max(agents))
        check_compatible(self.hp, env.single_observation_space, env.single_action_space, hosts.num_agents)
        self.session = TrainingSession(
            self.hp,
            hosts.lanes,
            env.single_observation_space,
            env.single_action_space,
            absent=hosts.absent,
            ranks=self.ranks,
        )
        # The folder is touched when nothing more can be refused: a wrong call leaves none behind and loses none.
        self._clear(replace_run=replace_run)
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", self.hp.keep_checkpoints, self.ranks)
        self.pace = Pace(self.ranks, self.hp.max_steps)
        state = self.checkpoints.load_last() if self.hp.resume_training else None
        if state is not None and BEHAVIORS_KEY in state:
            raise ConfigError(
                f"{self.run_dir} was trained on many agents, {self.description} has one: resume it on what it was "
                "trained on, or start another run"
            )
        state = resumed_state(state, self.session.state_dict, self.ranks)
        if state is not None:
            self.session.load_state_dict(state)
            total = int(state["env_steps"])
            self.pace.resume(total, int(state.get("base_steps", total)))
            self._wall_before = float(state["wall_s"])
            self._reported_steps = int(state["reported"]["env_steps"])
            self._learned.load_state_dict(state["reported"]["learned"])
            self._best_saved = float(state["best_saved"])
            logger.info("resumed run=%s env_steps=%d", self.run_dir, total)
        resumed_at = self.pace.total if state is not None else None
        self.evaluator = Evaluator(
            self.session.model, hosts.lanes, self.hp, env_steps=resumed_at or 0, should_stop=self.stop.is_set
        )
        own = [lane.name if self.ranks.size == 1 else f"rank-{self.ranks.rank}/{lane.name}" for lane in hosts.lanes]
        lanes = [name for names in self.ranks.share(own) for name in names]
        if self.ranks.leads:
            self._write_config(reason, lanes, num_agents=sum(agents))
            self.reporter = Reporter(self.run_dir, self.hp, resumed_at=resumed_at)
        logger.info(
            "training source=%s agents=%d ranks=%d %s",
            self.description,
            sum(agents),
            self.ranks.size,
            self._resolved_line(),
        )

    def _algorithm(self, lanes: Sequence[Lane], *, continuous: bool) -> tuple[Literal["auto", "ppo", "offpolicy"], str]:
        """Return the rule to learn by, and why; that of a run that is resumed stays."""
        if self.hp.resume_training and (self.run_dir / CONFIG_NAME).exists() and self.hp.algorithm == "auto":
            self.hp = replace(self.hp, algorithm=saved_hyperparameters(self.run_dir)["algorithm"])
        chosen, reason = choose_algorithm(self.hp, lanes, continuous=continuous)
        return chosen.algorithm, reason

    def _clear(self, *, replace_run: bool) -> None:
        """Delete what an earlier run left."""
        if self.ranks.leads and replace_run and self.run_dir.exists():
            shutil.rmtree(self.run_dir)
        self.ranks.share(None)
        if not self.ranks.leads and not self.hp.resume_training:  # its disk may be another than the first one's
            shutil.rmtree(self.run_dir / "checkpoints" / f"rank-{self.ranks.rank}", ignore_errors=True)

    def _write_config(self, reason: str, lanes: list[str], *, num_agents: int) -> None:
        config = {
            "format_version": CONFIG_VERSION,
            "package_version": __version__,
            "source": self.description,
            "num_agents": num_agents,
            "ranks": self.ranks.size,
            "lanes": lanes,
            "algorithm": f"{self.hp.algorithm} ({reason})",
            "hyperparameters": self.hp.to_dict(),
        }
        write_json(self.run_dir / CONFIG_NAME, config)

    def _resolved_line(self) -> str:
        shown = ("algorithm", "device", "torch_threads", "num_layers", "d_model", "max_input_states", "lr_init")
        return " ".join(f"{name}={getattr(self.hp, name)}" for name in shown)

    def execute(self) -> TrainingResult:
        """Run the loop and end with a checkpoint, a bundle and a picture."""
        self.session.start()
        saved = time.perf_counter()
        self._reported_at = saved
        self._agree()
        while not self.pace.ended:
            if not self._collect():
                break
            self.session.collector.env_steps = self.pace.advance()
            collected = time.perf_counter()
            self._learned.add(self._update())
            self._learn_s += time.perf_counter() - collected
            if not self._is_due():
                continue
            self._report(self._learned.take())
            due = self.ranks.share(time.perf_counter() - saved > self.hp.checkpoint_interval_s)[0]
            if self._last_checkpoint < 0 or due:
                self.save()
                saved = time.perf_counter()
        return self._finish()

    def _collect(self) -> bool:
        """Act until there is enough to learn from; return whether all ranks have as much, and are to learn."""
        failure = None
        try:
            self.session.collector.collect(self.session.rollout_tokens(), self._should_stop)
        except TrainingFailed as error:
            failure = error
        words = self._agree(failure)
        told = first_failure(words)
        if told is not None:
            # The environments failed, not the learner: what was learned is worth keeping.
            if self.session.collector.version:
                self.save()
                if self.ranks.leads:
                    write_learning_curve(self.run_dir, self.description)
            raise failure or TrainingFailed(told)
        return not (any(word.stop for word in words) and any(word.short for word in words))

    def _agree(self, failure: TrainingFailed | None = None) -> list[Word]:
        """Tell the other ranks where this one stands, and return what all tell; one that is to stop stops all."""
        collector = self.session.collector
        word = Word(
            steps=collector.env_steps - self.pace.base,
            agents=collector.num_agents,
            stop=self.stop.is_set(),
            short=self.session.store.new_tokens() < self.session.rollout_tokens(),
            failure=None if failure is None else str(failure),
        )
        words = self.pace.exchange(word)
        if any(word.stop for word in words):
            self.stop.set()
        return words

    def _update(self) -> dict[str, float]:
        with failing_update(self.session.collector.env_steps, self.checkpoints):
            metrics = self.session.update()
            check_losses(metrics)
        return metrics

    def _should_stop(self) -> bool:
        collector = self.session.collector
        return self.stop.is_set() or self.pace.enough(collector.env_steps, collector.num_agents)

    def _is_due(self) -> bool:
        """Return whether enough has happened to be reported: an update of ppo, or many small ones of offpolicy."""
        if self.hp.algorithm == "ppo":
            return True
        return self.session.collector.env_steps - self._reported_steps >= _REPORT_STEPS

    def _report(self, metrics: dict[str, float]) -> None:
        collector, now = self.session.collector, time.perf_counter()
        total_s, self._reported_at = now - self._reported_at, now
        learn_s, self._learn_s = self._learn_s, 0.0
        episodes, times = collector.episodes.of_all_ranks(self.ranks), collector.times
        mean_return = episodes.mean_return()
        steps = collector.env_steps - self._reported_steps
        self._reported_steps = collector.env_steps
        hosts = hosts_of_all_ranks(collector.watch.take(total_s), self.ranks)
        counts = zip(*self.ranks.share([collector.num_lanes, collector.num_away, collector.clipped]), strict=True)
        lanes, away, clipped = (float(sum(count)) for count in counts)
        remote = host_metrics(hosts)
        spent = Spent(wait_s=times["env_s"], act_s=times["act_s"], learn_s=learn_s, total_s=total_s)
        if not self.ranks.leads:
            times.update(env_s=0.0, act_s=0.0)
            collector.episodes.fresh.clear()
            return
        values: dict[str, float | None] = {
            "rollout/episode_return": mean_return,
            "rollout/episode_length": float(np.mean(episodes.lengths)) if episodes.lengths else None,
            "rollout/episodes": float(episodes.count),
            "rollout/fresh_return": float(np.mean(episodes.fresh)) if episodes.fresh else None,
            **self.evaluator.metrics(collector.env_steps, collector.lost),
            **self.session.learner.tuner.metrics(),
            "train/reward_scale": self.session.rewards.scale(),
            **metrics,
            **time_metrics(spent, env_steps=steps, learned=metrics, remote=remote),
            "time/wall_s": self.wall_s(),
            "remote/lanes": lanes,
            "remote/lanes_away": away,
            "rollout/clipped": clipped,
            **remote,
        }
        times.update(env_s=0.0, act_s=0.0)
        collector.episodes.fresh.clear()
        if mean_return is not None and len(episodes.returns) == episodes.returns.maxlen:
            self.session.best.offer(mean_return, collector.env_steps, self.session.model)
        if self.reporter is not None:
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
        session, env_steps = self.session, self.pace.total
        episodes = session.collector.episodes.of_all_ranks(self.ranks)
        training_return = episodes.mean_return()
        if env_steps != self._last_checkpoint:
            best = training_return is not None and training_return >= self._best_saved
            best_saved = training_return if best and training_return is not None else self._best_saved
            reported = {"env_steps": self._reported_steps, "learned": self._learned.state_dict()}
            told = {
                "wall_s": self.wall_s(),
                "training_return": training_return,
                "best_saved": best_saved,
                "reported": reported,
                "base_steps": self.pace.base,
            }
            state = {**session.state_dict(), **told}
            self.checkpoints.save(state if self.ranks.leads else own_part(state), env_steps, best=best)
            self._best_saved, self._last_checkpoint = best_saved, env_steps
        if not self.ranks.leads:
            return env_steps
        model = session.best.preferred(session.model, list(episodes.returns))
        policy_steps = env_steps if model is session.model else session.best.env_steps
        provenance = {
            "source": self.description,
            "env_id": self._env_id,
            "env_steps": env_steps,
            "policy_env_steps": policy_steps,
            "episode_return": training_return,
            "seed": self.hp.seed,
            "package_version": __version__,
            "commit": self._revision,
            "hyperparameters": self.hp.to_dict(),
        }
        save_bundle(self.bundle, model, provenance=provenance)
        return policy_steps

    def _finish(self) -> TrainingResult:
        policy_steps = self.save()
        episodes = self.session.collector.episodes.of_all_ranks(self.ranks)
        result = TrainingResult(
            run_dir=self.run_dir,
            bundle=self.bundle,
            env_steps=self.pace.total,
            wall_s=self.wall_s(),
            episodes=episodes.count,
            episode_return=episodes.mean_return(),
            policy_env_steps=policy_steps,
            stopped=self.stop.is_set(),
        )
        if self.reporter is not None:
            self.reporter.close()
            write_learning_curve(self.run_dir, self.description)
            write_json(self.run_dir / RESULT_NAME, result.to_dict())
        return result
