"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from agentgpt_remote.errors import ConfigError, missing_dependency
from agentgpt_remote.files import replacing
from agentgpt_remote.scrubbing import without_secrets

logger = logging.getLogger("agentgpt_remote.trainer")


class Sink(Protocol):
    """Takes the metrics of a run, row after row."""

    def write(self, env_steps: int, values: Mapping[str, float | None]) -> None:
        """Write one row."""

    def close(self) -> None:
        """Flush and close."""


class TensorBoardSink:
    """TensorBoard events.

    Args:
        folder: where they are written.
        resumed_at: environment steps of the checkpoint that the run continues from; later events are hidden.
    """

    def __init__(self, folder: Path, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._events: Any = SummaryWriter(str(folder), purge_step=purge)

    def write(self, env_steps: int, values: Mapping[str, float | None]) -> None:
        """Write one row of scalars."""
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, env_steps)

    def close(self) -> None:
        """Flush and close the file."""
        self._events.close()


def tensorboard_sink(folder: Path, resumed_at: int | None) -> TensorBoardSink | None:
    """Return a sink, or None with a warning where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        logger.warning("tensorboard is not installed: no events are written; pip install tensorboard")
        return None
    return TensorBoardSink(folder, resumed_at)


class WandbSink:
    """Weights & Biases. Source code, command line, console and machine are not uploaded.

    Args:
        project: the project.
        run_dir: the run's folder, after which the run is named; it holds the files that wandb writes.
        config: the resolved hyperparameters; what looks like a secret is left out.

    Raises:
        DependencyNotInstalled: wandb is not installed.
        ConfigError: it refuses, as when nobody is logged in.
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]) -> None:
        wandb = require_wandb()
        settings = wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_stats=True, silent=True
        )
        try:
            self._run: Any = wandb.init(
                project=project,
                name=run_dir.name,
                id=_run_id(run_dir),
                dir=str(run_dir),
                resume="allow",
                config=without_secrets(config),
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"wandb_project={project!r}: Weights & Biases refuses ({error}); run `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error
        # The steps of a resumed run may go back to the checkpoint's, which wandb's own counter never does.
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, env_steps: int, values: Mapping[str, float | None]) -> None:
        """Write one row of scalars."""
        self._run.log({"env_steps": env_steps, **{k: v for k, v in values.items() if v is not None}})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def require_wandb() -> Any:
    """Return the module.

    Raises:
        DependencyNotInstalled: it is not installed; holds the command to type.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error
    return wandb


def _run_id(run_dir: Path) -> str:
    """Return the id under which a run and its continuations are one curve."""
    path = run_dir / "wandb-id"
    if not path.exists():
        with replacing(path) as file:
            file.write(secrets.token_hex(8).encode())
    return path.read_text().strip()
