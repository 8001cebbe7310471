"""A training run in a process of its own: :class:`TrainingRun`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gymnasium.vector import VectorEnv

from agentgpt_remote import errors
from agentgpt_remote.errors import ConfigError, RemoteTimeout, TrainingFailed
from agentgpt_remote.metrics import read_metrics
from agentgpt_remote.policy.gpt_policy import GPTPolicy
from agentgpt_remote.processes import ChildProcess
from agentgpt_remote.serving import resolve_token
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.run_folder import ERROR_NAME, RESULT_NAME, prepare_run_folder, read_json
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

State = Literal["running", "completed", "stopped", "failed"]
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        state: ``running``, ``completed`` (all steps taken), ``stopped`` (earlier, on request) or ``failed``.
        env_steps: environment steps so far.
        max_steps: environment steps of the whole run.
        episode_return: mean return of recent training episodes, or ``None`` before the first has ended.
    """

    state: State
    env_steps: int
    max_steps: int
    episode_return: float | None


class TrainingRun:
    """A run that trains in a child process; it ends with this one, with a checkpoint and a bundle.

    Attributes:
        run_id: name of its folder.
        run_dir: its folder: config.json, metrics.jsonl, checkpoints/, policy/ and more.
        hyperparameters: what it was told.
    """

    def __init__(self, run_dir: Path, hyperparameters: Hyperparameters, process: ChildProcess) -> None:
        self.run_id, self.run_dir, self.hyperparameters = run_dir.name, run_dir, hyperparameters
        self._process = process

    def __repr__(self) -> str:
        return f"TrainingRun({str(self.run_dir)!r}, {self.status().state})"

    def status(self) -> RunStatus:
        """Return where the run stands."""
        last: dict[str, Any] = {}
        for row in read_metrics(self.run_dir / "metrics.jsonl"):
            last |= {name: value for name, value in row.items() if value is not None}
        state = self._state()
        if state in ("completed", "stopped"):
            last["env_steps"] = read_json(self.run_dir / RESULT_NAME)["env_steps"]
        return RunStatus(
            state=state,
            env_steps=int(last.get("env_steps", 0)),
            max_steps=self.hyperparameters.max_steps,
            episode_return=last.get("rollout/episode_return"),
        )

    def _state(self) -> State:
        if self._process.poll() is None:
            return "running"
        result = self.run_dir / RESULT_NAME
        if not result.exists():
            return "failed"
        return "stopped" if read_json(result)["stopped"] else "completed"

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics so far: one dict a line of metrics.jsonl, each with ``env_steps``."""
        return list(read_metrics(self.run_dir / "metrics.jsonl"))

    def wait(self, timeout_s: float | None = None) -> RunStatus:
        """Wait until the run has ended.

        Args:
            timeout_s: seconds; ``None`` waits as long as it takes.

        Raises:
            RemoteTimeout: it still runs; it goes on.
            AgentGPTError: training failed; the error of the trainer, such as HostUnreachable or TrainingFailed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._process.poll() is None:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0:
                raise RemoteTimeout(f"run {self.run_id!r} still trains after {timeout_s} s; wait on, or stop() it")
            try:
                self._process.wait(left)
            except RemoteTimeout:
                continue
        status = self.status()
        if status.state == "failed":
            raise self._failure()
        self._process.close()
        return status

    def _failure(self) -> Exception:
        log, path = self._process.log_tail(), self.run_dir / ERROR_NAME
        self._process.close()
        if not path.exists():
            return TrainingFailed(f"run {self.run_id!r} ended without a result. Last output:\n{log}")
        told = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, told["type"], None)
        if isinstance(kind, type) and issubclass(kind, errors.AgentGPTError) and kind is not errors.RemoteEnvError:
            return kind(told["message"])
        return TrainingFailed(f"run {self.run_id!r}: {told['type']}: {told['message']}\n\n{told['traceback']}")

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> RunStatus:
        """End the run with a checkpoint and a bundle, and wait for it.

        Raises:
            RemoteTimeout: it did not end in time.
        """
        self._process.terminate()
        return self.wait(timeout_s)

    def policy(self, *, deterministic: bool = True, seed: int | None = None, behavior: str | None = None) -> GPTPolicy:
        """Return the policy that the run has trained so far, in this process.

        Args:
            deterministic: take the likeliest action instead of sampling.
            seed: seed of sampling.
            behavior: whose policy, where the run trains several.

        Raises:
            BundleError: the run has written none yet.
            ConfigError: there is no such behaviour, or there are several and none is named.
        """
        return GPTPolicy(self.run_dir / "policy", deterministic=deterministic, seed=seed, behavior=behavior)


def open_policy(source: str | Path, *, deterministic: bool = True, seed: int | None = None) -> GPTPolicy:
    """Return the policy in a folder, or at the URL of a policy server or endpoint; see :class:`GPTPolicy`."""
    return GPTPolicy(source, deterministic=deterministic, seed=seed)


