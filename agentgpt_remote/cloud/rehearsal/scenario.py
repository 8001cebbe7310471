"""The rehearsal itself: a job trained, stopped and resumed, and an endpoint deployed, invoked, broken and ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.deployment import deploy, endpoint_status, tear_down
from agentgpt_remote.cloud.job import CloudStatus, CloudTrainingRun, submit_training
from agentgpt_remote.cloud.listing import list_running
from agentgpt_remote.cloud.rehearsal.containers import namespaces_allowed
from agentgpt_remote.cloud.rehearsal.stage import Stage
from agentgpt_remote.errors import CloudError, TrainingFailed
from agentgpt_remote.trainer.evaluation import evaluate_source
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.run import open_policy

NUM_INSTANCES, NUM_CALLS, EPISODES = 3, 200, 20
_JOB_TIMEOUT_S, _GONE_TIMEOUT_S = 900.0, 60.0
_STOP_AT = 0.2  # of the steps


@dataclass(frozen=True)
class Step:
    """A step that went well.

    Attributes:
        name: of the step.
        seconds: that it took.
        detail: what was seen.
    """

    name: str
    seconds: float
    detail: str


@dataclass(kw_only=True)
class Report:
    """What a rehearsal has shown.

    Attributes:
        steps: in their order.
        episode_return: mean of greedy episodes of the trained policy.
        isolated: the containers saw an ``/opt/ml`` of their own.
    """

    steps: list[Step] = field(default_factory=list)
    episode_return: float | None = None
    isolated: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(step.seconds for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self) | {"seconds": self.seconds}


class Rehearsal:
    """One rehearsal on a stage.

    Args:
        stage: that stands in for AWS.
        config: the user's, or a made-up one.
        hyperparameters: the user's.
        on_step: called with each step that went well.
    """

    def __init__(
        self,
        stage: Stage,
        config: SageMakerConfig,
        hyperparameters: Hyperparameters,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.report = Report(isolated=namespaces_allowed())
        self._stage, self._hp, self._on_step = stage, hyperparameters, on_step
        self._config = replace(config, job_name=None, checkpoint_path=f"{config.output_path}/rehearsal/checkpoints")
        self._aws = Aws(config.region)
        hosts = list(hyperparameters.env_hosts.values())
        self._source = hosts[0].env_endpoint if hosts else str(hyperparameters.env_id)

    def run(self, folder: Path) -> Report:
        """Play all steps.

        Raises:
            CloudError: something did not go as it must; names the step.
        """
        run = self._step("train and stop", lambda: self._train_and_stop(folder))
        run = self._step("resume", lambda: self._resume(run, folder))
        self._step("evaluate", lambda: self._evaluate(run))
        self._step("fail", lambda: self._fail(folder))
        config = replace(
            self._config, model_data=run.model_data, endpoint_instance_count=NUM_INSTANCES, endpoint_name="rehearsal"
        )
        name = self._step("deploy", lambda: self._deploy(config))
        self._step("invoke", lambda: self._invoke(name, run))
        self._step("expire", lambda: self._expire(name))
        self._step("delete", lambda: self._delete(replace(config, endpoint_instance_count=1)))
        return self.report

    def _step(self, name: str, play: Callable[[], tuple[Any, str]]) -> Any:
        began = time.monotonic()
        try:
            value, detail = play()
        except Exception as error:
            raise CloudError(f"the rehearsal failed at {name!r}: {type(error).__name__}: {error}") from error
        step = Step(name, time.monotonic() - began, detail)
        self.report.steps.append(step)
        if self._on_step is not None:
            self._on_step(step)
        return value

    def _train_and_stop(self, folder: Path) -> tuple[CloudTrainingRun, str]:
        run = submit_training(self._config, self._hp, runs_dir=folder)
        wanted, deadline = self._hp.max_steps * _STOP_AT, time.monotonic() + _JOB_TIMEOUT_S
        while (status := run.status()).env_steps < wanted and status.state == "running":
            _require(time.monotonic() < deadline, f"{run.run_id} took {status.env_steps} steps only")
            time.sleep(0.2)
        _require(status.state == "running", f"{run.run_id} is {status.job_status}: {status.failure}")
        status = run.stop()
        _require(status.job_status == "Stopped", f"stopped, but the job is {status.job_status}")
        with run.policy():
            return run, f"{status.env_steps} env steps, then SIGTERM; a checkpoint and a bundle are there"

    def _resume(self, stopped: CloudTrainingRun, folder: Path) -> tuple[CloudTrainingRun, str]:
        before = stopped.status().env_steps
        run = submit_training(self._config, self._hp, runs_dir=folder)
        status: CloudStatus = run.wait(_JOB_TIMEOUT_S)
        first = min(int(row["env_steps"]) for row in run.metrics())
        _require(status.job_status == "Completed", f"the resumed job is {status.job_status}")
        _require(first >= before, f"the job was stopped at step {before}, and went on at {first}")
        return run, f"went on at {before}, completed at {status.env_steps} env steps"

    def _evaluate(self, run: CloudTrainingRun) -> tuple[None, str]:
        with run.policy() as policy:
            result = evaluate_source(policy, self._source, episodes=EPISODES, seed=1_000_003)
        self.report.episode_return = result.mean
        return None, f"return {result.mean:.1f} ± {result.std:.1f} over {result.episodes} greedy episodes"

    def _fail(self, folder: Path) -> tuple[None, str]:
        broken = Hyperparameters(env_id="NoSuchEnvironment-v0", max_steps=100)
        run = submit_training(replace(self._config, checkpoint_path=None), broken, runs_dir=folder)
        try:
            run.wait(_JOB_TIMEOUT_S)
        except TrainingFailed as error:
            _require("NoSuchEnvironment" in str(error), f"the failure says nothing of its cause: {error}")
            return None, run.status().failure.splitlines()[0][:160]
        raise CloudError("a job whose environment does not exist did not fail")

    def _deploy(self, config: SageMakerConfig) -> tuple[str, str]:
        name = deploy(config)
        running = [entry for entry in list_running(self._aws) if entry.kind == "endpoint"]
        _require([entry.name for entry in running] == [name], f"the list of what runs is {running}")
        return name, f"{running[0].machines} in service, ends {running[0].ends}"

    def _invoke(self, name: str, run: CloudTrainingRun) -> tuple[None, str]:
        endpoint = self._stage.sagemaker.endpoints[name]
        before = list(endpoint.instances)
        with run.policy() as local, open_policy(f"sagemaker://{name}?region={self._aws.region}") as remote:
            wrong = _num_different(local, remote, NUM_CALLS // 2)
            served = [instance.num_requests for instance in endpoint.instances]
            _require(sum(count > 2 for count in served) == 1, f"calls of one session were spread: {served}")
            busiest = served.index(max(served))
            endpoint.instances[busiest].container.kill()
            wrong += _num_different(local, remote, NUM_CALLS - NUM_CALLS // 2)
        _require(wrong == 0, f"{wrong} of {NUM_CALLS} actions differ from those of the bundle")
        deadline = time.monotonic() + _GONE_TIMEOUT_S
        while before[busiest] in endpoint.instances:
            _require(time.monotonic() < deadline, "the machine that was killed was not replaced")
            time.sleep(0.1)
        return None, f"{NUM_CALLS} calls on one of {len(served)} machines, which was killed half-way: same actions"

    def _expire(self, name: str) -> tuple[None, str]:
        hours = self._config.expiry_hours + 0.1
        self._stage.sagemaker.advance(hours)
        deadline = time.monotonic() + _GONE_TIMEOUT_S
        while endpoint_status(self._aws, name) is not None:
            _require(time.monotonic() < deadline, "the endpoint is there after its expiry")
            time.sleep(0.1)
        self._stage.sagemaker.advance(-hours)
        tear_down(self._aws, name)
        return None, f"gone after {self._config.expiry_hours:g} hours of the scheduler's clock"

    def _delete(self, config: SageMakerConfig) -> tuple[None, str]:
        name = deploy(config)
        deleted = tear_down(self._aws, name)
        _require(len(deleted) == 4, f"only {deleted} were deleted")
        _require(list_running(self._aws) == [], "something still runs")
        return None, "endpoint, configuration, model and schedule"


def _num_different(local: Any, remote: Any, calls: int) -> int:
    """Act with both policies on the same observations; return how many actions differ."""
    different = 0
    for _ in range(calls):
        observation = local.observation_space.sample()
        different += not np.array_equal(local(observation), remote(observation))
    return different


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CloudError(otherwise)


def rehearse(
    config: SageMakerConfig,
    hyperparameters: Hyperparameters,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Rehearse a configuration on this machine, without Docker and without AWS.

    Args:
        config: whose requests are sent, to stand-ins.
        hyperparameters: what the job learns.
        on_step: called with each step that went well.

    Raises:
        CloudError: something did not go as it must; names the step.
        ConfigError: a field is missing.
        DependencyNotInstalled: moto is not installed; holds the command to type.
    """
    config.required("output_path", "a rehearsal")
    with TemporaryDirectory(prefix="agentgpt-rehearsed-runs-") as folder, Stage(config) as stage:
        return Rehearsal(stage, stage.config, hyperparameters, on_step).run(Path(folder))
