"""Many environments on a host, as one Gymnasium vector environment."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import msgspec
import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from agentgpt_remote.errors import ConfigError, RemoteTimeout
from agentgpt_remote.protocol import Kind
from agentgpt_remote.spaces import space_from_dict
from agentgpt_remote.steps import DroppedCallback, WarnOnce, check_count
from agentgpt_remote.wrappers.hosting import Host, find_hosts, fixed_type_errors
from agentgpt_remote.wrappers.merging import merge_batches, merge_infos, slice_batch
from agentgpt_remote.wrappers.offers import await_free, free_envs, host_health, spread
from agentgpt_remote.wrappers.pacing import AUTO, Way, choose_groups, measure, measure_some, probe_size
from agentgpt_remote.wrappers.remote_base import (
    REMOTE_RENDER_MODES,
    RemoteBase,
    check_host_loss,
    exchange,
    named_source,
    open_request,
    own_spec,
    remote_metadata,
    round_trip_s,
    spec_kwargs,
    spin_seconds,
)
from agentgpt_remote.wrappers.shard import Shard, Step, take_in_replies
from agentgpt_remote.wrappers.transport import Timeouts

_logger = logging.getLogger("agentgpt_remote.client")
_RESUME_WINDOW_S = 5.0  # with other hosts to go on with, a lost one is not waited for as long as a single one


class RemoteVectorEnv(RemoteBase, VectorEnv[Any, Any, Any]):
    """Environments on a host that step together: one message each way for all of them.

    Args:
        source: as for :class:`RemoteEnv`.
        num_envs: how many in all; ``None`` for as many as the hosts offer (one where there is no limit).
        url: where a host listens, the URL of a relay's room, which stands for all the hosts in it, or a list of these,
            over which the environments are spread in proportion to what each offers; without it a host process is
            started.
        token: token of the hosts, one for all or one by URL; ``AGENTGPT_TOKEN`` by default. Never part of the spec.
        autoreset_mode: when the host resets an environment whose episode ended.
        render_mode: ``rgb_array``, ``ansi`` or ``None``.
        connect_timeout_s: how long to wait for a connection, and for hosts in a room, in seconds.
        request_timeout_s: how long to wait for a reply, in seconds.
        resume_window_s: how long to try to get back after the connection dropped, in seconds.
        groups: number of equal groups of environments that :meth:`send` and :meth:`recv` step independently; each has
            a session of its own. ``auto`` measures the way to the hosts and the environments' pace once, in sessions
            that are closed again, and takes as many as keep the way there and back full. What the environments return
            is the same for every number of groups.
        on_host_loss: ``error``, or ``truncate`` to end the episodes of a host that is lost (or whose process hangs)
            and go on in new environments, there or on another host: ``infos["host_loss"]`` says why.
        spin_wait: how long to poll for a reply before sleeping until it arrives, in seconds; ``True`` for 1 ms. Keeps
            a processor busy and answers small steps sooner.
        workers: processes that a host started for this runs its environments in; 0 for the host's own, by default
            measured.
        env_kwargs: arguments of the environment's constructor on the host.

    Attributes:
        url: where they are served.

    Raises:
        HostUnreachable: nothing listens at the URL.
        AuthError: the token is missing or wrong.
        NameNotFound: no such id; names the closest.
        RemoteEnvError: the environment's constructor raised; holds its traceback.
        CapacityReached: the host has no room for so many.
        ConfigError: ``num_envs``, ``groups`` or ``autoreset_mode`` is out of range.
    """

    metadata: dict[str, Any] = {"render_modes": list(REMOTE_RENDER_MODES), "render_fps": 30}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        source: Any = None,
        num_envs: int | None = None,
        *,
        url: str | Host | Sequence[str | Host] | None = None,
        token: str | Mapping[str, str] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        connect_timeout_s: float = 10.0,
        request_timeout_s: float = 300.0,
        resume_window_s: float | None = None,
        groups: int | str = 1,
        on_host_loss: str = "error",
        spin_wait: bool | float = False,
        workers: int | None = None,
        **env_kwargs: Any,
    ) -> None:
        timeouts = Timeouts(
            connect_s=connect_timeout_s,
            request_s=request_timeout_s,
            resume_s=resume_window_s,
            spin_s=spin_seconds(spin_wait),
        )
        self._mode, self._truncates = _mode(autoreset_mode), check_host_loss(on_host_loss)
        num_envs = _count("num_envs", num_envs)
        wants_auto = groups == AUTO
        self.groups = 1 if wants_auto else _count("groups", groups) or 1
        self._shards: list[Shard] = []
        self._warn_once = WarnOnce()
        self._sent: deque[int] = deque()
        self._received_early: dict[int, Any] = {}
        with fixed_type_errors():
            if url is None:
                source = named_source(source, env_kwargs)
            source = named_source(source)
            self._request = open_request(render_mode, env_kwargs)
            self._request.autoreset_mode = self._mode.value
            if num_envs is None and isinstance(source, VectorEnv):
                num_envs = source.num_envs
            hosts = find_hosts(source, url, token, workers, wait_s=connect_timeout_s, num_envs=num_envs or 1)
            if self._truncates and resume_window_s is None and len(hosts) > 1:
                timeouts = replace(timeouts, resume_s=_RESUME_WINDOW_S)
            self._connect(hosts, timeouts, owned=url is None)
            try:
                if wants_auto and not any(host.only_one for host in hosts):
                    num_envs = self._choose_groups(num_envs, env_kwargs)
                self._open_shards(num_envs)
                self._adopt(self._shards[0])
                chosen = {"groups": AUTO} if wants_auto else {} if self.groups == 1 else {"groups": self.groups}
                kwargs = spec_kwargs(render_mode, on_host_loss, {**chosen, **env_kwargs})
                self._spec = own_spec(self._shards[0].opened, source, url, kwargs)
            except BaseException:
                self.close()
                raise

    def _choose_groups(self, num_envs: int | None, env_kwargs: dict[str, Any]) -> int:
        """Decide the number of groups by what some of the hosts show; return how many environments there will be."""
        hosts, timeouts = self._sessions.hosts, self._sessions.timeouts

        def free() -> int:
            rooms = [free_envs(host_health(host.url, host.token)) for host in hosts]
            return sum(1 if room is None else room for room in rooms)

        free_before = free()
        if num_envs is None:
            num_envs = free_before or 1

        def measured(host: Host) -> Way:
            with RemoteVectorEnv(
                num_envs=probe_size(max(1, num_envs // len(hosts))),
                url=host,
                render_mode=self._request.render_mode,
                connect_timeout_s=timeouts.connect_s,
                request_timeout_s=timeouts.request_s,
                **env_kwargs,
            ) as probe:
                return measure(probe)

        ways = measure_some(measured, hosts)
        await_free(free, free_before)
        self.groups = choose_groups(ways, num_envs) if ways else 1
        _logger.info("groups=%d of auto num_envs=%d ways=%s", self.groups, num_envs, ways)
        return num_envs

    def ping(self) -> float:
        """Return how long a request that asks for nothing takes to each host and back, in seconds; of the farthest.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
        """
        self._check_free("ping")
        return max(round_trip_s(shard.transport) for shard in self._shards)

    def _open_shards(self, num_envs: int | None) -> None:
        hosts = self._sessions.hosts
        if len(hosts) == 1 and self.groups == 1:
            self._open_shard(hosts[0], num_envs or 0, group=0, start=0, keeps_last=False)
            return
        offers = [host_health(host.url, host.token) for host in hosts]
        if self._truncates:  # the others are there for when one is lost
            reachable = [index for index, offer in enumerate(offers) if offer] or list(range(len(hosts)))
        else:
            reachable = list(range(len(hosts)))
        free = [free_envs(offers[index]) for index in reachable]
        if num_envs is None:
            num_envs = sum(self.groups if room is None else room for room in free) or self.groups
        if num_envs % self.groups:
            raise ConfigError(f"num_envs={num_envs} can't be split into groups={self.groups} of one size")
        start = 0
        for part in spread(num_envs, self.groups, free):
            host = hosts[reachable[part.host]]
            self._open_shard(host, part.num_envs, group=part.group, start=start, keeps_last=True)
            start += part.num_envs

    def _open_shard(self, host: Host, num_envs: int, *, group: int, start: int, keeps_last: bool) -> None:
        shard = Shard(
            self._sessions,
            host,
            msgspec.structs.replace(self._request, num_envs=num_envs),
            start=start,
            group=group,
            mode=self._mode,
            truncates=self._truncates,
            keeps_last=keeps_last,
            on_dropped=self._warn_once,
        )
        for role in ("single_observation_space", "single_action_space"):
            space, expected = getattr(shard, role), getattr(self._shards[0] if self._shards else shard, role)
            if space != expected:
                raise ConfigError(
                    f"{host.label} has {role} {space}, {self._shards[0].host.label} has {expected}: "
                    "expected every host to serve the same environment"
                )
        self._shards.append(shard)

    def _adopt(self, shard: Shard) -> None:
        opened = shard.opened
        self.num_envs = self._shards[-1].stop
        self._group_size = self.num_envs // self.groups
        self._only = shard if len(self._shards) == 1 else None
        self.single_observation_space = shard.single_observation_space
        self.single_action_space = shard.single_action_space
        told = (opened.batched_observation_space, opened.batched_action_space) if self._only else (None, None)
        self.observation_space = _batched(self.single_observation_space, told[0], self.num_envs)
        self.action_space = _batched(self.single_action_space, told[1], self.num_envs)
        self.render_mode = opened.render_mode
        self.metadata = remote_metadata(opened)
        if isinstance(self.metadata.get("autoreset_mode"), str):
            self.metadata["autoreset_mode"] = AutoresetMode(self.metadata["autoreset_mode"])

    def tell_dropped(self, callback: DroppedCallback) -> None:
        """Have ``callback`` told the parts of infos that could not be sent, instead of a warning."""
        for shard in self._shards:
            shard.codec.tell_dropped(callback)

    def _envs_on(self, host: Host) -> int | None:
        return sum(shard.num_envs for shard in self._shards if shard.url == host.url) or None

    @property
    def host_step_s(self) -> float:
        """How long the environments took on their host for the latest reply, in seconds; of the slowest host."""
        return max(shard.transport.host_ns for shard in self._shards) * 1e-9

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments, those of all groups.

        Args:
            seed: one seed, from which the environments count up, or one for each of them.
            options: as in :meth:`gymnasium.vector.SyncVectorEnv.reset`, with ``reset_mask``; never changed.

        Returns:
            Batched observations and infos.

        Raises:
            NotSendable: ``options`` holds a value that the wire can't carry.
        """
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def reset_async(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Send the request to reset; :meth:`reset_wait` returns the reply.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
        """
        self._check_free("reset_async")
        if isinstance(seed, int):
            super().reset(seed=seed)
        if self._only is not None:
            self._only.send_reset(seed, options)
            return
        seeds, masks = self._seeds_by_shard(seed), self._masks_by_shard(options)
        requests = []
        for shard, own_seed, mask in zip(self._shards, seeds, masks, strict=True):
            own_options = options if mask is None or options is None else {**options, "reset_mask": mask}
            requests.append(partial(shard.send_reset, own_seed, own_options))
        self._start(self._shards, requests)

    def _seeds_by_shard(self, seed: Any) -> list[Any]:
        if seed is None:
            return [None] * len(self._shards)
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + shard.start for shard in self._shards]
        if len(seed) != self.num_envs:
            raise ConfigError(f"seed holds {len(seed)} values, expected one for each of {self.num_envs} environments")
        return [seed[shard.start : shard.stop] for shard in self._shards]

    def _masks_by_shard(self, options: dict[str, Any] | None) -> list[Any]:
        mask = None if options is None else options.get("reset_mask")
        if mask is None:
            return [None] * len(self._shards)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ConfigError(
                f"options['reset_mask'] is {mask!r}: expected a bool array with one value for each of "
                f"{self.num_envs} environments"
            )
        if not mask.any():
            raise ConfigError("options['reset_mask'] names no environment: expected at least one True")
        return [mask[shard.start : shard.stop] for shard in self._shards]

    def reset_wait(self, timeout_s: float | None = None) -> tuple[Any, dict[str, Any]]:
        """Return observations and infos of :meth:`reset_async`; raises as :meth:`step_wait`."""
        self._check_pending(self._shards, Kind.RESET, "reset_wait")
        if self._only is not None:
            return self._only.receive_reset(timeout_s)
        parts = self._collect(self._shards, timeout_s)
        return self._merged([part[0] for part in parts]), self._merged_infos(self._shards, parts)

    def step(self, actions: Any) -> Step:
        """Step all environments, those of all groups.

        Args:
            actions: one action for each environment, batched as ``action_space`` is.

        Returns:
            Observations, rewards (float64 (num_envs,)), terminations and truncations (bool (num_envs,)), infos.

        Raises:
            InvalidAction: there is not one action for each environment, or an environment raised because one is
                outside its space.
            RemoteEnvError: an environment raised; holds its traceback. The session goes on.
            RemoteTimeout: no reply in time.
            ConnectionLost: the host is gone, and did not come back.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Send the actions; :meth:`step_wait` returns the reply.

        Raises:
            AlreadyPendingCallError: another request lacks its reply.
            InvalidAction: there is not one action for each environment.
        """
        self._check_free("step_async")
        if self._only is not None:
            self._only.send_step(self._only.encode_actions(actions))
        else:
            self._send_steps(self._shards, actions, 0, self.num_envs)

    def step_wait(self, timeout_s: float | None = None) -> Step:
        """Return what :meth:`step` returns, for the actions of :meth:`step_async`.

        Args:
            timeout_s: deadline in seconds; the request timeout by default.

        Raises:
            NoAsyncCallError: nothing was sent.
            RemoteTimeout: no reply in time; call again to wait on.
        """
        self._check_pending(self._shards, Kind.STEP, "step_wait")
        if self._only is not None:
            return self._only.receive_step(timeout_s)
        return self._merged_step(self._shards, timeout_s)

    def group_slice(self, group: int) -> slice:
        """Return which of the environments are those of a group."""
        if not 0 <= group < self.groups:
            raise ConfigError(f"group={group!r} is out of range: expected 0 to {self.groups - 1}")
        return slice(group * self._group_size, (group + 1) * self._group_size)

    def send(self, group: int, actions: Any) -> None:
        """Start a step of one group, while others step; :meth:`recv` returns the result.

        Args:
            group: index of the group.
            actions: one action for each of its ``num_envs // groups`` environments.

        Raises:
            AlreadyPendingCallError: the group's last request lacks its reply.
            InvalidAction: there is not one action for each environment.
        """
        envs = self.group_slice(group)
        shards = self._of_group(group)
        self._check_free("send", shards)
        self._send_steps(shards, actions, envs.start, envs.stop)
        self._sent.append(group)

    def recv(self, timeout_s: float | None = None) -> tuple[int, Step]:
        """Return the result of whichever group is ready first.

        Args:
            timeout_s: deadline in seconds; the request timeout by default.

        Returns:
            The group, and what :meth:`step` would return for its environments.

        Raises:
            NoAsyncCallError: nothing was sent.
            RemoteTimeout: no group is ready in time; call again to wait on.
            Exception: what the group's host raised; :meth:`send` to the group works again.
        """
        if self.closed:
            raise self._closed_error()
        if not self._sent:
            raise NoAsyncCallError("called recv without send before", "send")
        timeout_s = self._sessions.timeouts.request_s if timeout_s is None else timeout_s
        deadline, left_s = time.monotonic() + timeout_s, 0.0
        while True:
            take_in_replies([shard for group in self._sent for shard in self._of_group(group)], left_s)
            for group in self._sent:
                shards = self._of_group(group)
                if all(shard.pending is None or shard.has_reply() for shard in shards):
                    return self._received(group, shards)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RemoteTimeout(f"no group is ready within {timeout_s:g} s: the environments are slow or hang")

    def _received(self, group: int, shards: list[Shard]) -> tuple[int, Step]:
        try:
            step = self._merged_step(shards, None)
        except TimeoutError:
            raise
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self._sent.remove(group)
                error.add_note(f"raised by group {group} of the vector environment")
            raise
        self._sent.remove(group)
        return group, step

    def _of_group(self, group: int) -> list[Shard]:
        if self.groups == 1:
            return self._shards
        return [shard for shard in self._shards if shard.group == group]

    def _send_steps(self, shards: list[Shard], actions: Any, start: int, stop: int) -> None:
        """Send to each shard its actions, out of those for the environments from ``start`` to ``stop``."""
        if len(shards) == 1:
            shards[0].send_step(shards[0].encode_actions(actions))
            return
        check_count(self.single_action_space, actions, stop - start)
        space = self.single_action_space
        own = [slice_batch(space, actions, shard.start - start, shard.stop - start) for shard in shards]
        # All or none: a shard with an action that can't be sent must not leave the others stepping.
        requests = [shard.encode_actions(part) for shard, part in zip(shards, own, strict=True)]
        self._start(
            shards, [partial(shard.send_step, request) for shard, request in zip(shards, requests, strict=True)]
        )

    def _start(self, shards: list[Shard], requests: Sequence[Callable[[], None]]) -> None:
        """Send the request of each shard; where one can't be sent, no other is left pending."""
        for index, send in enumerate(requests):
            try:
                send()
            except Exception:
                with contextlib.suppress(Exception):  # told below is what failed first
                    self._collect(shards[:index], None)
                raise

    def _collect(self, shards: list[Shard], timeout_s: float | None) -> list[Any]:
        """Return the replies of all shards, or raise the first error once all have replied."""
        results: list[Any] = []
        failure: BaseException | None = None
        for shard in shards:
            ready = self._received_early.pop(id(shard), None)
            if ready is not None or shard.pending is None:
                results.append(ready)
                continue
            try:
                receive = shard.receive_reset if shard.pending is Kind.RESET else shard.receive_step
                results.append(receive(timeout_s))
            except (TimeoutError, KeyboardInterrupt):
                # What has arrived is kept for the next call.
                self._received_early |= {id(done): part for done, part in zip(shards, results, strict=False)}
                raise
            except Exception as error:  # noqa: BLE001 - raised below, when no reply is outstanding
                failure = failure or error
                results.append(None)
        if failure is not None:
            raise failure
        return results

    def _merged_step(self, shards: list[Shard], timeout_s: float | None) -> Step:
        parts = self._collect(shards, timeout_s)
        if len(parts) == 1:
            step: Step = parts[0]
            return step
        rewards, terminations, truncations = (np.concatenate([part[index] for part in parts]) for index in (1, 2, 3))
        observations = self._merged([part[0] for part in parts])
        return observations, rewards, terminations, truncations, self._merged_infos(shards, parts)

    def _merged(self, observations: list[Any]) -> Any:
        return merge_batches(self.single_observation_space, observations)

    def _merged_infos(self, shards: list[Shard], parts: list[Any]) -> dict[str, Any]:
        return merge_infos([part[-1] for part in parts], [shard.num_envs for shard in shards])

    def _closed_error(self) -> ClosedEnvironmentError:
        return ClosedEnvironmentError(f"{type(self).__name__} at {self.url} is closed: make it again")

    def _check_free(self, name: str, shards: list[Shard] | None = None) -> None:
        if self.closed:
            raise self._closed_error()
        for shard in self._shards if shards is None else shards:
            if shard.pending is not None:
                pending = shard.pending.name.lower()
                wait = "recv" if self._sent else f"{pending}_wait"
                raise AlreadyPendingCallError(f"called {name} while a {pending} waits for {wait}", pending)
            shard.check_alive()

    def _check_pending(self, shards: list[Shard], kind: Kind, name: str) -> None:
        if self.closed:
            raise self._closed_error()
        if not self._received_early and all(shard.pending is not kind for shard in shards):
            raise NoAsyncCallError(f"called {name} without {kind.name.lower()}_async before", kind.name.lower())

    @property
    def reply_ready(self) -> bool:
        """Whether the reply of a request that was sent can be taken without waiting."""
        pending = self._pending_shards()
        return bool(pending) and all(shard.ready() for shard in pending)

    @property
    def connected(self) -> bool:
        """Whether no connection is down; taking a reply while one is waits until the session resumes, or can't."""
        return all(shard.transport.connection is not None for shard in self._shards)

    def _pending_shards(self) -> list[Shard]:
        return [shard for shard in self._shards if shard.pending is not None]

    def _has_replies(self) -> bool:
        pending = self._pending_shards()
        return bool(pending) and all(shard.has_reply() for shard in pending)

    def render(self) -> tuple[Any, ...] | None:
        """Return a frame of each environment; of those whose host was lost, until they go on, the latest one."""
        self._check_free("render")
        for shard in self._shards:
            shard.send_render()
        frames = [shard.receive_render() for shard in self._shards]
        if all(part is None for part in frames):
            return None
        known = [
            (None,) * shard.num_envs if part is None else part for shard, part in zip(self._shards, frames, strict=True)
        ]
        return tuple(itertools.chain.from_iterable(known))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment, or read an attribute; public names only."""
        self._check_free("call")
        results: tuple[Any, ...] = self._exchange("call", name, args, kwargs)
        return results

    def call_some(self, indices: Sequence[int], name: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of some environments, or read an attribute; public names only.

        Args:
            indices: of the environments; each once.
            name: of the method.
            args: of the method.
            kwargs: of the method.

        Returns:
            The results, in the order of ``indices``.

        Raises:
            ConfigError: an index is out of range, or the host's vector environment has no environments to name.
        """
        self._check_free("call_some")
        if not set(indices) <= set(range(self.num_envs)):
            raise ConfigError(f"indices={list(indices)} are out of range: expected 0 to {self.num_envs - 1}")
        results: dict[int, Any] = {}
        for shard in self._shards:
            chosen = [index for index in indices if shard.start <= index < shard.stop]
            if chosen:
                own = [index - shard.start for index in chosen]
                told = exchange(shard.transport, "call_some", name, (own, *args), kwargs)
                results |= zip(chosen, told, strict=True)
        return [results[index] for index in indices]

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of each environment; public names only."""
        self._check_free("get_attr")
        values: tuple[Any, ...] = self._exchange("get", name, (), {})
        return values

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment: a list or tuple of one value each, or one value for all."""
        self._check_free("set_attr")
        if isinstance(values, (list, tuple)) and len(values) != self.num_envs:
            raise ConfigError(
                f"values holds {len(values)} values, expected one for each of {self.num_envs} environments"
            )
        for shard in self._shards:
            own = values[shard.start : shard.stop] if isinstance(values, (list, tuple)) else values
            exchange(shard.transport, "set", name, (own,), {})

    def _exchange(self, operation: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = [exchange(shard.transport, operation, name, args, kwargs) for shard in self._shards]
        return results[0] if len(results) == 1 else tuple(itertools.chain.from_iterable(results))

    def __enter__(self) -> RemoteVectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = self._spec.id if self._spec is not None else "environments"
        return f"RemoteVectorEnv({name}, num_envs={self.num_envs}, url={self.url!r})"


def wait_ready(envs: Sequence[RemoteVectorEnv], timeout_s: float) -> list[RemoteVectorEnv]:
    """Wait until the reply of at least one of the environments can be taken.

    Args:
        envs: environments with a request that lacks its reply; the others are never ready.
        timeout_s: seconds to wait at most.

    Returns:
        Those whose ``step_wait`` or ``reset_wait`` would not wait; empty when the time is over. One whose connection
        dropped counts as ready: waiting for it resumes the session.
    """
    deadline, left_s = time.monotonic() + timeout_s, 0.0
    while True:
        shards = [shard for env in envs for shard in env._pending_shards()]
        take_in_replies(shards, left_s)
        ready = [env for env in envs if env._has_replies()]
        left_s = deadline - time.monotonic()
        if ready or not shards or left_s <= 0:
            return ready


def _count(name: str, value: Any) -> int | None:
    """Return a number of things of which there must be one, ``None`` where none is given."""
    if isinstance(value, np.integer):
        value = int(value)
    if value is not None and (type(value) is not int or value < 1):
        otherwise = f" or {AUTO!r}" if name == "groups" else ""
        raise ConfigError(f"{name}={value!r} is out of range: expected an integer of at least 1{otherwise}")
    return value


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        modes = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ConfigError(f"unknown autoreset_mode {mode!r}: expected {modes}") from error


def _batched(single: gym.Space[Any], told: dict[str, Any] | None, n: int) -> gym.Space[Any]:
    """Return the batched space: Gymnasium's own for ``single`` unless the host's differs."""
    space = batch_space(single, n)
    theirs = None if told is None else space_from_dict(told)
    return space if theirs is None or theirs == space else theirs
