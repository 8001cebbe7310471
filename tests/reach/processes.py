"""Relays and hosts as real processes, started by the command line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

COUNTING = "tests.wrappers.odd_envs:CountingEnv"
SECRET = "a secret of the relay, long enough to be one"


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Command:
    """An ``agentgpt`` command in a process, whose output is read as it comes.

    Attributes:
        lines: what it has printed so far.
    """

    def __init__(self, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentgpt_remote", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        """All that was printed."""
        return "".join(self.lines)

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> str:
        """Return the first match in the output."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.output)):
            assert self.process.poll() is None or self._reader.is_alive(), f"ended without {pattern}: {self.output}"
            assert time.monotonic() < deadline, f"no {pattern} within {timeout_s} s: {self.output}"
            time.sleep(0.01)
        return found.group()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(20)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it politely and return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(30)

    def drain(self) -> None:
        """Read what is left of the output of a process that has ended."""
        self._reader.join(10)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start_relay(port: int, *words: str, **variables: str) -> Command:
    """Start a relay on a port and wait until it listens."""
    relay = Command("relay", "--port", str(port), *words, **variables)
    relay.wait_for(r"relay at \S+")
    return relay


def start_host(room: str, source: str = COUNTING, *words: str, **variables: str) -> Command:
    """Start a host that dials out, and wait until it is in the room."""
    host = Command("serve", source, "--connect", room, *words, **variables)
    host.wait_for(r"serving \S+ at \S+")
    return host


class Attempt(threading.Thread):
    """Calls a function in a thread, and keeps what it raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the thread is waited for
            self.error = error

    def finish(self, timeout_s: float) -> None:
        """Wait for its end, and raise what it raised."""
        self.join(timeout_s)
        assert not self.is_alive(), "it has not ended in time"
        if self.error is not None:
            raise self.error
