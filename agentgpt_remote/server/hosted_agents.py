"""The environment of a session whose client acts for many agents."""

from __future__ import annotations

import struct
from typing import Any

from agentgpt_remote.agent_codec import HostAgentsCodec
from agentgpt_remote.errors import ProtocolError
from agentgpt_remote.packing import pack_value
from agentgpt_remote.protocol import Envelope, Kind
from agentgpt_remote.server.agent_sources import AgentsVector
from agentgpt_remote.server.hosted import HostedEnv, unpack_values
from agentgpt_remote.steps import Payload
from agentgpt_remote.wrappers.remote_base import METHOD, MISSING, VALUE

# What the session itself does; a client that called them would leave the session behind.
_OWN = ("reset", "step", "close", "send", "receive", "render")


class HostedAgents(HostedEnv):
    """As :class:`HostedEnv`, for a :class:`~agentgpt_remote.agents.MultiAgentEnv`."""

    def _prepare(self) -> dict[str, Any]:
        self._begun: tuple[int, Exception | None] | None = None  # the request whose actions were sent, or why not
        self._agents = HostAgentsCodec(self._env.behaviors)
        known = list(getattr(self._env, "agent_ids", ()))
        return {"observation_space": {}, "action_space": {}, "behaviors": self._agents.describe(), "agent_ids": known}

    def _spec(self) -> dict[str, Any] | None:
        return None

    def _reset(self, envelope: Envelope) -> Payload:
        seed, options = self._agents.decode_reset(envelope)
        return self._agents.encode(self._env.reset(seed=seed, options=options))

    def begin(self, envelope: Envelope) -> None:
        """Send the actions of a step on to players, which work while the session's thread is being woken."""
        self._begun = None
        if envelope.kind != Kind.STEP or not hasattr(self._env, "send"):
            return
        failure: Exception | None = None
        try:
            self._env.send(self._decoded(envelope))
        except Exception as error:  # noqa: BLE001 - raised where the step is executed
            failure = error
        self._begun = envelope.sequence, failure

    def _decoded(self, envelope: Envelope) -> dict[str, Any]:
        try:
            return self._agents.decode_actions(envelope)
        except (TypeError, struct.error) as error:
            raise ProtocolError(f"the actions do not have the layout of the behaviours: {error}") from error

    def _step(self, envelope: Envelope) -> Payload:
        begun, self._begun = self._begun, None
        if begun is None or begun[0] != envelope.sequence:
            return self._agents.encode(self._env.step(self._decoded(envelope)))
        if begun[1] is not None:
            raise begun[1]
        return self._agents.encode(self._env.receive())

    def _call(self, envelope: Envelope) -> Payload:
        operation, name, args, kwargs = unpack_values(envelope, 4)
        if not isinstance(name, str) or name.startswith("_") or name in _OWN:
            raise ProtocolError(f"can't reach {name!r} of the environment: only public names are open to clients")
        if isinstance(self._env, AgentsVector) and operation != "find":
            return [], 0, pack_value([_reach(env, operation, name, args, kwargs) for env in self._env.envs])
        return [], 0, pack_value(_reach(self._env, operation, name, args, kwargs))


def _reach(env: Any, operation: str, name: str, args: Any, kwargs: Any) -> Any:
    """Call a method of an environment, or read, set or look for an attribute."""
    target = getattr(env, "unwrapped", env)
    if operation == "set":
        return setattr(target, name, args[0])
    found = getattr(target, name, MISSING)
    if operation == "find":
        return MISSING if found is MISSING else METHOD if callable(found) else VALUE
    if found is MISSING:
        raise AttributeError(f"the environment has no attribute {name!r}")
    return found(*args, **kwargs) if operation == "call" and callable(found) else found
