"""The folders of a training container, as Amazon SageMaker fills and reads them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentgpt_remote.errors import ConfigError

BASE_VARIABLE = "SAGEMAKER_BASE_DIR"
_MAX_FAILURE = 1024
_MASTER_PORT = 29400


@dataclass(frozen=True)
class Machines:
    """The machines of a job.

    Attributes:
        rank: number of this one, from 0.
        hosts: their names.
    """

    rank: int
    hosts: tuple[str, ...]

    @property
    def master(self) -> tuple[str, int]:
        """Address and port at which all of them meet."""
        return os.environ.get("AGENTGPT_MASTER_ADDR") or self.hosts[0], _MASTER_PORT


class ContainerFolders:
    """``/opt/ml``, or the folder in ``SAGEMAKER_BASE_DIR``.

    Attributes:
        base: the folder itself.
        run_dir: the run's folder: among the checkpoints, which outlive the container, where the job has such.
        model: becomes model.tar.gz.
        data: becomes output.tar.gz.
    """

    def __init__(self, base: str | Path | None = None) -> None:
        self.base = Path(base or os.environ.get(BASE_VARIABLE) or "/opt/ml")
        checkpoints = self.base / "checkpoints"
        self.run_dir = (checkpoints if checkpoints.is_dir() else self.base) / "run"
        self.model, self.data = self.base / "model", self.base / "output" / "data"

    def hyperparameters(self) -> dict[str, str]:
        """Return the job's hyperparameters, all of them texts.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        values = self._read("hyperparameters.json")
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong:
            raise ConfigError(f"hyperparameters.json: {wrong[0]} is not a text, as SageMaker writes them")
        return values

    def machines(self) -> Machines:
        """Return the job's machines; this one alone where nothing is said.

        Raises:
            ConfigError: the file is damaged.
        """
        if not self._config("resourceconfig.json").exists():
            return Machines(0, ("localhost",))
        values = self._read("resourceconfig.json")
        hosts, current = values.get("hosts"), values.get("current_host")
        if not isinstance(hosts, list) or current not in hosts:
            raise ConfigError(f"resourceconfig.json: current_host={current!r} is none of hosts={hosts!r}")
        return Machines(hosts.index(current), tuple(map(str, hosts)))

    def _config(self, name: str) -> Path:
        return self.base / "input" / "config" / name

    def _read(self, name: str) -> dict[str, Any]:
        path = self._config(name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} can't be read ({error}): this command is the entry of a container that SageMaker starts; "
                f"{BASE_VARIABLE} names another folder than /opt/ml"
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds {type(values).__name__}: expected an object")
        return values

    def write_failure(self, text: str) -> None:
        """Write what becomes the job's FailureReason; the first failure stays."""
        path = self.base / "output" / "failure"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode()[:_MAX_FAILURE])
