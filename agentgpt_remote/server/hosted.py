"""The environments of one session: requests in, replies out. No networking, no threads."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from agentgpt_remote.errors import AgentGPTError, ConfigError, InvalidAction, ProtocolError, RemoteEnvError
from agentgpt_remote.handshake import Limits, Opened, versions
from agentgpt_remote.packing import pack_info, pack_value, unpack_value
from agentgpt_remote.protocol import Envelope, Kind, Reply, make_reply
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.sources import EnvRequest
from agentgpt_remote.spaces import space_to_dict
from agentgpt_remote.steps import Payload, make_codec
from agentgpt_remote.wrappers.remote_base import MISSING, RemoteBase, find_kind
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv

_BY_NAME = ("get_wrapper_attr", "has_wrapper_attr", "set_wrapper_attr", "get_attr", "set_attr", "call")


class HostedEnv:
    """The environment of a session, or its vector of them.

    Args:
        make: makes what is asked for; may place it in another process.
        request: what the client asked for.

    Raises:
        UnsupportedSpace: one of its spaces can't be sent.
        ConfigError: the source can't make what was asked for.
    """

    def __init__(self, make: Callable[[EnvRequest], Any], request: EnvRequest) -> None:
        self.num_envs = request.num_envs
        self._closed = False
        self._env: Any = make(request)
        try:
            self._described = self._prepare()
        except BaseException:
            self._env.close()
            raise
        self._handlers = {
            Kind.RESET: self._reset,
            Kind.STEP: self._step,
            Kind.RENDER: self._render,
            Kind.CALL: self._call,
            Kind.CLOSE: self._close,
        }

    def _prepare(self) -> dict[str, Any]:
        """Make the codec, and return what the handshake tells of the spaces."""
        self._observation_space, self._action_space = self._spaces()
        described = self._describe()
        self._codec = make_codec(self._observation_space, self._action_space, self.num_envs)
        if isinstance(self._env, RemoteEnv | RemoteVectorEnv):
            self._env.tell_dropped(self._codec.pass_on_dropped)
        return described

    @property
    def may_run_inline(self) -> bool:
        """Whether its requests may run on the event loop: not what renders, or says that it is bound to its thread."""
        is_bound = self._env.render_mode is not None or bool(self._env.metadata.get("thread_bound"))
        return not is_bound and not self.in_workers

    @property
    def in_workers(self) -> bool:
        """Whether it runs in worker processes, which a request waits for."""
        return isinstance(self._env, RemoteBase)

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        if isinstance(self._env, VectorEnv):
            return self._env.single_observation_space, self._env.single_action_space
        return self._env.observation_space, self._env.action_space

    def _describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "observation_space": space_to_dict(self._observation_space, "observation"),
            "action_space": space_to_dict(self._action_space, "action"),
        }
        if isinstance(self._env, VectorEnv):
            described["batched_observation_space"] = space_to_dict(self._env.observation_space, "observation")
            described["batched_action_space"] = space_to_dict(self._env.action_space, "action")
        return described

    def _spec(self) -> dict[str, Any] | None:
        """Return what is told of the specification of the environment, or of the first of a vector."""
        if isinstance(self._env, RemoteBase):
            return self._env.told_spec
        members = getattr(self._env, "envs", None)
        described = members[0] if self._env.spec is None and members else self._env
        spec: EnvSpec | None = described.spec
        if spec is None:
            return None
        return {
            "id": spec.id,
            "reward_threshold": spec.reward_threshold,
            "nondeterministic": spec.nondeterministic,
            "max_episode_steps": spec.max_episode_steps,
        }

    def opened(self, session_id: str, secret: str, limits: Limits) -> Opened:
        """Return the handshake's answer."""
        metadata = dict(self._env.metadata)
        if isinstance(metadata.get("autoreset_mode"), AutoresetMode):
            metadata["autoreset_mode"] = metadata["autoreset_mode"].value
        return Opened(
            versions=versions(),
            session_id=session_id,
            secret=secret,
            num_envs=self.num_envs,
            metadata=pack_info(metadata)[0],
            render_mode=self._env.render_mode,
            spec=self._spec(),
            limits=limits,
            **self._described,
        )

    def begin(self, envelope: Envelope) -> None:
        """Do what of a request takes no time and need not wait for the session's thread, which executes it then."""

    def execute(self, envelope: Envelope) -> Reply:
        """Execute a request and return its reply, which is an error where it raised.

        A large one is made of the environment's own memory: it is to be sent before the next request is executed.
        """
        start = time.perf_counter_ns()
        kind: int = envelope.kind
        try:
            handler = self._handlers.get(kind)  # type: ignore[call-overload]
            if handler is None:
                raise ProtocolError(f"unknown request {kind}: upgrade the host, or the client")
            parts, flags, extras = handler(envelope)
        except BaseException as error:  # noqa: BLE001 - whatever an environment raises goes to its client
            parts, flags, extras = failure(error)
            kind = Kind.ERROR
        spent_ns = time.perf_counter_ns() - start
        return make_reply(kind, envelope.sequence, parts, flags=flags, extras=extras, aux=spent_ns)

    def _reset(self, envelope: Envelope) -> Payload:
        seed, options = unpack_values(envelope, 2)
        return self._codec.encode_reset(self._env.reset(seed=seed, options=options))

    def _step(self, envelope: Envelope) -> Payload:
        try:
            actions = self._codec.decode_actions(envelope)
        except (ValueError, TypeError, struct.error) as error:
            raise ProtocolError(f"the actions do not have the layout of the action space: {error}") from error
        try:
            step = self._env.step(actions)
        except Exception as error:
            self._explain(actions, error)
            raise
        return self._codec.encode_step(step)

    def _explain(self, actions: Any, error: Exception) -> None:
        """Say that the action was outside its space, where that is why the environment raised."""
        if isinstance(error, AgentGPTError):  # a worker has explained it
            return
        space = self._env.action_space
        try:
            valid = space.contains(actions)
        except Exception:  # noqa: BLE001 - a value so wrong that contains raises is not in the space
            valid = False
        if not valid and not isinstance(error, gym.error.Error):
            fields = error_to_dict(error)
            cause = RemoteEnvError(fields["type"], fields["message"], fields["traceback"])
            shown = repr(actions) if len(repr(actions)) < 200 else f"{repr(actions)[:200]}..."
            raise InvalidAction(
                f"action {shown} is outside the action space {space}: {fields['type']}: {fields['message']}"
            ) from cause

    def _render(self, _: Envelope) -> Payload:
        return [], 0, pack_value(self._env.render())

    def _call(self, envelope: Envelope) -> Payload:
        operation, name, args, kwargs = unpack_values(envelope, 4)
        named = args[1:] if operation == "call_some" else args
        reached = named[0] if name in _BY_NAME and named else name
        if not isinstance(name, str) or not isinstance(reached, str) or reached.startswith("_"):
            raise ConfigError(f"can't reach {reached!r} of the environment: only public names are open to clients")
        if isinstance(self._env, (VectorEnv, RemoteBase)):
            result = self._call_method(operation, name, args, kwargs)
        elif operation == "set":
            result = self._env.set_wrapper_attr(name, args[0])
        elif operation == "find":
            result = find_kind(self._env, name)
        else:
            found = self._env.get_wrapper_attr(name)
            result = found(*args, **kwargs) if operation == "call" and callable(found) else found
        return [], 0, pack_value(result)

    def _call_method(self, operation: str, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if operation == "find":
            return self._env.find_attr(name) if isinstance(self._env, RemoteEnv) else MISSING
        if operation == "call_some":
            return self._call_some(name, *args, **kwargs)
        method = getattr(self._env, {"call": "call", "get": "get_attr", "set": "set_attr"}[operation], None)
        if method is not None:
            return method(name, *args, **kwargs)
        if operation == "set":
            return setattr(self._env, name, args[0])
        found = getattr(self._env, name)
        return found(*args, **kwargs) if operation == "call" and callable(found) else found

    def _call_some(self, name: str, indices: list[int], /, *args: Any, **kwargs: Any) -> list[Any]:
        if isinstance(self._env, RemoteVectorEnv):
            return self._env.call_some(indices, name, *args, **kwargs)
        members = getattr(self._env, "envs", None)
        if members is None:
            raise ConfigError(f"can't call {name!r} of some environments: {type(self._env).__name__} is one as a whole")
        found = [members[index].get_wrapper_attr(name) for index in indices]
        return [item(*args, **kwargs) if callable(item) else item for item in found]

    def _close(self, _: Envelope) -> Payload:
        self.close()
        return [], 0, b""

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._env.close()


def failure(error: BaseException) -> Payload:
    """Return the payload of an error reply."""
    return [], 0, pack_value(error_to_dict(error))


def unpack_values(envelope: Envelope, count: int) -> Any:
    """Return the values that a request packs.

    Raises:
        ProtocolError: they are not as many as expected.
    """
    values = unpack_value(envelope.extras_data) if envelope.extras else None
    if not isinstance(values, list) or len(values) != count:
        raise ProtocolError(f"request {envelope.kind} must hold {count} values")
    return values
