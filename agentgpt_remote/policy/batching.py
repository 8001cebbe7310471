"""Requests of many clients, through the model together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from agentgpt_remote.policy.agent_table import Prepared
from agentgpt_remote.policy.engine import PolicyEngine
from agentgpt_remote.policy.features import Float32

MAX_BATCH_WAIT_S = 0.02
_MIN_GAP_S = 0.0003
MAX_BATCH_REQUESTS = 1024
_ACTIVE_S = 0.05  # a client that asked within this time is expected to ask again

_logger = logging.getLogger("agentgpt_remote.policy")


class Job(Protocol):
    """One request, in the thread of the model."""

    owner: Hashable
    """Whose it is: the jobs of one owner are done one after another; None for a client of one request."""

    def begin(self) -> Prepared | None:
        """Understand the request; return what the engine must do, or None where the answer is known."""

    def finish(self, vectors: Float32) -> None:
        """Take the engine's actions."""

    def fail(self, prepared: Prepared) -> None:
        """Take note that the engine failed."""

    def answer(self) -> Any:
        """Return the answer."""


class Call:
    """A job that calls a function."""

    def __init__(self, function: Callable[[], Any], owner: Hashable = None) -> None:
        self.owner = owner
        self._function, self._result = function, None

    def begin(self) -> None:
        """Call it."""
        self._result = self._function()

    def finish(self, vectors: Float32) -> None:
        """Do nothing: there is nothing for the engine."""

    def fail(self, prepared: Prepared) -> None:
        """Do nothing: there is nothing for the engine."""

    def answer(self) -> Any:
        """Return what the function returned."""
        return self._result


class Batcher:
    """The one thread in which the model works, and the requests that wait for it.

    A round begins with the first request. It waits until every client that is active has one, and at most
    ``wait_s``: so one client alone never waits, and many clients share each pass through the model.

    Args:
        engine: acts.
        wait_s: deadline of a round in seconds; 0 takes what is there. None stands for what a pass through the model
            takes, at most 20 ms, and for as long as requests follow each other closely.

    Attributes:
        num_rounds: passes through the model.
        num_requests: requests for actions that were answered.
    """

    def __init__(self, engine: PolicyEngine, wait_s: float | None = None) -> None:
        self._engine, self._wait_s = engine, wait_s
        self._pass_s = 0.0
        self.num_rounds = self.num_requests = 0
        self._waiting: deque[tuple[Job, asyncio.Future[Any]]] = deque()
        self._active: dict[Hashable, float] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="agentgpt-inference", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> asyncio.Future[Any]:
        """Return a future of the job's answer; call it in the event loop."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append((job, future))
            self._changed.notify()
        return future

    async def call(self, function: Callable[[], Any], owner: Hashable = None) -> Any:
        """Run a function in the thread of the model, after what the same owner asked before."""
        return await self.submit(Call(function, owner))

    def close(self) -> None:
        """Answer what is waiting and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            answers = self._round([job for job, _ in jobs])
            futures = [future for _, future in jobs]
            for loop in {future.get_loop() for future in futures}:
                mine = [(f, a) for f, a in zip(futures, answers, strict=True) if f.get_loop() is loop]
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_resolve, mine)

    def _take(self) -> list[tuple[Job, asyncio.Future[Any]]]:
        """Return the jobs of a round, at most one per owner; none when the server ends."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            self._gather()
            taken: dict[Hashable, tuple[Job, asyncio.Future[Any]]] = {}
            left_over = []
            while self._waiting and len(taken) < MAX_BATCH_REQUESTS:
                entry = self._waiting.popleft()
                owner = entry[0].owner or entry[1]  # a client of one request is nobody twice
                if owner in taken:
                    left_over.append(entry)
                else:
                    taken[owner] = entry
            self._waiting.extendleft(reversed(left_over))
            return list(taken.values())

    def _gather(self) -> None:
        """Wait for the requests of other active clients; the lock is held."""
        wait_s, gap_s = self._wait_s, self._wait_s
        if wait_s is None:
            wait_s, gap_s = min(MAX_BATCH_WAIT_S, self._pass_s), max(_MIN_GAP_S, 0.25 * self._pass_s)
        deadline = time.monotonic() + wait_s
        while not self._closing and self._is_expecting():
            left = min(gap_s or 0.0, deadline - time.monotonic())
            if left <= 0 or not self._changed.wait(left):
                return

    def _is_expecting(self) -> bool:
        """Tell whether another active client is likely to ask for actions now."""
        now = time.monotonic()
        for owner in [owner for owner, asked in self._active.items() if now - asked > _ACTIVE_S]:
            del self._active[owner]
        return not self._active.keys() <= {job.owner for job, _ in self._waiting}

    def _round(self, jobs: Sequence[Job]) -> list[Any]:
        """Return the answers of some jobs, or the exceptions that they raised."""
        engine = self._engine
        engine.begin()
        failures: dict[int, Exception] = {}
        pending: list[tuple[int, Job, Prepared]] = []
        for number, job in enumerate(jobs):
            try:
                prepared = job.begin()
            except Exception as error:
                _logger.exception("request failed")
                failures[number] = error
                continue
            if prepared is not None:
                pending.append((number, job, prepared))
        if pending:
            failures |= self._decide(pending)
        return [failures[number] if number in failures else job.answer() for number, job in enumerate(jobs)]

    def _decide(self, pending: Sequence[tuple[int, Job, Prepared]]) -> dict[int, Exception]:
        now = time.monotonic()
        with self._changed:
            self._active.update((job.owner, now) for _, job, _ in pending if job.owner is not None)
        try:
            vectors = self._engine.decide([prepared.decision for _, _, prepared in pending])
        except Exception as error:
            _logger.exception("the model failed requests=%d", len(pending))
            for _, job, prepared in pending:
                job.fail(prepared)
            return {number: error for number, _, _ in pending}
        self._pass_s += 0.2 * (time.monotonic() - now - self._pass_s)
        for (_, job, _), actions in zip(pending, vectors, strict=True):
            job.finish(actions)
        self.num_rounds += 1
        self.num_requests += len(pending)
        return {}


def _resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if future.done():  # its client has left
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
