"""What ``groups="auto"`` reaches over a long way, beside environments / round-trip time.

Usage, from the repository's root: ``python -m benchmarks.far [--delay-ms 50] [--act-ms 0] [--json FILE]``.

A host process on this machine stands behind a line that delivers everything ``--delay-ms`` later, each way. For each
number of environments, ``groups="auto"`` measures the line and chooses; beside it runs one group, and a TCP ping-pong
over the same line, whose round trips give the ceiling. With ``--act-ms`` the client computes for so long between a
reply and the next request, as a policy does. The bar is 0.9 of the ceiling.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agentgpt_remote import RemoteVectorEnv
from agentgpt_remote.wrappers.local_host import LocalHost
from benchmarks.contenders import Contender, Row, beside, compare, in_groups, message_bytes, print_rows, timed
from benchmarks.tcp_baseline import PingPong, answering, delaying

SOURCE = "CartPole-v1"
BAR = 0.9


def acting(envs: RemoteVectorEnv, act_s: float) -> Contender:
    """Return a contender that keeps every group in flight, and computes before each request."""
    send = envs.send

    def send_later(group: int, actions: Any) -> None:
        until = time.perf_counter() + act_s
        while time.perf_counter() < until:
            continue
        send(group, actions)

    if act_s:
        envs.send = send_later  # type: ignore[method-assign]
    return in_groups(envs, envs.groups)


def measure(num_envs: int, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of one number of environments."""
    delay_s = 1e-3 * arguments.delay_ms
    sizes = message_bytes(SOURCE, num_envs)
    with ExitStack() as stack:
        host, server = stack.enter_context(LocalHost(SOURCE)), stack.enter_context(answering(*sizes))
        ports = [int(host.url.rpartition(":")[2]), server.ready["port"]]
        to_host, to_server = stack.enter_context(delaying(ports, delay_s)).ready["ports"]
        ping = stack.enter_context(PingPong(to_server, *sizes))
        url = f"ws://127.0.0.1:{to_host}"
        auto, one = (
            stack.enter_context(RemoteVectorEnv(url=url, token=host.token, num_envs=num_envs, groups=groups))
            for groups in ("auto", 1)
        )
        chosen = f"auto ({auto.groups} groups)"
        contenders = {
            "envs / RTT": timed(ping.exchange, num_envs),
            chosen: acting(auto, 1e-3 * arguments.act_ms),
            "one group": acting(one, 1e-3 * arguments.act_ms),
        }
        rates = compare(contenders, arguments.seconds, arguments.repeats)
    what = f"{arguments.delay_ms:g} ms each way, {arguments.act_ms:g} ms acting, {SOURCE} x {num_envs}"
    return [beside(what, rates, chosen, "envs / RTT", BAR), beside(what, rates, "one group", "envs / RTT")]


def main() -> int:
    """Measure and print; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--delay-ms", type=float, default=50.0, help="delay each way")
    parser.add_argument("--act-ms", type=float, default=0.0, help="what the client computes for each group")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    arguments = parser.parse_args()
    rows = list(itertools.chain.from_iterable(measure(count, arguments) for count in arguments.num_envs))
    print_rows(rows)
    if arguments.json is not None:
        told = [{"measure": row.measure, "rate": row.ours, "ceiling": row.baseline, "ratio": row.ratio} for row in rows]
        arguments.json.write_text(json.dumps(told, indent=2))
    return int(any(row.reached is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
