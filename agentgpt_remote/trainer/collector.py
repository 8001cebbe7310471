"""Acting: from ready lanes to completed tokens in the stream store."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from agentgpt_remote.errors import AgentGPTError, ConnectionLost, RemoteEnvError, RemoteTimeout, TrainingFailed
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.lanes import Lane, LaneStep, Observed, wait_for
from agentgpt_remote.trainer.normalization import RewardScaler
from agentgpt_remote.trainer.streams import StreamStore

logger = logging.getLogger("agentgpt_remote.trainer")
EPISODE_WINDOW = 20
_POLL_S = 0.5


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
        generator: of sampled actions.

    Attributes:
        env_steps: environment steps taken.
        version: counts updates of the policy; stored with every decision.
        episodes: finished episodes.
        times: seconds spent waiting for environments ("env_s") and acting ("act_s").
        lost: names of lanes that were dropped.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        model: PolicyModel,
        store: StreamStore,
        rewards: RewardScaler,
        generator: torch.Generator,
    ) -> None:
        self.model, self.store, self.rewards, self.generator = model, store, rewards, generator
        self.cache = model.make_cache(store.num_streams)
        self._device = model.log_std.device
        self.env_steps = 0
        self.version = 0
        self.episodes = EpisodeLog()
        self.times = {"env_s": 0.0, "act_s": 0.0}
        self.lost: list[str] = []
        self._last_error: AgentGPTError | None = None
        self._round_trips: list[float] = []
        self._host_steps: list[float] = []
        self._lanes = list(lanes)
        self._states: list[_LaneState] = []

    def start(self, seed: int) -> None:
        """Reset every lane; agent i of all gets the seed ``seed + i``.

        Raises:
            TrainingFailed: no lane could be reset.
        """
        first = 0
        for lane in self._lanes:
            n = lane.num_agents
            streams = slice(first, first + n)
            first += n
            try:
                obs = lane.reset(seed + streams.start)
            except (ConnectionLost, RemoteTimeout, RemoteEnvError) as error:
                self._report_lost(lane, error)
                continue
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
            self._open(state)
            self._states.append(state)

    def collect(self, tokens: int, should_stop: Callable[[], bool]) -> None:
        """Act until so many untrained tokens are stored, or ``should_stop`` says so.

        Raises:
            TrainingFailed: no lane is left.
        """
        while self.store.new_tokens() < tokens and not should_stop():
            started = time.perf_counter()
            for state in list(self._states):
                if state.sent_at is None:
                    self._guarded(state, self._act)
            acted = time.perf_counter()
            ready = {id(lane) for lane in wait_for([s.lane for s in self._states], _POLL_S)}
            for state in list(self._states):
                if id(state.lane) in ready:
                    self._guarded(state, self._receive)
                elif state.sent_at is not None and acted - state.sent_at > state.lane.timeout_s:
                    silent = RemoteTimeout(f"{state.lane.name} has not answered for {state.lane.timeout_s:g} s")
                    self._drop(state, silent)
            self.times["act_s"] += acted - started
            self.times["env_s"] += time.perf_counter() - acted
            if not self._states and not should_stop():
                raise TrainingFailed(
                    f"no environment is left: lost {', '.join(self.lost)}. What was learned is kept: "
                    f"start the hosts again and continue with --resume. Last error: {self._last_error}"
                ) from self._last_error

    @property
    def num_lanes(self) -> int:
        """Lanes that are left."""
        return len(self._states)

    def take_remote_metrics(self) -> dict[str, float | None]:
        """Return what happened on the way to the hosts since the last call, in ms per step of a lane.

        ``remote/round_trip_ms`` runs from a decision until its result was read, time spent on other lanes
        included; ``remote/host_step_ms`` is what the environments took of it. None without remote lanes.
        """
        metrics: dict[str, float | None] = {}
        for name, seconds in (("round_trip", self._round_trips), ("host_step", self._host_steps)):
            metrics[f"remote/{name}_ms"] = 1e3 * sum(seconds) / len(seconds) if seconds else None
            seconds.clear()
        return metrics

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
        self.store.cut(state.streams)
        self._report_lost(state.lane, error)

    def _report_lost(self, lane: Lane, error: AgentGPTError) -> None:
        self.lost.append(lane.name)
        self._last_error = error
        logger.warning("lane=%s agents=%d dropped: %s", lane.name, lane.num_agents, error)

    @torch.inference_mode()
    def _act(self, state: _LaneState) -> None:
        vector, *parts = state.obs
        arrays = (vector, state.prev_action, state.is_first)
        obs, prev_action, is_first = (torch.from_numpy(array).to(self._device) for array in arrays)
        pixels, mask = (None if part is None else torch.from_numpy(part).to(self._device) for part in parts)
        params = self.model.act_step(obs, prev_action, is_first, self.cache, state.streams, pixels)
        distribution = self.model.distribution(params, mask)
        sample = distribution.sample(self.generator)
        actions = sample.cpu().numpy()
        self.store.act(state.streams, actions, distribution.log_prob(sample).cpu().numpy(), self.version)
        state.lane.send(self.model.actions.decode(actions))
        state.prev_action = actions
        state.sent_at = time.perf_counter()

    def _receive(self, state: _LaneState) -> None:
        step: LaneStep = state.lane.receive()
        if state.lane.remote is not None and state.sent_at is not None:
            self._round_trips.append(time.perf_counter() - state.sent_at)
            self._host_steps.append(state.lane.remote.host_step_s)
        # Under NEXT_STEP autoreset the step after an episode's end only resets: nothing was decided there.
        valid = ~state.is_final
        terminated, truncated = step.terminated & valid, step.truncated & valid
        final = terminated | truncated
        self.store.complete(state.streams, step.reward, terminated, truncated, valid)
        self.rewards.observe(state.streams, step.reward, valid, final)
        self.env_steps += int(valid.sum())
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
