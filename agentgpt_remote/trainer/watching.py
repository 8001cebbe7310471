"""What each host contributes while a run goes on, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from agentgpt_remote.trainer.ranks import Ranks

_PER_HOST = (
    *("sps", "ceiling_sps", "rtt_ms", "round_trip_ms", "host_step_ms", "in_flight", "agents", "lost", "returned"),
)


@dataclass(frozen=True, kw_only=True)
class HostHealth:
    """How one host did since the last report, its lanes together.

    Attributes:
        name: the host's name.
        agents: agents that are connected.
        sps: environment steps per second.
        round_trip_ms: from a decision until its result was read, mean; None for environments of this process.
        host_step_ms: what the environments took of it on their host, mean; None likewise.
        lost: how often a lane was lost, in the whole run.
        returned: how often one came back, in the whole run.
        rtt_ms: the shortest way there and back, without the host's step; None for environments of this process.
        in_flight: environments whose step was on its way, or waited to be read, mean.
    """

    name: str
    agents: int
    sps: float
    round_trip_ms: float | None
    host_step_ms: float | None
    lost: int
    returned: int
    rtt_ms: float | None = None
    in_flight: float = 0.0

    @property
    def ceiling_sps(self) -> float | None:
        """Steps per second that its environments can take at most, all of them always in flight: agents / RTT."""
        return 1e3 * self.agents / self.rtt_ms if self.rtt_ms else None

    @property
    def network_ms(self) -> float | None:
        """What is left of a round trip without the host's step."""
        if self.round_trip_ms is None or self.host_step_ms is None:
            return None
        return max(0.0, self.round_trip_ms - self.host_step_ms)


@dataclass(kw_only=True)
class _HostLog:
    agents: dict[str, int] = field(default_factory=dict)  # connected lanes
    gone: set[str] = field(default_factory=set)
    lost: int = 0
    returned: int = 0
    steps: int = 0
    replies: int = 0
    round_trip_s: float = 0.0
    host_step_s: float = 0.0
    shortest_s: float = math.inf
    flown_s: float = 0.0  # of all environments together


class HostWatch:
    """Counts what the lanes of each host do.

    A lane is named after its host and its number there (``lab/0``); lanes of one host are reported together.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, _HostLog] = {}
        self._of_lane: dict[str, _HostLog] = {}

    def joined(self, lane: str, agents: int) -> None:
        """Take note that a lane was opened; one that was lost before counts as returned."""
        log = self._log(lane)
        log.agents[lane] = agents
        if lane in log.gone:
            log.gone.remove(lane)
            log.returned += 1

    def left(self, lane: str) -> None:
        """Take note that a lane was lost."""
        log = self._log(lane)
        log.agents.pop(lane, None)
        log.gone.add(lane)
        log.lost += 1

    def stepped(self, lane: str, steps: int, round_trip_s: float | None = None, host_step_s: float = 0.0) -> None:
        """Take in one reply of a lane; seconds are those of the whole lane, None in this process."""
        log = self._of_lane.get(lane) or self._log(lane)
        log.steps += steps
        if round_trip_s is not None:
            log.replies += 1
            log.round_trip_s += round_trip_s
            log.host_step_s += host_step_s
            log.shortest_s = min(log.shortest_s, max(0.0, round_trip_s - host_step_s))
            log.flown_s += log.agents.get(lane, 0) * round_trip_s

    def take(self, elapsed_s: float) -> list[HostHealth]:
        """Return how the hosts did in the seconds since this was last called."""
        healths = []
        for name, log in self._hosts.items():
            healths.append(
                HostHealth(
                    name=name,
                    agents=sum(log.agents.values()),
                    sps=log.steps / elapsed_s if elapsed_s > 0 else 0.0,
                    round_trip_ms=1e3 * log.round_trip_s / log.replies if log.replies else None,
                    host_step_ms=1e3 * log.host_step_s / log.replies if log.replies else None,
                    lost=log.lost,
                    returned=log.returned,
                    rtt_ms=1e3 * log.shortest_s if log.replies else None,
                    in_flight=log.flown_s / elapsed_s if elapsed_s > 0 else 0.0,
                )
            )
            log.steps = log.replies = 0
            log.round_trip_s = log.host_step_s = log.flown_s = 0.0
            log.shortest_s = math.inf
        return healths

    def _log(self, lane: str) -> _HostLog:
        log = self._hosts.setdefault(host_of(lane), _HostLog())
        self._of_lane[lane] = log
        return log


def host_of(lane: str) -> str:
    """Return the name of a lane's host, without the scheme of a URL.

    >>> host_of("ws://sim-7:8000/1"), host_of("lab/0"), host_of("envs[0]")
    ('sim-7:8000', 'lab', 'envs[0]')
    """
    name = lane.rpartition("/")[0] or lane
    return name.partition("://")[2] or name


def hosts_of_all_ranks(hosts: Sequence[HostHealth], ranks: Ranks) -> list[HostHealth]:
    """Return the health of all ranks' hosts; of several ranks each host is named after its rank as well."""
    if ranks.size == 1:
        return list(hosts)
    rows = ranks.share([asdict(host) for host in hosts])
    healths = [(rank, HostHealth(**told)) for rank, row in enumerate(rows) for told in row]
    return [replace(health, name=f"rank-{rank}/{health.name}") for rank, health in healths]


