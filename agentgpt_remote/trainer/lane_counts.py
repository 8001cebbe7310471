"""Over how many lanes to spread a host's environments, by how far away it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.vector import VectorEnv

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.trainer.hosts import Tokens, offered_envs, token_of
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.wrappers.pacing import Client, choose_groups, measure
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

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
    hosts: Mapping[str, EnvHost] = hyperparameters.env_hosts
    if envs is not None:
        hosts = {item: EnvHost(env_endpoint=item) for item in envs if isinstance(item, str)}
    return max((_lanes_of(host, hyperparameters, token) for host in hosts.values()), default=1)


def _lanes_of(host: EnvHost, hp: Hyperparameters, tokens: Tokens) -> int:
    url, token = host.env_endpoint, token_of(host.env_endpoint, tokens)
    try:
        total = host.num_agents or offered_envs(url, hp.num_envs)
        if total == 1:
            return 1
        with RemoteVectorEnv(
            num_envs=1, url=url, token=token, request_timeout_s=hp.step_timeout_s, resume_window_s=0.0, **hp.env_kwargs
        ) as probe:
            if min(probe.ping() for _ in range(_PINGS)) < NEAR_S:
                return 1
            way = measure(probe)
    except AgentGPTError as error:  # told when the host is opened
        logger.debug("url=%s not measured error=%r", url, error)
        return 1
    lanes = choose_groups([way], total, _POLICY, candidates=range(1, min(total, _MAX_LANES) + 1))
    logger.info("url=%s rtt_ms=%.1f lanes=%d", url, 1e3 * way.rtt_s, lanes)
    return lanes
