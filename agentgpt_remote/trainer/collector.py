"""Acting: from ready lanes to completed tokens in the stream store."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentgpt_remote.errors import AgentGPTError, ConnectionLost, RemoteEnvError, RemoteTimeout, TrainingFailed
from agentgpt_remote.policy.cache import Slots
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.exploration import Explorer
from agentgpt_remote.trainer.lanes import Lane, LaneStep, Observed, wait_for
from agentgpt_remote.trainer.normalization import RewardScaler
from agentgpt_remote.trainer.ranks import Ranks
from agentgpt_remote.trainer.recovery import AbsentLane, Outcome, Recovery
from agentgpt_remote.trainer.streams import StreamStore
from agentgpt_remote.trainer.watching import HostWatch

logger = logging.getLogger("agentgpt_remote.trainer")
EPISODE_WINDOW = 20
_POLL_S = 0.5
_START_GRACE_S = 5.0
_MAX_SEED = 2**31


@dataclass(kw_only=True, eq=False)
class _LaneState:
    """A lane and its agents' streams."""

    lane: Lane
    streams: slice
    obs: Observed
    is_first: NDArray[np.bool_]
    is_final: NDArray[np.bool_]
    prev_action: NDArray[np.float32]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    sent_at: float | None = None  # None: the open token awaits its decision


@dataclass(kw_only=True)
class EpisodeLog:
    """Finished episodes.

    Attributes:
        returns: of the last 20 episodes.
        lengths: of the last 20 episodes.
        count: finished episodes in all.
        fresh: returns of those finished since the log was last drained.
    """

    returns: deque[float] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    count: int = 0
    fresh: list[float] = field(default_factory=list)

    def add(self, episode_return: float, episode_length: int) -> None:
        """Take in one finished episode."""
        self.returns.append(episode_return)
        self.lengths.append(episode_length)
        self.fresh.append(episode_return)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the log as plain lists and numbers."""
        lists = {name: list(getattr(self, name)) for name in ("returns", "lengths", "fresh")}
        return {**lists, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count = int(state["count"])
        for name in ("returns", "lengths", "fresh"):
            kept = getattr(self, name)
            kept.clear()
            kept.extend(state[name])

    def of_all_ranks(self, ranks: Ranks) -> EpisodeLog:
        """Return the episodes of all ranks, the last 20 of each."""
        if ranks.size == 1:
            return self
        window = EPISODE_WINDOW * ranks.size
        together = EpisodeLog(returns=deque(maxlen=window), lengths=deque(maxlen=window))
        for log in ranks.share(self.state_dict()):
            together.count += log["count"]
            for name in ("returns", "lengths", "fresh"):
                getattr(together, name).extend(log[name])
        return together

    def mean_return(self) -> float | None:
        """Return the mean of the last 20 episodes' returns; None before the first."""
        return sum(self.returns) / len(self.returns) if self.returns else None


