"""Many clients of one host get their turns evenly."""

from __future__ import annotations

import time

import numpy as np

from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv, wait_ready


def test_sessions_that_ask_all_the_time_are_served_evenly() -> None:
    with LocalHost("CartPole-v1", workers=0) as host:
        envs = [RemoteVectorEnv(url=host.url, token=host.token, num_envs=4) for _ in range(16)]
        actions = np.zeros(4, np.int64)
        for env in envs:
            env.reset(seed=0)
            env.step_async(actions)
        steps = dict.fromkeys(envs, 0)
        deadline = time.perf_counter() + 2.0
        while time.perf_counter() < deadline:
            for env in wait_ready(envs, 10.0):
                env.step_wait()
                env.step_async(actions)
                steps[env] += 1
        for env in envs:
            env.step_wait(10.0)
            env.close()
    counts = sorted(steps.values())
    assert counts[0] >= 0.5 * counts[len(counts) // 2]
