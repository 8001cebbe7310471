"""The folder of a run: who may use it, its configuration, its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgpt_remote.errors import ConfigError, RunExists
from agentgpt_remote.files import replacing

CONFIG_NAME = "config.json"
RESULT_NAME = "result.json"
ERROR_NAME = "error.json"
CONFIG_VERSION = 1


def prepare_run_folder(run_dir: Path, *, resume: bool = False, force: bool = False) -> None:
    """Check that the folder may be used; training makes it.

    Args:
        run_dir: the run's folder.
        resume: the run is to be continued.
        force: an existing run is to be replaced, once the new one is about to begin.

    Raises:
        RunExists: there is a run, and neither ``resume`` nor ``force`` is set.
        ConfigError: there is none to resume, or the folder holds something else.
    """
    config = run_dir / CONFIG_NAME
    if resume:
        if not config.exists():
            raise ConfigError(f"{run_dir} holds no run to resume: expected {config}; start it without --resume")
        return
    if run_dir.exists() and any(run_dir.iterdir()):
        if not force:
            raise RunExists(
                f"{run_dir} exists: continue it with --resume, replace it with --force, or name another run"
            )
        if not config.exists():
            raise ConfigError(
                f"{run_dir} is not a run's folder (no {CONFIG_NAME}): it is not replaced, name another run"
            )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that is whole or absent, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(values, indent=2, default=str).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a run holds.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}: expected an object")
    return values


def saved_hyperparameters(run_dir: Path) -> dict[str, Any]:
    """Return the hyperparameters of a run that is to be continued.

    Raises:
        ConfigError: there is no run, or its configuration is damaged or of another version.
    """
    path = run_dir / CONFIG_NAME
    if not path.exists():
        raise ConfigError(f"{run_dir} holds no run to resume: expected {path}; start it without --resume")
    config = read_json(path)
    if config.get("format_version") != CONFIG_VERSION or not isinstance(config.get("hyperparameters"), dict):
        raise ConfigError(f"{path} has format {config.get('format_version')!r}: expected {CONFIG_VERSION}")
    return dict(config["hyperparameters"])
