"""Over how many lanes to spread a host's environments, by how far away it is."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from gymnasium.vector import VectorEnv

from agentgpt_remote.trainer.hosts import Tokens, offered_envs, token_of
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.wrappers.offers import await_free
from agentgpt_remote.wrappers.pacing import Client, Way, choose_groups, measure, measure_some
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room

NEAR_S = 5e-3
_MAX_LANES = 16
_PINGS = 3
_POLICY = Client(fixed_s=3e-3, per_env_s=30e-6)  # a small GPT on a CPU
logger = logging.getLogger("agentgpt_remote.trainer")


def choose_lanes(
    hyperparameters: Hyperparameters, envs: Sequence[VectorEnv[Any, Any, Any] | str] | None, token: Tokens
) -> int:
    """Return ``lanes_per_host``: what was asked for, else 1 for near hosts and what a far one needs.

    A host is far from 5 ms round trip on. It is measured with one environment, which is closed again.

    Args:
        hyperparameters: of the run.
        envs: vector environments or URLs, where they were passed instead of ``env_hosts``.
        token: of the hosts.
    """
    if hyperparameters.lanes_per_host is not None:
        return hyperparameters.lanes_per_host
    hosts = list(hyperparameters.env_hosts.values())
    if envs is not None:
        hosts = [EnvHost(env_endpoint=item) for item in envs if isinstance(item, str)]
    if not hosts:
        return 1
    found = measure_some(lambda host: _look_at(host, hyperparameters, token), hosts)
    far = max(found, key=lambda item: item.way.rtt_s, default=None)
    if far is None or far.way.rtt_s < NEAR_S:
        return 1
    # As many of each as there are in those that were looked at.
    num_hosts = round(sum(item.num_hosts for item in found) * len(hosts) / len(found))
    num_envs = round(sum(item.num_envs for item in found) * len(hosts) / len(found))
    candidates = range(num_hosts, max(num_hosts, min(num_envs, _MAX_LANES * num_hosts)) + 1, num_hosts)
    lanes = choose_groups([far.way] * num_hosts, num_envs, _POLICY, candidates=candidates) // num_hosts
    logger.info("hosts=%d envs=%d rtt_ms=%.1f lanes_per_host=%d", num_hosts, num_envs, 1e3 * far.way.rtt_s, lanes)
    return lanes


_NEAR = Way(rtt_s=0.0, step_s=0.0)


class _Found(NamedTuple):
    way: Way
    num_envs: int
    num_hosts: int


def _look_at(host: EnvHost, hp: Hyperparameters, tokens: Tokens) -> _Found:
    """Return how far away a host is, and what it offers; a room of a relay is as many hosts as are there."""
    url, token = host.env_endpoint, token_of(host.env_endpoint, tokens)
    room = Room.at(url, token)
    members = [] if room is None else room.members()
    if room is not None and not members:  # whoever comes first is waited for later
        return _Found(_NEAR, 1, 1)
    num_hosts = max(1, len(members))
    began = time.perf_counter()
    offered = offered_envs(url, hp.envs_per_host, token)
    asked_s = time.perf_counter() - began  # at least a round trip
    behind_s = max((_seconds(member.round_trip_ms) for member in members), default=0.0)
    num_envs = host.num_agents or offered
    if num_envs <= num_hosts or asked_s + behind_s < NEAR_S:
        return _Found(_NEAR, num_envs, num_hosts)
    with RemoteVectorEnv(
        num_envs=1, url=url, token=token, request_timeout_s=hp.step_timeout_s, resume_window_s=0.0, **hp.env_kwargs
    ) as probe:
        way = Way(rtt_s=min(probe.ping() for _ in range(_PINGS)), step_s=0.0)
        if way.rtt_s >= NEAR_S:
            way = measure(probe)
    await_free(lambda: offered_envs(url, hp.envs_per_host, token), offered)
    return _Found(way, num_envs, num_hosts)


def _seconds(milliseconds: float | None) -> float:
    return math.inf if milliseconds is None else milliseconds / 1e3
