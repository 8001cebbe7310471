"""What a relay tells of itself: Prometheus text without names, and a table of rooms for who may see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgpt_remote.server.rooms import Rooms

_BUCKETS_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.0)


def metrics_text(rooms: Rooms, refused: Mapping[int, int], uptime_s: float) -> str:
    """Return the metrics in Prometheus' text format (version 0.0.4); neither rooms nor hosts are named.

    Args:
        rooms: of the relay.
        refused: requests that were refused, by HTTP status.
        uptime_s: seconds since the relay began.
    """
    traffic = rooms.traffic
    lines: list[str] = []

    def add(name: str, kind: str, what: str, samples: list[tuple[str, float]]) -> None:
        lines.append(f"# HELP agentgpt_relay_{name} {what}")
        lines.append(f"# TYPE agentgpt_relay_{name} {kind}")
        lines.extend(f"agentgpt_relay_{name}{labels} {value:g}" for labels, value in samples)

    add("uptime_seconds", "gauge", "Seconds since the relay began.", [("", round(uptime_s, 3))])
    add("rooms", "gauge", "Rooms with a host in them.", [("", len(rooms.names))])
    add("hosts", "gauge", "Hosts in all rooms.", [("", rooms.host_count)])
    add("sessions", "gauge", "Sessions that go through, or wait for their host.", [("", rooms.session_count)])
    add("sessions_total", "counter", "Sessions that went through so far.", [("", rooms.opened)])
    add("sessions_dropped_total", "counter", "Sessions dropped for a peer that stalled.", [("", rooms.dropped)])
    add("frames_total", "counter", "WebSocket frames forwarded.", [("", traffic.frames)])
    sent = [('{to="host"}', float(traffic.to_host_bytes)), ('{to="trainer"}', float(traffic.to_trainer_bytes))]
    add("bytes_total", "counter", "Bytes forwarded.", sent)
    statuses = [(f'{{status="{status}"}}', float(count)) for status, count in sorted(refused.items())]
    add("refused_total", "counter", "Requests refused.", statuses)
    trips = [seconds for name in rooms.names for host in rooms.hosts(name) for seconds in host.round_trips_s]
    buckets = [(f'_bucket{{le="{edge:g}"}}', float(sum(trip <= edge for trip in trips))) for edge in _BUCKETS_S]
    buckets += [('_bucket{le="+Inf"}', float(len(trips))), ("_sum", sum(trips)), ("_count", float(len(trips)))]
    add("round_trip_seconds", "histogram", "Latest round trips between relay and hosts.", buckets)
    return "\n".join(lines) + "\n"


def rooms_table(rooms: Rooms) -> dict[str, list[dict[str, Any]]]:
    """Return the hosts of each room, with their round trips and bytes."""
    return {name: [host.describe() for host in rooms.hosts(name)] for name in rooms.names}
