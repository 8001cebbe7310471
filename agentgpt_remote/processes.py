"""Child processes of this package: they say when they are ready, and end with their parent.

The parent keeps the child's standard input open for as long as it lives; the child ends when it reads
the end of it, so that no orphan survives a parent that was killed. What the child must know and other
users must not see (tokens, factories) travels through that pipe, never through arguments.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Self

from agentgpt_remote.errors import ChildProcessFailed, RemoteTimeout

READY_TIMEOUT_S = 60.0
_READY_PREFIX = "agentgpt-ready "
_POLL_PARENT_S = 1.0
_TAIL_BYTES = 8192
_MANY_FILES = 65536
_READ_BYTES = 65536
_LAST_OUTPUT_S = 1.0  # what the child started may keep its output open for longer

_open_children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


class ChildProcess:
    """A Python process that this one started.

    Attributes:
        ready: what the child reported when it was ready.
        pid: its process id.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._stdout = -1 if process.stdout is None else process.stdout.fileno()
        self._closing = False
        self._log = log
        self._log_lock = threading.Lock()
        self._reported = threading.Event()
        self.ready: dict[str, Any] = {}
        self.pid = process.pid
        self._reader = threading.Thread(target=self._read_output, name="agentgpt-child-output", daemon=True)
        self._reader.start()
        _open_children.add(self)

    @classmethod
    def start(
        cls,
        args: Sequence[str],
        payload: bytes = b"",
        *,
        env: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> ChildProcess:
        """Start ``python args...`` and wait until it reports ready.

        Args:
            args: words after the interpreter, such as ``["-m", "agentgpt_remote.server"]``.
            payload: bytes that the child reads with :func:`read_payload`.
            env: variables to add to this process's own.
            ready_timeout_s: seconds until the child must have reported.

        Raises:
            ChildProcessFailed: the child ended before it was ready; the text holds its last lines.
            RemoteTimeout: it did not report in time; it has been ended.
        """
        log = tempfile.TemporaryFile(prefix="agentgpt-child-")  # noqa: SIM115 - closed with the child
        process = subprocess.Popen(
            [sys.executable, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"},
        )
        child = cls(process, log)
        try:
            child._send_payload(payload)
            child._await_ready(ready_timeout_s)
        except BaseException:
            child.close(timeout_s=0.0)
            raise
        return child

    def _send_payload(self, payload: bytes) -> None:
        stdin = self._process.stdin
        if stdin is None:
            raise ChildProcessFailed("the child has no standard input")
        try:
            stdin.write(len(payload).to_bytes(8, "big") + payload)
            stdin.flush()
        except OSError as error:
            raise self._failure("ended before it read its settings") from error

    def _await_ready(self, timeout_s: float) -> None:
        if not self._reported.wait(timeout_s):
            raise RemoteTimeout(
                f"process {self.pid} was not ready within {timeout_s:.0f} s. Last output:\n{self.log_tail()}"
            )
        if not self.ready:
            raise self._failure("ended before it was ready")

    def _failure(self, what: str) -> ChildProcessFailed:
        code = self._process.wait(10.0)
        return ChildProcessFailed(f"process {self.pid} {what} (exit code {code}). Last output:\n{self.log_tail()}")

    def _read_output(self) -> None:
        unfinished = b""
        # Not through the file object: closing that waits for a read, which what the child started may keep open.
        while not self._closing and (output := os.read(self._stdout, _READ_BYTES)):
            if not self._reported.is_set():
                *lines, unfinished = (unfinished + output).split(b"\n")
                output = b"".join(line + b"\n" for line in lines if not self._take_report(line))
                if self._reported.is_set():
                    output, unfinished = output + unfinished, b""
            self._write_log(output)
        self._write_log(unfinished)
        self._reported.set()

    def _take_report(self, line: bytes) -> bool:
        """Keep the child's report; return whether the line is one."""
        text = line.decode("utf-8", "replace")
        if self._reported.is_set() or not text.startswith(_READY_PREFIX):
            return False
        try:
            self.ready = json.loads(text.removeprefix(_READY_PREFIX))
        except ValueError:  # something else that the child printed
            return False
        self._reported.set()
        return True

    def _write_log(self, output: bytes) -> None:
        with self._log_lock:
            if not self._log.closed:
                self._log.write(output)

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of the process and return its exit code.

        Raises:
            RemoteTimeout: it still runs after ``timeout_s`` seconds.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RemoteTimeout(f"process {self.pid} still runs after {timeout_s} s") from error

    def log_tail(self) -> str:
        """Return the last lines that the child printed."""
        if self.poll() is not None:
            self._reader.join(_LAST_OUTPUT_S)  # its very last words may still be on their way
        with self._log_lock:
            if self._log.closed:
                return ""
            end = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, end - _TAIL_BYTES))
            return self._log.read().decode("utf-8", "replace").strip()

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""
        if self.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once (SIGKILL), and wait until it has."""
        self._process.kill()
        self._process.wait(10.0)

    def close(self, timeout_s: float = 10.0) -> None:
        """End the process and wait for it; a second call does nothing.

        Args:
            timeout_s: seconds that it may take to end by itself before it is killed.
        """
        _open_children.discard(self)
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                self._process.poll()
        self.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10.0)
        self._reader.join(_LAST_OUTPUT_S)
        self._closing = True
        if self._process.stdout is not None:
            self._process.stdout.close()
        with self._log_lock:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def yield_processor() -> None:
    """Let another process run on this processor, if one wants to: for loops that poll."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def allow_many_connections() -> None:
    """Raise this process's limit of open files, where the system lets it, to what a thousand peers need."""
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@atexit.register
def _close_all() -> None:
    for child in list(_open_children):
        child.close(timeout_s=5.0)


def read_payload() -> bytes:
    """Return, in a child, the payload that its parent sent."""
    source = sys.stdin.buffer
    return source.read(int.from_bytes(source.read(8), "big"))


def report_ready(**fields: Any) -> None:
    """Tell, in a child, the parent that it is ready."""
    sys.stdout.write("\n" + _READY_PREFIX + json.dumps(fields or {"ready": True}) + "\n")
    sys.stdout.flush()


def watch_parent(on_parent_gone: Callable[[], None]) -> None:
    """Call back, in a child, when the parent closed the pipe or is gone.

    From here on standard input is empty: what reads it, or starts programs that do, does not wait for the parent.

    Args:
        on_parent_gone: called once, from a thread of its own.
    """
    parent = os.getppid()
    stdin = sys.stdin.fileno()
    pipe = os.dup(stdin)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, stdin)
    os.close(null)
    gone = threading.Event()

    def read_to_the_end() -> None:
        while os.read(pipe, 4096):
            continue
        gone.set()

    def watch() -> None:
        while not gone.wait(_POLL_PARENT_S) and os.getppid() == parent:
            continue
        on_parent_gone()

    threading.Thread(target=read_to_the_end, name="agentgpt-parent-pipe", daemon=True).start()
    threading.Thread(target=watch, name="agentgpt-parent-watch", daemon=True).start()
