"""The rooms of a relay: which hosts are there, and which trainer waits for which host to dial."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agentgpt_remote.errors import CapacityReached, HostUnreachable, ProtocolError, RemoteTimeout
from agentgpt_remote.meeting import Dial, FromRelay, Hello, host_name
from agentgpt_remote.server.splice import Pair, SpliceEnd, Traffic

DIAL_TIMEOUT_S: Final = 10.0
_MAX_NAME_CHARACTERS = 64
_ROUND_TRIPS_KEPT = 20
_MAX_OFFER_FIELDS = 32


@dataclass(frozen=True, kw_only=True)
class RelayLimits:
    """What a relay allows.

    Attributes:
        max_hosts: hosts in all rooms.
        max_sessions: pairs of connections that are joined, or wait to be, in all rooms.
        max_frame_bytes: largest frame that goes through, in bytes.
        stall_timeout_s: how long a peer may take no bytes, or not finish a frame, in seconds.
    """

    max_hosts: int = 4096
    max_sessions: int = 16384
    max_frame_bytes: int = 256 * 1024 * 1024
    stall_timeout_s: float = 300.0


@dataclass(eq=False, kw_only=True)
class RoomHost:
    """A host that is in a room.

    Attributes:
        host_id: its name there.
        name: what it calls itself, for people.
        room: the room.
        offers: what its health tells.
        send: sends it a control message, or drops the message where the host takes none.
        leave: ends its control connection.
        traffic: what has gone through to it and from it.
        sessions: pairs that are joined.
        round_trips_s: of the latest pings.
        since: when it came, on the monotonic clock.
    """

    host_id: str
    name: str
    room: str
    offers: dict[str, Any]
    send: Callable[[FromRelay], None]
    leave: Callable[[], None]
    traffic: Traffic = field(default_factory=Traffic)
    sessions: set[Pair] = field(default_factory=set)
    round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=_ROUND_TRIPS_KEPT))
    since: float = field(default_factory=time.monotonic)

    @property
    def round_trip_ms(self) -> float | None:
        """The least of the latest round trips, in milliseconds; ``None`` before the first."""
        return 1e3 * min(self.round_trips_s) if self.round_trips_s else None

    def describe(self) -> dict[str, Any]:
        """Return what trainers and ``relay status`` are told."""
        return {
            "id": self.host_id,
            "name": self.name,
            "round_trip_ms": self.round_trip_ms,
            "connected_s": round(time.monotonic() - self.since, 1),
            "relayed_sessions": len(self.sessions),
            "frames": self.traffic.frames,
            "to_host_bytes": self.traffic.to_host_bytes,
            "to_trainer_bytes": self.traffic.to_trainer_bytes,
            "offers": self.offers,
        }


class Rooms:
    """All rooms of a relay.

    Args:
        limits: what it allows.

    Attributes:
        traffic: what has gone through in all.
        opened: pairs that were joined so far.
        dropped: pairs that were dropped because a peer did nothing for too long.
    """

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self.traffic = Traffic()
        self.opened = self.dropped = 0
        self._rooms: dict[str, dict[str, RoomHost]] = {}
        self._tickets: dict[str, tuple[RoomHost, asyncio.Future[SpliceEnd]]] = {}
        self._pairs: set[Pair] = set()

    @property
    def host_count(self) -> int:
        """Hosts in all rooms."""
        return sum(map(len, self._rooms.values()))

    @property
    def session_count(self) -> int:
        """Pairs that are joined, or wait to be."""
        return len(self._pairs) + len(self._tickets)

    @property
    def names(self) -> list[str]:
        """Rooms with a host in them."""
        return sorted(self._rooms)

    def hosts(self, room: str) -> list[RoomHost]:
        """Return the hosts of a room, in the order in which they came."""
        return list(self._rooms.get(room, {}).values())

    def enter(self, room: str, hello: Hello, send: Callable[[FromRelay], None], leave: Callable[[], None]) -> RoomHost:
        """Let a host in; one with the same key that is still there leaves.

        Raises:
            CapacityReached: there are too many.
            ProtocolError: its key could be guessed.
        """
        if len(hello.key) < 32:
            raise ProtocolError(f"the host's key has {len(hello.key)} characters, expected at least 32")
        host_id = host_name(hello.key)
        before = self._rooms.get(room, {}).get(host_id)
        if before is None and self.host_count >= self.limits.max_hosts:
            raise CapacityReached(f"the relay is at its limit of max_hosts={self.limits.max_hosts}")
        host = RoomHost(
            host_id=host_id,
            name=hello.name[:_MAX_NAME_CHARACTERS],
            room=room,
            offers=read_offers(hello.offers),
            send=send,
            leave=leave,
        )
        if before is not None:
            host.traffic, host.sessions = before.traffic, before.sessions
            before.leave()
        self._rooms.setdefault(room, {})[host_id] = host
        return host

    def leave(self, host: RoomHost) -> None:
        """Take note that a host's control connection is gone; its sessions go on."""
        hosts = self._rooms.get(host.room, {})
        if hosts.get(host.host_id) is host:
            del hosts[host.host_id]
            if not hosts:
                del self._rooms[host.room]

    async def call(self, room: str, host_id: str) -> SpliceEnd:
        """Have a host dial, and return its connection.

        Raises:
            HostUnreachable: it is not in the room.
            CapacityReached: there are too many sessions.
            RemoteTimeout: it did not dial in time.
        """
        host = self._rooms.get(room, {}).get(host_id)
        if host is None:
            raise HostUnreachable(f"host {host_id} is not in room {room!r} now")
        if self.session_count >= self.limits.max_sessions:
            raise CapacityReached(f"the relay is at its limit of max_sessions={self.limits.max_sessions}")
        ticket = secrets.token_urlsafe(16)
        arrival: asyncio.Future[SpliceEnd] = asyncio.get_running_loop().create_future()
        self._tickets[ticket] = (host, arrival)
        try:
            host.send(Dial(ticket=ticket))
            return await asyncio.wait_for(arrival, DIAL_TIMEOUT_S)
        except TimeoutError as error:
            raise RemoteTimeout(f"host {host_id} did not dial within {DIAL_TIMEOUT_S:g} s") from error
        finally:
            self._tickets.pop(ticket, None)

    def take_ticket(self, room: str, ticket: str) -> asyncio.Future[SpliceEnd] | None:
        """Return what awaits the holder of a ticket, which is good once; ``None`` where there is none."""
        host, arrival = self._tickets.get(ticket, (None, None))
        if host is None or arrival is None or host.room != room:
            return None
        del self._tickets[ticket]
        return arrival

    def join(self, room: str, host_id: str, trainer: SpliceEnd, data: SpliceEnd) -> Pair:
        """Join a trainer with a host's connection."""
        host = self._rooms.get(room, {}).get(host_id)
        pair = Pair(trainer, data, self.traffic, *([] if host is None else [host.traffic]))
        self._pairs.add(pair)
        self.opened += 1
        if host is not None:
            host.sessions.add(pair)
        owners = [self._pairs] if host is None else [self._pairs, host.sessions]

        def forget(_: asyncio.Future[None]) -> None:
            for owner in owners:
                owner.discard(pair)

        trainer.closed.add_done_callback(forget)
        return pair

    def drop_stalled(self) -> None:
        """Drop the pairs of which one peer has done nothing for too long."""
        now = time.monotonic()
        for pair in list(self._pairs):
            self.dropped += pair.drop_if_stalled(now, self.limits.stall_timeout_s)

    def close(self) -> None:
        """End all connections."""
        for pair in list(self._pairs):
            pair.abort()
        for hosts in list(self._rooms.values()):
            for host in list(hosts.values()):
                host.leave()


def read_offers(offers: dict[str, Any]) -> dict[str, Any]:
    """Return what a host offers, without what is no plain value.

    Raises:
        ProtocolError: it tells more than a host would.
    """
    if len(offers) > _MAX_OFFER_FIELDS:
        raise ProtocolError(f"the host tells {len(offers)} facts of itself, expected at most {_MAX_OFFER_FIELDS}")
    return {key: value for key, value in offers.items() if value is None or isinstance(value, bool | int | float | str)}
