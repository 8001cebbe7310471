"""What a remote environment reaches, as ratios to a baseline that runs beside it.

Usage, from the repository's root: ``python -m benchmarks.remote_env [NAMES...] [--seconds 3] [--repeats 3] [--json]``.

Each measure lets its contenders run in turns, ``--seconds`` each, ``--repeats`` times. Figures are medians; a ratio
compares neighbours in time: it is the median of the ratios of each turn. Hosts are processes of their own on this
machine, everything runs with one thread, and actions are random, sampled beforehand. The machine should be idle
otherwise: client and host keep two cores busy.

- single: one CartPole-v1 beside blocking TCP that exchanges as many bytes. An episode's reset is an exchange too, and
  counts as a step. The second line, for reading, has the environment stepped behind the TCP server as well.
- spin: the same with ``spin_wait=True``, beside the default.
- cartpole, walker: 64 environments beside ``SyncVectorEnv`` in this process and ``AsyncVectorEnv`` with shared memory.
- image: 64 environments with images of 84 x 84 x 4 bytes and a trivial step, beside ``AsyncVectorEnv`` and TCP that
  exchanges as many bytes. TCP receives each reply into memory of its own, as a caller owns a remote environment's
  observations. Lines for reading reuse the memory, or have the environments stepped behind the TCP server as well.
- delay: four groups of 64 behind 50 ms each way, beside 256 environments for each round trip.
- sessions: 32 sessions of 8 environments on one host beside one of 256, and how evenly they are served.
- idle: what 500 idle sessions cost their host beyond their environments, in memory and processor time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import gymnasium as gym
import psutil  # type: ignore[import-untyped]

from agentgpt_remote import RemoteEnv, RemoteVectorEnv, __version__
from agentgpt_remote.wrappers.local_host import LocalHost
from benchmarks.contenders import (
    Contender,
    ManySessions,
    Rates,
    Row,
    beside,
    compare,
    in_groups,
    message_bytes,
    print_rows,
    tcp,
    timed,
    vectors,
)
from benchmarks.tcp_baseline import PingPong, answering, delaying, stepper

CARTPOLE, WALKER, IMAGE = "CartPole-v1", "Walker2d-v5", "benchmarks.image_env:Image-v0"
_MEGABYTE = 1e6
_IDLE_MB, _IDLE_SHARE = 2.0, 0.02


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much to measure.

    Attributes:
        seconds: how long a contender runs at a time.
        repeats: how often each runs.
        num_envs: environments of a vector, and of each of the delayed groups.
        delayed_groups: groups in flight behind the delay.
        delay_s: delay each way, in seconds.
        sessions: sessions on one host; all of them together have as many environments as the delayed groups.
        idle_sessions: numbers of idle sessions between which the host's memory is compared.
    """

    seconds: float = 3.0
    repeats: int = 3
    num_envs: int = 64
    delayed_groups: int = 4
    delay_s: float = 0.05
    sessions: int = 32
    idle_sessions: tuple[int, int] = (50, 500)

    def compare(self, contenders: dict[str, Contender]) -> Rates:
        """Return the rates of the contenders."""
        return compare(contenders, self.seconds, self.repeats)


def single(setting: Setting) -> list[Row]:
    """Measure one environment beside TCP."""
    with ExitStack() as stack:
        contenders = {
            "TCP": tcp(stack, CARTPOLE, None),
            "TCP with the env behind it": tcp(stack, CARTPOLE, None, stepped=True),
            "remote": timed(stepper(stack.enter_context(RemoteEnv(CARTPOLE)))),
        }
        rates = setting.compare(contenders)
    return [
        beside(CARTPOLE, rates, "remote", "TCP", 0.85),
        beside(CARTPOLE, rates, "remote", "TCP with the env behind it"),
    ]


