"""Getting lanes back in the background, while the others are acted on."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agentgpt_remote.errors import AgentGPTError, CapacityReached, ConnectionLost, RemoteTimeout
from agentgpt_remote.trainer.lanes import Lane, LaneStep, Observed

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 10.0
_CLOSE_TIMEOUT_S = 5.0
logger = logging.getLogger("agentgpt_remote.trainer")


@dataclass(frozen=True, kw_only=True, eq=False)
class AbsentLane:
    """A lane that is listed and could not be opened yet.

    Attributes:
        name: of the lane.
        num_agents: agents that it will have at most.
        open: opens it; raises ConnectionLost, RemoteTimeout or CapacityReached where it may work later.
    """

    name: str
    num_agents: int
    open: Callable[[], Lane]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a lane in the background.

    Attributes:
        name: of the lane.
        step: the result of the step that was awaited.
        lane: the lane, opened (again) and reset.
        obs: what its agents see.
        error: why the step was lost, or why the lane will not be opened.
    """

    name: str
    step: LaneStep | None = None
    lane: Lane | None = None
    obs: Observed | None = None
    error: Exception | None = None


class Recovery:
    """Threads that wait for connections and hosts which are away; one per lane.

    Attributes:
        reopening: names of the lanes that are tried to be opened.
    """

    def __init__(self) -> None:
        self.reopening: set[str] = set()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._opened: list[Lane] = []

    def receive(self, lane: Lane) -> None:
        """Wait for a step whose connection dropped; the session resumes where that is possible."""

        def wait() -> None:
            try:
                outcome = Outcome(name=lane.name, step=lane.receive())
            except Exception as error:  # noqa: BLE001 - raised where the outcome is taken
                outcome = Outcome(name=lane.name, error=error)
            self._outcomes.put(outcome)

        self._start(lane.name, wait)

    def reopen(self, name: str, open_lane: Callable[[], Lane], seed: int, lost: Lane | None = None) -> None:
        """Try to open a lane until that works, with pauses that grow to 10 s.

        Args:
            name: of the lane.
            open_lane: as :attr:`AbsentLane.open`.
            seed: of its first reset.
            lost: the lane before it, which is closed first.
        """
        self.reopening.add(name)

        def work() -> None:
            if lost is not None:
                with contextlib.suppress(AgentGPTError, OSError):  # a host that is gone has ended the session too
                    lost.close()
            outcome = self._try_to_open(name, open_lane, seed)
            if outcome is not None:
                self._outcomes.put(outcome)

        self._start(name, work)

    def _try_to_open(self, name: str, open_lane: Callable[[], Lane], seed: int) -> Outcome | None:
        pause_s = _FIRST_BACKOFF_S
        while not self._closing.wait(pause_s):
            lane = None
            try:
                lane = open_lane()
                lane.send_reset(seed)
                obs = lane.receive_reset()
            except (ConnectionLost, RemoteTimeout, CapacityReached) as error:
                log = logger.info if pause_s == _FIRST_BACKOFF_S else logger.debug
                log("lane=%s is not back yet: %s", name, error)
                pause_s = min(2 * pause_s, _MAX_BACKOFF_S)
            except Exception as error:  # noqa: BLE001 - told where the outcome is taken
                _close(lane)
                return Outcome(name=name, error=error)
            else:
                if not self._closing.is_set():
                    self._opened.append(lane)
                    return Outcome(name=name, lane=lane, obs=obs)
            _close(lane)
        return None

    def take(self, timeout_s: float) -> list[Outcome]:
        """Return what has come out since the last call, waiting up to so many seconds for the first."""
        outcomes = []
        with contextlib.suppress(queue.Empty):
            outcomes.append(self._outcomes.get(timeout=timeout_s) if timeout_s else self._outcomes.get_nowait())
            while True:
                outcomes.append(self._outcomes.get_nowait())
        self.reopening -= {outcome.name for outcome in outcomes}
        return outcomes

    def close(self) -> None:
        """End the threads, and close what they opened."""
        self._closing.set()
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for lane in self._opened:
            _close(lane)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, name=f"agentgpt-recovery-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()


def _close(lane: Lane | None) -> None:
    if lane is not None:
        with contextlib.suppress(AgentGPTError, OSError):  # a host that is gone has ended the session too
            lane.close()
