"""Bundles and exported files opened with the engine that is asked for; torch is needed by those that use it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gymnasium import Space
from gymnasium.error import DependencyNotInstalled

from agentgpt_remote.endpoints import HUB_SCHEME
from agentgpt_remote.errors import BundleError, ConfigError, missing_dependency
from agentgpt_remote.policy.runner import Engine, Runner, check_engine

_logger = logging.getLogger("agentgpt_remote.policy")
ONNX_SUFFIX = ".onnx"


class OpenedPolicy:
    """A policy in this process, with what runs it.

    Args:
        path: a bundle's folder, ``hf://OWNER/NAME[@REVISION]``, or a file that ``agentgpt export`` wrote.
        engine: "eager" or "compile" (torch), "onnx" (ONNX Runtime, without torch), or "auto": what is installed here,
            and of both the one that is faster.
        device: torch device.
        max_agents: most agents that there will be, where that is known.
        behavior: whose policy it is, where the bundle holds several.

    Attributes:
        runner: runs the model.
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        files: the files whose change makes it another policy.

    Raises:
        BundleError: it is missing, damaged or of another version.
        ConfigError: there is no such engine or device, or the engine does not run there.
        DependencyNotInstalled: what the engine needs is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        engine: Engine = "auto",
        device: str = "cpu",
        max_agents: int | None = None,
        behavior: str | None = None,
    ) -> None:
        check_engine(engine)
        if str(path).startswith(HUB_SCHEME):
            from agentgpt_remote.policy.hub import local_bundle

            path = local_bundle(path)
        self.path, self._device = Path(path), device
        self.is_file = self.path.suffix == ONNX_SUFFIX
        if self.is_file and behavior is not None:
            raise ConfigError(f"behavior={behavior!r} for {self.path}: an exported file holds one policy; leave it out")
        if self.is_file:
            if engine not in ("auto", "onnx"):
                raise ConfigError(f"engine={engine!r} for {self.path}: an exported file runs by engine='onnx' only")
            engine = "onnx"
        if engine == "onnx" and device != "cpu":
            raise ConfigError(f"engine='onnx' with device={device!r}: ONNX Runtime is used on the CPU; expected 'cpu'")
        self._engine, self._why = self._resolved(engine)
        if not self.is_file:
            from agentgpt_remote.policy.bundle_files import behavior_folder

            self.path = behavior_folder(self.path, behavior)
        self.runner = self._runner(max_agents)
        self.observation_space: Space[Any] = self.runner.model.observation_space
        self.action_space: Space[Any] = self.runner.model.action_space

    @property
    def files(self) -> tuple[Path, ...]:
        """See above."""
        if self.is_file:
            return (self.path,)
        from agentgpt_remote.policy.bundle_files import CONFIG_FILE, WEIGHTS_FILE

        return self.path / CONFIG_FILE, self.path / WEIGHTS_FILE

    def _resolved(self, engine: Engine) -> tuple[Engine, str]:
        """Return the engine, and why it is the one where that was left open."""
        if engine != "auto":
            return engine, ""
        if self._device != "cpu":
            return "eager", f"the device is {self._device}"
        missing = {name for name in ("torch", "onnxruntime") if not _is_there(name)}
        if len(missing) == 2:
            raise DependencyNotInstalled(
                'neither onnxruntime nor torch is installed: run `pip install "agentgpt-remote[onnx]"` to act, or '
                '`pip install "agentgpt-remote[train]"` to train as well'
            )
        if missing:
            return ("onnx" if "torch" in missing else "eager"), f"{missing.pop()} is not installed"
        return "auto", ""

    def load(self) -> Any:
        """Return the model that the files hold now, for the runner's ``replace``."""
        try:
            return self._load()
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error

    def _load(self) -> Any:
        if self._engine == "onnx":
            return self._onnx_model()
        from agentgpt_remote.policy.bundle import load_bundle

        model = load_bundle(self.path, device=self._device).model
        if self._engine == "auto":
            from agentgpt_remote.policy.auto_runner import TwinModel

            return TwinModel(model, self._onnx_model())
        return model

    def _onnx_model(self) -> Any:
        from agentgpt_remote.policy.onnx_runner import OnnxModel, load_onnx_file

        if self.is_file:
            return load_onnx_file(self.path)
        from agentgpt_remote.policy.bundle_files import CONFIG_FILE, WEIGHTS_FILE, read_bundle

        files = read_bundle(self.path)
        try:
            return OnnxModel.of_weights(files.observation_space, files.action_space, files.config, files.weights())
        except (KeyError, ValueError, IndexError) as error:
            raise BundleError(f"{self.path / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {error}") from error

    def _runner(self, max_agents: int | None) -> Runner:
        model = self.load()
        runner: Runner
        if self._engine == "onnx":
            from agentgpt_remote.policy.onnx_runner import OnnxRunner

            runner = OnnxRunner(model, self._why)
        elif self._engine == "auto":
            from agentgpt_remote.policy.auto_runner import AutoRunner

            runner = AutoRunner(model, max_agents)
        else:
            from agentgpt_remote.policy.torch_runner import TorchRunner

            runner = TorchRunner(model, compiled=self._engine == "compile", why=self._why)
        told = runner.describe()
        _logger.info("engine=%s why=%s", told["engine"], told["why"])
        return runner


def open_policies(
    path: str | Path, *, engine: Engine = "auto", max_agents: int | None = None
) -> dict[str, OpenedPolicy]:
    """Return the policies of a bundle by behaviour; the name is empty where it was trained on single agents.

    Args:
        path: as for :class:`OpenedPolicy`.
        engine: as for :class:`OpenedPolicy`.
        max_agents: most agents of each.
    """
    if str(path).startswith(HUB_SCHEME):
        from agentgpt_remote.policy.hub import local_bundle

        path = local_bundle(path)
    if Path(path).suffix == ONNX_SUFFIX:
        return {"": OpenedPolicy(path, engine=engine, max_agents=max_agents)}
    from agentgpt_remote.policy.bundle_files import behavior_folders

    folders = behavior_folders(path)
    return {name: OpenedPolicy(folder, engine=engine, max_agents=max_agents) for name, folder in folders.items()}


def _is_there(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True
