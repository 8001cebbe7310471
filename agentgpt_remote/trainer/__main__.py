"""Entry of a trainer in a process of its own: ``python -m agentgpt_remote.trainer``.

The parent sends the run as JSON through standard input (see :mod:`agentgpt_remote.processes`):
``run_dir``, ``hyperparameters``, and optionally ``urls`` and ``token``. The run's folder then holds
``result.json``, or ``error.json`` with the type and the text of the error. Exit codes: 0 done, 1 failed.

Under torchrun (``torchrun --nproc-per-node 2 -m agentgpt_remote.trainer``) the first rank reads standard input, for
all of them, and writes the folder.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.processes import read_payload, report_ready, watch_parent
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.ranks import Ranks, join_ranks
from agentgpt_remote.trainer.run_folder import ERROR_NAME, RESULT_NAME, write_json

logger = logging.getLogger("agentgpt_remote.trainer")


def main() -> int:
    """Train as the payload says; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with join_ranks() as ranks:
        return _train(ranks)


def _train(ranks: Ranks) -> int:
    payload = ranks.decided(lambda: json.loads(read_payload()))
    sys.path[:0] = [path for path in payload.get("sys_path", []) if path not in sys.path]
    run_dir = Path(payload["run_dir"])
    hyperparameters = Hyperparameters.from_dict(payload["hyperparameters"])
    stop = threading.Event()
    # A terminal's Ctrl-C reaches the whole group; the parent decides and sends SIGTERM.
    if payload.get("ignore_interrupt"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if ranks.leads:
        for name in (RESULT_NAME, ERROR_NAME):
            (run_dir / name).unlink(missing_ok=True)
        watch_parent(stop.set)
        report_ready(pid=os.getpid(), run_dir=str(run_dir))
    # torch takes a second to import: the parent need not wait for it.
    from agentgpt_remote.trainer.loop import train

    try:
        train(
            hyperparameters,
            run_dir=run_dir,
            envs=payload.get("urls"),
            token=payload.get("token"),
            replace_run=payload.get("replace_run", False),
            stop_event=stop,
        )
    except Exception as error:
        trace = None if isinstance(error, AgentGPTError) else error
        logger.log(logging.ERROR, "%s: %s", type(error).__name__, error, exc_info=trace)
        if ranks.leads:
            _write_error(run_dir, error)
        return 1
    return 0


def _write_error(run_dir: Path, error: Exception) -> None:
    details = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    try:
        write_json(run_dir / ERROR_NAME, details)
    except OSError as full:  # what failed may have been the disk
        logger.error("%s could not be written: %s", run_dir / ERROR_NAME, full)  # noqa: TRY400 - told above


if __name__ == "__main__":
    sys.exit(main())
