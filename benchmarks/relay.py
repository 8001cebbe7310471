"""What a relay costs, as ratios to what runs beside it.

Usage, from the repository's root: ``python -m benchmarks.relay [NAMES...] [--seconds 3] [--repeats 3] [--json]``.

Each measure lets its contenders run in turns; a ratio compares neighbours in time, figures are medians. Hosts and relay
are processes of their own on this machine, which should be idle otherwise.

- cartpole: 64 x CartPole-v1 in two groups through a relay, beside the same host reached directly.
- image: the same with images of 84 x 84 x 4 bytes.
- scale: one trainer that hosts dial in to, with 10, 100 and 1,000 hosts that have 8,000 environments together:
  processor time of the trainer, its relay included, for each environment step, beside that with 10 hosts; with the
  memory that a host costs it. Hosts share processes, but each has connections, sessions and environments of its own.
  With ``--plot`` a curve is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentgpt_remote import RemoteVectorEnv, __version__
from agentgpt_remote.processes import ChildProcess, read_payload, report_ready
from agentgpt_remote.server.listening import listening, parse_address
from benchmarks.contenders import Row, beside, in_groups, print_rows
from benchmarks.remote_env import CARTPOLE, IMAGE, Setting

HOSTS, TOTAL_ENVS = (10, 100, 1000), 8000
_HOST_PROCESSES = 4
_VECTOR_STEPS = 24
_MEGABYTE = 1e6


@contextmanager
def relay_process() -> Iterator[str]:
    """Run a relay in a process of its own; yield its URL."""
    words = [sys.executable, "-m", "agentgpt_remote", "relay", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = "" if process.stdout is None else process.stdout.readline()
            found = re.search(r"relay at (\S+)", line)
            if found is None:
                raise SystemExit(f"the relay did not start: {line}")
            yield found[1]
        finally:
            process.terminate()


_SERVE = """
import sys, threading
from agentgpt_remote.processes import report_ready
from agentgpt_remote.server import serve
source, room = sys.argv[1:]
with serve(source, port=0, block=False) as near, serve(source, connect=room, block=False):
    report_ready(url=near.url)
    threading.Event().wait()
