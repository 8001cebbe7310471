"""Over how many lanes a run spreads a host's environments: real hosts, near and behind a line with a delay."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.lane_counts import choose_lanes
from agentgpt_remote.trainer.loop import train
from benchmarks.tcp_baseline import delaying
from tests.conftest import ServeFunction
from tests.trainer.tiny_envs import Echo

DELAY_S = 0.01


class SlowEcho(Echo):
    """Takes two milliseconds for a step."""

    def step(self, action: Any) -> Any:
        time.sleep(0.002)
        return super().step(action)


@pytest.fixture
def far(serve_here: ServeFunction) -> Iterator[str]:
    """URL of a host that is 10 ms away, each way."""
    port = int(serve_here(SlowEcho, num_envs=16).url.rpartition(":")[2])
    with delaying([port], DELAY_S) as line:
        yield f"ws://127.0.0.1:{line.ready['ports'][0]}"


def test_near_hosts_keep_one_lane_and_a_number_that_was_asked_for_stays(serve_here: ServeFunction, far: str) -> None:
    url = serve_here(SlowEcho, num_envs=16).url
    near = Hyperparameters(env_hosts={"near": EnvHost(env_endpoint=url)})
    assert choose_lanes(near, None, None) == 1
    assert choose_lanes(Hyperparameters(), [url], None) == 1
    assert choose_lanes(Hyperparameters(env_id="CartPole-v1"), None, None) == 1
    assert choose_lanes(Hyperparameters(lanes_per_host=3), [far], None) == 3


def test_host_that_does_not_answer_or_has_one_environment_keeps_one_lane(serve_here: ServeFunction) -> None:
    gone = Hyperparameters(env_hosts={"gone": EnvHost(env_endpoint="ws://127.0.0.1:9")})
    assert choose_lanes(gone, None, None) == 1
    assert choose_lanes(Hyperparameters(), [serve_here(SlowEcho, num_envs=1).url], None) == 1


def test_far_host_gets_lanes_that_hide_stepping_and_the_run_says_how_many(far: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    hosts = {"far": EnvHost(env_endpoint=far, num_agents=16)}
    small = {"num_layers": 1, "d_model": 32, "rollout_steps": 64, "max_steps": 256, "eval_interval_steps": 0}
    train(Hyperparameters(env_hosts=hosts, **small), run_dir=tmp_path, on_progress=seen.append)
    config = json.loads((tmp_path / "config.json").read_text())
    lanes = config["hyperparameters"]["lanes_per_host"]
    assert 2 <= lanes <= 16, "32 ms of stepping would come on top of 20 ms"
    assert config["lanes"] == [f"far/{lane}" for lane in range(lanes)]
    health = seen[-1].hosts[0]
    assert 2e3 * DELAY_S <= health.rtt_ms < 400
    assert 0 < health.in_flight <= 16
    assert health.ceiling_sps == pytest.approx(16e3 / health.rtt_ms)
    assert seen[-1].metrics["remote/far/rtt_ms"] == health.rtt_ms
