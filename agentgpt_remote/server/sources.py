"""What a host serves: a source becomes environments, made as ``gymnasium.make`` makes them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id
from gymnasium.error import NameNotFound
from gymnasium.vector import AutoresetMode, VectorEnv

from agentgpt_remote.agents import MultiAgentEnv
from agentgpt_remote.errors import ConfigError, InvalidArgument, ManyAgents, RemoteEnvError
from agentgpt_remote.remote_errors import error_to_dict
from agentgpt_remote.server.agent_sources import PETTINGZOO_PREFIX, AgentsVector, as_agents, find_pettingzoo, is_agents
from agentgpt_remote.server.envpool_source import PREFIX, EnvPoolEnv, EnvPoolVectorEnv, find_envpool
from agentgpt_remote.server.stepping import HostVectorEnv
from agentgpt_remote.wrappers.unity import compat
from agentgpt_remote.wrappers.unity.agents import UnityAgents
from agentgpt_remote.wrappers.unity.builds import UNITY_PREFIX, find_program, is_build
from agentgpt_remote.wrappers.unity.env import UnityEnv

CLIENT_OPTIONS = frozenset(
    ("seed", "graphics", "visual", "group_reward", "time_scale", "quality_level", "width", "height", "parameters")
) | {"target_frame_rate", "connect_timeout_s", "step_timeout_s"}
AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
Source = str | EnvSpec | Callable[..., Any] | gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | MultiAgentEnv


@dataclass(frozen=True, kw_only=True)
class EnvRequest:
    """What a client asks for.

    Attributes:
        source: id that it expects, or ``None`` for whatever is served.
        num_envs: number of environments, ``None`` for a single env.
        autoreset_mode: of a vector env.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        kwargs: arguments of the environment's constructor.
        agents: whether the client acts for many agents of each environment.
    """

    source: str | None = None
    num_envs: int | None = None
    agents: bool = False
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP
    render_mode: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def constructor_kwargs(self) -> dict[str, Any]:
        """Return the constructor's arguments, with the render mode where one is asked for."""
        return self.kwargs if self.render_mode is None else {**self.kwargs, "render_mode": self.render_mode}