def free_run_dir(runs_dir: str | Path, name: str) -> Path:
    """Return a folder that is not there yet: the name itself, or with the first free number."""
    base = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "run"
    candidate, number = Path(runs_dir) / base, 2
    while candidate.exists():
        candidate, number = Path(runs_dir) / f"{base}-{number}", number + 1
    return candidate


def choose_run_dir(runs_dir: str | Path, run_id: str | None, name: str) -> Path:
    """Return the run's folder: the one asked for, else a new one named after what is trained on.

    Raises:
        ConfigError: the run id is no name of a folder.
    """
    if run_id is None:
        return free_run_dir(runs_dir, name)
    if not run_id or run_id in (".", "..") or "/" in run_id or "\\" in run_id:
        raise ConfigError(f"run_id={run_id!r}: expected a name without slashes; the folder of runs is runs_dir")
    return Path(runs_dir) / run_id


def start_training(
    hyperparameters: Hyperparameters,
    env: Any,
    *,
    run_id: str | None,
    runs_dir: str | Path,
    force: bool,
    token: str | None,
) -> TrainingRun:
    """Start a trainer in a child process; see :meth:`agentgpt_remote.agentgpt.AgentGPT.train_on_local`.

    Raises:
        ConfigError: no environment is named, or what ``env`` holds can't be trained on from another process.
        RunExists: the run id is taken.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise ConfigError(f"hyperparameters is a {type(hyperparameters).__name__}: expected Hyperparameters(...)")
    hosts, tokens = hosts_of(env, resolve_token(token))
    if hosts:
        hyperparameters = replace(hyperparameters, env_id=None, env_hosts=hosts)
    if hyperparameters.env_id is None and not hyperparameters.env_hosts:
        raise ConfigError("no environment is named: set env_id or env_hosts, or pass env=")
    if run_id is None and hyperparameters.resume_training:
        raise ConfigError("resume_training needs run_id=, the name of the run to continue")
    name = hyperparameters.env_id or next(iter(hyperparameters.env_hosts))
    run_dir = choose_run_dir(runs_dir, run_id, name)
    prepare_run_folder(run_dir, resume=hyperparameters.resume_training, force=force)
    payload = {
        "run_dir": str(run_dir),
        "hyperparameters": hyperparameters.to_dict(),
        "token": tokens,
        "replace_run": force,
        "sys_path": [path or os.getcwd() for path in sys.path],  # noqa: PTH109 - entries of sys.path are strings
    }
    # A run of its own, also where this process is one of those that torchrun started.
    alone = {"WORLD_SIZE": "1"}
    process = ChildProcess.start(["-m", "agentgpt_remote.trainer"], json.dumps(payload).encode(), env=alone)
    return TrainingRun(run_dir, hyperparameters, process)


def hosts_of(env: Any, token: str | None) -> tuple[dict[str, EnvHost], dict[str, str]]:
    """Return hosts by name and tokens by URL, for what a user passed as ``env``.

    Args:
        env: a RemoteEnv, a RemoteVectorEnv, a RemoteParallelEnv, the URL of a host, a list of them, or None.
        token: of all hosts that have none of their own; it is under the empty URL.

    Raises:
        ConfigError: what it holds can't be reached from another process, or it is empty.
    """
    if env is None:
        return {}, {} if token is None else {"": token}
    hosts: dict[str, EnvHost] = {}
    tokens = {} if token is None else {"": token}
    for item in env if isinstance(env, Sequence) and not isinstance(env, str) else [env]:
        for name, host, own_token in _lent(item):
            while name in hosts:
                name += "+"
            hosts[name] = host
            if own_token is not None:
                tokens[host.env_endpoint] = own_token
    if not hosts:
        raise ConfigError(f"env={env!r}: expected at least one environment or URL")
    return hosts, tokens


def _lent(item: Any) -> list[tuple[str, EnvHost, str | None]]:
    """Return name, host and token of each host behind an item."""
    if isinstance(item, str):
        return [(item.partition("://")[2].strip("/") or item, EnvHost(env_endpoint=item), None)]
    inner = getattr(item, "unwrapped", item)
    lender = _lender(inner)
    if lender is None:
        kind = "vector environment" if isinstance(inner, VectorEnv) else type(inner).__name__
        raise ConfigError(
            f"env holds a {kind}, which lives in this process: pass RemoteEnv(env), RemoteParallelEnv(env), a "
            "RemoteVectorEnv or a URL, or train in this process with "
            "agentgpt_remote.trainer.loop.train(..., envs=[...])"
        )
    return [
        (
            lender.spec.id if lender.spec is not None else lent.url.partition("://")[2],
            EnvHost(env_endpoint=lent.url, num_agents=lent.num_envs),
            lent.token,
        )
        for lent in lender.lend()
    ]


def _lender(env: Any) -> RemoteEnv | RemoteVectorEnv | RemoteAgents | None:
    """Return the session behind an environment; RemoteParallelEnv's own class needs PettingZoo."""
    if isinstance(env, RemoteEnv | RemoteVectorEnv | RemoteAgents):
        return env
    remote = getattr(env, "__dict__", {}).get("_remote")
    return remote if isinstance(remote, RemoteAgents) else None
