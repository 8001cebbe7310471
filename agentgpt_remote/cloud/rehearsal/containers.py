"""Containers without Docker: the image's entry as a process, under a real ``/opt/ml`` where the kernel allows it.

An unprivileged user and mount namespace shows the process its own ``/opt/ml``, without root and without leaving a mount
behind. Where namespaces are not allowed, ``SAGEMAKER_BASE_DIR`` names the folder instead.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_KEPT_LINES = 200
# The process group ends when the process that rehearses is gone, however it ended.
_WATCH_PARENT = """
(while kill -0 "$AGENTGPT_REHEARSAL_PID" && kill -0 $$; do sleep 1; done; kill -KILL -$$) >/dev/null 2>&1 </dev/null &
"""
_MOUNT = """
set -e
base=$AGENTGPT_REHEARSAL_BASE
if [ ! -d /opt/ml ]; then
    mkdir -p "$base/opt"
    mount --rbind /opt "$base/opt"
    mount -t tmpfs none /opt
    for entry in "$base"/opt/*; do
        name=/opt/${entry##*/}
        if [ -L "$entry" ]; then cp -P "$entry" "$name"
        elif [ -d "$entry" ]; then mkdir "$name"; mount --rbind "$entry" "$name"
        elif [ -e "$entry" ]; then : > "$name"; mount --bind "$entry" "$name"
        fi
    done
    mkdir /opt/ml
fi
mount --bind "$base/ml" /opt/ml
if [ -f "$base/hosts" ]; then mount --bind "$base/hosts" /etc/hosts; fi
"""
_RUN = 'unset AGENTGPT_REHEARSAL_PID AGENTGPT_REHEARSAL_BASE\nexec "$@"\n'


@functools.cache
def namespaces_allowed() -> bool:
    """Tell whether a process without rights can have an ``/opt/ml`` of its own here."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "ml").mkdir()
        (Path(base) / "hosts").write_text("127.0.0.1 localhost\n")
        words = ["unshare", "-Urm", "sh", "-c", _MOUNT + "test -d /opt/ml && test -w /opt/ml"]
        environment = {"PATH": os.environ.get("PATH", ""), "AGENTGPT_REHEARSAL_BASE": base}
        try:
            done = subprocess.run(words, env=environment, capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0


class Container:
    """A running container.

    Args:
        word: what the image is told to do, ``"train"`` or ``"serve"``.
        base: a folder of its own, with ``ml``, which it sees as ``/opt/ml``.
        environment: variables, beside a few of this process's.
        on_line: called with each line that it prints, from a thread of its own.

    Attributes:
        base: as above.
        pid: its process id.
    """

    def __init__(
        self,
        word: str,
        base: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.base, self._on_line = base, on_line
        isolated = namespaces_allowed()
        variables = {name: os.environ[name] for name in _PASSED if name in os.environ}
        variables |= {
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "PYTHONUNBUFFERED": "1",
            **environment,
            "AGENTGPT_REHEARSAL_PID": str(os.getpid()),
            "AGENTGPT_REHEARSAL_BASE": str(base),
        }
        if not isolated:
            variables |= {"SAGEMAKER_BASE_DIR": str(base / "ml"), "AGENTGPT_MASTER_ADDR": "127.0.0.1"}
        script = _WATCH_PARENT + (_MOUNT if isolated else "") + _RUN
        entry = [sys.executable, "-m", "agentgpt_remote", "container", word]
        words: Sequence[str] = [*(["unshare", "-Urm"] if isolated else []), "sh", "-c", script, "sh", *entry]
        self._process = subprocess.Popen(
            words,
            cwd=base,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader = threading.Thread(target=self._read, name="agentgpt-rehearsal-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            return
        for raw in stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self._lines.append(line)
            if self._on_line is not None:
                self._on_line(line)

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def last_lines(self, count: int = 20) -> str:
        """Return the last lines that it printed."""
        return "\n".join(list(self._lines)[-count:])

    def stop(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self.running:
            self._process.terminate()

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None where it still runs after so many seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it, and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)

    def close(self, grace_s: float = 0.0) -> None:
        """End it, with SIGTERM first where it is to have some seconds, and free what it held."""
        if grace_s > 0:
            self.stop()
            self.wait(grace_s)
        # Also after it has ended: what it started may be there still.
        self.kill()
        self._reader.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()