def spin(setting: Setting) -> list[Row]:
    """Measure what polling for the reply wins."""
    with RemoteEnv(CARTPOLE) as sleeping, RemoteEnv(CARTPOLE, spin_wait=True) as spinning:
        rates = setting.compare({"default": timed(stepper(sleeping)), "spin_wait": timed(stepper(spinning))})
    return [beside(CARTPOLE, rates, "spin_wait", "default", 3.0)]


def cartpole(setting: Setting) -> list[Row]:
    """Measure many small steps."""
    n = setting.num_envs
    with ExitStack() as stack:
        contenders = vectors(stack, CARTPOLE, n)
        contenders["two groups"] = in_groups(stack.enter_context(RemoteVectorEnv(CARTPOLE, n, groups=2)), 2)
        rates = setting.compare(contenders)
    what = f"{CARTPOLE} x {n}"
    return [
        beside(what, rates, "remote", "SyncVectorEnv", 0.65),
        beside(what, rates, "two groups", "SyncVectorEnv", 0.9),
        beside(what, rates, "remote", "AsyncVectorEnv", 1.0),
    ]


def walker(setting: Setting) -> list[Row]:
    """Measure slow steps, which two processes of the host share."""
    with ExitStack() as stack:
        rates = setting.compare(vectors(stack, WALKER, setting.num_envs, workers=2))
    what = f"{WALKER} x {setting.num_envs}, 2 workers"
    return [
        beside(what, rates, "remote", "SyncVectorEnv", 1.3),
        beside(what, rates, "remote", "AsyncVectorEnv", 1.0),
    ]


def image(setting: Setting) -> list[Row]:
    """Measure large observations beside TCP."""
    n = setting.num_envs
    with ExitStack() as stack:
        contenders = vectors(stack, IMAGE, n)
        contenders |= {
            "TCP": tcp(stack, IMAGE, n),
            "TCP into the same memory": tcp(stack, IMAGE, n, reuse=True),
            "TCP with the envs behind it": tcp(stack, IMAGE, n, stepped=True),
        }
        rates = setting.compare(contenders)
    what = f"84x84x4 x {n}"
    return [
        beside(what, rates, "remote", "TCP", 0.9),
        beside(what, rates, "remote", "TCP into the same memory"),
        beside(what, rates, "remote", "TCP with the envs behind it"),
        beside(what, rates, "remote", "AsyncVectorEnv", 1.0),
    ]


def delay(setting: Setting) -> list[Row]:
    """Measure groups in flight over a long way, beside a ping-pong over the same."""
    groups, total = setting.delayed_groups, setting.delayed_groups * setting.num_envs
    sizes = message_bytes(CARTPOLE, setting.num_envs)
    with ExitStack() as stack:
        host, server = stack.enter_context(LocalHost(CARTPOLE)), stack.enter_context(answering(*sizes))
        ports = [int(host.url.rpartition(":")[2]), server.ready["port"]]
        to_host, to_server = stack.enter_context(delaying(ports, setting.delay_s)).ready["ports"]
        client = stack.enter_context(PingPong(to_server, *sizes))
        url = f"ws://127.0.0.1:{to_host}"
        envs = stack.enter_context(RemoteVectorEnv(url=url, token=host.token, num_envs=total, groups=groups))
        rates = setting.compare({"envs / RTT": timed(client.exchange, total), "remote": in_groups(envs, groups)})
    what = f"{1e3 * setting.delay_s:g} ms each way, {CARTPOLE} x {total} in {groups} groups"
    return [beside(what, rates, "remote", "envs / RTT", 0.95)]


