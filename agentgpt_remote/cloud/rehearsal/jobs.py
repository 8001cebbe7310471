"""Training jobs of a rehearsal: real containers, with SageMaker's folders, copies and endings."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.rehearsal.containers import Container
from agentgpt_remote.cloud.rehearsal.surroundings import ACCOUNT, LOG_GROUP, Surroundings
from agentgpt_remote.cloud.storage import download_folder, pack_archive, split_uri, upload_files

STOP_GRACE_S = 120.0
_SYNC_INTERVAL_S = 1.0
_POLL_S = 0.05
_LOG_BATCH_S = 0.3
logger = logging.getLogger("agentgpt_remote.cloud")


class JobLog:
    """What a machine prints, in CloudWatch Logs."""

    def __init__(self, surroundings: Surroundings, stream: str) -> None:
        self._client = surroundings.client("logs")
        self._stream = stream
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        try:
            self._client.create_log_group(logGroupName=LOG_GROUP)
        except self._client.exceptions.ResourceAlreadyExistsException:
            logger.debug("log group is there")
        self._client.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)

    def add(self, line: str) -> None:
        """Take in a line."""
        with self._lock:
            self._waiting.append({"timestamp": int(time.time() * 1000), "message": line or " "})

    def flush(self) -> None:
        """Send what was taken in."""
        with self._lock:
            events, self._waiting = self._waiting, []
        if events:
            self._client.put_log_events(logGroupName=LOG_GROUP, logStreamName=self._stream, logEvents=events)


class TrainingJob:
    """One job, from its request to its end; it runs in a thread of its own.

    Args:
        request: of CreateTrainingJob.
        folder: that it may fill, and empties at its end.
        surroundings: the rest of AWS.
        environment: variables of the stand-ins, for the containers.

    Attributes:
        request: as above.
        status: SageMaker's TrainingJobStatus.
        secondary: SageMaker's SecondaryStatus.
        failure: why it failed.
        containers: those that run.
    """

    def __init__(
        self, request: dict[str, Any], folder: Path, surroundings: Surroundings, environment: Mapping[str, str]
    ) -> None:
        self.request, self.name = request, str(request["TrainingJobName"])
        self.status, self.secondary, self.failure = "InProgress", "Starting", ""
        self.created, self.started, self.ended = time.time(), 0.0, 0.0
        self.transitions: list[dict[str, Any]] = []
        self.metrics: dict[str, tuple[float, float]] = {}
        self.containers: list[Container] = []
        self._folder, self._surroundings, self._environment = folder, surroundings, environment
        self._s3 = surroundings.client("s3")
        self._stop, self._interrupt = threading.Event(), threading.Event()
        self._copied: dict[Path, float] = {}
        self._patterns = [
            (item["Name"], re.compile(item["Regex"]))
            for item in request["AlgorithmSpecification"].get("MetricDefinitions", ())
        ]
        self._thread = threading.Thread(target=self._run, name=f"agentgpt-job-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it as StopTrainingJob does."""
        if self.status == "InProgress":
            self.status, self.secondary = "Stopping", "Stopping"
            self._stop.set()

    def interrupt(self) -> None:
        """Take its machines away, as happens to spot jobs; it goes on from its checkpoints."""
        self._interrupt.set()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end."""
        self._thread.join(timeout_s)

    def close(self) -> None:
        """End it at once."""
        self._stop.set()
        for container in self.containers:
            container.kill()
        self._thread.join(30)

    def describe(self) -> dict[str, Any]:
        """Return what DescribeTrainingJob answers."""
        kept = {key: value for key, value in self.request.items() if key != "Tags"}
        output = self.request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        now = time.time()
        told: dict[str, Any] = kept | {
            "TrainingJobArn": f"arn:aws:sagemaker:{self._surroundings.region}:{ACCOUNT}:training-job/{self.name}",
            "ModelArtifacts": {"S3ModelArtifacts": f"{output}/{self.name}/output/model.tar.gz"},
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            "CreationTime": self.created,
            "LastModifiedTime": now,
            "SecondaryStatusTransitions": list(self.transitions),
            "FinalMetricDataList": [
                {"MetricName": name, "Value": value, "Timestamp": at} for name, (value, at) in self.metrics.items()
            ],
        }
        if self.started:
            told["TrainingStartTime"] = self.started
            seconds = max(1, int((self.ended or now) - self.started))
            told |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}
        if self.ended:
            told["TrainingEndTime"] = self.ended
        if self.failure:
            told["FailureReason"] = self.failure[:1024]
        return told

    def _enter(self, secondary: str) -> None:
        now = time.time()
        if self.transitions:
            self.transitions[-1]["EndTime"] = now
        self.secondary = secondary
        self.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": secondary})

    def _run(self) -> None:
        try:
            self._train()
        except Exception as error:
            logger.exception("rehearsed job=%s", self.name)
            self._finish("Failed", f"InternalServerError: {error}")
        finally:
            for container in self.containers:
                container.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _train(self) -> None:
        image = self.request["AlgorithmSpecification"]["TrainingImage"]
        self._enter("Starting")
        if not self._surroundings.has_image(image):
            self._finish("Failed", f"ClientError: Cannot pull the image {image}: it does not exist in the repository.")
            return
        deadline = time.monotonic() + self.request["StoppingCondition"].get("MaxRuntimeInSeconds", 86400)
        while True:
            codes = self._run_containers(deadline)
            if not self._interrupt.is_set() or self._stop.is_set():
                break
            self._interrupt.clear()
            self._enter("Restarting")
        self._end(codes, late=time.monotonic() >= deadline)

    def _run_containers(self, deadline: float) -> list[int | None]:
        """Start a container on each machine, and return their exit codes once all have ended."""
        count = self.request["ResourceConfig"]["InstanceCount"]
        names = [f"algo-{index + 1}" for index in range(count)]
        self._enter("Downloading")
        shutil.rmtree(self._folder, ignore_errors=True)
        bases = [self._make_base(names, name) for name in names]
        logs = [JobLog(self._surroundings, f"{self.name}/{name}-{int(time.time() * 1000)}") for name in names]
        self._enter("Training")
        self.started = self.started or time.time()
        environment = {**self._environment, **self.request.get("Environment", {})}
        environment |= {"TRAINING_JOB_NAME": self.name}
        self.containers = [
            Container("train", base, environment, self._listener(log)) for base, log in zip(bases, logs, strict=True)
        ]
        self._watch(deadline, logs)
        codes = [container.wait(0.0) for container in self.containers]
        for container in self.containers:
            container.close()
        for log in logs:
            log.flush()
        for base in bases:
            self._copy_checkpoints(base)
        return codes

    def _make_base(self, names: list[str], name: str) -> Path:
        base = self._folder / name
        for part in ("input/config", "model", "output/data"):
            (base / "ml" / part).mkdir(parents=True)
        config = base / "ml" / "input" / "config"
        (config / "hyperparameters.json").write_text(json.dumps(self.request.get("HyperParameters", {})))
        resources = {
            "current_host": name,
            "current_instance_type": self.request["ResourceConfig"]["InstanceType"],
            "current_group_name": "homogeneousCluster",
            "hosts": names,
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": self.request["ResourceConfig"]["InstanceType"],
                    "hosts": names,
                }
            ],
            "network_interface_name": "eth0",
        }
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        (config / "inputdataconfig.json").write_text("{}")
        (base / "hosts").write_text("127.0.0.1 localhost " + " ".join(names) + "\n")
        if "CheckpointConfig" in self.request:
            checkpoints = base / "ml" / "checkpoints"
            checkpoints.mkdir()
            download_folder(self._s3, self.request["CheckpointConfig"]["S3Uri"], checkpoints)
        return base

    def _listener(self, log: JobLog) -> Any:
        def listen(line: str) -> None:
            log.add(line)
            for name, pattern in self._patterns:
                found = pattern.search(line)
                if found is not None:
                    self.metrics[name] = (float(found[1]), time.time())

        return listen

    def _watch(self, deadline: float, logs: list[JobLog]) -> None:
        """Wait for the containers' end, which a stop, the last second or a loss of machines asks for."""
        told, kill_at = False, float("inf")
        synced = flushed = time.monotonic()
        while any(container.running for container in self.containers):
            now = time.monotonic()
            if not told and (self._stop.is_set() or self._interrupt.is_set() or now >= deadline):
                told, kill_at = True, now + STOP_GRACE_S
                if self._interrupt.is_set() and not self._stop.is_set():
                    self._enter("Interrupted")
                for container in self.containers:
                    container.stop()
            if now >= kill_at:
                for container in self.containers:
                    container.kill()
            if now - synced > _SYNC_INTERVAL_S:
                synced = now
                for container in self.containers:
                    self._copy_checkpoints(container.base)
            if now - flushed > _LOG_BATCH_S:
                flushed = now
                for log in logs:
                    log.flush()
            time.sleep(_POLL_S)

    def _copy_checkpoints(self, base: Path) -> None:
        """Upload what has changed among the checkpoints, as SageMaker does all the time."""
        if "CheckpointConfig" not in self.request:
            return
        folder, changed = base / "ml" / "checkpoints", []
        for path in folder.rglob("*"):
            try:
                stamp = path.stat().st_mtime if path.is_file() else None
            except FileNotFoundError:  # replaced in this moment
                continue
            if stamp is not None and self._copied.get(path) != stamp:
                self._copied[path] = stamp
                changed.append(path)
        for path in changed:
            try:
                upload_files(self._s3, folder, self.request["CheckpointConfig"]["S3Uri"], [path])
            except FileNotFoundError:
                self._copied.pop(path, None)

    def _end(self, codes: list[int | None], *, late: bool) -> None:
        bases = [container.base for container in self.containers]
        self._enter("Uploading")
        bucket, prefix = split_uri(self.request["OutputDataConfig"]["S3OutputPath"])
        for name, folder in (("model", bases[0] / "ml" / "model"), ("output", bases[0] / "ml" / "output" / "data")):
            if any(folder.iterdir()):
                archive = self._folder / f"{name}.tar.gz"
                pack_archive(folder, archive)
                key = "/".join(part for part in (prefix, self.name, "output", archive.name) if part)
                self._s3.upload_file(str(archive), bucket, key)
        failed = [index for index, code in enumerate(codes) if code != 0]
        if self._stop.is_set():
            self._finish("Stopped")
        elif late:
            self._finish("Stopped", secondary="MaxRuntimeExceeded")
        elif failed:
            told = bases[failed[0]] / "ml" / "output" / "failure"
            reason = (
                told.read_text(errors="replace") if told.exists() else self.containers[failed[0]].last_lines(3)[-600:]
            )
            self._finish("Failed", f"AlgorithmError: {reason}, exit code: {codes[failed[0]]}")
        else:
            self._finish("Completed")

    def _finish(self, status: str, failure: str = "", secondary: str | None = None) -> None:
        self._enter(secondary or status)
        self.ended, self.failure, self.status = time.time(), failure, status
