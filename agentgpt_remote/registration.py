"""Every environment id as ``agentgpt/<id>``, without registering any.

Gymnasium has no public hook for ids that are not registered, so :func:`install` wraps the lookup that both
``gymnasium.make`` and ``gymnasium.make_vec`` go through, and ``gymnasium.spec``. Ids that are registered later,
and ids that only a host knows, work the same. :func:`remote_spec` is the way that needs no hook.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

import gymnasium as gym
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec

NAMESPACE: Final = "agentgpt/"
_ENTRY_POINT: Final = "agentgpt_remote.wrappers.remote_env:RemoteEnv"
_VECTOR_ENTRY_POINT: Final = "agentgpt_remote.wrappers.remote_vector_env:RemoteVectorEnv"
_Lookup = Callable[[str], EnvSpec]


def remote_spec(source: str, **kwargs: Any) -> EnvSpec:
    """Return a specification whose environment runs on a host; pickles, and survives JSON.

    Args:
        source: ``CartPole-v1``, ``module:Name-v0`` or ``module:factory``; with ``url=`` the id that its host serves.
        kwargs: arguments of :class:`RemoteEnv`, such as ``url``. A token does not belong into a specification.

    Example:
        >>> remote_spec("CartPole-v1", url="ws://sim-7:8000").id
        'agentgpt/CartPole-v1'

    Raises:
        ConfigError: a token was given.
    """
    if "token" in kwargs:
        from agentgpt_remote.errors import ConfigError

        raise ConfigError("a specification must not hold a token: pass token= to gymnasium.make, or set AGENTGPT_TOKEN")
    known = gym.registry.get(source.rpartition(":")[2])
    return EnvSpec(
        # An id has one namespace, and "ALE/Pong-v5" brings its own.
        id=NAMESPACE + source.replace("/", "."),
        entry_point=_ENTRY_POINT,
        vector_entry_point=_VECTOR_ENTRY_POINT,
        reward_threshold=known.reward_threshold if known else None,
        nondeterministic=known.nondeterministic if known else False,
        # The host's environment carries its own wrappers, with its own time limit.
        max_episode_steps=None,
        order_enforce=False,
        disable_env_checker=True,
        kwargs={"source": source, **kwargs},
    )


def _remote_source(env_id: str) -> str | None:
    """Return the source of ``agentgpt/<source>`` or ``module:agentgpt/<source>``, importing the module."""
    head, colon, rest = env_id.partition(f":{NAMESPACE}")
    if colon:
        importlib.import_module(head)
        return _with_namespace(rest)
    return _with_namespace(env_id.removeprefix(NAMESPACE)) if env_id.startswith(NAMESPACE) else None


def _with_namespace(source: str) -> str:
    """Return ``ALE/Pong-v5`` for the ``ALE.Pong-v5`` that its remote specification is called."""
    named = source.replace(".", "/", 1)
    return named if source not in gym.registry and named in gym.registry else source


def _with_remote_ids(lookup: _Lookup) -> _Lookup:
    @functools.wraps(lookup)
    def find(env_id: str) -> EnvSpec:
        if isinstance(env_id, str) and NAMESPACE in env_id:
            source = _remote_source(env_id)
            if source and env_id not in gym.registry:
                return remote_spec(source)
        return lookup(env_id)

    find.serves_remote_ids = True  # type: ignore[attr-defined]
    return find


def install() -> None:
    """Make ``agentgpt/<id>`` known to Gymnasium; a second call does nothing."""
    for owner, name in ((registration, "_find_spec"), (registration, "spec"), (gym, "spec")):
        lookup = getattr(owner, name)
        if not getattr(lookup, "serves_remote_ids", False):
            setattr(owner, name, _with_remote_ids(lookup))