class EnvSource:
    """A resolved source.

    Args:
        name: what it is called in messages.
        make: makes one environment, or a vector env, from keyword arguments.
        env_id: registered id, where it is one.
        instance: the environment itself where the source is one; it serves one session at a time.
        make_vector: makes a vector env where there is a special way.
        make_agents: makes an environment of many agents where there is a special way.

    Attributes:
        origin: what it was resolved from, for another process to resolve.
    """

    origin: Source

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        *,
        env_id: str | None = None,
        instance: AnyEnv | None = None,
        make_vector: Callable[[EnvRequest, int], VectorEnv[Any, Any, Any]] | None = None,
        make_agents: Callable[..., MultiAgentEnv] | None = None,
    ) -> None:
        self.name = name
        self.instance = instance
        self._make = make
        self._env_id = env_id
        self._make_vector = make_vector
        self._make_agents = make_agents

    @property
    def is_vector(self) -> bool:
        """Whether it is known to make vector environments of its own."""
        return self._make_vector is not None or "num_envs" in _parameters(self._make)

    def check_name(self, asked: str | None) -> None:
        """Refuse a client that expects another environment.

        Raises:
            NameNotFound: what it asks for is not served here; names the closest.
        """
        if asked is None or asked == self.name:
            return
        wanted, served = asked.rpartition(":")[2], self._env_id or self.name
        # A remote specification's id has a dot for the namespace's slash.
        known = (served, served.replace("/", "."), get_env_id(*parse_env_id(served)[:2], None)) if self._env_id else ()
        if wanted in known:
            return
        close = difflib.get_close_matches(asked, {self.name, served}, n=1, cutoff=0.5)
        hint = f" Did you mean: `{close[0]}`?" if close else f" Ask for `{served}`, or leave the id out."
        raise NameNotFound(f"Environment `{asked}` doesn't exist on this host, which serves `{self.name}`.{hint}")

    def _construct(self, **kwargs: Any) -> Any:
        try:
            return self._make(**kwargs)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            fields = error_to_dict(error)
            cause = RemoteEnvError(fields["type"], fields["message"], fields["traceback"])
            raise InvalidArgument(f"{self.name}: {error}") from cause  # libraries look for a TypeError

    def make_any(self, request: EnvRequest) -> Any:
        """Make what the source makes by itself, one environment or a vector of them."""
        return self._construct(**request.constructor_kwargs())

    def make_env(self, request: EnvRequest) -> gym.Env[Any, Any]:
        """Make a single environment.

        Raises:
            ConfigError: the source makes vector environments.
        """
        env = self._construct(**request.constructor_kwargs())
        if isinstance(env, VectorEnv):
            env.close()
            raise ConfigError(f"{self.name} makes a VectorEnv: use RemoteVectorEnv or gymnasium.make_vec")
        self._check_one_agent(env)
        if not isinstance(env, gym.Env):
            raise ConfigError(f"{self.name} made a {type(env).__name__}, expected a gymnasium.Env")
        return env

    def make_agents(self, request: EnvRequest) -> MultiAgentEnv:
        """Make an environment of many agents, or several that step together.

        Raises:
            ConfigError: the source makes environments of one agent.
        """
        if request.num_envs is None:
            return self._make_one_of_agents(request)
        if self.instance is not None and request.num_envs != 1:
            raise ConfigError(f"{self.name} is served as an instance: it is one environment, not {request.num_envs}")
        envs: list[MultiAgentEnv] = []
        try:
            envs += (self._make_one_of_agents(request) for _ in range(request.num_envs))
            return AgentsVector(envs)
        except BaseException:
            for env in envs:
                env.close()
            raise

    def _make_one_of_agents(self, request: EnvRequest) -> MultiAgentEnv:
        if self._make_agents is not None:
            return self._make_agents(**request.constructor_kwargs())
        return as_agents(self._construct(**request.constructor_kwargs()), self.name)

    def _check_one_agent(self, env: Any) -> None:
        if is_agents(env):
            env.close()
            raise ManyAgents(f"{self.name} has many agents: use RemoteParallelEnv")

    def make_vector(self, request: EnvRequest, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """Make a vector environment: the source's own, or one that steps its environments in turn."""
        if self._make_vector is not None:
            return self._make_vector(request, num_envs)
        kwargs = request.constructor_kwargs()
        parameters = _parameters(self._make)
        if "num_envs" in parameters:
            if "autoreset_mode" in parameters:
                kwargs = {**kwargs, "autoreset_mode": request.autoreset_mode}
            return self._checked(self._construct(num_envs=num_envs, **kwargs), num_envs)
        first = self._construct(**kwargs)
        if isinstance(first, VectorEnv):
            return self._checked(first, num_envs)
        self._check_one_agent(first)
        if self.instance is not None and num_envs != 1:
            first.close()
            raise ConfigError(f"{self.name} is served as an instance: it is one environment, not {num_envs}")
        rest: list[Callable[..., Any]] = [partial(self._make, **kwargs)] * (num_envs - 1)
        return HostVectorEnv([lambda: first, *rest], request.autoreset_mode)

    def _checked(self, envs: Any, num_envs: int) -> VectorEnv[Any, Any, Any]:
        if not isinstance(envs, VectorEnv) or envs.num_envs != num_envs:
            found = f"a VectorEnv of {envs.num_envs}" if isinstance(envs, VectorEnv) else f"a {type(envs).__name__}"
            raise ConfigError(f"{self.name} made {found}, expected a VectorEnv of num_envs={num_envs}")
        return envs


def _parameters(make: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some callables of C extensions have no signature
        return frozenset()


def resolve_source(source: Source) -> EnvSource:
    """Find out what a source stands for.

    Args:
        source: ``CartPole-v1``, ``package.module:Name-v0``, ``package.module:factory``, ``envpool:ID``,
            ``pettingzoo:package.module``, ``unity:PATH``, a spec, a callable that returns an environment, or an
            environment.

    Raises:
        NameNotFound: no such id; names the closest. Gymnasium's other lookup errors as they are.
        DependencyNotInstalled: the source needs a package that is missing; names the command.
        ConfigError: the module or the attribute in it does not exist, or the source is something else.
    """
    resolved = _resolve(source)
    resolved.origin = source
    return resolved


def _resolve(source: Source) -> EnvSource:
    if isinstance(source, str):
        return _resolve_text(source)
    if isinstance(source, EnvSpec):
        return _from_spec(source, source.id)
    if isinstance(source, (gym.Env, VectorEnv)):
        return _from_instance(source)
    if is_agents(source):
        return _from_agents(source)
    if callable(source):
        return EnvSource(getattr(source, "__qualname__", type(source).__qualname__), source)
    raise ConfigError(f"can't serve a {type(source).__name__}: expected an id, module:factory, a callable or an Env")


def _resolve_text(source: str) -> EnvSource:
    if source.startswith(PREFIX):
        return _from_envpool(source.removeprefix(PREFIX))
    if source.startswith(UNITY_PREFIX) or is_build(source):
        return _from_unity(source.removeprefix(UNITY_PREFIX))
    if source.startswith(PETTINGZOO_PREFIX):
        return EnvSource(source, find_pettingzoo(source))
    module_name, colon, name = source.partition(":")
    if not colon:
        return _from_spec(_find_spec(source), source)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"can't serve {source!r}: {error}. Start the host where `python -c 'import {module_name}'` works"
        ) from error
    factory = getattr(module, name, None)
    if callable(factory):
        return EnvSource(source, factory)
    if name in gym.registry or "-v" in name:
        return _from_spec(_find_spec(name), source)
    close = difflib.get_close_matches(name, dir(module), n=1)
    hint = f" Did you mean: `{close[0]}`?" if close else ""
    raise ConfigError(f"can't serve {source!r}: {module_name} has no callable {name!r}.{hint}")


def _from_envpool(env_id: str) -> EnvSource:
    find_envpool(env_id)

    def make_vector(request: EnvRequest, num_envs: int) -> EnvPoolVectorEnv:
        options = request.constructor_kwargs()
        return EnvPoolVectorEnv(env_id, num_envs, autoreset_mode=request.autoreset_mode, **options)

    return EnvSource(f"{PREFIX}{env_id}", partial(EnvPoolEnv, env_id), env_id=env_id, make_vector=make_vector)


def _find_spec(env_id: str) -> EnvSpec:
    """Return the spec of a registered id, of its highest version where none is given."""
    namespace, name, version = parse_env_id(env_id)
    if version is None and env_id not in gym.registry:
        version = find_highest_version(namespace, name)
    return gym.spec(get_env_id(namespace, name, version))


def _from_spec(spec: EnvSpec, name: str) -> EnvSource:
    make_vector = None
    if spec.entry_point is None:
        make_vector = partial(_make_own_vector, spec)
    return EnvSource(name, partial(gym.make, spec), env_id=spec.id, make_vector=make_vector)


def _make_own_vector(spec: EnvSpec, request: EnvRequest, num_envs: int) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec(spec, num_envs, **request.constructor_kwargs())


def _from_instance(env: AnyEnv) -> EnvSource:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__qualname__

    def make_env(**kwargs: Any) -> AnyEnv:
        render_mode = kwargs.pop("render_mode", env.render_mode)
        if kwargs or render_mode != env.render_mode:
            raise ConfigError(f"{name} is served as an instance: it takes no arguments, and has no other render mode")
        return env

    env_id = env.spec.id if env.spec is not None else None
    return EnvSource(name, make_env, env_id=env_id, instance=env)


def _from_unity(path: str) -> EnvSource:
    """Return the source of a Unity build, or of the editor where the path is empty; see ``unity:PATH``."""
    if path:
        find_program(path)
    compat.load()
    chosen = path or None

    def make_env(**kwargs: Any) -> gym.Env[Any, Any]:
        return UnityEnv(chosen, **_of_clients(kwargs))

    def make_agents(**kwargs: Any) -> MultiAgentEnv:
        return UnityAgents(chosen, **_of_clients(kwargs))

    return EnvSource(f"{UNITY_PREFIX}{path}", make_env, env_id="Unity-v0", make_agents=make_agents)


def _of_clients(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that clients may give: none that reach files, programs or ports of the host.

    Raises:
        InvalidArgument: another one is given.
    """
    unknown = sorted(set(kwargs) - CLIENT_OPTIONS)
    if unknown:
        raise InvalidArgument(
            f"a Unity source takes no argument {unknown[0]!r} from a client: expected some of "
            f"{sorted(CLIENT_OPTIONS)}. For others, serve a function of your own: module:factory"
        )
    return kwargs


def _from_agents(env: Any) -> EnvSource:
    name = type(env.unwrapped).__qualname__ if hasattr(env, "unwrapped") else type(env).__qualname__

    def make_agents(**kwargs: Any) -> MultiAgentEnv:
        if kwargs:
            raise ConfigError(f"{name} is served as an instance: it takes no arguments, and has no other render mode")
        return as_agents(env, name)

    return EnvSource(name, make_agents, instance=env, make_agents=make_agents)
