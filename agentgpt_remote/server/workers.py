"""Worker processes of a host: what is slow runs there, on several processors, and can't take the host down.

A worker is a host of its own on loopback, and the session's environment a remote one on it: the protocol, the
watchdog and the truncated episodes of a lost host are those of any client.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from agentgpt_remote.errors import ConfigError, NotSendable
from agentgpt_remote.packing import pack_value
from agentgpt_remote.server.sources import AnyEnv, EnvRequest, EnvSource
from agentgpt_remote.wrappers.hosting import ProcessHost
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

_logger = logging.getLogger("agentgpt_remote.server")
_SLOW_STEP_S = 0.002  # of all environments of a session together
_WORTH_A_WORKER_S = 0.001
_MEASURE_S, _MEASURE_STEPS = 0.03, 32


class WorkerPool:
    """Makes the environments of sessions, in this process or spread over worker processes.

    Args:
        source: makes the environments.
        workers: processes at most; 0 for none, ``None`` for one per processor, used where a session's environments
            are measured to be slow.
        step_timeout_s: how long an environment may take before its worker is ended, in seconds.

    Raises:
        ConfigError: the source can't be handed to other processes.
    """

    def __init__(self, source: EnvSource, workers: int | None, step_timeout_s: float) -> None:
        self._source = source
        self._workers = workers
        self._size = (os.cpu_count() or 1) if workers is None else workers
        self._step_timeout_s = step_timeout_s
        self._hosts: list[ProcessHost] = []
        self._load: dict[int, int] = {}
        self._measured: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self._closed = False
        if workers and source.instance is not None:
            raise ConfigError(f"workers={workers}: {source.name} is an instance, which can't move to another process")

    @property
    def running(self) -> int:
        """Number of worker processes."""
        return sum(host.process.running for host in self._hosts)

    def make(self, request: EnvRequest) -> AnyEnv:
        """Make what a session asks for, where it is to run; called from the session's thread.

        Raises:
            Exception: whatever the environment's constructor raised.
        """
        count = self._count(request)
        if count:
            try:
                return self._make_remote(request, count)
            except NotSendable as error:
                if self._workers:
                    raise ConfigError(f"workers={self._workers}: {error}") from error
                _logger.warning("environments are slow, and run in the host's process: %s", error)
        if request.num_envs is None:
            return self._source.make_env(request)
        return self._source.make_vector(request, request.num_envs)

    def _count(self, request: EnvRequest) -> int:
        """Return how many workers a session gets."""
        if self._size == 0 or self._source.instance is not None:
            return 0
        envs = request.num_envs or 1
        limit = 1 if self._source.is_vector else min(self._size, envs)
        if self._workers is not None:
            return limit
        if envs == 1 or self._source.is_vector:  # nothing to share out, or its own way to be fast
            return 0
        step_s = envs * self._step_s(request)
        return 0 if step_s < _SLOW_STEP_S else min(limit, math.ceil(step_s / _WORTH_A_WORKER_S))

    def _step_s(self, request: EnvRequest) -> float:
        """Return how long a step takes in seconds: measured once, on an environment that is thrown away."""
        key = pack_value([request.kwargs, request.render_mode])
        if key not in self._measured:
            try:
                self._measured[key] = self._measure(request)
            except Exception as error:  # noqa: BLE001 - the environment's own, told when the session meets it
                _logger.debug("step not measured error=%r", error)
                return 0.0
            _logger.info("step measured us=%.0f", self._measured[key] * 1e6)
        return self._measured[key]

    def _measure(self, request: EnvRequest) -> float:
        env = self._source.make_any(request)
        with contextlib.closing(env):
            if isinstance(env, VectorEnv):
                return 0.0
            return _step_seconds(env)

    def _make_remote(self, request: EnvRequest, count: int) -> AnyEnv:
        hosts = self._take(count)
        options: dict[str, Any] = {
            "render_mode": request.render_mode,
            "request_timeout_s": self._step_timeout_s,
            "on_host_loss": "truncate",
        }
        try:
            env: RemoteEnv | RemoteVectorEnv
            if request.num_envs is None:
                env = RemoteEnv(url=hosts[0], **options, **request.kwargs)
            else:
                env = RemoteVectorEnv(
                    num_envs=request.num_envs,
                    url=hosts,
                    autoreset_mode=request.autoreset_mode,
                    **options,
                    **request.kwargs,
                )
        except BaseException:
            self._give_back(hosts)
            raise
        env.on_close(lambda: self._give_back(hosts))
        return env

    def _take(self, count: int) -> list[ProcessHost]:
        """Return the workers with the fewest sessions, starting those that do not run yet."""
        with self._lock:
            if self._closed:
                raise ConfigError("the host is closing")
            while len(self._hosts) < self._size and (len(self._hosts) < count or min(self._load.values()) > 0):
                missing = max(1, min(count, self._size) - len(self._hosts))
                with ThreadPoolExecutor(missing) as starting:
                    jobs = [starting.submit(ProcessHost, self._source.origin, 0) for _ in range(missing)]
                    started = [job for job in jobs if job.exception() is None]
                    self._hosts += [job.result() for job in started]
                    self._load = {index: self._load.get(index, 0) for index in range(len(self._hosts))}
                    for job in jobs:
                        job.result()
            chosen = sorted(self._load, key=self._load.__getitem__)[:count]
            for index in chosen:
                self._load[index] += 1
            return [self._hosts[index] for index in chosen]

    def _give_back(self, hosts: list[ProcessHost]) -> None:
        with self._lock:
            for host in hosts:
                self._load[self._hosts.index(host)] -= 1

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
        for host in self._hosts:
            host.close()


def _step_seconds(env: gym.Env[Any, Any]) -> float:
    """Return the median time of a step, over a short while."""
    env.reset(seed=0)
    env.action_space.seed(0)
    times: list[float] = []
    while len(times) < _MEASURE_STEPS and sum(times) < _MEASURE_S:
        action = env.action_space.sample()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(time.perf_counter() - start)
        if terminated or truncated:
            env.reset()
    return statistics.median(times)
