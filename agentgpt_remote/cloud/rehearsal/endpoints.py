"""Endpoints of a rehearsal: real serving containers, health checks, sticky sessions."""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from agentgpt_remote.cloud.rehearsal.containers import Container
from agentgpt_remote.cloud.rehearsal.surroundings import ACCOUNT, Surroundings
from agentgpt_remote.cloud.storage import split_uri, unpack_archive
from agentgpt_remote.errors import CloudError

SCALE_IN_GRACE_S = 30.0
_PING_TIMEOUT_S = 2.0
_POLL_S = 0.1
logger = logging.getLogger("agentgpt_remote.cloud")


class Instance:
    """A machine of an endpoint.

    Attributes:
        url: where its container answers.
        num_requests: that it was passed.
        container: that runs on it.
    """

    def __init__(self, base: Path, model: Path, environment: Mapping[str, str]) -> None:
        (base / "ml").mkdir(parents=True)
        shutil.copytree(model, base / "ml" / "model")
        port = _free_port()
        own = {"SAGEMAKER_BIND_TO_PORT": str(port), "AGENTGPT_BIND_HOST": "127.0.0.1"}
        self.url, self.num_requests = f"http://127.0.0.1:{port}", 0
        self.container = Container("serve", base, {**environment, **own})

    def is_healthy(self) -> bool:
        """Tell whether it answers a health check within the time that SageMaker gives."""
        try:
            return httpx.get(f"{self.url}/ping", timeout=_PING_TIMEOUT_S).status_code == 200
        except httpx.HTTPError:
            return False


class Endpoint:
    """One endpoint, from its request to its end; a thread of its own watches it.

    Args:
        name: of the endpoint.
        config: of CreateEndpointConfig.
        models: requests of CreateModel by name.
        folder: that it may fill, and empties at its end.
        surroundings: the rest of AWS.
        environment: variables of the stand-ins, for the containers.

    Attributes:
        status: SageMaker's EndpointStatus.
        failure: why it failed.
        instances: its machines.
    """

    def __init__(
        self,
        name: str,
        config: dict[str, Any],
        models: Mapping[str, dict[str, Any]],
        folder: Path,
        surroundings: Surroundings,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.config = name, config
        self.status, self.failure, self.created = "Creating", "", time.time()
        self.instances: list[Instance] = []
        self._variant = config["ProductionVariants"][0]
        self._model = models[self._variant["ModelName"]]["PrimaryContainer"]
        self._folder, self._surroundings, self._environment = folder, surroundings, environment
        self._homes: dict[str, Instance] = {}
        self._closing = threading.Event()
        self._number = 0
        self._thread = threading.Thread(target=self._run, name=f"agentgpt-endpoint-{name}", daemon=True)
        self._thread.start()

    def describe(self) -> dict[str, Any]:
        """Return what DescribeEndpoint answers."""
        count = self._variant.get("InitialInstanceCount", 1)
        told: dict[str, Any] = {
            "EndpointName": self.name,
            "EndpointArn": f"arn:aws:sagemaker:{self._surroundings.region}:{ACCOUNT}:endpoint/{self.name}",
            "EndpointConfigName": self.config["EndpointConfigName"],
            "EndpointStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": time.time(),
            "ProductionVariants": [
                {
                    "VariantName": self._variant["VariantName"],
                    "CurrentInstanceCount": len(self.instances),
                    "DesiredInstanceCount": count,
                }
            ],
        }
        return told | ({"FailureReason": self.failure[:1024]} if self.failure else {})

    def _run(self) -> None:
        try:
            self._deploy()
            while not self._closing.wait(_POLL_S):
                self._replace_the_dead()
        except CloudError as error:
            self.status, self.failure = "Failed", str(error)
        except Exception as error:
            logger.exception("rehearsed endpoint=%s", self.name)
            self.status, self.failure = "Failed", f"InternalServerError: {error}"
        finally:
            for instance in self.instances:
                instance.container.stop()
            for instance in self.instances:
                instance.container.close(SCALE_IN_GRACE_S)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _deploy(self) -> None:
        if not self._surroundings.has_image(self._model["Image"]):
            raise CloudError(f"The image '{self._model['Image']}' does not exist.")
        bucket, key = split_uri(self._model["ModelDataUrl"])
        self._folder.mkdir(parents=True)
        archive = self._folder / "model.tar.gz"
        s3 = self._surroundings.client("s3")
        try:
            s3.download_file(bucket, key, str(archive))
        except s3.exceptions.ClientError as error:
            raise CloudError(f"Could not find model data at {self._model['ModelDataUrl']}.") from error
        unpack_archive(archive, self._folder / "model", self._model["ModelDataUrl"])
        started = [self._start_instance() for _ in range(self._variant.get("InitialInstanceCount", 1))]
        self.instances = started
        limit_s = self._variant.get("ContainerStartupHealthCheckTimeoutInSeconds", 600)
        deadline = time.monotonic() + limit_s
        while not all(instance.is_healthy() for instance in started):
            dead = [instance for instance in started if not instance.container.running]
            if dead or time.monotonic() > deadline:
                raise CloudError(
                    f"The primary container for production variant {self._variant['VariantName']} did not pass the "
                    f"ping health check. Its last words: {(dead or started)[0].container.last_lines(3)}"
                )
            if self._closing.wait(_POLL_S):
                return
        self.status = "InService"

    def _start_instance(self) -> Instance:
        self._number += 1
        environment = {**self._environment, **self._model.get("Environment", {})}
        return Instance(self._folder / f"instance-{self._number}", self._folder / "model", environment)

    def _replace_the_dead(self) -> None:
        for index, instance in enumerate(self.instances):
            if not instance.container.running and not self._closing.is_set():
                logger.info("rehearsed endpoint=%s replaces an instance that has ended", self.name)
                instance.container.close()
                self._homes = {session: home for session, home in self._homes.items() if home is not instance}
                self.instances[index] = self._start_instance()

    def home(self, session: str | None) -> Instance | None:
        """Return the machine of a session, or any for a request without one; None where there is no such."""
        if session is not None:
            return self._homes.get(session)
        running = [instance for instance in self.instances if instance.container.running]
        return secrets.choice(running) if running else None

    def remember(self, session: str, instance: Instance) -> None:
        """Keep a session on a machine."""
        self._homes[session] = instance

    def forget(self, session: str) -> None:
        """End a session."""
        self._homes.pop(session, None)

    def delete(self) -> None:
        """End the endpoint; it is gone when its machines are."""
        self.status = "Deleting"
        self._closing.set()

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        return self._closing.is_set() and not self._thread.is_alive()

    def close(self) -> None:
        """End it and wait for that."""
        self.delete()
        self._thread.join(SCALE_IN_GRACE_S + 15)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
