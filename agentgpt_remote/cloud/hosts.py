"""Hosts that a job in the cloud trains on: their addresses travel with the job, their tokens never do."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.tls import INSECURE_VARIABLE, PIN_VARIABLE, is_insecure_allowed
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.run import hosts_of

_WAYS_OUT = (
    "let the host dial out to a relay (`agentgpt serve SOURCE --connect RELAY_URL`), open a tunnel (`agentgpt serve "
    "SOURCE --tunnel NAME`), or run it in the cloud (`agentgpt cloud host SOURCE`)"
)


def with_hosts(
    hyperparameters: Hyperparameters, env: Any, token: str | None, config: SageMakerConfig
) -> Hyperparameters:
    """Return hyperparameters that name the hosts behind what a user passed as ``env``.

    Raises:
        ConfigError: no environment is named, or a host has a token of which the job would know nothing.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise ConfigError(f"hyperparameters is a {type(hyperparameters).__name__}: expected Hyperparameters(...)")
    hosts, tokens = hosts_of(env, token)
    if hosts:
        hyperparameters = replace(hyperparameters, env_id=None, env_hosts=hosts)
    if hyperparameters.env_id is None and not hyperparameters.env_hosts:
        raise ConfigError("no environment is named: set env_id or env_hosts, or pass env=")
    for host in hyperparameters.env_hosts.values():
        _check_token(host, tokens, config)
    return hyperparameters


def _check_token(host: EnvHost, tokens: Mapping[str, str], config: SageMakerConfig) -> None:
    url = host.env_endpoint
    if tokens.get(url, tokens.get("")) is not None and not {url, ""} & config.secrets.keys():
        raise ConfigError(
            f"the host at {url} has a token, which never travels in a job's request: store it with `agentgpt cloud "
            "secret NAME` and set secrets={'': ARN} of SageMakerConfig"
        )


def trust_variables() -> dict[str, str]:
    """Return what a job must know to trust the hosts that this process trusts; none of it is secret."""
    return {name: os.environ[name] for name in (PIN_VARIABLE, INSECURE_VARIABLE) if os.environ.get(name)}


def check_reachable(hyperparameters: Hyperparameters, config: SageMakerConfig) -> None:
    """Check that the cloud can reach every host.

    Raises:
        ConfigError: an address is this machine's own, or one of a private network without a VPC; holds the ways out.
    """
    for host in hyperparameters.env_hosts.values():
        name = urlsplit(host.env_endpoint).hostname or ""
        addresses = _addresses(name)
        if name == "localhost" or any(address.is_loopback or address.is_unspecified for address in addresses):
            raise ConfigError(f"the host at {host.env_endpoint} listens on this machine only: {_WAYS_OUT}")
        private = name.endswith((".local", ".lan", ".internal")) or any(not address.is_global for address in addresses)
        if config.secrets and _is_plaintext(host.env_endpoint) and not is_insecure_allowed():
            raise ConfigError(
                f"the token of {host.env_endpoint} would travel unencrypted: serve it by wss:// (see "
                f"docs/reach.md), or allow that within your own network with {INSECURE_VARIABLE}=1"
            )
        if private and not config.subnets:
            raise ConfigError(
                f"the host at {host.env_endpoint} has a private address: set subnets and security_group_ids of a VPC "
                f"that reaches it; or {_WAYS_OUT}"
            )


def _is_plaintext(url: str) -> bool:
    return urlsplit(url).scheme in ("ws", "http")


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the addresses of a name; none where this machine does not know it."""
    with contextlib.suppress(ValueError):
        return [ipaddress.ip_address(name)]
    try:
        found = {str(entry[4][0]).split("%")[0] for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return []
    return [ipaddress.ip_address(address) for address in sorted(found)]
