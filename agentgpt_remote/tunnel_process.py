"""The process of a tunnel's tool: its lines as they come, its last words without secrets, its end."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

from agentgpt_remote import tunnel_guard
from agentgpt_remote.serving import TOKEN_VARIABLE

_TAIL_LINES, _LINE_CHARACTERS = 20, 2000
_READ_BYTES = 65536
_LAST_OUTPUT_S = 1.0
_GRACE_S = 3.0  # that a tool may take to end by itself
_CLOSE_TIMEOUT_S = 2 * _GRACE_S + 4.0
_SHORTEST_SECRET = 6
_HIDDEN = "(hidden)"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|auth", re.IGNORECASE)
_TOLD_SECRET = re.compile(
    r"""((?:auth[-_ ]?token|token|secret|password|api[-_ ]?key)["']?(?:\s*[:=]\s*|\s+is\s+)["']?)([^\s"',]+)""",
    re.IGNORECASE,
)


class ToolProcess:
    """A tool that runs until :meth:`close`, or until this process ends, however it does.

    Args:
        command: program and arguments.
        on_line: called from a thread with each line that the tool prints, on standard output or standard error.
        on_end: called from that thread once the tool has ended.
        secrets: texts to hide in :meth:`tail`, besides the values of environment variables whose names tell of one.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_line: Callable[[str], None],
        on_end: Callable[[], None],
        secrets: Sequence[str] = (),
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        self._secrets = [*secrets, *(value for name, value in environment.items() if _SECRET_NAME.search(name))]
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", tunnel_guard.__file__, str(_GRACE_S), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which then ends the tool
        )
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(on_line, on_end), name="agentgpt-tunnel", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the guard that the tool runs under."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the tool's exit code, or ``None`` while it runs."""
        return self._process.poll()

    def _read(self, on_line: Callable[[str], None], on_end: Callable[[], None]) -> None:
        stdout = self._process.stdout
        rest = b""
        while stdout is not None:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile
                data = os.read(stdout.fileno(), _READ_BYTES)
                if data:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._take(line, on_line)
                    rest = rest[-_LINE_CHARACTERS:]
                    continue
            break
        if rest:
            self._take(rest, on_line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_TIMEOUT_S)
        on_end()

    def _take(self, data: bytes, on_line: Callable[[str], None]) -> None:
        line = _COLOUR.sub("", data.decode("utf-8", "replace")).strip()[:_LINE_CHARACTERS]
        if line:
            self._tail.append(line)
            on_line(line)

    def tail(self) -> str:
        """Return the last lines that the tool printed, without secrets."""
        if self.poll() is not None and threading.current_thread() is not self._reader:
            self._reader.join(_LAST_OUTPUT_S)  # its very last words may still be on their way
        text = "\n".join(self._tail.copy())
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, _HIDDEN)
        return _TOLD_SECRET.sub(rf"\1{_HIDDEN}", text) or "(none)"

    def close(self) -> None:
        """End the tool with all that it started, and wait for them; a second call does nothing."""
        with self._lock:
            stdin = self._process.stdin
            if stdin is not None and not stdin.closed:
                with contextlib.suppress(OSError):
                    stdin.close()
            try:
                self._process.wait(_CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_CLOSE_TIMEOUT_S)
        if threading.current_thread() is not self._reader:
            self._reader.join(_LAST_OUTPUT_S)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
