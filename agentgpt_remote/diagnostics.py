"""Check a host from a client's side, and this machine: what ``agentgpt check`` and ``agentgpt doctor`` print."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.serving import resolve_token
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import ask_health, free_envs, host_health
from agentgpt_remote.wrappers.pacing import advice, measure, probe_size
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room

_COLOUR = re.compile(r"\x1b\[\d+m")
_PINGS, _PING_S = 100, 5.0
_ASSUMED_ENVS = 64  # of a host without a limit
Outcome = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what was checked.
        outcome: ``ok``, ``warning`` (works, but look), ``failed`` or ``skipped`` (not installed).
        detail: the figure or the reason, in one line.
    """

    name: str
    outcome: Outcome
    detail: str


def check_host(url: str, *, token: str | None = None, steps: int = 200) -> Iterator[Check]:
    """Check the host at ``url`` as a training script would meet it.

    Args:
        url: where the host listens, such as ``ws://sim-7:8000``.
        token: its token; ``AGENTGPT_TOKEN`` by default.
        steps: steps of the determinism check and of the round-trip measurement.

    Yields:
        One result a check, in order, as soon as it is known.

    Raises:
        AgentGPTError: the host can't be reached or refuses the session.
    """

    def connect() -> gym.Env[Any, Any]:
        return RemoteEnv(url=url, token=token)

    with connect() as env:
        yield _health(url, resolve_token(token))
        yield Check(name="observation space", outcome="ok", detail=str(env.observation_space))
        yield Check(name="action space", outcome="ok", detail=str(env.action_space))
    yield _env_checker("gymnasium check_env", connect, _gymnasium_check)
    yield _env_checker("stable-baselines3 check_env", connect, _sb3_check)
    yield _determinism(connect, steps)
    yield _round_trip(connect, steps)
    yield from check_distance(url, token)


def _health(url: str, token: str | None) -> Check:
    try:
        fields = ask_health(url, token)
    except AgentGPTError as error:
        return Check(name="health", outcome="failed", detail=str(error))
    return Check(name="health", outcome="ok", detail=", ".join(f"{key}={value}" for key, value in fields.items()))


def _gymnasium_check(env: gym.Env[Any, Any]) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(env, skip_render_check=True)


