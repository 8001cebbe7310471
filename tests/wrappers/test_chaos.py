"""Eight clients at once behind a network that cuts everything, for half a minute."""

from __future__ import annotations

import random
import threading
import time

import pytest
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.errors import ConnectionLost
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.conftest import ServeFunction
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import cutting_proxy
from tests.wrappers.odd_envs import TangledEnv

CLIENTS, SECONDS, STEPS = 8, 30.0, 200


def _play(url: str, seed: int) -> int:
    """Compare one trajectory with its undisturbed twin; return how many steps were equal."""
    local = SyncVectorEnv([TangledEnv] * 2)
    local.action_space.seed(seed)
    with RemoteVectorEnv(url=url, num_envs=2) as remote:
        if not exactly_equal(remote.reset(seed=seed), local.reset(seed=seed)):
            return 0
        for step in range(STEPS):
            actions = local.action_space.sample()
            if not exactly_equal(remote.step(actions), local.step(actions)):
                return step
    return STEPS


@pytest.mark.slow
def test_every_trajectory_equals_its_undisturbed_twin(serve_here: ServeFunction) -> None:
    rng = random.Random(5)
    deadline = time.monotonic() + SECONDS
    equal_steps: list[int] = []
    failures: list[BaseException] = []

    def client(seed: int, url: str) -> None:
        while time.monotonic() < deadline:
            try:
                equal_steps.append(_play(url, seed))
            except ConnectionLost:  # cut before the session was open: there is nothing to resume yet
                continue
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                failures.append(error)
                return

    def next_cut(_: int) -> tuple[str, int]:
        return rng.choice(["up", "down"]), rng.randrange(300, 8000)

    with cutting_proxy(serve_here(TangledEnv).url, next_cut) as proxy:
        threads = [threading.Thread(target=client, args=(seed, proxy.url)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS + 60.0)
        assert proxy.connections > 100
    assert failures == []
    assert len(equal_steps) > CLIENTS
    assert set(equal_steps) == {STEPS}
