"""From hyperparameters to lanes of environments of many agents."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentgpt_remote.errors import ConfigError, ConnectionLost, RemoteTimeout
from agentgpt_remote.trainer.agent_lanes import AgentLane, check_same_behaviors
from agentgpt_remote.trainer.hosts import RESUME_WINDOW_S, Tokens, room_of, split_envs, token_of
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.ranks import Ranks
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import host_health
from agentgpt_remote.wrappers.remote_agents import RemoteAgents
from agentgpt_remote.wrappers.unity.builds import UNITY_PREFIX, is_build

PETTINGZOO_PREFIX = "pettingzoo:"
logger = logging.getLogger("agentgpt_remote.trainer")
Envs = Sequence[Any] | None


@dataclass(frozen=True, kw_only=True)
class AgentHosts:
    """Lanes to train on.

    Attributes:
        lanes: at least one of them is open.
        description: one line for people and for provenance.
    """

    lanes: list[AgentLane]
    description: str


def is_of_many_agents(hyperparameters: Hyperparameters, envs: Envs) -> bool:
    """Tell whether what is to be trained on is known by its name to be a Unity build or of PettingZoo."""
    if hyperparameters.env_id is not None and envs is None:
        return names_many_agents(hyperparameters.env_id)
    if envs is not None and not all(isinstance(item, str) for item in envs):
        return False
    for url in _urls(hyperparameters, envs).values():
        told = host_health(url)
        if told:
            return names_many_agents(str(told.get("source", "")))
    return False


def names_many_agents(source: str) -> bool:
    """Tell whether a source is a Unity build or of PettingZoo by its name."""
    return source.startswith(PETTINGZOO_PREFIX) or _is_unity(source)


def _is_unity(source: str) -> bool:
    return source.startswith(UNITY_PREFIX) or is_build(source)


def _urls(hyperparameters: Hyperparameters, envs: Envs) -> dict[str, str]:
    if envs is not None:
        return {str(item): str(item) for item in envs}
    return {name: host.env_endpoint for name, host in hyperparameters.env_hosts.items()}


def check_alone(ranks: Ranks) -> None:
    """Refuse several processes that learn together.

    Raises:
        ConfigError: there are several.
    """
    if ranks.size > 1:
        raise ConfigError(
            f"{ranks.size} processes can't learn together from environments of many agents: start one, without "
            "torchrun; it takes any number of hosts"
        )


def open_agent_hosts(
    hyperparameters: Hyperparameters,
    envs: Envs,
    token: Tokens,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
) -> AgentHosts:
    """Open the environments to train on; hosts that do not answer are left for later.

    Args:
        hyperparameters: ``env_id`` or ``env_hosts`` where ``envs`` is None.
        envs: URLs of hosts.
        token: of the hosts: one for all, or one per URL, where the empty URL stands for all others.
        stack: closes what is opened here.
        should_stop: whether to wait no longer for lost connections.

    Raises:
        ConfigError: environments of this process are named, or the hosts serve different ones.
        HostUnreachable: none of the hosts answers.
    """
    if envs is not None and not all(isinstance(item, str) for item in envs):
        raise ConfigError("envs holds environments of this process: serve those of many agents, and pass the URL")
    if hyperparameters.env_id is not None and envs is None:
        source = hyperparameters.env_id
        host = stack.enter_context(LocalHost(source))
        lanes = _lanes(source, host.url, host.token, _num_envs(hyperparameters, source), hyperparameters)
        opened = AgentHosts(lanes=lanes, description=source)
    else:
        opened = _remote(_urls(hyperparameters, envs), hyperparameters, token)
    failures: dict[str, Exception] = {}
    first: RemoteAgents | None = None
    for lane in opened.lanes:
        stack.callback(lane.close)
        try:
            lane.env = lane.open()
        except (ConnectionLost, RemoteTimeout) as error:
            failures[lane.name] = error
            continue
        if first is None:
            first = lane.env
        check_same_behaviors(first, lane.env)
    if first is None:
        raise next(iter(failures.values()))
    for name, reason in failures.items():
        logger.warning("lane=%s left out until it answers: %s", name, reason)
    for lane in opened.lanes:
        lane.open = functools.partial(_open_like, lane.open, first)
        lane.give_up = should_stop
        lane.watch_stop()
    return opened


def _open_like(open_lane: Callable[[], RemoteAgents], first: RemoteAgents) -> RemoteAgents:
    env = open_lane()
    try:
        check_same_behaviors(first, env)
    except BaseException:
        env.close()
        raise
    return env


def _num_envs(hyperparameters: Hyperparameters, source: str) -> int:
    """Return how many environments of a source are trained on where nobody says it."""
    return hyperparameters.num_envs or default_envs(source, hyperparameters.envs_per_host)


def default_envs(source: str, otherwise: int) -> int:
    """Return how many environments of a source there are by default: one of a Unity build, whose players are large."""
    return 1 if _is_unity(source) else otherwise


def _remote(urls: Mapping[str, str], hyperparameters: Hyperparameters, token: Tokens) -> AgentHosts:
    lanes: list[AgentLane] = []
    for name, url in urls.items():
        host = hyperparameters.env_hosts.get(name)
        told = host_health(url)
        wanted = _num_envs(hyperparameters, str(told.get("source", "")))
        total = (None if host is None else host.num_agents) or min(wanted, room_of(told, wanted))
        alone = len(urls) == 1
        lanes += _lanes(name, url, token_of(url, token), total, hyperparameters, None if alone else RESUME_WINDOW_S)
    return AgentHosts(lanes=lanes, description=", ".join(urls.values()))


def _lanes(
    name: str,
    url: str,
    token: str | None,
    total: int,
    hyperparameters: Hyperparameters,
    resume_window_s: float | None = None,
) -> list[AgentLane]:
    hp = hyperparameters
    return [
        AgentLane(
            name=f"{name}/{index}",
            size=size,
            open=functools.partial(
                RemoteAgents,
                url=url,
                token=token,
                num_envs=size,
                request_timeout_s=hp.step_timeout_s,
                resume_window_s=resume_window_s,
                **hp.env_kwargs,
            ),
        )
        for index, size in enumerate(split_envs(total, hp.lanes_per_host))
    ]
