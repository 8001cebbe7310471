"""Half an hour of hosts that come and go, are killed and stalled, at one relay: nothing is left of them."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time

import numpy as np
import psutil
import pytest

from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room
from tests.reach.processes import Command, free_port, start_host, start_relay
from tests.support import wait_until

SOAK_S = float(os.environ.get("AGENTGPT_SOAK_S", "1800"))
_MEGABYTE = 1e6


def _state(process: psutil.Process) -> dict[str, float]:
    return {
        "rss_mb": process.memory_info().rss / _MEGABYTE,
        "sockets": len([item for item in process.net_connections("inet") if item.status != "TIME_WAIT"]),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def _train_for_a_while(room: str, stop: threading.Event) -> int:
    """Step whatever hosts are in the room until told to stop; return how many sessions that were lost were replaced."""
    lost = 0
    with RemoteVectorEnv(url=room, num_envs=4, on_host_loss="truncate", resume_window_s=2.0, length=20) as envs:
        envs.reset()
        while not stop.is_set():
            lost += "host_loss" in envs.step(np.array([0, 1, 2, 0]))[4]
    return lost


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 600)
def test_hosts_that_come_and_go_leave_nothing_behind() -> None:
    port, rng = free_port(), random.Random(0)
    room = f"ws://127.0.0.1:{port}/lab"
    own = psutil.Process()
    hosts: list[Command] = []
    with start_relay(port, "--stall-timeout-s", "5") as relay:
        process = psutil.Process(relay.process.pid)

        def round_of_visits(seconds: float) -> int:
            stop = threading.Event()
            hosts.append(start_host(room))
            hosts.append(start_host(room))
            lost: list[int] = []
            client = threading.Thread(target=lambda: lost.append(_train_for_a_while(room, stop)))
            client.start()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(rng.uniform(0.5, 3.0))
                what = rng.choice(["add", "kill", "leave", "stall"])
                if what == "add" and len(hosts) < 6:
                    hosts.append(start_host(room))
                elif len(hosts) > 2 and what == "kill":
                    hosts.pop(rng.randrange(len(hosts))).__exit__()
                elif len(hosts) > 2 and what == "leave":
                    host = hosts.pop(rng.randrange(len(hosts)))
                    assert host.end(signal.SIGINT) == 0
                    host.__exit__()
                elif what == "stall":
                    host = rng.choice(hosts)
                    host.process.send_signal(signal.SIGSTOP)
                    time.sleep(rng.uniform(0.2, 1.5))
                    host.process.send_signal(signal.SIGCONT)
            stop.set()
            client.join(120.0)
            assert not client.is_alive()
            assert lost, "the client failed"
            while hosts:
                hosts.pop().__exit__()
            wait_until(lambda: Room(room, None).members() == [], 30.0)
            time.sleep(1.0)
            return lost[0]

        try:
            round_of_visits(min(30.0, SOAK_S / 4))  # what is allocated once
            before = [_state(process), _state(own)]
            lost = round_of_visits(SOAK_S)
            after = [_state(process), _state(own)]
        finally:
            while hosts:
                hosts.pop().__exit__()
    logging.getLogger(__name__).info("%d sessions replaced; relay and client: before %s, after %s", lost, before, after)
    assert lost > SOAK_S / 60
    for name, old, new in zip(("relay", "client"), before, after, strict=True):
        for what in ("sockets", "descriptors", "threads", "children"):
            assert new[what] <= old[what] + 1, f"{name}: {what} {old[what]} before, {new[what]} after"
        assert new["rss_mb"] < old["rss_mb"] + 15.0, f"{name}: {old['rss_mb']:.0f} MB before, {new['rss_mb']:.0f} after"
