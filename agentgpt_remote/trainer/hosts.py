"""From hyperparameters to open lanes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import VectorEnv

from agentgpt_remote.errors import CapacityReached, ConfigError, ConnectionLost, RemoteTimeout
from agentgpt_remote.policy.features import ObservationFeatures
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.lanes import Lane, check_same_spaces
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import free_envs, host_health
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

_RESUME_WINDOW_S = 5.0
_FREE_POLL_S, _FREE_MARGIN_S = 0.5, 10.0
Tokens = str | Mapping[str, str] | None
logger = logging.getLogger("agentgpt_remote.trainer")


@dataclass(kw_only=True, eq=False)
class OpenedHosts:
    """Lanes to train on, and what ends with them.

    Attributes:
        lanes: at least one.
        description: one line for people and for provenance.
    """

    lanes: list[Lane]
    description: str

    @property
    def num_agents(self) -> int:
        """Agents of all lanes together."""
        return sum(lane.num_agents for lane in self.lanes)


def open_hosts(
    hyperparameters: Hyperparameters,
    envs: Sequence[VectorEnv[Any, Any, Any] | str] | None,
    token: Tokens,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool] = lambda: False,
) -> OpenedHosts:
    """Open the environments to train on.

    Args:
        hyperparameters: ``env_id`` or ``env_hosts`` where ``envs`` is None.
        envs: vector environments, which stay the caller's, or URLs of hosts.
        token: of the hosts: one for all, or one per URL, where the empty URL stands for all others.
        stack: closes what is opened here.
        should_stop: whether to wait no longer for hosts that are full of lost sessions.

    Raises:
        ConfigError: nothing is named, or the hosts serve different environments.
        HostUnreachable: none of the hosts answers; where some do, the others are logged.
    """
    named: list[tuple[str, VectorEnv[Any, Any, Any]]]
    if envs is not None:
        hosts = {str(item): EnvHost(env_endpoint=item) for item in envs if isinstance(item, str)}
        given = [item for item in envs if not isinstance(item, str)]
        named = [(f"envs[{index}]", item) for index, item in enumerate(given)]
        named += _open_remote(hosts, hyperparameters, token, stack, should_stop)
        description = ", ".join([*hosts, *(type(item).__name__ for item in given)])
    elif hyperparameters.env_hosts:
        named = _open_remote(hyperparameters.env_hosts, hyperparameters, token, stack, should_stop)
        description = ", ".join(host.env_endpoint for host in hyperparameters.env_hosts.values())
    elif hyperparameters.env_id:
        named = _open_local(hyperparameters, stack)
        description = hyperparameters.env_id
    else:
        raise ConfigError("no environment is named: set env_id or env_hosts, or pass envs")
    if not named:
        raise ConfigError(f"envs={envs!r}: expected at least one vector environment or URL")
    names, vector_envs = [name for name, _ in named], [env for _, env in named]
    check_same_spaces(vector_envs, names)
    features = ObservationFeatures(vector_envs[0].single_observation_space)
    timeout_s, nonfinite = hyperparameters.step_timeout_s, hyperparameters.nonfinite
    lanes = [Lane(name, env, features, timeout_s, nonfinite) for name, env in named]
    return OpenedHosts(lanes=lanes, description=description)


def _split(total: int, lanes: int) -> list[int]:
    """Return sizes of at most so many lanes that add up to the total."""
    lanes = min(lanes, total)
    return [total // lanes + (index < total % lanes) for index in range(lanes)]


def _open_local(hyperparameters: Hyperparameters, stack: contextlib.ExitStack) -> list[tuple[str, Any]]:
    source = str(hyperparameters.env_id)
    host = stack.enter_context(LocalHost(source))
    sizes = _split(hyperparameters.num_envs, hyperparameters.lanes_per_host)
    return [
        (f"{source}/{lane}", stack.enter_context(_connect(host.url, host.token, size, hyperparameters)))
        for lane, size in enumerate(sizes)
    ]


def _open_remote(
    hosts: Mapping[str, EnvHost],
    hyperparameters: Hyperparameters,
    token: Tokens,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
) -> list[tuple[str, Any]]:
    """Open all hosts that answer."""
    opened: list[tuple[str, Any]] = []
    unreachable: dict[str, ConnectionLost | RemoteTimeout] = {}
    # With other hosts to go on with, a lost one is not waited for as long as a single one.
    resume_window_s = _RESUME_WINDOW_S if len(hosts) > 1 else None
    for name, host in hosts.items():
        try:
            own_token = _token_of(host.env_endpoint, token)
            envs = _open_host(host, own_token, hyperparameters, resume_window_s, stack, should_stop)
            opened += [(f"{name}/{lane}", env) for lane, env in enumerate(envs)]
        except (ConnectionLost, RemoteTimeout) as error:
            unreachable[name] = error
    if unreachable and not opened:
        raise next(iter(unreachable.values()))
    for name, reason in unreachable.items():
        logger.warning("host=%s url=%s left out: %s", name, hosts[name].env_endpoint, reason)
    return opened


def _open_host(
    host: EnvHost,
    token: str | None,
    hyperparameters: Hyperparameters,
    resume_window_s: float | None,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
) -> list[RemoteVectorEnv]:
    """Open the lanes of one host.

    A trainer that was killed leaves sessions that its host keeps for a while; where they fill the host, this
    waits for their end.

    Raises:
        CapacityReached: the host has no room, and none that will be free soon.
    """
    url, began, waiting = host.env_endpoint, time.monotonic(), False
    while True:
        told = host_health(url)
        try:
            with contextlib.ExitStack() as attempt:
                total = host.num_agents or _room(told, hyperparameters.num_envs)
                envs = [
                    attempt.enter_context(_connect(url, token, size, hyperparameters, resume_window_s))
                    for size in _split(total, hyperparameters.lanes_per_host)
                ]
                stack.enter_context(attempt.pop_all())
                return envs
        except CapacityReached:
            window_s = float(told.get("resume_window_s", 0.0))
            if not told.get("lost_envs") or time.monotonic() - began > window_s + _FREE_MARGIN_S or should_stop():
                raise
            if not waiting:
                logger.warning("url=%s is full of lost sessions, waiting up to %g s for their end", url, window_s)
            waiting = True
            time.sleep(_FREE_POLL_S)


def _token_of(url: str, tokens: Tokens) -> str | None:
    return tokens if tokens is None or isinstance(tokens, str) else tokens.get(url, tokens.get(""))


def _connect(
    url: str,
    token: str | None,
    num_envs: int,
    hyperparameters: Hyperparameters,
    resume_window_s: float | None = None,
) -> RemoteVectorEnv:
    return RemoteVectorEnv(
        num_envs=num_envs,
        url=url,
        token=token,
        request_timeout_s=hyperparameters.step_timeout_s,
        resume_window_s=resume_window_s,
        **hyperparameters.env_kwargs,
    )


def offered_envs(url: str, wanted: int) -> int:
    """Return how many environments a host has free; ``wanted`` where it has no limit or does not tell."""
    return _room(host_health(url), wanted)


def _room(told: Mapping[str, Any], wanted: int) -> int:
    """Return how many environments are free, those of lost sessions included: they will be."""
    room = free_envs(told, with_lost=True)
    return wanted if room is None else max(1, room)
