"""The live view of a run: main figures, the curve of returns, one line per host, the time left."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentgpt_remote.trainer.reporting import Progress

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48
_MAX_HOSTS = 12
_SHARES = (("network", "time/network_s"), ("act", "time/act_s"), ("learn", "time/learn_s"))


def sparkline(values: Sequence[float], width: int = _CURVE_WIDTH) -> str:
    """Return values as a line of bars from the lowest to the highest, at most ``width`` of them.

    >>> sparkline([0, 1, 2, 3, 7])
    '▁▂▃▄█'
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1)) if span > 0 else 0] for value in means)


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> duration(59.6), duration(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Recent:
    """What a view remembers of a run: its returns, its last greedy return and its pace.

    Attributes:
        returns: mean training returns, report after report.
        latest: every metric's latest value that was there.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.returns: deque[float] = deque(maxlen=4096)
        self.latest: dict[str, float] = {}
        self._clock = clock
        self._began: tuple[float, int] | None = None

    def add(self, progress: Progress) -> None:
        """Take in a report."""
        if self._began is None:
            # What was done before the first report, such as starting hosts, tells nothing of the pace.
            self._began = (self._clock(), progress.env_steps)
        if progress.episode_return is not None:
            self.returns.append(progress.episode_return)
        self.latest.update({name: value for name, value in progress.metrics.items() if value is not None})

    def seconds_left(self, progress: Progress) -> float | None:
        """Return the seconds until the last step at the pace so far; None before there is one."""
        if self._began is None:
            return None
        elapsed, steps = self._clock() - self._began[0], progress.env_steps - self._began[1]
        return elapsed * max(0, progress.max_steps - progress.env_steps) / steps if steps > 0 else None


def render(progress: Progress, recent: Recent) -> Any:
    """Return the view as something that rich prints."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    left = recent.seconds_left(progress)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=progress.max_steps, completed=progress.env_steps, width=32),
        f"{progress.env_steps:,}/{progress.max_steps:,} env steps",
        f"{duration(progress.wall_s)} gone",
        f"{'-' if left is None else duration(left)} left",
    )
    parts: list[Any] = [head, _figures(progress, recent.latest)]
    if recent.returns:
        low, high = min(recent.returns), max(recent.returns)
        parts.append(f"returns {_number(low)} [green]{sparkline(list(recent.returns))}[/green] {_number(high)}")
    parts.append(_hosts(progress))
    return Group(*parts)


def _figures(progress: Progress, latest: Mapping[str, float]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(style="dim")
        table.add_column(justify="right")
    rows: list[list[tuple[str, str]]] = [
        [
            ("return, sampled", _number(progress.episode_return)),
            ("return, greedy", _number(latest.get("rollout/greedy_return"))),
            ("episode length", _number(latest.get("rollout/episode_length"))),
            ("episodes", f"{progress.episodes:,}"),
        ],
        [
            ("policy loss", _number(latest.get("train/policy_loss"))),
            ("value loss", _number(latest.get("train/value_loss"))),
            ("entropy", _number(latest.get("train/entropy"))),
            ("policy lag", _number(latest.get("train/policy_lag"))),
        ],
        [
            ("gamma", _number(latest.get("train/gamma"))),
            ("lambda", _number(latest.get("train/lambda"))),
            ("reward scale", _number(latest.get("train/reward_scale"))),
            ("learning rate", _number(latest.get("train/learning_rate"))),
        ],
        [
            ("env steps/s", _number(latest.get("time/sps"))),
            ("tokens/s", _number(latest.get("time/tokens_per_s"))),
            *shares(latest),
        ],
    ]
    for row in rows:
        table.add_row(*(text for pair in row for text in pair))
    return table


def shares(latest: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return where the time goes, in percent, as two pairs of a label and a text."""
    network = latest.get("time/network_s", 0.0)
    seconds = {"env": max(0.0, latest.get("time/env_s", 0.0) - network)}
    seconds |= {label: latest.get(name, 0.0) for label, name in _SHARES}
    total = sum(seconds.values()) or 1.0
    percent = {label: f"{100 * value / total:.0f}%" for label, value in seconds.items()}
    return [
        ("env/network", f"{percent['env']}/{percent['network']}"),
        ("act/learn", f"{percent['act']}/{percent['learn']}"),
    ]


def _hosts(progress: Progress) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("host", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in (
        "agents",
        "in flight",
        "steps/s",
        "ceiling",
        "RTT ms",
        "round trip ms",
        "host step ms",
        "lost",
        "back",
    ):
        table.add_column(name, justify="right")
    for host in progress.hosts[:_MAX_HOSTS]:
        flight = None if host.rtt_ms is None else host.in_flight
        numbers = (flight, host.sps, host.ceiling_sps, host.rtt_ms, host.round_trip_ms, host.host_step_ms)
        style = None if host.agents else "red"
        counts = (str(host.lost), str(host.returned))
        table.add_row(escape(host.name), str(host.agents), *map(_number, numbers), *counts, style=style)
    if len(progress.hosts) > _MAX_HOSTS:
        table.add_row(f"and {len(progress.hosts) - _MAX_HOSTS} more")
    return table


def _number(value: float | None) -> str:
    """Return a number with about four digits, - where there is none."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.1e}"
