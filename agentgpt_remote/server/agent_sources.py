"""What a host serves to clients that act for many agents: Unity builds, PettingZoo environments, vectors of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from agentgpt_remote.agents import (
    Acting,
    Behavior,
    Ended,
    MultiAgentEnv,
    Turn,
    Turns,
    check_counts,
    empty_turn,
    rows_of,
    stack,
    take_rows,
)
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.wrappers.merging import merge_batches
from agentgpt_remote.wrappers.pettingzoo_env import adapt

PETTINGZOO_PREFIX = "pettingzoo:"


def find_pettingzoo(source: str) -> Callable[..., Any]:
    """Return what makes the environment of ``pettingzoo:package.module`` or ``pettingzoo:package.module:attribute``.

    Of a module that has both, the parallel form is taken.

    Raises:
        DependencyNotInstalled: PettingZoo is not installed.
        ConfigError: the module does not exist, lacks something that it imports, or makes no environment.
    """
    module_name, _, attribute = source.removeprefix(PETTINGZOO_PREFIX).partition(":")
    try:
        importlib.import_module("pettingzoo")
    except ModuleNotFoundError as error:
        raise DependencyNotInstalled(
            f'{source} needs PettingZoo ({error}): run `pip install "agentgpt-remote[pettingzoo]"`'
        ) from error
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"can't serve {source!r}: {error}. Start the host where `python -c 'import {module_name}'` works"
        ) from error
    names = (attribute,) if attribute else ("parallel_env", "env")
    for name in names:
        make = getattr(module, name, None)
        if callable(make):
            found: Callable[..., Any] = make
            return found
    close = difflib.get_close_matches(names[0], dir(module), n=1)
    hint = f" Did you mean: `{close[0]}`?" if close else ""
    raise ConfigError(f"can't serve {source!r}: {module_name} has no callable {' or '.join(map(repr, names))}.{hint}")


def as_agents(env: Any, name: str) -> MultiAgentEnv:
    """Return an environment as one of many agents.

    Raises:
        ConfigError: it is none; it is closed.
    """
    if isinstance(env, MultiAgentEnv):
        return env
    adapted = adapt(env)
    if adapted is not None:
        return adapted
    close = getattr(env, "close", None)
    if close is not None:
        close()
    raise ConfigError(
        f"{name} made a {type(env).__name__}, which has one agent: use RemoteEnv or RemoteVectorEnv; "
        "RemoteParallelEnv is for PettingZoo environments and Unity builds"
    )


def is_agents(env: Any) -> bool:
    """Tell whether an environment is one of many agents."""
    return isinstance(env, MultiAgentEnv) or adapt(env) is not None


class AgentsVector:
    """Several environments of many agents that step together; one whose agents are all gone begins anew at once.

    The ids of environment i's agents are ``i/<id>``.

    Args:
        envs: at least one, of equal behaviours.
    """

    def __init__(self, envs: Sequence[MultiAgentEnv]) -> None:
        self.envs = list(envs)
        self.metadata = self.envs[0].metadata
        self.render_mode = self.envs[0].render_mode
        self.behaviors: dict[str, Behavior] = {}
        self._acting: list[dict[str, tuple[str, ...]]] = [{} for _ in self.envs]
        self._shares: list[dict[str, Any]] = []
        self._add_behaviors()

    def _add_behaviors(self) -> None:
        for env in self.envs:
            for name, behavior in env.behaviors.items():
                known = self.behaviors.get(name)
                if known is None:
                    ids = tuple(f"{i}/{one}" for i in range(len(self.envs)) for one in behavior.agent_ids)
                    self.behaviors[name] = Behavior(
                        name=name,
                        observation_space=behavior.observation_space,
                        action_space=behavior.action_space,
                        mask_width=behavior.mask_width,
                        agent_ids=ids,
                    )
                elif (known.observation_space, known.action_space) != (
                    behavior.observation_space,
                    behavior.action_space,
                ):
                    raise ConfigError(f"behaviour {name!r} has other spaces in one environment than in the first")

    @property
    def is_over(self) -> bool:
        """Never: environments begin anew."""
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Reset all environments; number i gets the seed ``seed + i``."""
        parts = [
            env.reset(seed=None if seed is None else seed + index, options=options)
            for index, env in enumerate(self.envs)
        ]
        return self._together([[part] for part in parts])

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Step all environments; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        self.send(actions)
        return self.receive()

    def send(self, actions: Mapping[str, Any]) -> None:
        """Take actions; an environment that works in a process of its own does so from here on, all of them at once."""
        needed = {name: [one for ids in self._acting for one in ids.get(name, ())] for name in self.behaviors}
        check_counts(self.behaviors, needed, actions)
        starts = dict.fromkeys(self.behaviors, 0)
        self._shares = []
        for acting in self._acting:
            share = {}
            for name, ids in acting.items():
                start = starts[name]
                starts[name] = start + len(ids)
                if ids:
                    share[name] = take_rows(actions[name], range(start, starts[name]))
            self._shares.append(share)
        for env, share in zip(self.envs, self._shares, strict=True):
            send = getattr(env, "send", None)
            if send is not None:
                send(share)

    def receive(self) -> Turns:
        """Step the environments that have not begun to, and return what all brought."""
        results = []
        for env, share in zip(self.envs, self._shares, strict=True):
            receive = getattr(env, "receive", None)
            turns = [env.step(share) if receive is None else receive()]
            if env.is_over:
                turns.append(env.reset())
            results.append(turns)
        return self._together(results)

    def _together(self, parts: list[list[Turns]]) -> Turns:
        """Return the rows of all environments, each of which answered with one turn, or two where it began anew."""
        self._add_behaviors()
        self._acting = [{name: tuple(turns[-1][name].acting.agent_ids) for name in turns[-1]} for turns in parts]
        return {name: self._joined(behavior, parts) for name, behavior in self.behaviors.items()}

    def _joined(self, behavior: Behavior, parts: list[list[Turns]]) -> Turn:
        acting, ended = [], []
        for index, turns in enumerate(parts):
            for number, by_name in enumerate(turns):
                turn = by_name.get(behavior.name)
                if turn is None:
                    continue
                if number == len(turns) - 1 and turn.acting.agent_ids:
                    acting.append(_prefixed(turn.acting, index))
                if turn.ended.agent_ids:
                    ended.append(_prefixed(turn.ended, index))
        nobody = empty_turn(behavior)
        return Turn(
            _join_acting(behavior, acting) if acting else nobody.acting,
            _join_ended(behavior, ended) if ended else nobody.ended,
        )

    def render(self) -> Any:
        """Return a frame of each environment."""
        return tuple(env.render() for env in self.envs)

    def close(self) -> None:
        """Close all environments, whatever one of them raises."""
        failure: BaseException | None = None
        for env in self.envs:
            try:
                env.close()
            except Exception as error:  # noqa: BLE001 - raised below, when all were closed
                failure = failure or error
        if failure is not None:
            raise failure


