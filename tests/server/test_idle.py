"""Hundreds of sessions whose clients do nothing cost a host little memory and no time."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

import psutil
import pytest

from agentgpt_remote.wrappers.remote_env import RemoteEnv
from tests.server.host_process import start_host

FEW, MANY = 100, 500


@pytest.fixture
def _many_files() -> Iterator[None]:
    """Allow this process, and what it starts, as many open files as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * MANY:
        pytest.skip(f"{hard} open files are allowed here, too few for {MANY} sessions")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * MANY) if hard == resource.RLIM_INFINITY else hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
def test_idle_sessions_take_little_memory_and_no_time() -> None:
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(start_host("tests.wrappers.odd_envs:CountingEnv"))
        process = psutil.Process(host.pid)
        envs: list[RemoteEnv] = []
        memory_bytes = {}
        for count in (FEW, MANY):
            while len(envs) < count:
                envs.append(stack.enter_context(RemoteEnv(url=host.ready["url"])))
                envs[-1].reset(seed=0)
                envs[-1].step(0)
            memory_bytes[count] = process.memory_info().rss
        assert (memory_bytes[MANY] - memory_bytes[FEW]) / (MANY - FEW) < 2e6
        before_s, start_s = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(3.0)  # not to wait for anything: idle time is what is measured
        used_s, passed_s = sum(process.cpu_times()[:2]) - before_s, time.monotonic() - start_s
        assert used_s < 0.05 * passed_s
        for env in envs:  # and every one of them is awake at once
            assert env.step(0)[0][1] == 2.0
