"""A training job in the cloud: :class:`CloudTrainingRun`."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.cloud.checks import check_training, require
from agentgpt_remote.cloud.config import SageMakerConfig, check_config
from agentgpt_remote.cloud.encoding import from_strings
from agentgpt_remote.cloud.hosts import check_reachable, with_hosts
from agentgpt_remote.cloud.logs import JobLogs
from agentgpt_remote.cloud.metric_lines import read_metric_lines
from agentgpt_remote.cloud.requests import CHECKPOINT_VARIABLE, SECRETS_NAME, job_name, training_job_request
from agentgpt_remote.cloud.storage import download_folder, fetch_archive, list_keys, split_uri
from agentgpt_remote.errors import (
    AgentGPTError,
    AuthError,
    BundleError,
    RemoteTimeout,
    TrainingFailed,
    missing_dependency,
)
from agentgpt_remote.serving import resolve_token
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.run import RunStatus, State, TrainingRun

if TYPE_CHECKING:
    from agentgpt_remote.policy.gpt_policy import GPTPolicy

_STATES: Mapping[str, State] = {"Completed": "completed", "Stopped": "stopped", "Failed": "failed"}
_POLL_S, _REHEARSED_POLL_S = 10.0, 0.3
_STOP_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class CloudStatus(RunStatus):
    """Where a job stands.

    Attributes:
        job_status: SageMaker's TrainingJobStatus, such as ``"InProgress"``.
        secondary_status: SageMaker's SecondaryStatus, such as ``"Downloading"`` or ``"MaxRuntimeExceeded"``.
        billable_s: seconds that are paid for so far.
        failure: why it failed, or an empty text.
    """

    job_status: str
    secondary_status: str
    billable_s: int
    failure: str


@dataclass(frozen=True)
class LatestTrainingJob:
    """The job behind a run.

    Attributes:
        name: of the job, in SageMaker.
    """

    name: str


class CloudTrainingRun(TrainingRun):
    """A run that trains in SageMaker; it goes on when this process ends.

    Attributes:
        run_id: name of the job.
        run_dir: folder that its policy and records are downloaded to.
        hyperparameters: what it was told.
        latest_training_job: with the job's ``name``.
        model_data: ``s3://`` address that the job writes its model.tar.gz to.
    """

    def __init__(self, aws: Aws, name: str, *, runs_dir: str | Path = "runs") -> None:
        self._aws, self._logs, self._told = aws, JobLogs(aws, name), 0
        told = self._describe(name)
        self.latest_training_job = LatestTrainingJob(name)
        self.run_id, self.run_dir = name, Path(runs_dir) / name
        texts = {key: text for key, text in told.get("HyperParameters", {}).items() if key != SECRETS_NAME}
        self.hyperparameters = Hyperparameters.from_dict(from_strings(texts))
        output = told["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        self.model_data: str = told.get("ModelArtifacts", {}).get("S3ModelArtifacts") or (
            f"{output}/{name}/output/model.tar.gz"
        )
        self._checkpoints: str | None = told.get("Environment", {}).get(CHECKPOINT_VARIABLE)
        self._poll_s = _REHEARSED_POLL_S if aws.is_rehearsal() else _POLL_S

    def __repr__(self) -> str:
        return f"CloudTrainingRun({self.run_id!r})"

    def _describe(self, name: str | None = None) -> dict[str, Any]:
        name = name or self.run_id
        client = self._aws.client("sagemaker")
        with explained(f"look up the training job {name}"):
            return dict(client.describe_training_job(TrainingJobName=name))

    def status(self) -> CloudStatus:
        """Return where the job stands."""
        told = self._describe()
        final = {entry["MetricName"]: entry["Value"] for entry in told.get("FinalMetricDataList", ())}
        try:
            rows = self.metrics()
        except AuthError:  # SageMaker has the last values, too
            rows = []
        last = final | {name: value for row in rows for name, value in row.items()}
        return CloudStatus(
            state=_STATES.get(told["TrainingJobStatus"], "running"),
            env_steps=int(last.get("env_steps", 0)),
            max_steps=self.hyperparameters.max_steps,
            episode_return=last.get("rollout/episode_return"),
            job_status=told["TrainingJobStatus"],
            secondary_status=told["SecondaryStatus"],
            billable_s=int(told.get("BillableTimeInSeconds", told.get("TrainingTimeInSeconds", 0))),
            failure=told.get("FailureReason", ""),
        )

    def logs(self, tail: int | None = None) -> list[str]:
        """Return the lines that the job's machines have printed, or the last ``tail`` of them."""
        lines = self._logs.lines()
        self._told = len(lines)
        return lines if tail is None else lines[-tail:]

    def new_logs(self) -> list[str]:
        """Return the lines that have come since :meth:`logs` or this was last called."""
        lines = self._logs.lines()
        fresh, self._told = lines[self._told :], len(lines)
        return fresh

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics so far: one dict a report, each with ``env_steps``."""
        return read_metric_lines(self._logs.lines())

    def wait(
        self, timeout_s: float | None = None, *, on_status: Callable[[CloudStatus], None] | None = None
    ) -> CloudStatus:
        """Wait until the job has ended.

        Args:
            timeout_s: seconds; ``None`` waits as long as it takes.
            on_status: called with the status each time it was looked up.

        Raises:
            RemoteTimeout: it still runs; it goes on.
            TrainingFailed: the job failed; holds SageMaker's reason and how to read the log.
            KeyboardInterrupt: with a text that says that the job goes on, and how to stop it.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                status = self.status()
                if on_status is not None:
                    on_status(status)
                if status.state != "running":
                    break
                left = self._poll_s if deadline is None else min(self._poll_s, deadline - time.monotonic())
                if left <= 0:
                    raise RemoteTimeout(f"{self._still_runs()} after {timeout_s} s; wait on, or stop() it")
                time.sleep(left)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self._still_runs()}, and is paid for: {self._how_to_stop()}") from None
        if status.state == "failed":
            raise TrainingFailed(
                f"job {self.run_id} failed: {status.failure or 'SageMaker gives no reason'}. `agentgpt cloud logs "
                f"{self.run_id}` shows what it printed"
            )
        return status

    def _still_runs(self) -> str:
        return f"job {self.run_id} keeps running"

    def _how_to_stop(self) -> str:
        return f"`agentgpt cloud stop {self.run_id}` ends it with a checkpoint, `... logs {self.run_id}` reads it"

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> CloudStatus:
        """End the job with a checkpoint and a bundle, and wait for it.

        Raises:
            RemoteTimeout: it did not end in time.
        """
        if self.status().state == "running":
            with explained(f"stop the training job {self.run_id}"):
                self._aws.client("sagemaker").stop_training_job(TrainingJobName=self.run_id)
        return self.wait(timeout_s)

    def policy(self, *, deterministic: bool = True, seed: int | None = None, behavior: str | None = None) -> GPTPolicy:
        """Download the policy that the job has trained so far, and return it in this process.

        Args:
            deterministic: take the likeliest action instead of sampling.
            seed: seed of sampling.
            behavior: whose policy, where the job trains several.

        Raises:
            BundleError: the job has written none yet.
        """
        folder = self.run_dir / "policy"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        if self._exists(self.model_data):
            fetch_archive(self._aws, self.model_data, folder)
        elif not self._fetch_bundle(folder):
            raise BundleError(f"job {self.run_id} has written no policy yet; wait for its first checkpoint")
        return super().policy(deterministic=deterministic, seed=seed, behavior=behavior)

    def _exists(self, uri: str) -> bool:
        client = self._aws.client("s3")
        bucket, key = split_uri(uri)
        with explained(f"look for {uri}"):
            found = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        return any(entry["Key"] == key for entry in found.get("Contents", ()))

    def _fetch_bundle(self, folder: Path) -> bool:
        if self._checkpoints is None:
            return False
        client, uri = self._aws.client("s3"), f"{self._checkpoints}/run/policy"
        with explained(f"download {uri}"):
            return any(list_keys(client, uri)) and download_folder(client, uri, folder) > 0

    def sdk(self) -> Any:
        """Return the job as SageMaker's own SDK has it, a ``TrainingJob``.

        Raises:
            DependencyNotInstalled: the SDK is not installed; holds the command to type.
        """
        try:
            from sagemaker.core.resources import TrainingJob
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        return TrainingJob.get(training_job_name=self.run_id, region=self._aws.region)


