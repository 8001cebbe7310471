"""What hosts offer, and how environments are spread over them in proportion."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agentgpt_remote.errors import AgentGPTError, CapacityReached
from agentgpt_remote.fetching import HttpStatus, get_json
from agentgpt_remote.handshake import MAX_ENVS

_HEALTH_TIMEOUT_S = 10.0
_NOT_FOUND = 404
_FREE_POLL_S = 0.02
_logger = logging.getLogger("agentgpt_remote.client")


def host_health(url: str, token: str | None = None) -> dict[str, Any]:
    """Return what a host tells of itself; nothing where it does not answer, which connecting explains better.

    Args:
        url: of the host.
        token: of its relay; a host that is reached directly needs none for this.
    """
    try:
        return dict(ask_health(url, token))
    except (AgentGPTError, ValueError, TypeError) as error:
        _logger.debug("url=%s health=%s", url, error)
        return {}


def ask_health(url: str, token: str | None = None) -> Any:
    """Return what a host, or its relay in its place, tells of itself; raises as :func:`get_json`."""
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    if parts.path.strip("/"):
        try:
            return get_json(url, "/health", token=token, timeout_s=_HEALTH_TIMEOUT_S)
        except HttpStatus as error:
            if error.status != _NOT_FOUND:
                raise
    return get_json(f"{parts.scheme}://{parts.netloc}", "/health", timeout_s=_HEALTH_TIMEOUT_S)


def free_envs(health: Mapping[str, Any], *, with_lost: bool = False) -> int | None:
    """Return how many environments a host has free, or ``None`` where it has no limit or does not tell.

    Args:
        health: what it tells of itself.
        with_lost: whether to count those of lost sessions, which will be free.
    """
    limit = health.get("num_envs")
    if limit is None:
        return None
    return max(0, int(limit) - int(health.get("envs", 0)) + (int(health.get("lost_envs", 0)) if with_lost else 0))


def await_free(free: Callable[[], int], wanted: int, timeout_s: float = 5.0) -> None:
    """Wait until so many environments are free again, as after a session was closed, which its host does by itself."""
    deadline = time.monotonic() + timeout_s
    while free() < wanted and time.monotonic() < deadline:
        time.sleep(_FREE_POLL_S)


class Part(NamedTuple):
    """Consecutive environments of one group on one host.

    Attributes:
        host: index of the host.
        group: index of the group.
        num_envs: how many.
    """

    host: int
    group: int
    num_envs: int


def spread(num_envs: int, groups: int, free: Sequence[int | None]) -> list[Part]:
    """Spread environments over hosts in proportion to what each has free, in order.

    A group lies on one host where that is possible, so that a far host never holds up the groups of a near one.

    Args:
        num_envs: environments in all; a multiple of ``groups``.
        groups: number of equal groups.
        free: environments that each host has free; ``None`` without a limit, which counts as an equal share.

    Raises:
        CapacityReached: the hosts together have too few.
    """
    size = num_envs // groups
    limits = [min(num_envs, MAX_ENVS) if room is None else room for room in free]
    if sum(limits) < num_envs:
        told = ", ".join(map(str, limits))
        raise CapacityReached(f"asked for {num_envs} environments: the hosts have {told} free. Ask for fewer")
    # Without a limit: as much as the average of those that have one.
    known = [room for room in free if room is not None]
    equal = max(1.0, sum(known) / len(known)) if known else 1.0
    weights = [equal if room is None else float(room) for room in free]
    whole_groups = [limit // size for limit in limits]
    if groups >= len(free) and sum(whole_groups) >= groups:
        shares = [count * size for count in _apportion(groups, weights, whole_groups)]
    else:
        shares = _apportion(num_envs, weights, limits)
    parts, env = [], 0
    for host, share in enumerate(shares):
        end = env + share
        while env < end:
            group = env // size
            stop = min(end, (group + 1) * size)
            parts.append(Part(host, group, stop - env))
            env = stop
    return parts


def _apportion(total: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Return whole shares in proportion to the weights, none above its limit (largest remainders)."""
    shares = [0] * len(weights)
    for _ in range(total):
        room = [index for index in range(len(shares)) if shares[index] < limits[index] and weights[index] > 0]
        shares[min(room, key=lambda index: (shares[index] + 0.5) / weights[index])] += 1
    return shares
