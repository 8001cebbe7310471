"""Where requests run: the pace of a kind, and the thread of a session."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentgpt_remote.server.runner import Pace, SessionThread


def test_pace_becomes_cheap_after_some_cheap_ones_in_a_row() -> None:
    pace = Pace()
    for seconds in (0.0001, 0.0001, 0.01, 0.0001, 0.0001):
        pace.record(seconds)
        assert not pace.cheap
    pace.record(0.0001)
    assert pace.cheap


def test_pace_needs_longer_to_trust_again_after_each_slow_one() -> None:
    pace = Pace()
    needed = []
    for _ in range(4):
        count = 0
        while not pace.cheap:
            pace.record(0.0001)
            count += 1
        needed.append(count)
        pace.record(1.0)
    assert needed == [3, 6, 12, 24]


def test_pace_stays_cheap_at_a_step_that_is_only_a_little_slow() -> None:
    pace = Pace()
    for _ in range(3):
        pace.record(0.0001)
    pace.record(0.004)
    assert pace.cheap


def test_session_thread_runs_in_order_and_hands_on_results_and_errors() -> None:
    async def main() -> list[object]:
        thread = SessionThread("agentgpt-test", asyncio.get_running_loop())
        jobs = [thread.run(lambda n=n: (n, threading.current_thread().name)) for n in range(3)]
        failing = thread.run(lambda: 1 // 0)
        results: list[object] = [await job for job in jobs]
        with pytest.raises(ZeroDivisionError):
            await failing
        thread.end()
        return results

    assert asyncio.run(main()) == [(n, "agentgpt-test") for n in range(3)]
