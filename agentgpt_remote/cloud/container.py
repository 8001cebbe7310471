"""The training container: ``docker run IMAGE train``, as Amazon SageMaker starts it.

It is the trainer of every other run, told by the files in ``/opt/ml``. The run's folder lies among the checkpoints, so
that a job that was stopped, or whose machine was taken away, goes on where the last one ended. SIGTERM ends it with a
checkpoint, a bundle in ``/opt/ml/model`` and exit code 0, well within the 120 seconds that SageMaker leaves. A failure
is told in ``/opt/ml/output/failure``. Of several machines or GPUs all learn together, under torchrun.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from agentgpt_remote.cloud.container_folders import ContainerFolders, Machines
from agentgpt_remote.cloud.container_storage import fetch_tokens, upload_run
from agentgpt_remote.cloud.encoding import from_strings
from agentgpt_remote.cloud.metric_lines import DEFINED, metric_line
from agentgpt_remote.cloud.requests import SECRETS_NAME
from agentgpt_remote.errors import AgentGPTError, ConfigError, TrainingFailed
from agentgpt_remote.trainer.devices import num_gpus
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.reporting import Progress
from agentgpt_remote.trainer.run_folder import CONFIG_NAME, RESULT_NAME

GRACE_VARIABLE = "AGENTGPT_STOP_GRACE_S"
_GRACE_S = 100.0  # of the 120 s that SageMaker leaves
_SHUTDOWN_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_LINE_INTERVAL_S = 2.0
_KEPT_DATA = (CONFIG_NAME, RESULT_NAME, "metrics.jsonl", "learning_curve.png")
logger = logging.getLogger("agentgpt_remote.cloud")


def train_in_container(base: str | Path | None = None) -> int:
    """Train as the container's files say, and return the exit code.

    Args:
        base: folder instead of ``/opt/ml``; ``SAGEMAKER_BASE_DIR`` by default.
    """
    folders, stop = ContainerFolders(base), threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    # From the first moment: what is stopped while it starts ends as cleanly as what is stopped later.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    try:
        return _train(folders, stop)
    except Exception as error:
        own = isinstance(error, AgentGPTError)
        logger.log(logging.ERROR, "%s: %s", type(error).__name__, error, exc_info=None if own else error)
        where = "" if own else f"\n{traceback.format_exc()[-600:]}"
        folders.write_failure(f"{type(error).__name__}: {error}{where}")
        return 1


def _train(folders: ContainerFolders, stop: threading.Event) -> int:
    values = from_strings(folders.hyperparameters())
    secrets = values.pop(SECRETS_NAME, {})
    if not isinstance(secrets, dict):
        raise ConfigError(f"hyperparameter {SECRETS_NAME}: expected ARNs by URL")
    hyperparameters = Hyperparameters.from_dict(values)
    if "RANK" not in os.environ:
        machines, gpus = folders.machines(), num_gpus()
        if len(machines.hosts) > 1 or gpus > 1:
            return _train_together(folders, machines, max(1, gpus), stop)
    if (folders.run_dir / CONFIG_NAME).exists():
        hyperparameters = replace(hyperparameters, resume_training=True)
        _say(f"going on with the run in {folders.run_dir}")
    leads = os.environ.get("RANK", "0") == "0"
    watchdog = _LastResort(folders, stop, leads=leads)
    tokens = fetch_tokens(secrets)

    from agentgpt_remote.trainer.loop import train

    result = train(
        hyperparameters,
        run_dir=folders.run_dir,
        token=tokens,
        on_progress=_metric_printer(),
        stop_event=stop,
    )
    watchdog.close()
    if leads:
        _hand_over(folders)
    upload_run(folders)
    last = {"env_steps": float(result.env_steps), "rollout/episode_return": result.episode_return}
    _say(metric_line(last | {"rollout/episodes": float(result.episodes), "time/wall_s": result.wall_s}))
    how = "stopped" if result.stopped else "completed"
    _say(f"{how} after {result.env_steps} env steps; the policy is in {folders.model}")
    return 0


def _train_together(folders: ContainerFolders, machines: Machines, num_ranks: int, stop: threading.Event) -> int:
    """Have torchrun start this command once per GPU, or once, on each machine."""
    address, port = machines.master
    words = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(len(machines.hosts)), "--node-rank", str(machines.rank)),
        *("--nproc-per-node", str(num_ranks), "--master-addr", address, "--master-port", str(port)),
        *("-m", "agentgpt_remote", "container", "train"),
    ]
    _say(f"machine {machines.rank + 1} of {len(machines.hosts)}, {num_ranks} ranks on each")
    environment = {**os.environ, _SHUTDOWN_VARIABLE: str(int(_grace_s())), "SAGEMAKER_BASE_DIR": str(folders.base)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with subprocess.Popen(words, env=environment) as process:
        told = False
        while process.poll() is None:
            if stop.wait(0.2) and not told:
                process.terminate()
                told = True
            time.sleep(0.05)
    if process.returncode and not stop.is_set():
        raise TrainingFailed(
            f"the ranks of machine {machines.rank + 1} ended with exit code {process.returncode}; the log has the "
            "first error"
        )
    return 0


def _grace_s() -> float:
    """Return the seconds that training has to end after SIGTERM.

    Raises:
        ConfigError: the variable holds no number of seconds.
    """
    text = os.environ.get(GRACE_VARIABLE, "")
    try:
        seconds = float(text or _GRACE_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{GRACE_VARIABLE}={text!r}: expected seconds, more than 0")
    return seconds


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _metric_printer() -> Callable[[Progress], None]:
    """Return a callback that prints metrics as lines that SageMaker reads, at most one every few seconds."""
    last = -_LINE_INTERVAL_S

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_INTERVAL_S or progress.env_steps >= progress.max_steps:
            last = now
            steps = {"env_steps": float(progress.env_steps), "max_steps": float(progress.max_steps)}
            known = {name: progress.metrics.get(name) for name in DEFINED if name in progress.metrics}
            _say(metric_line(steps | known))

    return show


def _hand_over(folders: ContainerFolders) -> None:
    """Put the bundle and the run's records where SageMaker takes them from."""
    bundle = folders.run_dir / "policy"
    if bundle.is_dir():
        shutil.copytree(bundle, folders.model, dirs_exist_ok=True)
    folders.data.mkdir(parents=True, exist_ok=True)
    for name in _KEPT_DATA:
        if (folders.run_dir / name).exists():
            shutil.copy2(folders.run_dir / name, folders.data / name)


class _LastResort:
    """Ends the process before SageMaker kills it where training does not end in time after SIGTERM.

    What the last checkpoint holds is handed over; that it took so long is told in the log.
    """

    def __init__(self, folders: ContainerFolders, stop: threading.Event, *, leads: bool) -> None:
        self._folders, self._stop, self._leads = folders, stop, leads
        self._closed, self._grace_s = threading.Event(), _grace_s()
        threading.Thread(target=self._watch, name="agentgpt-last-resort", daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            if self._closed.is_set():
                return
        if self._closed.wait(self._grace_s):
            return
        _say(f"training did not end within {self._grace_s:g} s of SIGTERM: keeping the last checkpoint")
        if self._leads:
            _hand_over(self._folders)
        upload_run(self._folders)
        sys.stdout.flush()
        os._exit(0)

    def close(self) -> None:
        """Stand down."""
        self._closed.set()
