"""Half an hour of crashes, hangs and respawns; ``AGENTGPT_SOAK_S`` sets another time in seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import host_health
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from tests.unity.echo import answers
from tests.unity.stand_in import write_player

SOAK_S = float(os.environ.get("AGENTGPT_SOAK_S", "1800"))


def _processes(word: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if word in line]


def _listening(pid: int) -> int:
    """Return how many TCP sockets of a process listen."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    listening = [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
    assert all(address.endswith("0100007F") for address in listening), "not on loopback"
    return len(listening)


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 300)
def test_players_that_crash_and_hang_for_half_an_hour(tmp_path: Path) -> None:
    path = write_player(
        tmp_path,
        agents=6,
        behaviors=("Red?team=0", "Blue?team=1"),
        branches=(3, 2),
        masks=True,
        groups=True,
        periods=(1, 2, 3),
        death=0.05,
        length=30,
        crash=0.002,
        hang=0.0005,
    )
    with LocalHost(f"unity:{path}") as host:
        before = _listening(host.pid)
        until, steps, ended, losses, wrong = time.monotonic() + SOAK_S, 0, 0, 0, 0.0
        while time.monotonic() < until:
            # A session for a tenth of the time: sessions end as well.
            closing = min(until, time.monotonic() + SOAK_S / 10)
            with RemoteAgents(url=host.url, token=host.token, num_envs=2, step_timeout_s=2.0) as env:
                turns = env.reset(seed=steps)
                while time.monotonic() < closing:
                    turns = env.step(answers(env, turns))
                    steps += 1
                    for turn in turns.values():
                        ended += len(turn.ended.agent_ids)
                        losses += sum("host_loss" in info for info in turn.ended.infos.values())
                    if steps % 20 == 0:
                        told = [values[-1][0] for stats in env.call("stats") for values in [stats["wrong_actions"]]]
                        wrong += sum(told)
        assert wrong == 0, "an agent received the action of another"
        assert ended > 0
        assert losses > 0, f"no player failed in {steps} steps"
        deadline = time.monotonic() + 20
        while _processes(path) or host_health(host.url)["sessions"] or _listening(host.pid) > before:
            assert time.monotonic() < deadline, f"left: {_processes(path)}, {host_health(host.url)}"
            time.sleep(0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(host.url.rpartition(":")[2])))  # its port is free again