def _sb3_check(env: gym.Env[Any, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(env, skip_render_check=True)


def _env_checker(
    name: str, connect: Callable[[], gym.Env[Any, Any]], check: Callable[[gym.Env[Any, Any]], None]
) -> Check:
    with connect() as env, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check(env)
        except ModuleNotFoundError as error:
            return Check(name=name, outcome="skipped", detail=f"{error.name} is not installed")
        except Exception as error:  # noqa: BLE001 - a checker may raise anything, and all of it is its verdict
            return Check(name=name, outcome="failed", detail=f"{type(error).__name__}: {error}")
    notes = sorted({_COLOUR.sub("", str(note.message)).splitlines()[0].removeprefix("WARN: ") for note in caught})
    return Check(name=name, outcome="warning" if notes else "ok", detail="; ".join(notes) or "passed")


def _trajectory(env: gym.Env[Any, Any], steps: int) -> list[Any]:
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    seen: list[Any] = [observation]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen += [observation, reward, terminated, truncated]
        if terminated or truncated:
            seen.append(env.reset()[0])
    return seen


def _determinism(connect: Callable[[], gym.Env[Any, Any]], steps: int) -> Check:
    with connect() as first, connect() as second:
        one, other = _trajectory(first, steps), _trajectory(second, steps)
    differing = sum(not _equal(a, b) for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
    if differing:
        detail = f"two sessions with the same seed and actions differ in {differing} of {len(one)} values"
        return Check(name="determinism", outcome="warning", detail=detail)
    detail = f"two sessions with the same seed agree over {steps} steps"
    return Check(name="determinism", outcome="ok", detail=detail)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    first, second = np.asarray(one), np.asarray(other)
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def _round_trip(connect: Callable[[], gym.Env[Any, Any]], steps: int) -> Check:
    times_ms = []
    with connect() as env:
        env.reset(seed=0)
        for _ in range(steps):
            action = env.action_space.sample()
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            times_ms.append(1e3 * (time.perf_counter() - start))
            if terminated or truncated:
                env.reset()
    median, slow = statistics.median(times_ms), sorted(times_ms)[int(0.99 * len(times_ms))]
    detail = f"step round trip median {median:.2f} ms, p99 {slow:.2f} ms, {1e3 / median:.0f} steps/s with one env"
    return Check(name="round trip", outcome="ok", detail=detail)


def check_distance(url: str, token: str | None) -> Iterator[Check]:
    """Measure the way to a host, and say what it lets through and what to keep in flight.

    Args:
        url: where the host listens.
        token: its token; ``AGENTGPT_TOKEN`` by default.

    Yields:
        The round-trip time of requests that ask for nothing, the environments in flight there now, the ceiling.

    Raises:
        AgentGPTError: the host can't be reached or refuses the session.
    """
    told = _offers(url, resolve_token(token))
    free = free_envs(told)
    with RemoteVectorEnv(
        url=url, token=token, num_envs=probe_size(_ASSUMED_ENVS if free is None else max(1, free))
    ) as probe:
        pings_ms = _pings_ms(probe)
        way = replace(measure(probe), rtt_s=1e-3 * statistics.median(pings_ms))
    slow = sorted(pings_ms)[int(0.99 * len(pings_ms))]
    detail = f"RTT median {1e3 * way.rtt_s:.2f} ms, p99 {slow:.2f} ms over {len(pings_ms)} pings of a session"
    yield Check(name="distance", outcome="ok", detail=detail)
    yield Check(name="in flight", outcome="ok", detail=_in_flight(told, free))
    offered = told.get("num_envs")
    num_envs = _ASSUMED_ENVS if offered is None else int(offered)
    yield Check(name="ceiling", outcome="ok", detail=advice(way, num_envs))


def _offers(url: str, token: str | None) -> dict[str, Any]:
    """Return what a host tells of itself, or the hosts of a room together."""
    room = Room.at(url, token)
    if room is None:
        return host_health(url, token)
    members = [member.offers for member in room.members()]
    counts: dict[str, Any] = {name: sum(told.get(name) or 0 for told in members) for name in ("sessions", "envs")}
    limits = [told.get("num_envs") for told in members]
    return counts | {"num_envs": None if None in limits else sum(int(limit or 0) for limit in limits)}


def _pings_ms(probe: RemoteVectorEnv) -> list[float]:
    """Return round-trip times of up to 100 requests that ask for nothing, in milliseconds."""
    probe.ping()  # what is done once is not part of the way
    began = time.perf_counter()
    times_ms = [1e3 * probe.ping()]
    while len(times_ms) < _PINGS and time.perf_counter() - began < _PING_S:
        times_ms.append(1e3 * probe.ping())
    return times_ms


def _in_flight(told: dict[str, Any], free: int | None) -> str:
    sessions, envs = told.get("sessions", 0), told.get("envs", 0)
    limit = "no limit" if free is None else f"{free} of {told.get('num_envs')} free"
    return f"{envs} envs of {sessions} other sessions there now, {limit}"


def doctor() -> Iterator[Check]:
    """Check this machine: versions, extras, and a host that is started, stepped and ended.

    Yields:
        One result a check, as soon as it is known.
    """
    detail = f"{__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    outcome: Outcome = "ok" if sys.version_info >= (3, 11) else "failed"
    yield Check(name="agentgpt-remote", outcome=outcome, detail=f"{detail}, {os.cpu_count()} cores")
    for distribution in ("gymnasium", "numpy", "starlette", "uvicorn", "websockets", "msgspec"):
        yield _installed(distribution, "failed", "pip install agentgpt-remote")
    yield _installed("uvloop", "warning", "pip install uvloop (faster hosts)")
    for distribution, extra in (("torch", "train"), ("safetensors", "train"), ("stable-baselines3", "sb3")):
        yield _installed(distribution, "skipped", f'pip install "agentgpt-remote[{extra}]"')
    yield _device()
    yield _local_host()


def _installed(distribution: str, otherwise: Outcome, remedy: str) -> Check:
    try:
        return Check(name=distribution, outcome="ok", detail=importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return Check(name=distribution, outcome=otherwise, detail=f"not installed: {remedy}")


def _device() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(name="device", outcome="skipped", detail="torch is not installed")
    from agentgpt_remote.trainer.devices import describe_device

    return Check(name="device", outcome="ok", detail=describe_device())


def _local_host() -> Check:
    try:
        with LocalHost("CartPole-v1") as host, RemoteEnv(url=host.url, token=host.token) as env:
            check = _round_trip(lambda: env, 100)
    except (AgentGPTError, OSError) as error:
        return Check(name="local host", outcome="failed", detail=str(error).splitlines()[0])
    return Check(name="local host", outcome="ok", detail=check.detail)
