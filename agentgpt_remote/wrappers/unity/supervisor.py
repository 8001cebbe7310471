"""Runs a player, and ends it with the process that asked for it: ``python -I -S supervisor.py PROGRAM ARGS...``.

The parent holds this process's standard input open for as long as it lives. When it is closed, this process's whole
group is killed: the player, and what the player started. Only the standard library is needed, so it starts in no time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def _end_with_parent(pipe: int) -> None:
    while os.read(pipe, 4096):
        continue
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the program and return its exit code: 128 and the signal's number where a signal ended it."""
    pipe = os.dup(0)
    os.set_inheritable(pipe, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    try:
        player = subprocess.Popen(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]} can't be started: {error}\n")
        return 126
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    code = player.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main())  # the thread reads on
