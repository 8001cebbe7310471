"""How many groups of environments to keep in flight, so that the way there and back does not limit the pace.

While a request is on its way nothing else happens to its environments, so N environments take at most N / RTT steps
per second. What else there is to do (step, act, pack) comes on top of a round trip where all of them travel together;
in groups, it is done for one while the others travel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from agentgpt_remote.errors import AgentGPTError

_Host = TypeVar("_Host")
_Result = TypeVar("_Result")
_logger = logging.getLogger("agentgpt_remote.client")
AUTO = "auto"
MESSAGE_S = 150e-6  # to pack, send, receive and unpack a small request and its reply
MAX_GROUPS = 64
_NEAR_BEST = 0.97  # what fewer groups must reach of it
_PROBE_ENVS, _PROBED_HOSTS = 8, 8
_PINGS, _STEPS = 5, 8
_MEASURE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client does for a group between a reply and the next request.

    Attributes:
        fixed_s: whatever the size of the group, in seconds.
        per_env_s: for each environment, in seconds.
    """

    fixed_s: float = 1e-3
    per_env_s: float = 20e-6

    def act_s(self, num_envs: int) -> float:
        """Return the seconds that it takes for so many environments at once."""
        return self.fixed_s + num_envs * self.per_env_s


@dataclass(frozen=True, kw_only=True)
class Way:
    """The way to a host and its pace.

    Attributes:
        rtt_s: from a request that asks for nothing until its reply, in seconds.
        step_s: of one environment on the host, in seconds; environments step one after the other.
    """

    rtt_s: float
    step_s: float


def pace(ways: Sequence[Way], num_envs: int, groups: int, client: Client) -> float:
    """Return the steps per second to expect.

    Args:
        ways: to each host; environments are spread evenly over them.
        num_envs: in all.
        groups: in flight. Where there are fewer than hosts, each waits for the farthest of its hosts.
        client: what it does in between.
    """
    hosts = len(ways)
    messages = max(groups, hosts)
    together, share = -(-num_envs // messages), num_envs / hosts
    acting_s = client.act_s(-(-num_envs // groups))
    cycles = []
    for way in ways:
        alone_s = way.rtt_s + together * way.step_s + MESSAGE_S + acting_s
        host_s = share * way.step_s + messages / hosts * MESSAGE_S
        cycles.append(max(alone_s, host_s))
    supply = num_envs / max(cycles) if groups < hosts else sum(share / cycle for cycle in cycles)
    return min(supply, num_envs / (groups * acting_s + messages * MESSAGE_S))


def choose_groups(
    ways: Sequence[Way], num_envs: int, client: Client | None = None, *, candidates: Iterable[int] | None = None
) -> int:
    """Return the smallest number of groups that is about as fast as any.

    Args:
        ways: to each host.
        num_envs: environments in all.
        client: what it does between a reply and the next request; by default as much as a small policy.
        candidates: numbers to choose from; by default those of groups of one size.

    Example:
        >>> choose_groups([Way(rtt_s=0.1, step_s=1e-3)], num_envs=64)
        16
    """
    client = Client() if client is None else client
    numbers = range(1, min(num_envs, MAX_GROUPS) + 1)
    allowed = [count for count in numbers if num_envs % count == 0] if candidates is None else sorted(candidates)
    paces = {count: pace(ways, num_envs, count, client) for count in allowed}
    best = max(paces.values())
    return next(count for count, steps in paces.items() if steps >= _NEAR_BEST * best)


def ceiling(num_envs: int, rtt_s: float) -> float:
    """Return how many steps per second so many environments in flight can take at most."""
    return num_envs / rtt_s if rtt_s > 0 else float("inf")


def advice(way: Way, num_envs: int, client: Client | None = None) -> str:
    """Return what to keep in flight, in one line.

    Args:
        way: to the host.
        num_envs: that it offers.
        client: what the client does between a reply and the next request.
    """
    client = Client() if client is None else client
    top = ceiling(num_envs, way.rtt_s)
    alone = pace([way], num_envs, 1, client)
    groups = choose_groups([way], num_envs, client)
    told = f"ceiling {top:,.0f} steps/s = {num_envs} envs / RTT"
    if groups == 1:
        return f"{told}; one group in flight is enough (about {alone:,.0f} steps/s with a small policy)"
    paced = pace([way], num_envs, groups, client)
    return (
        f"{told}; keep {groups} groups in flight, or groups='auto': about {paced:,.0f} steps/s with a small policy, "
        f"one group {alone:,.0f}"
    )


def measure_some(measured: Callable[[_Host], _Result], hosts: Sequence[_Host]) -> list[_Result]:
    """Return what some of the hosts show, measured at the same time; without those that can't be measured now.

    Args:
        measured: measures one.
        hosts: of which at most eight are measured, evenly chosen.
    """
    some = hosts[:: -(-len(hosts) // _PROBED_HOSTS)]

    def attempt(host: _Host) -> _Result | None:
        try:
            return measured(host)
        except AgentGPTError as error:  # told when the host is opened
            _logger.info("host=%s not measured: %s", host, error)
            return None

    with ThreadPoolExecutor(len(some), thread_name_prefix="agentgpt-measure") as pool:
        return [found for found in pool.map(attempt, some) if found is not None]


def probe_size(num_envs: int) -> int:
    """Return how many environments to measure with."""
    return min(num_envs, _PROBE_ENVS)


def measure(probe: Any, clock: Callable[[], float] = time.perf_counter) -> Way:
    """Return the way to the host of a remote vector environment that is there for this.

    Args:
        probe: a RemoteVectorEnv on one host; it is reset and stepped at random.
        clock: in seconds.
    """
    rtts = [probe.ping() for _ in range(_PINGS)]
    probe.action_space.seed(0)
    probe.reset(seed=0)
    steps: list[float] = []
    began = clock()
    while len(steps) < _STEPS and (clock() - began < _MEASURE_S or not steps):
        probe.step(probe.action_space.sample())
        steps.append(probe.host_step_s / probe.num_envs)
    return Way(rtt_s=min(rtts), step_s=median(steps))
