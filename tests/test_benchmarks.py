"""The benchmarks of remote environments run, at a small size, and measure what they say."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import closing
from unittest import mock

import pytest

from agentgpt_remote import RemoteEnv, RemoteVectorEnv
from benchmarks.contenders import Row, message_bytes
from benchmarks.remote_env import CARTPOLE, IMAGE, MEASURES, Setting, main
from benchmarks.tcp_baseline import PingPong, answering, delaying, stepper
from tests.conftest import ServeFunction
from tests.wrappers.bad_network import CuttingProxy, port_of

TINY = Setting(seconds=0.05, repeats=1, num_envs=4, delayed_groups=2, delay_s=0.01, sessions=2, idle_sessions=(1, 3))


@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"idle"}))
def test_measure_gives_ratios_of_rates(name: str) -> None:
    rows = MEASURES[name](TINY)
    assert any(row.bar is not None for row in rows)
    for row in rows:
        assert row.baseline > 0
        assert row.ours > 0
        assert len(row.ratios) == TINY.repeats
        assert math.isfinite(row.ratio)
        assert row.ratio > 0
        assert row.reached is (None if row.bar is None else row.ratio >= row.bar)


def test_idle_measures_memory_and_processor_time() -> None:
    memory, processor = MEASURES["idle"](TINY)
    assert abs(memory.ours) < 100  # MB; of so few sessions it is mostly noise
    assert 0 <= processor.ours <= (os.cpu_count() or 1)


def test_main_prints_json_and_tells_a_bar_missed(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.dict(os.environ):  # the numbers of threads are for the benchmark alone
        code = main(["single", "--seconds", "0.05", "--repeats", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert code == (0 if rows[0]["reached"] else 1)
    assert rows[0]["ratio"] == pytest.approx(rows[0]["ours"] / rows[0]["baseline"])


def test_main_refuses_an_unknown_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sinlge"])
    assert "'sinlge'" in capsys.readouterr().err


def test_row_below_its_bar_is_reached_where_less_is_better() -> None:
    row = Row(measure="memory", baseline=2.0, ours=1.0, ratios=[0.4, 0.5, 3.0], bar=1.0, below=True)
    assert row.ratio == 0.5
    assert row.reached is True


class CountingProxy(CuttingProxy):
    """Cuts nothing, and counts bytes before it passes them on: who has received some finds them counted."""

    sent_bytes = 0

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        self.sent_bytes += len(data)
        return super()._pass_on(data, target)


@pytest.mark.parametrize(("source", "num_envs"), [(CARTPOLE, None), (CARTPOLE, 4), (IMAGE, 2)])
def test_message_bytes_are_those_on_the_wire(serve_here: ServeFunction, source: str, num_envs: int | None) -> None:
    with closing(CountingProxy(port_of(serve_here(source).url), lambda _: None)) as proxy:
        remote = RemoteEnv(url=proxy.url) if num_envs is None else RemoteVectorEnv(url=proxy.url, num_envs=num_envs)
        with closing(remote) as env:
            step = stepper(env)
            before = proxy.sent_bytes
            step()
            assert proxy.sent_bytes - before == sum(message_bytes(source, num_envs))


def test_delayed_ping_pong_takes_both_delays() -> None:
    with answering(10, 100_000) as server, delaying([server.ready["port"]], 0.02) as line:
        (port,) = line.ready["ports"]
        with PingPong(port, 10, 100_000) as client:
            start = time.perf_counter()
            assert client.exchange().shape == (100_000,)
            assert time.perf_counter() - start >= 0.04
