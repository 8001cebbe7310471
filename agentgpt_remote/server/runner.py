"""Where a session's requests run: on the event loop when measured cheap, else in a thread of the session.

Handing a request to a thread costs about 100 µs, which is more than most environments take for a step.
A slow one on the loop, though, would keep health checks and other sessions waiting.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from agentgpt_remote.remote_errors import error_from_dict, error_to_dict

_T = TypeVar("_T")

INLINE_BELOW_S = 0.002
_SLOW_S = 0.005
_CHEAP_IN_A_ROW = 3
_MAX_PROBATION = 4096
_WATCH_EVERY_S = 0.5


class Pace:
    """Remembers how long one kind of request takes.

    A kind is cheap after a few cheap ones in a row; each slow one doubles how many it takes to regain that.
    """

    def __init__(self) -> None:
        self._needed = _CHEAP_IN_A_ROW
        self._in_a_row = 0
        self.cheap = False

    def record(self, seconds: float) -> None:
        """Take note of one execution."""
        if self.cheap:
            if seconds > _SLOW_S:
                self.cheap = False
                self._in_a_row = 0
                self._needed = min(2 * self._needed, _MAX_PROBATION)
        elif seconds < INLINE_BELOW_S:
            self._in_a_row += 1
            self.cheap = self._in_a_row >= self._needed
        else:
            self._in_a_row = 0


class SessionThread:
    """A daemon thread that runs one function after another for an event loop.

    Not a ThreadPoolExecutor: that one joins its threads at exit, and would wait for a hung environment.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        """Run ``function(*args)`` after what was asked before, and return the future of its result."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put((future, function, args))
        return future

    def end(self) -> None:
        """End the thread after what was asked before; does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            try:
                result, error = function(*args), None
            except BaseException as raised:  # noqa: BLE001 - handed to whoever awaits the future
                result, error = None, raised
            del job, function, args
            try:
                self._loop.call_soon_threadsafe(_deliver, future, result, error)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                return
            del future, result, error


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        # A future takes no StopIteration, and SystemExit and its like would end the event loop.
        plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
        future.set_exception(error if plain else error_from_dict(error_to_dict(error)))


class _Interrupted(BaseException):
    """Raised inside of an environment that took too long on the event loop."""


class InlineRunner:
    """Runs functions on the event loop, and interrupts one that hangs.

    Only a signal reaches Python code that never returns, and only in the main thread of a process: a host that
    another thread serves, and code of a C library that never returns, can't be interrupted.

    Args:
        timeout_s: how long a function may take, in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since = 0.0
        self._interrupted = False
        self._stop: threading.Event | None = None

    def run(self, function: Callable[..., _T], *args: Any) -> tuple[_T | None, float]:
        """Return the function's result and how long it took in seconds; ``None`` where it was interrupted."""
        if self._stop is None:
            self._start()
        self._interrupted = False
        loop = asyncio._get_running_loop()
        start = time.perf_counter()
        result: _T | None = None
        asyncio._set_running_loop(None)  # a function may run a loop of its own, as it could in a thread
        try:
            self._since = start
            result = function(*args)
            self._since = 0.0
        except _Interrupted:
            self._since = 0.0
        finally:
            asyncio._set_running_loop(loop)
        return None if self._interrupted else result, time.perf_counter() - start

    def _start(self) -> None:
        self._stop = threading.Event()
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill"):
            signal.signal(signal.SIGUSR2, self._interrupt)
            threading.Thread(target=self._watch, args=(self._stop,), name="agentgpt-watchdog", daemon=True).start()

    def _watch(self, stop: threading.Event) -> None:
        main_thread = threading.main_thread().ident or 0
        while not stop.wait(min(_WATCH_EVERY_S, self._timeout_s)):
            if self._is_overdue():
                signal.pthread_kill(main_thread, signal.SIGUSR2)

    def _is_overdue(self) -> bool:
        return self._since > 0.0 and time.perf_counter() - self._since > self._timeout_s

    def _interrupt(self, *_: object) -> None:
        if self._is_overdue():
            self._interrupted = True
            raise _Interrupted

    def close(self) -> None:
        """End the watch."""
        if self._stop is not None:
            self._stop.set()


def timed(function: Callable[..., _T], *args: Any) -> tuple[_T, float]:
    """Return the function's result and how long it took in seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start