class Collector:
    """Acts on whichever lane is ready, and stores what happens.

    Args:
        lanes: all lanes, reset already by :meth:`start`.
        model: the acting policy.
        store: one stream per agent, lane after lane.
        rewards: the reward scaler, which observes every step.
        explorer: draws the actions.
        max_steps: environment steps of the run, over which exploration changes.
        absent: lanes that join when their hosts appear; their streams come after those of ``lanes``.
        host_wait_s: seconds to wait for a lane to return when none is left.
        max_untrained: new tokens of one stream with which a rollout ends, whatever the other lanes have brought.

    Attributes:
        env_steps: environment steps taken: in this rollout this rank's, before it those of all ranks.
        version: counts updates of the policy; stored with every decision.
        episodes: finished episodes.
        times: seconds spent waiting for environments ("env_s") and acting ("act_s").
        lost: names of lanes that were dropped.
        watch: counts what each host does.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        model: PolicyModel,
        store: StreamStore,
        rewards: RewardScaler,
        explorer: Explorer,
        max_steps: int,
        *,
        absent: Sequence[AbsentLane] = (),
        host_wait_s: float = 0.0,
        max_untrained: int | None = None,
    ) -> None:
        self.model, self.store, self.rewards, self.explorer = model, store, rewards, explorer
        self._max_steps = max_steps
        self._max_untrained = max_untrained
        self.cache = model.make_cache(store.num_streams)
        self._device = model.log_std.device
        self.env_steps = 0
        self.version = 0
        self.episodes = EpisodeLog()
        self.times = {"env_s": 0.0, "act_s": 0.0}
        self.lost: list[str] = []
        self.watch = HostWatch()
        self._last_error: AgentGPTError | None = None
        self._lanes = list(lanes)
        self._states: list[_LaneState] = []
        self._away: dict[str, _LaneState] = {}  # of those, whose connections are down
        self._absent, self._host_wait_s = list(absent), host_wait_s
        self._recovery = Recovery()
        self._streams = _streams_of([*lanes, *absent])
        self._seed = self._joins = 0
        self._alone_since: float | None = None

    def start(self, seed: int, resumed: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin in every lane: where a resumed run left it if that can be, else with new episodes.

        Args:
            seed: of new episodes; agent i of all gets the seed ``seed + i``.
            resumed: the lanes of a checkpoint, for streams that were restored from it.

        Raises:
            TrainingFailed: no lane could be reset.
        """
        self._seed = seed
        left = {entry["name"]: entry for entry in resumed}
        fresh = []
        for lane in self._lanes:
            entry = left.get(lane.name)
            if entry is None or not self._continue(lane, self._streams[lane.name], entry):
                fresh.append(lane)
        self._await_resets([lane for lane in fresh if self._reset_guarded(lane, self._send_reset)])
        for absent in self._absent:
            self._recovery.reopen(absent.name, absent.open, self._next_seed(absent.name))

    def _await_resets(self, lanes: list[Lane]) -> None:
        """Take in lanes as they answer; once there is one, the others may join later."""
        deadlines = {lane.name: time.monotonic() + lane.timeout_s for lane in lanes}
        while lanes:
            ready = wait_for(lanes, _POLL_S)
            for lane in ready:
                self._reset_guarded(lane, self._receive_reset)
            lanes = [lane for lane in lanes if lane not in ready]
            now = time.monotonic()
            if self._states:
                deadlines = {name: min(until, now + _START_GRACE_S) for name, until in deadlines.items()}
            for lane in [lane for lane in lanes if now >= deadlines[lane.name]]:
                lanes.remove(lane)
                self._report_lost(lane, RemoteTimeout(f"{lane.name} has not answered to the first reset"))

    def _send_reset(self, lane: Lane) -> None:
        lane.send_reset((self._seed + self._streams[lane.name].start) % _MAX_SEED)

    def _receive_reset(self, lane: Lane) -> None:
        self._begin(lane, self._streams[lane.name], lane.receive_reset())

    def _reset_guarded(self, lane: Lane, action: Callable[[Lane], None]) -> bool:
        try:
            action(lane)
        except (ConnectionLost, RemoteTimeout, RemoteEnvError) as error:
            self._report_lost(lane, error)
            return False
        return True

    def _next_seed(self, name: str) -> int:
        """Return the seed of the next lane that joins during the run."""
        self._joins += 1
        first: int = self._streams[name].start
        return (self._seed + first + 7919 * self._joins) % _MAX_SEED

    def _begin(self, lane: Lane, streams: slice, obs: Observed) -> None:
        """Take in a lane whose environments were just reset."""
        n = lane.num_agents
        state = _LaneState(
            lane=lane,
            streams=streams,
            obs=obs,
            is_first=np.ones(n, np.bool_),
            is_final=np.zeros(n, np.bool_),
            prev_action=np.zeros((n, self.model.actions.width), np.float32),
            episode_return=np.zeros(n),
            episode_length=np.zeros(n, np.int64),
        )
        self.store.restart(streams)
        self.rewards.restart(streams)
        self._open(state)
        self._states.append(state)
        self.lost = [name for name in self.lost if name != lane.name]
        self.watch.joined(lane.name, n)

    def _continue(self, lane: Lane, streams: slice, entry: Mapping[str, Any]) -> bool:
        """Bring a lane back to where a checkpoint left it; return whether that worked."""
        if entry["first"] != streams.start or entry["num_agents"] != lane.num_agents:
            return False
        arrays = {name: value.numpy() for name, value in entry["arrays"].items()}
        obs = Observed(arrays.pop("obs"), arrays.pop("pixels", None), arrays.pop("action_mask", None))
        if entry["cache"] is None or not lane.load_state_dict(entry["lane"], obs):
            logger.info("lane=%s begins new episodes: its environments can't be brought back", lane.name)
            return False
        self._states.append(_LaneState(lane=lane, streams=streams, obs=obs, **arrays))
        self.watch.joined(lane.name, lane.num_agents)
        self.cache.load_slots(streams, entry["cache"])
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what acting goes on from, as tensors, numbers, texts, lists and dicts."""
        return {
            "version": self.version,
            "env_steps": self.env_steps,
            "episodes": self.episodes.state_dict(),
            "lanes": [self._lane_state(state) for state in self._states],
        }

    def _lane_state(self, state: _LaneState) -> dict[str, Any]:
        kept = state.lane.state_dict()
        seen = {"obs": state.obs.vector, "pixels": state.obs.pixels, "action_mask": state.obs.action_mask}
        arrays = {name: value for name, value in (vars(state) | seen).items() if isinstance(value, np.ndarray)}
        return {
            "name": state.lane.name,
            "first": state.streams.start,
            "num_agents": state.lane.num_agents,
            "arrays": {name: torch.from_numpy(value.copy()) for name, value in arrays.items()},
            "lane": kept,
            # New episodes begin with nothing remembered.
            "cache": None if kept["episodes"] is None else self.cache.save_slots(state.streams),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters that ``state_dict`` returned; ``start`` takes the lanes."""
        self.version, self.env_steps = int(state["version"]), int(state["env_steps"])
        self.episodes.load_state_dict(state["episodes"])

    def collect(self, tokens: int, should_stop: Callable[[], bool]) -> None:
        """Act until so many untrained tokens are stored, a stream is full of them, or ``should_stop`` says so.

        Raises:
            TrainingFailed: no lane is left.
        """
        while self.store.new_tokens() < tokens and not should_stop() and not self._is_full():
            started = time.perf_counter()
            self._act([state for state in self._states if state.sent_at is None])
            acted = time.perf_counter()
            present = [s.lane for s in self._states if s.lane.name not in self._away]
            ready = {id(lane) for lane in wait_for(present, _POLL_S)}
            for state in list(self._states):
                if id(state.lane) in ready:
                    self._guarded(state, self._take)
                elif self._is_silent(state, acted):
                    self._drop(state, RemoteTimeout(f"no answer for {state.lane.timeout_s:g} s"))
            self._take_outcomes(0.0 if present else _POLL_S)
            self.times["act_s"] += acted - started
            self.times["env_s"] += time.perf_counter() - acted
            if not should_stop():
                self._check_left()

    def _is_full(self) -> bool:
        """Tell whether a lane is so far ahead of the others that it would overwrite what was not trained on."""
        return self._max_untrained is not None and self.store.most_new_tokens() >= self._max_untrained

    def _is_silent(self, state: _LaneState, now: float) -> bool:
        present = state.lane.name not in self._away
        return present and state.sent_at is not None and now - state.sent_at > state.lane.timeout_s

    def _take(self, state: _LaneState) -> None:
        """Receive a step; in the background where the connection is down, so that no other lane waits for it."""
        if state.lane.connected:
            self._receive(state)
        else:
            self._away[state.lane.name] = state
            self._recovery.receive(state.lane)

    def _take_outcomes(self, timeout_s: float) -> None:
        """Take in what became of lanes that were away."""
        for outcome in self._recovery.take(timeout_s):
            away = self._away.pop(outcome.name, None)
            if away is not None:
                self._guarded(away, functools.partial(self._resumed, outcome=outcome))
            elif outcome.lane is not None and outcome.obs is not None:
                start = self._streams[outcome.name].start
                self._begin(outcome.lane, slice(start, start + outcome.lane.num_agents), outcome.obs)
                logger.info("lane=%s agents=%d joined", outcome.name, outcome.lane.num_agents)
            elif isinstance(outcome.error, TrainingFailed):
                raise outcome.error
            else:
                logger.error("lane=%s is left out for good: %s", outcome.name, outcome.error)

    def _resumed(self, state: _LaneState, outcome: Outcome) -> None:
        if outcome.error is not None:
            raise outcome.error
        if outcome.step is not None:
            self._receive(state, outcome.step)

    def _check_left(self) -> None:
        """Check that there is something to act on, or that it may return.

        Raises:
            TrainingFailed: no lane is left, and none has returned in time.
        """
        if self._states:
            self._alone_since = None
            return
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
            if self._recovery.reopening and self._host_wait_s:
                logger.warning("no environment is left: waiting up to %g s for one to return", self._host_wait_s)
        if not self._recovery.reopening or now - self._alone_since >= self._host_wait_s:
            raise TrainingFailed(
                f"no environment is left: lost {', '.join(dict.fromkeys(self.lost))}. What was learned is kept: "
                f"start the hosts again and continue with --resume. Last error: {self._last_error}"
            ) from self._last_error

    def close(self) -> None:
        """Stop trying to get lanes back, and close those that came back."""
        self._recovery.close()

    @property
    def num_agents(self) -> int:
        """Agents that are acted for."""
        return sum(state.lane.num_agents for state in self._states)

    @property
    def num_away(self) -> int:
        """Lanes whose connections are down, or whose hosts are awaited."""
        return len(self._away) + len(self._recovery.reopening)

    @property
    def clipped(self) -> int:
        """Numbers that were not finite and were replaced, in the lanes that are left."""
        return sum(state.lane.clipped for state in self._states)

    @property
    def num_lanes(self) -> int:
        """Lanes that are acted on: those that are left, without those whose connections are down."""
        return len(self._states) - len(self._away)

    def in_flight(self) -> NDArray[np.int64]:
        """Return per stream 1 where the open token has its decision already, else 0."""
        flags = np.zeros(self.store.num_streams, np.int64)
        for state in self._states:
            if state.sent_at is not None:
                flags[state.streams] = 1
        return flags

    def _guarded(self, state: _LaneState, action: Callable[[_LaneState], None]) -> None:
        try:
            action(state)
        except (ConnectionLost, RemoteTimeout, RemoteEnvError) as error:
            self._drop(state, error)

    def _drop(self, state: _LaneState, error: AgentGPTError) -> None:
        self._states.remove(state)
        self._away.pop(state.lane.name, None)
        self.store.cut(state.streams)
        self._report_lost(state.lane, error)

    def _report_lost(self, lane: Lane, error: AgentGPTError) -> None:
        self.lost.append(lane.name)
        self.watch.left(lane.name)
        self._last_error = error
        logger.warning("lane=%s agents=%d dropped: %s", lane.name, lane.num_agents, error)
        # An environment that raises would do so again.
        if lane.reopen is not None and not isinstance(error, RemoteEnvError):
            self._recovery.reopen(lane.name, lane.reopen, self._next_seed(lane.name), lane)

    @torch.inference_mode()
    def _act(self, states: list[_LaneState]) -> None:
        """Decide for all agents of some lanes at once, and send each lane its actions."""
        if not states:
            return
        vector, pixels, mask = _joined([state.obs for state in states])
        arrays = (vector, _stacked([s.prev_action for s in states]), _stacked([s.is_first for s in states]))
        obs, prev_action, is_first = (torch.from_numpy(array).to(self._device) for array in arrays)
        streams, slots = self._together([state.streams for state in states])
        seen, allowed = (None if part is None else torch.from_numpy(part).to(self._device) for part in (pixels, mask))
        params = self.model.act_step(obs, prev_action, is_first, self.cache, slots, seen)
        distribution = self.model.distribution(params, allowed)
        progress = self.env_steps / self._max_steps
        sample, log_prob = self.explorer.draw(distribution, slots, is_first, self.env_steps, progress)
        actions = sample.cpu().numpy()
        self.store.act(streams, actions, log_prob.cpu().numpy(), self.version)
        first = 0
        for state in states:
            state.prev_action = actions[first : first + state.lane.num_agents]
            first += state.lane.num_agents
            self._guarded(state, self._send)

    def _send(self, state: _LaneState) -> None:
        state.sent_at = time.perf_counter()
        state.lane.send(self.model.actions.decode(state.prev_action))

    def _together(self, parts: Sequence[slice]) -> tuple[slice | NDArray[np.int64], Slots]:
        """Return the streams of several lanes, for the store and for the cache: slices where they are neighbours."""
        if all(left.stop == right.start for left, right in itertools.pairwise(parts)):
            whole = slice(parts[0].start, parts[-1].stop)
            return whole, whole
        streams = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        return streams, torch.from_numpy(streams).to(self._device)

    def _receive(self, state: _LaneState, step: LaneStep | None = None) -> None:
        step = state.lane.receive() if step is None else step
        answered_at = time.perf_counter()
        # Under NEXT_STEP autoreset the step after an episode's end only resets: nothing was decided there.
        valid = ~state.is_final
        terminated, truncated = step.terminated & valid, step.truncated & valid
        final = terminated | truncated
        self.store.complete(state.streams, step.reward, terminated, truncated, valid)
        self.rewards.observe(state.streams, step.reward, valid, final)
        self._count(state, int(valid.sum()), answered_at)
        state.episode_return += np.where(valid, step.reward, 0.0)
        state.episode_length += valid
        for agent in np.flatnonzero(final):
            self.episodes.add(float(state.episode_return[agent]), int(state.episode_length[agent]))
        state.episode_return[final] = 0.0
        state.episode_length[final] = 0
        state.obs, state.is_first, state.is_final = step.obs, ~valid, final
        self._open(state)
        state.sent_at = None

    def _open(self, state: _LaneState) -> None:
        vector, pixels, mask = state.obs
        self.store.open(state.streams, vector, state.is_first, pixels=pixels, action_mask=mask)

    def _count(self, state: _LaneState, steps: int, answered_at: float) -> None:
        self.env_steps += steps
        remote = state.lane.remote
        if remote is None or state.sent_at is None:
            self.watch.stepped(state.lane.name, steps)
        else:
            self.watch.stepped(state.lane.name, steps, answered_at - state.sent_at, remote.host_step_s)


def _stacked(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined(parts: Sequence[Observed]) -> Observed:
    """Return what the agents of several lanes see, together; where only some lanes have a mask, others allow all."""
    if len(parts) == 1:
        return parts[0]
    vector = np.concatenate([part.vector for part in parts])
    pixels = None if parts[0].pixels is None else np.concatenate([part.pixels for part in parts])
    masks = [part.action_mask for part in parts if part.action_mask is not None]
    if not masks:
        return Observed(vector, pixels, None)
    width = masks[0].shape[1]
    every = [np.ones((len(p.vector), width), np.bool_) if p.action_mask is None else p.action_mask for p in parts]
    return Observed(vector, pixels, np.concatenate(every))


def _streams_of(lanes: Sequence[Lane | AbsentLane]) -> dict[str, slice]:
    """Return which streams are each lane's, by name."""
    streams, first = {}, 0
    for lane in lanes:
        streams[lane.name] = slice(first, first + lane.num_agents)
        first += lane.num_agents
    return streams
