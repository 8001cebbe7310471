"""A Unity build, or the editor, as an environment of many agents."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from agentgpt_remote.agents import (
    Acting,
    Behavior,
    Ended,
    Infos,
    Turn,
    Turns,
    check_counts,
    count_rows,
    empty_turn,
    row_of,
    stack,
)
from agentgpt_remote.errors import ConfigError, InvalidObservation, PlayerFailed, check_seconds
from agentgpt_remote.wrappers.unity import compat
from agentgpt_remote.wrappers.unity.builds import find_program
from agentgpt_remote.wrappers.unity.mapping import BehaviorMapping, Visual
from agentgpt_remote.wrappers.unity.player import EDITOR_PORT, Launch, start_player

_logger = logging.getLogger("agentgpt_remote.unity")
_RAW_CHANNEL = uuid.UUID("621f0a70-4f87-11ea-a6bf-784f4387d1f7")  # of RawBytesChannel in Unity's own examples
_FAILURES_IN_A_ROW, _KEPT_LOGS = 3, 8
HOST_LOSS = "host_loss"
GroupReward = Literal["add", "info"]


class UnityAgents:
    """A Unity player; every agent by its behaviour's name and its number: ``3DBall?team=0#7``.

    A player that ends or hangs is started again: the episodes of all agents are truncated at their latest observation,
    with the reason in their info as ``host_loss``, and those of the new player begin in the same step. Where it fails
    three times in a row without a step between, an error tells why.

    Args:
        path: of the build; None for the editor.
        seed: for the player's random numbers; a seed given to :meth:`reset` starts the player anew with it.
        graphics: whether the player renders; images that agents see need it.
        visual: what images are: ``float32`` from 0 to 1, or ``uint8``.
        group_reward: whether a group's reward is added to each member's, or only told in its info.
        time_scale: how fast time passes in the player; None leaves it alone.
        quality_level: of rendering; None leaves it alone.
        width: of the player's window, in pixels; with ``height``.
        height: of the player's window, in pixels.
        target_frame_rate: frames per second, -1 for as many as it can; None leaves it alone.
        parameters: environment parameters, by name.
        connect_timeout_s: how long the player may take to connect, in seconds.
        step_timeout_s: how long it may take for one command, in seconds.
        port: where the editor connects.
        raw_channel: id of the side channel for raw bytes.
        args: further words of the player's command line.
        log_dir: folder for the players' logs; by default temporary ones, which are kept where a player fails.
        variables: added to the player's environment variables.

    Attributes:
        behaviors: those that had agents so far, by name.
        metadata: as of a Gymnasium environment.
        render_mode: None.
        relaunches: how often the player was started again after it failed.

    Raises:
        ConfigError: the path is no build, or an argument is out of range.
        DependencyNotInstalled: mlagents-envs is missing.
        PlayerFailed: the player ended, or did not connect in time.
        ProtocolMismatch: it speaks another version.
    """

    is_over = False
    render_mode: str | None = None

    def __init__(
        self,
        path: str | None,
        *,
        seed: int = 0,
        graphics: bool = False,
        visual: Visual = "float32",
        group_reward: GroupReward = "add",
        time_scale: float | None = 20.0,
        quality_level: int | None = None,
        width: int | None = None,
        height: int | None = None,
        target_frame_rate: int | None = None,
        parameters: Mapping[str, float] | None = None,
        connect_timeout_s: float = 60.0,
        step_timeout_s: float = 60.0,
        port: int = EDITOR_PORT,
        raw_channel: str | uuid.UUID = _RAW_CHANNEL,
        args: tuple[str, ...] = (),
        log_dir: str | Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        _check_choice("visual", visual, ("float32", "uint8"))
        _check_choice("group_reward", group_reward, ("add", "info"))
        check_seconds("connect_timeout_s", connect_timeout_s)
        check_seconds("step_timeout_s", step_timeout_s)
        compat.load()
        self._launch = Launch(
            program=None if path is None else find_program(path),
            seed=_checked_seed(seed),
            graphics=graphics,
            args=tuple(args),
            connect_timeout_s=connect_timeout_s,
            step_timeout_s=step_timeout_s,
            port=port,
            log_dir=None if log_dir is None else Path(log_dir),
            variables=dict(variables or {}),
        )
        self._visual, self._adds = visual, group_reward == "add"
        self._engine = {
            "time_scale": time_scale,
            "quality_level": quality_level,
            "width": width,
            "height": height,
            "target_frame_rate": target_frame_rate,
        }
        self._parameters = dict(parameters or {})
        self._raw_id = raw_channel if isinstance(raw_channel, uuid.UUID) else uuid.UUID(raw_channel)
        self.behaviors: dict[str, Behavior] = {}
        self.metadata: dict[str, Any] = {"render_modes": [], "thread_bound": True}
        self.relaunches = 0
        self._stats: dict[str, list[tuple[float, str]]] = {}
        self._received: list[bytes] = []
        self._mappings: dict[str, BehaviorMapping] = {}
        self._acting: dict[str, tuple[str, ...]] = {}
        self._alive: dict[str, dict[str, tuple[Any, int]]] = {}
        self._failures = 0
        self._stepped = False
        self._closed = False
        self._broken = False
        self._logs: deque[Path] = deque()
        self._initial: set[str] = set()
        self._first: Turns | None = None
        self._start()
        try:
            self._first = self._begin()
        except BaseException:
            self._player.end(0.0)
            raise
        self._initial = set(self.behaviors)

    def _start(self) -> None:
        """Start the player, with new side channels."""
        import mlagents_envs.side_channel.engine_configuration_channel as engine
        import mlagents_envs.side_channel.environment_parameters_channel as parameters
        import mlagents_envs.side_channel.raw_bytes_channel as raw
        import mlagents_envs.side_channel.stats_side_channel as stats

        self._engine_channel = engine.EngineConfigurationChannel()
        self._parameter_channel = parameters.EnvironmentParametersChannel()
        self._stats_channel = stats.StatsSideChannel()
        self._raw_channel = raw.RawBytesChannel(self._raw_id)
        channels = [self._engine_channel, self._parameter_channel, self._stats_channel, self._raw_channel]
        told = {name: value for name, value in self._engine.items() if value is not None}
        if told:
            self._engine_channel.set_configuration_parameters(**told)
        for name, value in self._parameters.items():
            self._parameter_channel.set_float_parameter(name, float(value))
        self._player = start_player(self._launch, channels)
        self._stepped = False
        _logger.info("player started seed=%d pid=%s", self._launch.seed, self.player_pid)

    @property
    def player_pid(self) -> int | None:
        """Id of the process group of the player; None for the editor."""
        process = self._player.player
        return None if process is None else int(process.pid)

    def _begin(self) -> Turns:
        """Reset the player and go on until an agent needs an action; nobody has ended then."""
        self._alive = {}
        with self._ending_the_player():
            self._player.reset()
            turns = self._advance()
            gone = sorted(self._initial - set(turns))
            if gone:
                raise PlayerFailed(
                    f"behaviour {gone[0]!r} has vanished: the player that was started again has {sorted(turns)}. Is it "
                    "another build?"
                )
        return {name: Turn(turn.acting, empty_turn(self.behaviors[name]).ended) for name, turn in turns.items()}

    @contextmanager
    def _ending_the_player(self) -> Iterator[None]:
        """End the player where the block raises; its failures tell the tail of its log."""
        try:
            yield
        except PlayerFailed as error:
            raise self._player.failed(error) from error
        except InvalidObservation:
            self._broken = True
            self._player.end(0.0)
            raise
        except compat.unity_exceptions() as error:
            self._broken = True
            raise self._player.failed(PlayerFailed(f"mlagents-envs can't read the player: {error}")) from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Turns:
        """Begin anew; see :class:`~agentgpt_remote.agents.MultiAgentEnv`.

        Args:
            seed: starts the player anew with this seed, unless it was just started with it.
            options: environment parameters to set before, as ``{"parameters": {name: value}}``.
        """
        self._check_open()
        parameters = (options or {}).get("parameters")
        if parameters:
            self.set_parameters(**parameters)
        if self._broken:
            self._start()
            self._first, self._broken = None, False
        if seed is not None and (_checked_seed(seed) != self._launch.seed or self._stepped):
            if self._launch.program is None:
                warnings.warn(f"seed={seed} has no effect: the Unity editor is started by hand", stacklevel=2)
            else:
                self._launch = replace(self._launch, seed=seed)
                self._player.end()
                self._start()
                self._first = None
        first, self._first = self._first, None
        if first is not None and not parameters:
            return first
        try:
            return self._begin()
        except PlayerFailed as error:
            return self._relaunch(error)

    def send(self, actions: Mapping[str, Any]) -> None:
        """Send actions to the player, which steps meanwhile; :meth:`receive` returns what they brought.

        Raises:
            InvalidAction: there is not one action for each agent that needs one.
            ResetNeeded: the environment was not reset before.
        """
        self._check_open()
        if self._first is not None or self._broken:
            raise ResetNeeded("call reset() before step()")
        check_counts(self.behaviors, {name: self._acting.get(name, ()) for name in self.behaviors}, actions)
        flat = {
            name: self._mappings[name].actions(actions[name], len(ids)) for name, ids in self._acting.items() if ids
        }
        self._player.begin_step(flat)

    def receive(self) -> Turns:
        """Return what the actions brought that were sent."""
        self._stepped = True
        try:
            with self._ending_the_player():
                self._player.finish_step()
                turns = self._advance()
        except PlayerFailed as error:
            if self._broken:
                raise
            return self._relaunch(error)
        self._failures = 0
        return turns

    def step(self, actions: Mapping[str, Any]) -> Turns:
        """Step until an agent needs an action or has ended; see :class:`~agentgpt_remote.agents.MultiAgentEnv`."""
        self.send(actions)
        return self.receive()

    def _advance(self) -> Turns:
        """Return what the player told, going on where no agent has anything to tell."""
        deadline = time.monotonic() + self._launch.step_timeout_s
        while True:
            turns = {name: self._turn(name) for name in self._player.behavior_specs}
            self._acting = {name: turn.acting.agent_ids for name, turn in turns.items()}
            if any(turn.acting.agent_ids or turn.ended.agent_ids for turn in turns.values()):
                return turns
            if time.monotonic() > deadline:
                raise PlayerFailed(
                    f"no agent of the Unity player asked for a decision within {self._launch.step_timeout_s:g} s"
                )
            self._player.begin_step({})
            self._player.finish_step()

    def _turn(self, name: str) -> Turn:
        mapping = self._mappings.get(name)
        if mapping is None:
            mapping = BehaviorMapping(name, self._player.behavior_specs[name], self._visual)
            known = self.behaviors.get(name)
            if known is not None and known != mapping.behavior:
                raise PlayerFailed(f"behaviour {name!r} has other spaces than before. Is it another build?")
            self._mappings[name], self.behaviors[name] = mapping, mapping.behavior
        decisions, terminals = self._player.get_steps(name)
        alive = self._alive.setdefault(name, {})
        ended = self._ended(mapping, terminals, alive)  # first: an id that ended may begin anew in the same step
        return Turn(self._decide(mapping, decisions, alive), ended)

    def _ended(self, mapping: BehaviorMapping, steps: Any, alive: dict[str, Any]) -> Ended:
        if not len(steps):
            return empty_turn(mapping.behavior).ended
        ids = self._ids(mapping, steps)
        for one in ids:
            alive.pop(one, None)
        interrupted = np.asarray(steps.interrupted, np.bool_)
        rewards, infos = self._rewards(steps, ids)
        return Ended(ids, mapping.observations(steps.obs), rewards, ~interrupted, interrupted, infos)

    def _decide(self, mapping: BehaviorMapping, steps: Any, alive: dict[str, Any]) -> Acting:
        if not len(steps):
            return empty_turn(mapping.behavior).acting
        ids = self._ids(mapping, steps)
        observations = mapping.observations(steps.obs)
        begins = np.fromiter((one not in alive for one in ids), np.bool_, len(ids))
        for row, one in enumerate(ids):
            alive[one] = observations, row
        mask = None
        if mapping.branches and steps.action_mask is not None:
            mask = ~np.concatenate(steps.action_mask, axis=1)  # Unity's tells what is not allowed
        rewards, infos = self._rewards(steps, ids)
        return Acting(ids, observations, rewards, begins, mask, infos)

    def _ids(self, mapping: BehaviorMapping, steps: Any) -> tuple[str, ...]:
        name = mapping.behavior.name
        return tuple(f"{name}#{number}" for number in steps.agent_id.tolist())

    def _rewards(self, steps: Any, ids: tuple[str, ...]) -> tuple[np.ndarray[Any, np.dtype[np.float64]], Infos]:
        rewards = steps.reward.astype(np.float64)
        if not any(steps.group_id):
            return rewards, {}
        groups, shared = list(steps.group_id), steps.group_reward.astype(np.float64)
        infos = {
            one: {"group_id": int(groups[row]), "group_reward": float(shared[row])}
            for row, one in enumerate(ids)
            if groups[row]
        }
        return rewards + shared if self._adds else rewards, infos

    def _relaunch(self, error: PlayerFailed) -> Turns:
        """Start the player again; all episodes are truncated, and new ones begin.

        Raises:
            PlayerFailed: that has failed too often in a row, or the editor is gone.
        """
        lost = self._alive
        while True:
            self._failures += 1
            if self._launch.program is None or self._failures > _FAILURES_IN_A_ROW:
                raise error
            _logger.warning("player is started again: %s", error)
            self._take_messages()
            self._forget_old_logs()
            self.relaunches += 1
            self._mappings = {}
            try:
                self._start()
                turns = self._begin()
            except PlayerFailed as again:
                error = again
                continue
            break
        for name, behavior in self.behaviors.items():
            turn = turns.get(name, empty_turn(behavior))
            turns[name] = Turn(turn.acting, _truncated(behavior, lost.get(name, {}), str(error)))
        return turns

    def _forget_old_logs(self) -> None:
        """Keep the logs of the last players that failed; a long run may have many."""
        self._logs.append(self._player.player.folder)
        while self._launch.log_dir is None and len(self._logs) > _KEPT_LOGS:
            shutil.rmtree(self._logs.popleft(), ignore_errors=True)

    def _take_messages(self) -> None:
        """Keep what arrived through side channels."""
        for name, values in self._stats_channel.get_and_reset_stats().items():
            kept = self._stats.setdefault(name, [])
            kept += ((float(value), how.name.lower()) for value, how in values)
        self._received += (bytes(one) for one in self._raw_channel.get_and_clear_received_messages())

    def set_parameters(self, **values: float) -> None:
        """Set environment parameters; the player takes them over with its next step or reset."""
        self._check_open()
        for name, value in values.items():
            self._parameter_channel.set_float_parameter(name, float(value))
        self._parameters |= values

    def set_engine(self, **values: Any) -> None:
        """Set ``time_scale``, ``quality_level``, ``width`` and ``height``, ``target_frame_rate``.

        Raises:
            ConfigError: unknown.
        """
        self._check_open()
        unknown = sorted(set(values) - set(self._engine))
        if unknown:
            raise ConfigError(f"unknown engine setting {unknown[0]!r}: expected some of {sorted(self._engine)}")
        self._engine_channel.set_configuration_parameters(**values)
        self._engine |= values

    def stats(self) -> dict[str, list[tuple[float, str]]]:
        """Return what the player reported since the last call: values by name, each with how they are put together."""
        self._check_open()
        self._take_messages()
        taken, self._stats = self._stats, {}
        return taken

    def send_raw(self, data: bytes) -> None:
        """Send bytes through the raw side channel, with the next step or reset."""
        self._check_open()
        self._raw_channel.send_raw_data(bytearray(data))

    def received_raw(self) -> list[bytes]:
        """Return the bytes that the player sent through the raw side channel since the last call."""
        self._check_open()
        self._take_messages()
        taken, self._received = self._received, []
        return taken

    def mapping_of(self, name: str) -> BehaviorMapping:
        """Return how a behaviour is told in spaces."""
        return self._mappings[name]

    def render(self) -> None:
        """Return None: players show their own window."""

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("the Unity environment is closed: make it again")

    def close(self) -> None:
        """Have the player quit, and end it where it does not; idempotent."""
        if not self._closed:
            self._closed = True
            self._player.end()


def _truncated(behavior: Behavior, alive: Mapping[str, tuple[Any, int]], reason: str) -> Ended:
    """Return the agents of a player that is lost, truncated at their latest observation."""
    ids = tuple(alive)
    observations = stack(behavior.observation_space, [row_of(batch, row) for batch, row in alive.values()])
    count = count_rows(observations)
    return Ended(
        ids,
        observations,
        np.zeros(count),
        np.zeros(count, np.bool_),
        np.ones(count, np.bool_),
        {one: {HOST_LOSS: reason} for one in ids},
    )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown {name}={value!r}: expected {' or '.join(map(repr, choices))}")


def _checked_seed(seed: Any) -> int:
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed={seed!r} is out of range: expected an integer from 0 to {2**31 - 1}")
    return int(seed)
