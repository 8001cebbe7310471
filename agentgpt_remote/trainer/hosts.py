"""From hyperparameters to open lanes."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from gymnasium.vector import VectorEnv

from agentgpt_remote.errors import CapacityReached, ConfigError, ConnectionLost, RemoteTimeout
from agentgpt_remote.policy.features import ObservationFeatures
from agentgpt_remote.trainer.hyperparameters import EnvHost, Hyperparameters
from agentgpt_remote.trainer.lanes import Lane, check_same_spaces
from agentgpt_remote.trainer.ranks import Ranks
from agentgpt_remote.trainer.recovery import AbsentLane
from agentgpt_remote.trainer.room_hosts import RoomHosts
from agentgpt_remote.wrappers.local_host import LocalHost
from agentgpt_remote.wrappers.offers import free_envs, host_health
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room

RESUME_WINDOW_S = 5.0
_ROOM_RESUME_WINDOW_S = 20.0  # a relay that is started again is worth waiting for
_FREE_POLL_S, _FREE_MARGIN_S = 0.5, 10.0
Tokens = str | Mapping[str, str] | None
logger = logging.getLogger("agentgpt_remote.trainer")


@dataclass(kw_only=True, eq=False)
class OpenedHosts:
    """Lanes to train on, and what ends with them.

    Attributes:
        lanes: at least one.
        description: one line for people and for provenance.
        absent: lanes of listed hosts that did not answer.
    """

    lanes: list[Lane]
    description: str
    absent: list[AbsentLane] = field(default_factory=list)

    @property
    def num_agents(self) -> int:
        """Agents of all lanes together."""
        return sum(lane.num_agents for lane in self.lanes)


def divide_hosts(
    hyperparameters: Hyperparameters, envs: Sequence[VectorEnv[Any, Any, Any] | str] | None, ranks: Ranks
) -> tuple[Hyperparameters, Sequence[VectorEnv[Any, Any, Any] | str] | None]:
    """Return the arguments of :func:`open_hosts` for one of several ranks: URLs are dealt out one after the other.

    A host that is started for ``env_id`` and vector environments of this process are each rank's own.

    Raises:
        ConfigError: there are fewer URLs than ranks.
    """
    urls = [item.env_endpoint for item in hyperparameters.env_hosts.values()]
    if envs is not None:
        urls = [item for item in envs if isinstance(item, str)]
    if ranks.size == 1 or not urls:
        return hyperparameters, envs
    if len(urls) < ranks.size and (envs is None or len(urls) == len(envs)):
        raise ConfigError(
            f"{len(urls)} hosts for {ranks.size} ranks ({', '.join(urls)}): expected at least one for each rank; "
            "start more hosts, or fewer ranks (--nproc-per-node)"
        )
    mine = urls[ranks.rank :: ranks.size]
    if envs is not None:
        return hyperparameters, [item for item in envs if not isinstance(item, str) or item in mine]
    kept = {name: host for name, host in hyperparameters.env_hosts.items() if host.env_endpoint in mine}
    return replace(hyperparameters, env_hosts=kept), None


def open_hosts(
    hyperparameters: Hyperparameters,
    envs: Sequence[VectorEnv[Any, Any, Any] | str] | None,
    token: Tokens,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool] = lambda: False,
) -> OpenedHosts:
    """Open the environments to train on.

    Args:
        hyperparameters: ``env_id`` or ``env_hosts`` where ``envs`` is None.
        envs: vector environments, which stay the caller's, or URLs of hosts.
        token: of the hosts: one for all, or one per URL, where the empty URL stands for all others.
        stack: closes what is opened here.
        should_stop: whether to wait no longer for hosts that are full of lost sessions.

    Raises:
        ConfigError: nothing is named, or the hosts serve different environments.
        HostUnreachable: none of the hosts answers; where some do, the others are logged.
    """
    named: list[_Opened]
    if envs is not None:
        hosts = {str(item): EnvHost(env_endpoint=item) for item in envs if isinstance(item, str)}
        given = [item for item in envs if not isinstance(item, str)]
        named = [_Opened(f"envs[{index}]", item) for index, item in enumerate(given)]
        named += _open_remote(hosts, hyperparameters, token, stack, should_stop, alone=not given)
        description = ", ".join([*hosts, *(type(item).__name__ for item in given)])
    elif hyperparameters.env_hosts:
        named = _open_remote(hyperparameters.env_hosts, hyperparameters, token, stack, should_stop)
        description = ", ".join(host.env_endpoint for host in hyperparameters.env_hosts.values())
    elif hyperparameters.env_id:
        named = _open_local(hyperparameters, stack)
        description = hyperparameters.env_id
    else:
        raise ConfigError("no environment is named: set env_id or env_hosts, or pass envs")
    if not named:
        raise ConfigError(f"envs={envs!r}: expected at least one vector environment or URL")
    make_lane = _LaneMaker([(item.name, item.envs) for item in named if item.envs], hyperparameters, should_stop)
    lanes, absent = [], []
    for item in named:
        if item.envs is None:
            absent.append(AbsentLane(name=item.name, num_agents=item.size, open=make_lane.opener(item)))
        else:
            lanes.append(make_lane(item, item.envs))
    return OpenedHosts(lanes=lanes, description=description, absent=absent)


class _Opened(NamedTuple):
    """What becomes a lane.

    Attributes:
        name: of the lane.
        envs: its environments; ``None`` for as long as there is no host that answers.
        size: how many they are at most.
        open: gets them (again), so many or fewer.
        mismatch: told of a host that serves something else; returns the error to go on with.
    """

    name: str
    envs: VectorEnv[Any, Any, Any] | None
    size: int = 0
    open: Callable[[int], RemoteVectorEnv] | None = None
    mismatch: Callable[[ConfigError], Exception] = lambda error: error


class _LaneMaker:
    """Makes lanes of one run, also later, when a host appears or returns."""

    def __init__(
        self,
        opened: Sequence[tuple[str, VectorEnv[Any, Any, Any]]],
        hyperparameters: Hyperparameters,
        should_stop: Callable[[], bool],
    ) -> None:
        names, envs = [name for name, _ in opened], [env for _, env in opened]
        check_same_spaces(envs, names)
        self._first_name, self._first = opened[0]
        self._features = ObservationFeatures(self._first.single_observation_space)
        self._hp, self._should_stop = hyperparameters, should_stop

    def __call__(self, item: _Opened, envs: VectorEnv[Any, Any, Any]) -> Lane:
        hp = self._hp
        lane = Lane(item.name, envs, self._features, hp.step_timeout_s, hp.nonfinite)
        lane.give_up_when(lambda: "training was stopped" if self._should_stop() else None)
        lane.reopen = None if item.open is None else self.opener(item)
        return lane

    def opener(self, item: _Opened) -> Callable[[], Lane]:
        """Return what opens the lane when its host is there (again)."""

        def open_lane() -> Lane:
            if item.open is None:
                raise ConnectionLost(f"{item.name} can't be opened again")
            envs = item.open(item.size)
            try:
                check_same_spaces([self._first, envs], [self._first_name, item.name])
                return self(item, envs)
            except ConfigError as error:
                envs.close()
                raise item.mismatch(error) from error
            except BaseException:
                envs.close()
                raise

        return open_lane


def split_envs(total: int, lanes: int | None) -> list[int]:
    """Return sizes of at most so many lanes that add up to the total."""
    lanes = min(lanes or 1, total)
    return [total // lanes + (index < total % lanes) for index in range(lanes)]


def _open_local(hyperparameters: Hyperparameters, stack: contextlib.ExitStack) -> list[_Opened]:
    source = str(hyperparameters.env_id)
    host = stack.enter_context(LocalHost(source))
    sizes = split_envs(hyperparameters.envs_per_host, hyperparameters.lanes_per_host)
    return [
        _Opened(f"{source}/{lane}", stack.enter_context(_connect(host.url, host.token, size, hyperparameters)))
        for lane, size in enumerate(sizes)
    ]


def _open_remote(
    hosts: Mapping[str, EnvHost],
    hyperparameters: Hyperparameters,
    token: Tokens,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
    *,
    alone: bool = True,
) -> list[_Opened]:
    """Open all hosts that answer; the others are left for later.

    Args:
        hosts: by name.
        hyperparameters: of the run.
        token: of the hosts.
        stack: closes what is opened here.
        should_stop: whether to wait no longer for hosts that are full.
        alone: there are no other environments to train on.
    """
    opened: list[_Opened] = []
    unreachable: dict[str, ConnectionLost | RemoteTimeout] = {}
    # With other hosts to go on with, a lost one is not waited for as long as a single one.
    resume_window_s = RESUME_WINDOW_S if len(hosts) > 1 or not alone else None
    for name, host in hosts.items():
        url, own_token = host.env_endpoint, token_of(host.env_endpoint, token)
        room = Room.at(url, own_token)
        if room is not None:
            opened += _open_room(name, host, room, own_token, hyperparameters, stack, should_stop)
            continue
        connect = functools.partial(_connect, url, own_token, hp=hyperparameters, resume_window_s=resume_window_s)
        door = _Door(host, connect, own_token)
        try:
            envs: Sequence[RemoteVectorEnv | None] = _open_host(door, hyperparameters, stack, should_stop)
            sizes = [env.num_envs for env in envs if env is not None]
        except (ConnectionLost, RemoteTimeout) as error:
            unreachable[name] = error
            sizes = split_envs(host.num_agents or hyperparameters.envs_per_host, hyperparameters.lanes_per_host)
            envs = [None] * len(sizes)
        opened += [
            _Opened(f"{name}/{lane}", env, size, door.open)
            for lane, (env, size) in enumerate(zip(envs, sizes, strict=True))
        ]
    if len(unreachable) == len(hosts) and unreachable and alone:
        raise next(iter(unreachable.values()))
    for name, reason in unreachable.items():
        logger.warning("host=%s url=%s left out until it answers: %s", name, hosts[name].env_endpoint, reason)
    return opened


class _Door(NamedTuple):
    """How to get environments of one host."""

    host: EnvHost
    connect: Callable[[int], RemoteVectorEnv]
    token: str | None

    def health(self) -> dict[str, Any]:
        """Return what the host tells of itself."""
        return host_health(self.host.env_endpoint, self.token)

    def open(self, size: int) -> RemoteVectorEnv:
        """Open so many environments, or as many as are free."""
        return self.connect(min(size, room_of(self.health(), size)))


def _open_room(
    name: str,
    host: EnvHost,
    room: Room,
    token: str | None,
    hyperparameters: Hyperparameters,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
) -> list[_Opened]:
    """Open lanes on the hosts of a room, and set places apart for those that come later."""
    hp = hyperparameters

    def connect(url: str, size: int) -> RemoteVectorEnv:
        return _connect(url, token, size, hp, _ROOM_RESUME_WINDOW_S)

    hosts = RoomHosts(room, connect, hp.envs_per_host)
    slots = hosts.open_all(
        name, hp.lanes_per_host or 1, host.num_agents, wait_s=hp.host_wait_s, should_stop=should_stop
    )
    for slot in slots:
        if slot.envs is not None:
            stack.enter_context(slot.envs)
    return [
        _Opened(
            slot.name,
            slot.envs,
            slot.size,
            functools.partial(hosts.open, slot.name),
            functools.partial(hosts.refuse, slot.name),
        )
        for slot in slots
    ]


def _open_host(
    door: _Door,
    hyperparameters: Hyperparameters,
    stack: contextlib.ExitStack,
    should_stop: Callable[[], bool],
) -> list[RemoteVectorEnv]:
    """Open the lanes of one host.

    A trainer that was killed leaves sessions that its host keeps for a while; where they fill the host, this
    waits for their end.

    Raises:
        CapacityReached: the host has no room, and none that will be free soon.
    """
    host, began, waiting = door.host, time.monotonic(), False
    while True:
        told = door.health()
        try:
            with contextlib.ExitStack() as attempt:
                total = host.num_agents or room_of(told, hyperparameters.envs_per_host)
                envs = [
                    attempt.enter_context(door.connect(size))
                    for size in split_envs(total, hyperparameters.lanes_per_host)
                ]
                stack.enter_context(attempt.pop_all())
                return envs
        except CapacityReached:
            window_s = float(told.get("resume_window_s", 0.0))
            if not told.get("lost_envs") or time.monotonic() - began > window_s + _FREE_MARGIN_S or should_stop():
                raise
            if not waiting:
                logger.warning(
                    "url=%s is full of lost sessions, waiting up to %g s for their end", host.env_endpoint, window_s
                )
            waiting = True
            time.sleep(_FREE_POLL_S)


def token_of(url: str, tokens: Tokens) -> str | None:
    """Return the token of a host."""
    return tokens if tokens is None or isinstance(tokens, str) else tokens.get(url, tokens.get(""))


def _connect(
    url: str,
    token: str | None,
    num_envs: int,
    hp: Hyperparameters,
    resume_window_s: float | None = None,
) -> RemoteVectorEnv:
    return RemoteVectorEnv(
        num_envs=num_envs,
        url=url,
        token=token,
        request_timeout_s=hp.step_timeout_s,
        resume_window_s=resume_window_s,
        **hp.env_kwargs,
    )


def offered_envs(url: str, wanted: int, token: str | None = None) -> int:
    """Return how many environments a host, or the hosts of a room, have free.

    It is ``wanted`` where there is no limit, or where the host does not tell.

    Raises:
        AuthError: a relay refused the token.
        HostUnreachable: a relay is not there.
    """
    room = Room.at(url, token)
    if room is None:
        return room_of(host_health(url), wanted)
    return max(1, sum(room_of(member.offers, wanted) for member in room.members()))


def room_of(told: Mapping[str, Any], wanted: int) -> int:
    """Return how many environments are free, those of lost sessions included: they will be."""
    room = free_envs(told, with_lost=True)
    return wanted if room is None else max(1, room)
