"""Lanes of environments of many agents, and getting them back when their hosts are lost."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentgpt_remote.agents import Turns
from agentgpt_remote.connection import wait_readable
from agentgpt_remote.errors import (
    AgentGPTError,
    CapacityReached,
    ConfigError,
    ConnectionLost,
    PlayerFailed,
    RemoteTimeout,
)
from agentgpt_remote.wrappers.remote_agents import RemoteAgents

LOSSES = (ConnectionLost, RemoteTimeout, PlayerFailed)
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 10.0
logger = logging.getLogger("agentgpt_remote.trainer")


@dataclass(kw_only=True, eq=False)
class AgentLane:
    """A session on a host.

    Attributes:
        name: for messages and metrics: the host's name and a number.
        size: environments.
        open: opens the session (again).
        give_up: whether to wait no longer for a lost connection.
        env: the session; None while its host is lost.
        sent_at: when the step was sent that is awaited; None where there is none.
    """

    name: str
    size: int
    open: Callable[[], RemoteAgents]
    give_up: Callable[[], bool] = lambda: False
    env: RemoteAgents | None = None
    sent_at: float | None = None

    @property
    def session(self) -> RemoteAgents:
        """The session of a lane that is there.

        Raises:
            ConnectionLost: it is not.
        """
        if self.env is None:
            raise ConnectionLost(f"{self.name} is not connected")
        return self.env

    def watch_stop(self) -> None:
        """Have the session give up a lost connection when training is being stopped."""
        if self.env is not None:
            self.env.give_up_when(lambda: "training was stopped" if self.give_up() else None)

    def close(self) -> None:
        """End the session, if there is one."""
        if self.env is not None:
            self.env.close()


def wait_for(lanes: Sequence[AgentLane], timeout_s: float) -> list[AgentLane]:
    """Return the lanes whose reply can be received now, waiting up to so many seconds for the first."""
    pending = [lane for lane in lanes if lane.env is not None and lane.env.pending is not None]
    ready = [lane for lane in pending if lane.session.ready()]
    if ready or not pending:
        return ready
    connections = [lane.session.transport.connection for lane in pending]
    wait_readable([connection for connection in connections if connection is not None], timeout_s)
    return [lane for lane in pending if lane.session.ready()]


class AgentRecovery:
    """Threads that open lost lanes again; one per lane.

    Attributes:
        away: names of the lanes that are tried.
    """

    def __init__(self, seed: int) -> None:
        self.away: set[str] = set()
        self._seed, self._attempts = seed, 0
        self._back: queue.SimpleQueue[tuple[AgentLane, RemoteAgents, Turns] | Exception]
        self._back = queue.SimpleQueue()
        self._closing = threading.Event()

    def reopen(self, lane: AgentLane) -> None:
        """Try to open a lane until that works, with pauses that grow to 10 s."""
        lost, lane.env, lane.sent_at = lane.env, None, None
        self.away.add(lane.name)
        self._attempts += 1
        seed = (self._seed + 7919 * self._attempts) % 2**31

        def work() -> None:
            if lost is not None:
                with contextlib.suppress(AgentGPTError, OSError):  # a host that is gone has ended the session too
                    lost.close()
            pause_s = _FIRST_BACKOFF_S
            while not self._closing.wait(pause_s):
                pause_s = min(2 * pause_s, _MAX_BACKOFF_S)
                env = None
                try:
                    env = lane.open()
                    turns = env.reset(seed=seed)
                except (*LOSSES, CapacityReached) as error:
                    logger.debug("lane=%s is not back yet: %s", lane.name, error)
                except Exception as error:  # noqa: BLE001 - raised where the outcome is taken
                    self._back.put(error)
                    return
                else:
                    if not self._closing.is_set():
                        self._back.put((lane, env, turns))
                        return
                if env is not None:
                    env.close()

        threading.Thread(target=work, name=f"agentgpt-recovery-{lane.name}", daemon=True).start()

    def take(self, timeout_s: float) -> list[tuple[AgentLane, Turns]]:
        """Return the lanes that are back, with what their agents see, waiting up to so many seconds for the first.

        Raises:
            Exception: a lane can't be opened for another reason than that its host is away.
        """
        back = []
        with contextlib.suppress(queue.Empty):
            outcome = self._back.get(timeout=timeout_s) if timeout_s else self._back.get_nowait()
            while True:
                if isinstance(outcome, Exception):
                    raise outcome
                lane, env, turns = outcome
                lane.env = env
                lane.watch_stop()
                self.away.discard(lane.name)
                back.append((lane, turns))
                outcome = self._back.get_nowait()
        return back

    def close(self) -> None:
        """Stop trying, and close what came back meanwhile."""
        self._closing.set()
        with contextlib.suppress(queue.Empty):
            while True:
                outcome = self._back.get_nowait()
                if not isinstance(outcome, Exception):
                    outcome[1].close()


def check_same_behaviors(first: RemoteAgents, other: RemoteAgents) -> None:
    """Check that two hosts serve the same environment.

    Raises:
        ConfigError: behaviours of one name have different spaces.
    """
    for name, behavior in other.behaviors.items():
        known = first.behaviors.get(name)
        if known is not None and (known.observation_space, known.action_space) != (
            behavior.observation_space,
            behavior.action_space,
        ):
            raise ConfigError(f"behaviour {name!r} has other spaces at {other.url} than at {first.url}")
