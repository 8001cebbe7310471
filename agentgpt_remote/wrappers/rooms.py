"""Rooms of a relay, from a client's side: one URL that stands for all the hosts in it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agentgpt_remote.errors import ConnectionLost, HostUnreachable
from agentgpt_remote.fetching import HttpStatus, get_json
from agentgpt_remote.meeting import HOST_PATTERN, RELAY_HINT
from agentgpt_remote.wrappers.offers import free_envs

_POLL_S = 0.25


class RoomMember(NamedTuple):
    """A host in a room.

    Attributes:
        url: where it is reached, through the relay.
        name: what it calls itself.
        offers: what its health tells.
        round_trip_ms: between the relay and it; ``None`` where that is not known yet.
    """

    url: str
    name: str
    offers: dict[str, Any]
    round_trip_ms: float | None


class Room:
    """A room of a relay.

    Args:
        url: of the room, such as ``wss://relay/room``.
        token: of its trainers; kept here only, never shown.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._token = token

    def __repr__(self) -> str:
        return f"Room({self.url!r})"

    @classmethod
    def at(cls, url: Any, token: str | None) -> Room | None:
        """Return the room at a URL, or ``None`` where the URL is a host's own.

        Raises:
            HostUnreachable: nothing listens there.
            AuthError: the token is missing or wrong.
        """
        if not isinstance(url, str) or not _may_be_room(url):
            return None
        room = cls(url, token)
        try:
            room.members()
        except HttpStatus:  # a host behind a proxy that puts a path before it
            return None
        return room

    def members(self) -> list[RoomMember]:
        """Return the hosts that are there now.

        Raises:
            HostUnreachable: the relay can't be reached.
            AuthError: the token is missing or wrong.
            ProtocolMismatch: what listens there is no relay.
        """
        answer = get_json(self.url, "/hosts", token=self._token, hint=RELAY_HINT)
        try:
            return [
                RoomMember(f"{self.url}/{host['id']}", str(host["name"]), dict(host["offers"]), host["round_trip_ms"])
                for host in answer["hosts"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise HttpStatus(self.url, 200, "with something else than a list of hosts") from error

    def wait(self, wait_s: float, num_envs: int = 1) -> list[RoomMember]:
        """Wait until hosts with room for so many environments are there; return those that are when the time is over.

        Raises:
            HostUnreachable: there is no host at all.
        """
        deadline = time.monotonic() + wait_s
        while True:
            found = self._members_or_none(deadline)
            free = [free_envs(member.offers) for member in found]
            if found and (None in free or sum(room or 0 for room in free) >= num_envs):
                return found
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
        if not found:
            room = self.url.rpartition("/")[2]
            raise HostUnreachable(
                f"no host came to room {room!r} at {self.url} within {wait_s:g} s: start one with "
                f"`agentgpt serve SOURCE --connect {self.url}`, or wait longer with connect_timeout_s="
            )
        return found

    def _members_or_none(self, deadline: float) -> list[RoomMember]:
        try:
            return self.members()
        except ConnectionLost:
            if time.monotonic() >= deadline:
                raise
            return []


def _may_be_room(url: str) -> bool:
    """Tell whether a URL has a path that does not end with a host's name."""
    try:
        last = urlsplit(url if "://" in url else f"ws://{url}").path.strip("/").rpartition("/")[2]
    except ValueError:  # connecting names what is wrong with it
        return False
    return bool(last) and not HOST_PATTERN.fullmatch(last)