def host_metrics(hosts: Sequence[HostHealth]) -> dict[str, float | None]:
    """Return the hosts' health as ``remote/...`` metrics: over all of them, then ``remote/<host>/...`` of each."""
    metrics: dict[str, float | None] = {
        "remote/round_trip_ms": _weighted(hosts, "round_trip_ms"),
        "remote/host_step_ms": _weighted(hosts, "host_step_ms"),
        "remote/network_ms": _weighted(hosts, "network_ms"),
        "remote/agents": float(sum(host.agents for host in hosts)),
        "remote/in_flight": sum(host.in_flight for host in hosts),
        "remote/ceiling_sps": sum(host.ceiling_sps or 0.0 for host in hosts) or None,
        "remote/lost": float(sum(host.lost for host in hosts)),
        "remote/returned": float(sum(host.returned for host in hosts)),
    }
    for host in hosts:
        for name in _PER_HOST:
            value = getattr(host, name)
            metrics[f"remote/{host.name}/{name}"] = None if value is None else float(value)
    return metrics


def _weighted(hosts: Sequence[HostHealth], name: str) -> float | None:
    """Return a mean over hosts by the steps that they took."""
    pairs = [(host.sps, value) for host in hosts if (value := getattr(host, name)) is not None]
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total > 0 else None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one report's interval.

    Attributes:
        wait_s: waiting for environments.
        act_s: choosing actions and sending them.
        learn_s: updating.
        total_s: all of it, with what belongs to none of them.
    """

    wait_s: float
    act_s: float
    learn_s: float
    total_s: float


def time_metrics(
    spent: Spent, *, env_steps: int, learned: Mapping[str, float], remote: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Return where the time went, as ``time/...`` metrics.

    ``time/network_s`` is the part of ``time/env_s`` that the way to the hosts and back takes: as much of it as
    of a round trip.

    Args:
        spent: seconds of the interval.
        env_steps: environment steps of the interval.
        learned: what the learner reported; ``train/trained_tokens`` gives tokens per second.
        remote: from :func:`host_metrics`.
    """
    round_trip, network = remote.get("remote/round_trip_ms"), remote.get("remote/network_ms")
    tokens = learned.get("train/trained_tokens")
    return {
        "time/sps": env_steps / spent.total_s if spent.total_s > 0 else 0.0,
        "time/tokens_per_s": None if tokens is None or spent.learn_s <= 0 else tokens / spent.learn_s,
        "time/env_s": spent.wait_s,
        "time/network_s": spent.wait_s * network / round_trip if round_trip and network is not None else None,
        "time/act_s": spent.act_s,
        "time/learn_s": spent.learn_s,
    }
