from __future__ import annotations

import pytest

from agentgpt_remote.trainer.watching import HostWatch, Spent, host_metrics, host_of, time_metrics


def test_lanes_of_a_host_are_reported_together() -> None:
    watch = HostWatch()
    for lane, agents in (("lab/0", 4), ("lab/1", 4), ("ws://sim-7:8000/0", 2)):
        watch.joined(lane, agents)
    for _ in range(10):
        watch.stepped("lab/0", 4, 0.002, 0.001)
        watch.stepped("lab/1", 4, 0.004, 0.001)
    watch.stepped("ws://sim-7:8000/0", 2, 0.050, 0.010)
    lab, sim = watch.take(2.0)
    assert (lab.name, lab.agents, lab.sps) == ("lab", 8, 40.0)
    assert lab.round_trip_ms == pytest.approx(3.0)
    assert lab.host_step_ms == pytest.approx(1.0)
    assert lab.network_ms == pytest.approx(2.0)
    assert lab.rtt_ms == pytest.approx(1.0), "the shortest way counts"
    assert lab.in_flight == pytest.approx((4 * 10 * 0.002 + 4 * 10 * 0.004) / 2.0)
    assert lab.ceiling_sps == pytest.approx(8 / 0.001)
    assert (sim.name, sim.agents, sim.sps) == ("sim-7:8000", 2, 1.0)
    metrics = host_metrics([lab, sim])
    assert metrics["remote/round_trip_ms"] == pytest.approx((40 * 3 + 50) / 41)
    assert metrics["remote/sim-7:8000/round_trip_ms"] == pytest.approx(50.0)
    assert metrics["remote/lab/agents"] == 8.0
    assert metrics["remote/ceiling_sps"] == pytest.approx(8 / 0.001 + 2 / 0.040)
    assert [host.sps for host in watch.take(2.0)] == [0.0, 0.0], "counts begin anew"


def test_lost_and_returned_lanes_are_counted() -> None:
    watch = HostWatch()
    watch.joined("lab/0", 4)
    watch.joined("lab/1", 4)
    watch.left("lab/1")
    (lab,) = watch.take(1.0)
    assert (lab.agents, lab.lost, lab.returned) == (4, 1, 0)
    watch.joined("lab/1", 4)
    (lab,) = watch.take(1.0)
    assert (lab.agents, lab.lost, lab.returned) == (8, 1, 1)
    assert host_metrics([lab])["remote/lost"] == 1.0


def test_environments_of_this_process_have_no_round_trip() -> None:
    watch = HostWatch()
    watch.joined("envs[0]", 2)
    watch.stepped("envs[0]", 2)
    (host,) = watch.take(1.0)
    assert (host.sps, host.round_trip_ms, host.network_ms) == (2.0, None, None)
    assert host_metrics([host])["remote/network_ms"] is None
    assert (host.rtt_ms, host.ceiling_sps, host.in_flight) == (None, None, 0.0)
    assert host_of("envs[0]") == "envs[0]"


def test_time_is_split_into_waiting_network_acting_and_learning() -> None:
    spent = Spent(wait_s=0.4, act_s=0.1, learn_s=0.5, total_s=1.0)
    remote = {"remote/round_trip_ms": 4.0, "remote/network_ms": 1.0}
    metrics = time_metrics(spent, env_steps=1024, learned={"train/trained_tokens": 4096.0}, remote=remote)
    assert metrics["time/sps"] == 1024.0
    assert metrics["time/tokens_per_s"] == 8192.0
    assert metrics["time/network_s"] == pytest.approx(0.1)
    assert (metrics["time/env_s"], metrics["time/act_s"], metrics["time/learn_s"]) == (0.4, 0.1, 0.5)
    unknown = time_metrics(spent, env_steps=1, learned={}, remote={"remote/round_trip_ms": None})
    assert unknown["time/network_s"] is None
    assert unknown["time/tokens_per_s"] is None
