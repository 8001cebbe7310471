"""How many groups to keep in flight: the choice by figures, and groups="auto" over a line with a real delay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from agentgpt_remote import RemoteVectorEnv
from agentgpt_remote.diagnostics import check_distance
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.wrappers.pacing import Client, Way, advice, choose_groups, pace
from benchmarks.tcp_baseline import delaying
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal

DELAY_S = 0.02
NUM_ENVS = 12
STEPS = 12


class Slow(CartPoleEnv):
    """CartPole that takes two milliseconds for a step, and whose episodes end while the test looks."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 8

    def reset(self, **arguments: Any) -> Any:
        self._left = 8
        return super().reset(**arguments)

    def step(self, action: Any) -> Any:
        time.sleep(0.002)
        self._left -= 1
        observation, reward, terminated, _, _ = super().step(action)
        return observation, reward, terminated, self._left == 0, {"left": self._left}


def _assert_same(one: Any, other: Any) -> None:
    assert exactly_equal(one, other), f"{one} differs from {other}"


@pytest.fixture
def far(serve_here: ServeFunction) -> Iterator[str]:
    """URL of a host that is 20 ms away."""
    port = int(serve_here(Slow, num_envs=NUM_ENVS).url.rpartition(":")[2])
    with delaying([port], DELAY_S) as line:
        yield f"ws://127.0.0.1:{line.ready['ports'][0]}"


@pytest.mark.parametrize(
    ("rtt_s", "step_s", "num_envs", "least", "most"),
    [
        (1e-4, 1e-5, 64, 1, 2),  # near and fast: a message more costs what it gains
        (1e-4, 1e-3, 64, 2, 4),  # near and slow: one group steps while another is acted on
        (0.1, 1e-5, 1, 1, 1),  # one environment can't be split
        (0.1, 1e-5, 7, 1, 7),  # nor seven into equal groups other than these
        (0.1, 1e-5, 64, 1, 2),  # far and fast: all of them take a thousandth of the way
        (0.1, 1e-3, 64, 8, 64),  # far and slow: 64 ms of stepping must not come on top of the way
        (0.1, 1e-5, 1024, 4, 64),  # far and many: neither must acting
    ],
)
def test_choice_reaches_the_ceiling_where_it_can_be_reached(
    rtt_s: float, step_s: float, num_envs: int, least: int, most: int
) -> None:
    way = Way(rtt_s=rtt_s, step_s=step_s)
    groups = choose_groups([way], num_envs)
    assert least <= groups <= most
    assert num_envs % groups == 0
    expected = pace([way], num_envs, groups, Client())
    assert expected <= min(num_envs / rtt_s, 1 / step_s), "nothing is faster than the way, or than the host"
    if rtt_s == 0.1:
        assert expected >= 0.9 * num_envs / rtt_s


def test_choice_counts_every_host_and_what_the_client_does() -> None:
    near, far = Way(rtt_s=1e-3, step_s=1e-4), Way(rtt_s=0.1, step_s=1e-4)
    assert choose_groups([near, far], 64) >= 2, "the near host must not wait for the far one"
    assert choose_groups([far], 64, Client(fixed_s=0.05, per_env_s=0.0)) == 1, "twice as often costs twice as much"
    assert choose_groups([far], 64, Client(fixed_s=0.0, per_env_s=1e-3), candidates=range(1, 6)) in (4, 5)


def test_advice_names_ceiling_and_groups() -> None:
    assert advice(Way(rtt_s=0.1, step_s=1e-5), 64).startswith("ceiling 640 steps/s = 64 envs / RTT; one group")
    text = advice(Way(rtt_s=0.1, step_s=1e-3), 64)
    assert "keep 16 groups in flight, or groups='auto'" in text


def test_auto_measures_the_way_and_returns_the_same_bits_as_one_group(far: str) -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, (STEPS, NUM_ENVS))
    with gym.make_vec("agentgpt/Slow", num_envs=NUM_ENVS, url=far, groups="auto") as envs:
        auto = envs.unwrapped
        assert isinstance(auto, RemoteVectorEnv)
        assert auto.groups in (2, 3, 4, 6, 12), "24 ms of stepping come on top of 40 ms otherwise"
        assert 2 * DELAY_S <= auto.ping() < 0.5
        assert auto.spec is None or auto.spec.kwargs["groups"] == "auto"
        with RemoteVectorEnv(Slow, num_envs=NUM_ENVS) as one:
            _assert_same(auto.reset(seed=7), one.reset(seed=7))
            for step in range(STEPS // 2):
                _assert_same(auto.step(actions[step]), one.step(actions[step]))
            at = [STEPS // 2] * auto.groups
            parts: dict[tuple[int, int], Any] = {}
            for group in range(auto.groups):
                auto.send(group, actions[at[group], auto.group_slice(group)])
            while len(parts) < auto.groups * (STEPS - STEPS // 2):
                group, result = auto.recv()
                parts[group, at[group]] = result
                at[group] += 1
                if at[group] < STEPS:
                    auto.send(group, actions[at[group], auto.group_slice(group)])
            for step in range(STEPS // 2, STEPS):
                whole = one.step(actions[step])
                for index in range(4):
                    _assert_same(np.concatenate([parts[g, step][index] for g in range(auto.groups)]), whole[index])


def test_auto_of_an_environment_of_this_process_or_a_near_host_keeps_one_group(serve_here: ServeFunction) -> None:
    with RemoteVectorEnv(gym.make_vec("CartPole-v1", 4), groups="auto") as envs:
        assert envs.groups == 1
        envs.reset(seed=0)
    with RemoteVectorEnv(url=serve_here("CartPole-v1", num_envs=3).url, groups="auto") as envs:
        assert (envs.num_envs, envs.groups) == (3, 1)


def test_auto_of_a_full_host_says_that_it_is_full(serve_here: ServeFunction) -> None:
    from agentgpt_remote.errors import CapacityReached

    url = serve_here("CartPole-v1", num_envs=2).url
    with RemoteVectorEnv(url=url, num_envs=2), pytest.raises(CapacityReached):
        RemoteVectorEnv(url=url, num_envs=2, groups="auto")


@pytest.mark.parametrize("groups", ["all", 0, 1.5, True])
def test_other_words_for_groups_are_refused(groups: Any) -> None:
    with pytest.raises(ConfigError, match="expected an integer of at least 1 or 'auto'"):
        RemoteVectorEnv("CartPole-v1", num_envs=2, groups=groups)


def test_check_tells_round_trip_envs_in_flight_and_ceiling(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentgpt_remote.diagnostics._PINGS", 5)
    with RemoteVectorEnv(url=far, num_envs=4):
        told = {check.name: check for check in check_distance(far, None)}
    distance = told["distance"].detail
    median, slow = (float(word.split()[1]) for word in distance.removeprefix("RTT ").split(", "))
    assert 40 <= median <= slow < 400
    assert "over 5 pings" in distance
    assert told["in flight"].detail.startswith("4 envs of 1 other sessions there now, 8 of 12 free")
    ceiling = float(told["ceiling"].detail.split()[1].replace(",", ""))
    assert ceiling == pytest.approx(NUM_ENVS / (median * 1e-3), rel=0.01, abs=1.0)
    assert "groups in flight, or groups='auto'" in told["ceiling"].detail
