"""Run a tunnel's tool, and end it with whoever started it: a small program of its own, started by its path.

The tool and whatever it starts are a process group. When this program's standard input ends, because its parent
closed it or was killed, the group ends; when the tool ends, so does what it left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

NOT_STARTED = 127


def main() -> None:
    """Run the command in ``sys.argv[2:]``, which may take ``sys.argv[1]`` seconds to end; exit with its exit code."""
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        tool = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)
    gone = threading.Event()
    threading.Thread(target=_wait_for_parent, args=(gone,), daemon=True).start()
    try:
        while tool.poll() is None and not gone.wait(0.02):
            continue
    finally:
        _end_group(tool, grace_s)
    code = tool.returncode
    sys.exit(code if code >= 0 else 128 - code)


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(0)


def _wait_for_parent(gone: threading.Event) -> None:
    while os.read(0, 4096):
        continue
    gone.set()


def _end_group(tool: subprocess.Popen[bytes], grace_s: float) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(tool.pid, number)
        deadline = time.monotonic() + grace_s
        while tool.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)


if __name__ == "__main__":
    main()