"""


def _both_ways(source: str, bar: float, setting: Setting) -> list[Row]:
    """Measure environments of one host process, reached through a relay and directly."""
    n = setting.num_envs
    with ExitStack() as stack:
        room = stack.enter_context(relay_process()) + "/bench"
        host = ChildProcess.start(["-c", _SERVE, source, room])
        stack.callback(host.close)
        ways = {"relay": room, "direct": host.ready["url"]}
        envs = {name: stack.enter_context(RemoteVectorEnv(url=url, num_envs=n, groups=2)) for name, url in ways.items()}
        rates = setting.compare({name: in_groups(env, 2) for name, env in envs.items()})
    return [beside(f"{source} x {n} in two groups", rates, "relay", "direct", bar)]


def cartpole(setting: Setting) -> list[Row]:
    """Measure many small steps."""
    return _both_ways(CARTPOLE, 0.8, setting)


def image(setting: Setting) -> list[Row]:
    """Measure large observations."""
    return _both_ways(IMAGE, 0.6, setting)


def train_with_hosts(hosts: int, total_envs: int, vector_steps: int = _VECTOR_STEPS) -> dict[str, float]:
    """Train in a process of its own on hosts that dial in to it; return what a step and a host cost it."""
    payload = {"hosts": hosts, "total_envs": total_envs, "vector_steps": vector_steps}
    trainer = ChildProcess.start(["-m", "benchmarks.relay", "--trainer"], json.dumps(payload).encode())
    crowd = []
    try:
        for index in range(min(_HOST_PROCESSES, hosts)):
            share = hosts // _HOST_PROCESSES + (index < hosts % _HOST_PROCESSES)
            told = {"room": trainer.ready["room"], "source": CARTPOLE, "hosts": share, "num_envs": total_envs // hosts}
            crowd.append(ChildProcess.start(["-m", "benchmarks.light_hosts"], json.dumps(told).encode()))
        trainer.wait(1200.0)
        result: dict[str, float] = json.loads(Path(trainer.ready["result"]).read_text())
        return result
    finally:
        for process in (*crowd, trainer):
            process.close()


def _train(hosts: int, total_envs: int, vector_steps: int) -> None:
    """Be the trainer of :func:`train_with_hosts`."""
    import psutil  # type: ignore[import-untyped]

    from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
    from agentgpt_remote.trainer.loop import train
    from agentgpt_remote.trainer.reporting import Progress
    from agentgpt_remote.wrappers.rooms import Room

    process = psutil.Process()
    marks: list[tuple[int, float]] = []

    def mark(progress: Progress) -> None:
        marks.append((progress.env_steps, time.process_time()))

    with listening(parse_address("127.0.0.1:0")) as place, tempfile.TemporaryDirectory() as folder:
        result = Path(tempfile.mkstemp(prefix="agentgpt-bench-")[1])
        report_ready(room=place.url, result=str(result))
        empty_mb = process.memory_info().rss / _MEGABYTE
        room = Room(place.url, None)
        deadline = time.monotonic() + 300.0
        while len(room.members()) < hosts and time.monotonic() < deadline:
            time.sleep(0.2)
        joined_mb = process.memory_info().rss / _MEGABYTE
        hyperparameters = Hyperparameters(
            env_hosts={"room": EnvHost(env_endpoint=place.url, num_agents=total_envs)},
            num_envs=total_envs // hosts,
            max_steps=total_envs * vector_steps,
            rollout_steps=total_envs * vector_steps // 3,
            algorithm="ppo",
            torch_threads=1,
            use_tensorboard=False,
            eval_interval_steps=0,
        )
        train(hyperparameters, run_dir=Path(folder) / "run", on_progress=mark)
    (first_steps, first_s), (last_steps, last_s) = marks[0], marks[-1]
    steps, spent_s = last_steps - first_steps, last_s - first_s
    told = {
        "us_per_step": 1e6 * spent_s / steps,
        "mb_per_host": (joined_mb - empty_mb) / hosts,
        "env_steps": last_steps,
    }
    result.write_text(json.dumps(told))


def scale(setting: Setting, plot: Path | None = None) -> list[Row]:
    """Measure what many hosts cost a trainer."""
    del setting
    figures = {hosts: train_with_hosts(hosts, TOTAL_ENVS) for hosts in HOSTS}
    few = figures[HOSTS[0]]
    rows = []
    for hosts in HOSTS[1:]:
        many = figures[hosts]
        rows.append(
            Row(
                measure=f"{TOTAL_ENVS} envs: us of processor time per step, {hosts} hosts / {HOSTS[0]} hosts",
                baseline=few["us_per_step"],
                ours=many["us_per_step"],
                ratios=[many["us_per_step"] / few["us_per_step"]],
                bar=1.3,
                below=True,
            )
        )
        rows.append(
            Row(
                measure=f"MB of the trainer and its relay for each of {hosts} hosts / 1 MB",
                baseline=1.0,
                ours=many["mb_per_host"],
                ratios=[many["mb_per_host"]],
            )
        )
    if plot is not None:
        _draw(figures, plot)
    return rows


def _draw(figures: dict[int, dict[str, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(list(figures), [each["us_per_step"] for each in figures.values()], marker="o")
    axis.set(xscale="log", xlabel="hosts", ylabel="processor time per env step [us]", ylim=(0, None))
    axis.set_title(f"One trainer, {TOTAL_ENVS} environments in all")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


MEASURES: dict[str, Callable[[Setting], list[Row]]] = {each.__name__: each for each in (cartpole, image, scale)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 where every bar is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"some of {', '.join(MEASURES)}; all by default")
    parser.add_argument("--seconds", type=float, default=Setting.seconds, help="how long a contender runs at a time")
    parser.add_argument("--repeats", type=int, default=Setting.repeats, help="how often each of them runs")
    parser.add_argument("--plot", type=Path, help="draw the curve of `scale` into this file")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.add_argument("--trainer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.trainer:
        _train(**json.loads(read_payload()))
        return 0
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"unknown measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}")
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    setting = Setting(seconds=options.seconds, repeats=options.repeats)
    rows: list[Row] = []
    for name in options.names or MEASURES:
        rows += scale(setting, options.plot) if name == "scale" else MEASURES[name](setting)
    if options.json:
        report = {"benchmark": "relay", "package": __version__, "python": platform.python_version()}
        made: list[dict[str, Any]] = [{**asdict(row), "ratio": row.ratio, "reached": row.reached} for row in rows]
        print(json.dumps({**report, "cores": os.cpu_count(), "rows": made}))
    else:
        print_rows(rows)
    return 1 if any(row.reached is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
