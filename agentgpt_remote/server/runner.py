"""Where a session's requests run: on the event loop when measured cheap, else in a thread of the session.

Handing a request to a thread costs about 100 µs, which is more than most environments take for a step.
A slow one on the loop, though, would keep health checks and other sessions waiting.
"""

from __future__ import annotations

import asyncio
import queue
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


def timed(function: Callable[..., _T], *args: Any) -> tuple[_T, float]:
    """Return the function's result and how long it took in seconds."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start