def sessions(setting: Setting) -> list[Row]:
    """Measure many clients of a host beside one with as many environments."""
    count, total = setting.sessions, setting.delayed_groups * setting.num_envs
    with ExitStack() as stack:
        host = stack.enter_context(LocalHost(CARTPOLE))

        def connect(num_envs: int) -> RemoteVectorEnv:
            return stack.enter_context(RemoteVectorEnv(url=host.url, token=host.token, num_envs=num_envs))

        many = ManySessions([connect(total // count) for _ in range(count)])
        rates = setting.compare({"one session": timed(stepper(connect(total)), total), f"{count} sessions": many})
    turns = many.rates[-setting.repeats :]
    fairness = Row(
        measure=f"{CARTPOLE}, {count} sessions: slowest / median",
        baseline=median(median(turn) for turn in turns),
        ours=median(turn[0] for turn in turns),
        ratios=[turn[0] / median(turn) for turn in turns],
        bar=0.7,
    )
    return [beside(f"{CARTPOLE} x {total}", rates, f"{count} sessions", "one session", 0.5), fairness]


def idle(setting: Setting) -> list[Row]:
    """Measure what sessions that nobody steps cost their host; once, as there are hundreds."""
    few, many = setting.idle_sessions
    with ExitStack() as stack:
        host = stack.enter_context(LocalHost(CARTPOLE))
        process = psutil.Process(host.pid)
        own_mb = _growth_mb(psutil.Process(), lambda: stack.enter_context(closing(gym.make(CARTPOLE))), few, many)
        session_mb = _growth_mb(
            process, lambda: stack.enter_context(RemoteEnv(url=host.url, token=host.token)), few, many
        )
        busy_s, start = _processor_s(process), time.perf_counter()
        time.sleep(setting.seconds)
        share = (_processor_s(process) - busy_s) / (time.perf_counter() - start)
    beyond_mb = session_mb - own_mb
    return [
        Row(
            measure=f"MB of each of {many} idle sessions beyond its env / {_IDLE_MB:g} MB",
            baseline=_IDLE_MB,
            ours=beyond_mb,
            ratios=[beyond_mb / _IDLE_MB],
            bar=1.0,
            below=True,
        ),
        Row(
            measure=f"processor share of a host with {many} idle sessions / {_IDLE_SHARE:g}",
            baseline=_IDLE_SHARE,
            ours=share,
            ratios=[share / _IDLE_SHARE],
            bar=1.0,
            below=True,
        ),
    ]


def _growth_mb(process: psutil.Process, make: Callable[[], gym.Env[Any, Any]], few: int, many: int) -> float:
    """Return by how much the process, with its children, grows for each environment made after the first few."""
    sizes = []
    for count in (few, many - few):
        for _ in range(count):
            env = make()
            env.reset(seed=0)
            env.step(0)
        sizes.append(sum(each.memory_info().rss for each in _family(process)))
    return float(sizes[1] - sizes[0]) / (many - few) / _MEGABYTE


def _processor_s(process: psutil.Process) -> float:
    """Return the processor time of the process and its children, in seconds."""
    return sum(sum(each.cpu_times()[:2]) for each in _family(process))


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


MEASURES: dict[str, Callable[[Setting], list[Row]]] = {
    measure.__name__: measure for measure in (single, spin, cartpole, walker, image, delay, sessions, idle)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 where every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"some of {', '.join(MEASURES)}; all by default")
    parser.add_argument("--seconds", type=float, default=Setting.seconds, help="how long a contender runs at a time")
    parser.add_argument("--repeats", type=int, default=Setting.repeats, help="how often each of them runs")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"unknown measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}")
    if options.seconds <= 0 or options.repeats < 1:
        parser.error(f"--seconds {options.seconds:g} --repeats {options.repeats} measures nothing: expected more")
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    multiprocessing.set_forkserver_preload(["gymnasium", "benchmarks.image_env"])
    setting = Setting(seconds=options.seconds, repeats=options.repeats)
    load, rows = os.getloadavg()[0], []
    for name in options.names or MEASURES:
        rows += MEASURES[name](setting)
    if options.json:
        report = {"benchmark": "remote_env", "package": __version__, "python": platform.python_version()}
        made = [{**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows]
        print(json.dumps({**report, "cores": os.cpu_count(), "load": round(load, 2), "rows": made}))
    else:
        print_rows(rows)
    return 1 if any(row.reached is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
