"""Where actions come from: one interface for a policy in this process and one behind a server."""

from __future__ import annotations

from typing import Any, Protocol

from gymnasium import Space

from agentgpt_remote.endpoints import HUB_SCHEME, SAGEMAKER_SCHEME
from agentgpt_remote.errors import ConfigError, missing_dependency
from agentgpt_remote.policy.options import ActOptions
from agentgpt_remote.policy.runner import Engine, check_engine

_URL_SCHEMES = ("ws://", "wss://", "http://", "https://")


class PolicySource(Protocol):
    """What acts for :class:`~agentgpt_remote.policy.gpt_policy.GPTPolicy`; arguments are checked before.

    Attributes:
        observation_space: of one agent.
        action_space: of one agent.
        max_input_states: the model's window.
        max_agents: most agents at once.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    max_input_states: int
    max_agents: int

    def act(self, agent_ids: tuple[str, ...], batch: Any, ended: tuple[str, ...], options: ActOptions) -> Any:
        """Return a batch of actions for a batch of observations, forgetting ``ended`` agents first."""

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""

    def describe(self) -> dict[str, Any]:
        """Return what there is to tell of it, such as how many agents it holds."""

    def close(self) -> None:
        """Free what is held; a second call does nothing."""


class LocalSource:
    """A bundle in this process.

    Args:
        path: the bundle's folder, or an exported file.
        device: torch device.
        engine: what runs it.
        behavior: whose policy it is, where the bundle holds several.

    Raises:
        BundleError: the bundle is missing, damaged or of another version.
    """

    def __init__(self, path: str, *, device: str, engine: Engine, behavior: str | None = None) -> None:
        from agentgpt_remote.policy.agent_table import AgentTable
        from agentgpt_remote.policy.engine import PolicyEngine
        from agentgpt_remote.policy.opening import OpenedPolicy

        opened = OpenedPolicy(path, engine=engine, device=device, behavior=behavior)
        self.observation_space, self.action_space = opened.observation_space, opened.action_space
        self._engine = PolicyEngine(opened.runner)
        self._agents = AgentTable(self._engine)
        self.max_input_states, self.max_agents = self._engine.max_input_states, self._engine.max_agents

    def act(self, agent_ids: tuple[str, ...], batch: Any, ended: tuple[str, ...], options: ActOptions) -> Any:
        """Return a batch of actions."""
        return self._agents.act(agent_ids, batch, ended, options=options)

    def forget(self, agent_ids: tuple[str, ...] | None) -> None:
        """Drop agents, or all of them."""
        if agent_ids is None:
            self._agents.clear()
        else:
            self._agents.forget(list(agent_ids))

    def describe(self) -> dict[str, Any]:
        """Return how many agents there are."""
        counts = {"max_agents": self.max_agents, "dropped": self._engine.num_dropped}
        return {"agents": self._engine.num_agents, **counts, "engine": self._engine.runner.describe()}

    def close(self) -> None:
        """Drop all agents."""
        self._agents.clear()


def open_source(
    source: str, *, token: str | None, timeout_s: float, device: str, engine: Engine, behavior: str | None = None
) -> PolicySource:
    """Return what acts: the bundle in a folder or on a model hub, or what a URL names.

    Raises:
        ConfigError: the kind of source is not known.
        DependencyNotInstalled: the extra that it needs is not installed.
    """
    try:
        return _open(source, token=token, timeout_s=timeout_s, device=device, engine=engine, behavior=behavior)
    except ModuleNotFoundError as error:
        raise missing_dependency(error) from error


def _open(
    source: str, *, token: str | None, timeout_s: float, device: str, engine: Engine, behavior: str | None
) -> PolicySource:
    check_engine(engine)
    if source.startswith(HUB_SCHEME):
        from agentgpt_remote.policy.hub import local_bundle

        source = str(local_bundle(source, timeout_s=timeout_s))
    if engine != "auto" and "://" in source:
        raise ConfigError(
            f"engine={engine!r} for {source}: the server has an engine of its own (`agentgpt run --engine`)"
        )
    if source.startswith(_URL_SCHEMES):
        from agentgpt_remote.policy.client import RemoteSource
        from agentgpt_remote.policy.websocket_channel import WebSocketChannel
        from agentgpt_remote.serving import resolve_token

        return RemoteSource(WebSocketChannel(source, resolve_token(token), behavior), timeout_s=timeout_s)
    if source.startswith(SAGEMAKER_SCHEME):
        if behavior is not None:
            raise ConfigError(
                f"behavior={behavior!r} for {source}: an endpoint serves one policy; deploy the behaviour's own folder "
                "of the bundle, and leave behavior out"
            )
        from agentgpt_remote.endpoints import open_endpoint
        from agentgpt_remote.policy.client import RemoteSource
        from agentgpt_remote.policy.endpoint_channel import EndpointChannel

        return RemoteSource(EndpointChannel(open_endpoint(source), source), timeout_s=timeout_s)
    if "://" in source:
        raise ConfigError(
            f"source={source!r}: expected a bundle's folder, the ws:// or http:// URL of a server, "
            "hf://OWNER/NAME or sagemaker://NAME"
        )
    return LocalSource(source, device=device, engine=engine, behavior=behavior)
