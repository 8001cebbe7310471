"""Lanes on the hosts of a relay's room, which come and go while a run goes on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from agentgpt_remote.errors import AgentGPTError, CapacityReached, ConnectionLost, HostUnreachable, RemoteTimeout
from agentgpt_remote.wrappers.offers import free_envs
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room, RoomMember

_POLL_S = 0.5
_REST_S = 3.0  # a host that could not be used is not asked again for so long
logger = logging.getLogger("agentgpt_remote.trainer")


class Slot(NamedTuple):
    """A place for a lane, whether there is a host for it now or not.

    Attributes:
        name: of the lane.
        size: agents that it has at most.
        envs: what was opened for it, if anything.
    """

    name: str
    size: int
    envs: RemoteVectorEnv | None


class _NoneFree(ConnectionLost):
    """No host in the room has an environment free."""


class RoomHosts:
    """Which hosts of a room the lanes of a run are on.

    Args:
        room: the room.
        connect: opens so many environments at a URL.
        per_host: environments of one host that are used at most.
    """

    def __init__(self, room: Room, connect: Callable[[str, int], RemoteVectorEnv], per_host: int) -> None:
        self._room, self._connect, self._per_host = room, connect, per_host
        self._lock = threading.Lock()
        self._places: dict[str, tuple[str, int]] = {}  # of each lane: the URL of its host, and how many agents
        self._rests_until: dict[str, float] = {}
        self._failure: AgentGPTError | None = None

    def open(self, lane: str, size: int) -> RemoteVectorEnv:
        """Open environments for a lane, on the host that it was on or else the one with most of them free.

        Args:
            lane: name of the lane.
            size: how many are wanted; fewer where no host has as many.

        Raises:
            ConnectionLost: no host in the room has any free, or the relay can't be reached.
            CapacityReached: somebody else was faster.
            RemoteTimeout: the host did not answer.
        """
        members = self._room.members()
        with self._lock:
            before = self._places.pop(lane, ("", 0))[0]
            free = {member.url: self._free(member) for member in members}
            url = before if free.get(before) else max(free, key=lambda item: free[item], default="")
            if not free.get(url):
                raise _NoneFree(f"no host in the room {self._room.url} has an environment free")
            count = min(size, free[url])
            self._places[lane] = (url, count)
        try:
            envs = self._connect(url, count)
        except BaseException:
            with self._lock:
                del self._places[lane]
                self._rests_until[url] = time.monotonic() + _REST_S
            raise
        name = next(member.name for member in members if member.url == url)
        logger.info("lane=%s envs=%d on host=%s url=%s", lane, count, name, url)
        return envs

    def _free(self, member: RoomMember) -> int:
        if time.monotonic() < self._rests_until.get(member.url, 0.0):
            return 0
        offered = free_envs(member.offers, with_lost=True)
        own = sum(count for url, count in self._places.values() if url == member.url)
        return max(0, self._per_host - own if offered is None else min(self._per_host - own, offered))

    def refuse(self, lane: str, error: Exception) -> ConnectionLost:
        """Use the host that a lane is on no more; return the error with which the lane tries others."""
        with self._lock:
            url, _ = self._places.pop(lane)
            self._rests_until[url] = math.inf
        logger.error("url=%s is left out for good: %s", url, error)
        return ConnectionLost(str(error))

    def open_all(
        self,
        name: str,
        lanes_per_host: int,
        limit: int | None,
        *,
        wait_s: float,
        should_stop: Callable[[], bool],
    ) -> list[Slot]:
        """Open lanes on all hosts in the room, and set places apart for hosts that come later.

        Args:
            name: of the room, from which those of its lanes are made.
            lanes_per_host: lanes that a host's environments are split over.
            limit: agents in all, now and later; ``None`` for twice as many as there are now.
            wait_s: how long to wait for the first host, in seconds.
            should_stop: whether to wait no longer.

        Raises:
            HostUnreachable: no host came in time, or the relay is not there.
            AgentGPTError: none of those that came could be used.
        """
        size = -(-self._per_host // lanes_per_host)
        deadline = time.monotonic() + wait_s
        while not (slots := self._open_some(name, size, limit)):
            if time.monotonic() >= deadline or should_stop():
                raise self._nobody(wait_s)
            time.sleep(_POLL_S)
        total = sum(slot.size for slot in slots)
        most = 2 * total if limit is None else limit
        while total < most:
            slots.append(Slot(f"{name}/{len(slots)}", min(size, most - total), None))
            total += slots[-1].size
        return slots

    def _open_some(self, name: str, size: int, limit: int | None) -> list[Slot]:
        """Open lanes on all hosts that can be used now."""
        slots: list[Slot] = []
        total = 0
        while limit is None or total < limit:
            lane = f"{name}/{len(slots)}"
            try:
                envs = self.open(lane, size if limit is None else min(size, limit - total))
            except _NoneFree:
                break
            except (ConnectionLost, RemoteTimeout, CapacityReached) as error:
                self._failure = error
            else:
                slots.append(Slot(lane, envs.num_envs, envs))
                total += envs.num_envs
        return slots

    def _nobody(self, wait_s: float) -> AgentGPTError:
        if self._failure is not None:
            return self._failure
        return HostUnreachable(
            f"no host with a free environment came to {self._room.url} within {wait_s:g} s: start one with "
            f"`agentgpt serve SOURCE --connect {self._room.url}`"
        )