def find_job(aws: Aws, name: str) -> CloudTrainingRun | None:
    """Return a training job, or None where there is none of that name."""
    from botocore.exceptions import ClientError

    try:
        return CloudTrainingRun(aws, name)
    except AgentGPTError as error:
        if isinstance(error.__cause__, ClientError) and "not found" in str(error.__cause__):
            return None
        raise


def submit_training(
    config: SageMakerConfig,
    hyperparameters: Hyperparameters,
    env: Any = None,
    *,
    token: str | None = None,
    runs_dir: str | Path = "runs",
) -> CloudTrainingRun:
    """Start a training job; see :meth:`agentgpt_remote.agentgpt.AgentGPT.train_on_cloud`."""
    check_config(config)
    hyperparameters = with_hosts(hyperparameters, env, resolve_token(token), config)
    name = job_name(config, hyperparameters)
    request = training_job_request(config, hyperparameters, name)
    aws = Aws(config.region)
    if not aws.is_rehearsal():  # there the containers run on this machine, and reach what it reaches
        check_reachable(hyperparameters, config)
    require(check_training(aws, config))
    try:
        aws.send(request, f"start the training job {name}")
        return CloudTrainingRun(aws, name, runs_dir=runs_dir)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"job {name} may have been started: `agentgpt cloud stop {name}` ends it") from None