def _prefixed(rows: Any, index: int) -> Any:
    infos = {f"{index}/{one}": info for one, info in rows.infos.items()}
    return rows._replace(agent_ids=tuple(f"{index}/{one}" for one in rows.agent_ids), infos=infos)


def _merged(behavior: Behavior, parts: list[Any]) -> Any:
    if any(isinstance(part, list) for part in parts):
        return stack(behavior.observation_space, [row for part in parts for row in rows_of(part)])
    return parts[0] if len(parts) == 1 else merge_batches(behavior.observation_space, parts)


def _ids(parts: Sequence[Any]) -> tuple[str, ...]:
    return tuple(one for part in parts for one in part.agent_ids)


def _infos(parts: Sequence[Any]) -> dict[str, dict[str, Any]]:
    return {one: info for part in parts for one, info in part.infos.items()}


def _join_acting(behavior: Behavior, parts: list[Acting]) -> Acting:
    mask = None
    if any(part.action_mask is not None for part in parts):
        masks = [part.action_mask for part in parts]
        shapes = [(len(part.agent_ids), behavior.mask_width) for part in parts]
        mask = np.concatenate(
            [np.ones(shape, np.bool_) if one is None else one for one, shape in zip(masks, shapes, strict=True)]
        )
    return Acting(
        _ids(parts),
        _merged(behavior, [part.observations for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.begins for part in parts]),
        mask,
        _infos(parts),
    )


def _join_ended(behavior: Behavior, parts: list[Ended]) -> Ended:
    return Ended(
        _ids(parts),
        _merged(behavior, [part.observations for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.terminated for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        _infos(parts),
    )
