"""From the turns of many agents to tokens: every agent of a behaviour has a stream for as long as its episode lasts."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from agentgpt_remote.agents import Acting, Behavior, Ended, Turn
from agentgpt_remote.errors import InvalidObservation, TrainingFailed
from agentgpt_remote.policy.masks import ActionMasks
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.trainer.collector import EPISODE_WINDOW, EpisodeLog
from agentgpt_remote.trainer.exploration import Explorer
from agentgpt_remote.trainer.finite import MAX_REWARD, FiniteCheck, Nonfinite
from agentgpt_remote.trainer.lanes import Observed
from agentgpt_remote.trainer.normalization import RewardScaler
from agentgpt_remote.trainer.streams import StreamStore

logger = logging.getLogger("agentgpt_remote.trainer")
Slots = NDArray[np.int64]


class _Waiting(NamedTuple):
    """Agents of one lane that need an action."""

    slots: Slots
    obs: Observed
    is_first: NDArray[np.bool_]


class AgentStreams:
    """Agents of one behaviour in all lanes, by id in streams; stands where a Collector does in a training session.

    A new id takes a free stream. Where there is none, the agent that has not acted for longest gives up its own: its
    episode is cut there, and if it acts again it is taken for a new one.

    Args:
        behavior: of the agents.
        model: the acting policy.
        store: one stream for each agent that may live at once.
        rewards: the reward scaler, which observes every step.
        explorer: draws the actions.
        max_steps: environment steps of the run, over which exploration changes.
        nonfinite: what is done about numbers that are not finite.

    Attributes:
        env_steps: environment steps of the run, those of other behaviours included.
        taken: decisions of this behaviour whose reward has arrived.
        version: counts updates of the policy; stored with every decision.
        episodes: finished episodes, one for each agent's.
        cache: what the acting policy remembers.
        evicted: streams that were given up for others.
    """

    def __init__(
        self,
        behavior: Behavior,
        model: PolicyModel,
        store: StreamStore,
        rewards: RewardScaler,
        explorer: Explorer,
        max_steps: int,
        nonfinite: Nonfinite,
    ) -> None:
        self.behavior, self.model, self.store, self.rewards, self.explorer = behavior, model, store, rewards, explorer
        self._max_steps = max_steps
        n = store.num_streams
        self.cache = model.make_cache(n)
        self._device = model.log_std.device
        self._masks = ActionMasks(model.actions)
        self._check_obs = FiniteCheck(behavior.name, "observation", nonfinite)
        self._check_reward = FiniteCheck(behavior.name, "reward", nonfinite, MAX_REWARD)
        self.env_steps = self.taken = self.version = self.evicted = 0
        # Agents of one scene end together: means are over as many episodes as there are agents at least.
        window = max(EPISODE_WINDOW, n)
        self.episodes = EpisodeLog(returns=deque(maxlen=window), lengths=deque(maxlen=window))
        self.times = {"env_s": 0.0, "act_s": 0.0}
        self._slot_of: dict[tuple[str, str], int] = {}  # by lane and agent
        self._agent_in: dict[int, tuple[str, str]] = {}
        self._free = list(range(n - 1, -1, -1))
        self._prev_action = np.zeros((n, model.actions.width), np.float32)
        self._acted = np.zeros(n, np.bool_)
        self._last_seen = np.zeros(n, np.int64)
        self._episode_return, self._episode_length = np.zeros(n), np.zeros(n, np.int64)
        self._waiting: dict[str, _Waiting] = {}
        self._turns = 0

    @property
    def num_agents(self) -> int:
        """Agents that live."""
        return len(self._slot_of)

    @property
    def clipped(self) -> int:
        """Numbers that were not finite and were replaced."""
        return self._check_obs.clipped + self._check_reward.clipped

    def in_flight(self) -> Slots:
        """Return per stream 1 where the open token has its decision already, else 0."""
        return (self._acted & self.store.opened).astype(np.int64)

    def take(self, lane: str, turn: Turn) -> int:
        """Take in what a step of a lane brought; return of how many decisions the reward arrived.

        Raises:
            TrainingFailed: an observation or a reward is not finite, or an action mask is wrong.
        """
        self._turns += 1
        before = self.taken
        if turn.ended.agent_ids:
            self._take_ended(lane, turn.ended)
        self._waiting.pop(lane, None)
        if turn.acting.agent_ids:
            self._take_acting(lane, turn.acting)
        return self.taken - before

    def _take_ended(self, lane: str, ended: Ended) -> None:
        keys = [(lane, agent) for agent in ended.agent_ids]
        known = np.array([row for row, key in enumerate(keys) if key in self._slot_of], np.int64)
        if not known.size:  # they ended before they needed their first action
            return
        slots = np.array([self._slot_of[keys[row]] for row in known], np.int64)
        observed = self._observed(ended.observations, ended.agent_ids, None)
        reward = self._check_reward(ended.rewards, self._turns)[known]
        terminated, truncated = ended.terminated[known], ended.truncated[known]
        self._complete(slots, reward, terminated, truncated)
        no, zero = np.zeros(len(slots), np.bool_), np.zeros(len(slots))
        pixels = None if observed.pixels is None else observed.pixels[known]
        self.store.open(slots, observed.vector[known], no, pixels=pixels)
        self.store.complete(slots, zero, no, no, no)  # the final observation: nothing was decided there
        for slot in slots.tolist():
            self.episodes.add(float(self._episode_return[slot]), int(self._episode_length[slot]))
            self._release(slot)

    def _take_acting(self, lane: str, acting: Acting) -> None:
        observed = self._observed(acting.observations, acting.agent_ids, acting.action_mask)
        slots, is_first = self._slots(lane, acting)
        going_on = ~is_first
        if going_on.any():
            reward = self._check_reward(acting.rewards, self._turns)[going_on]
            no = np.zeros(len(reward), np.bool_)
            self._complete(slots[going_on], reward, no, no)
        self.store.open(slots, observed.vector, is_first, pixels=observed.pixels, action_mask=observed.action_mask)
        self._acted[slots] = False
        self._waiting[lane] = _Waiting(slots, observed, is_first)

    def _slots(self, lane: str, acting: Acting) -> tuple[Slots, NDArray[np.bool_]]:
        """Return the stream of each agent, and which of them begin an episode."""
        slots, is_first = np.zeros(len(acting.agent_ids), np.int64), acting.begins.copy()
        needed = {self._slot_of[key] for agent in acting.agent_ids if (key := (lane, agent)) in self._slot_of}
        for row, agent in enumerate(acting.agent_ids):
            slot = self._slot_of.get((lane, agent))
            if slot is None:
                slot, is_first[row] = self._allocate((lane, agent), needed), True
            elif is_first[row]:  # its last episode's end was never told
                self._cut(slot)
            slots[row] = slot
            self._last_seen[slot] = self._turns
        return slots, is_first

    def _allocate(self, key: tuple[str, str], needed: set[int]) -> int:
        if not self._free:
            idle = [slot for slot in self._agent_in if slot not in needed]
            if not idle:
                raise TrainingFailed(
                    f"behaviour {self.behavior.name!r} has more than {self.store.num_streams} agents that act at once: "
                    "set max_agents to as many as may live at once in one host's environments"
                )
            oldest = min(idle, key=self._last_seen.__getitem__)
            if not self.evicted:
                logger.warning(
                    "behaviour=%s has more than %d agents: the one idle for longest loses its memory; set max_agents",
                    self.behavior.name,
                    self.store.num_streams,
                )
            self.evicted += 1
            self._cut(oldest)
            self._release(oldest)
        slot = self._free.pop()
        needed.add(slot)
        self._slot_of[key], self._agent_in[slot] = slot, key
        return slot

    def _cut(self, slot: int) -> None:
        """End a stream's episode where it is; nothing is joined to what comes after."""
        one = np.array([slot], np.int64)
        self.store.restart(one)
        self.rewards.restart(one)
        self._acted[slot] = False
        self._episode_return[slot], self._episode_length[slot] = 0.0, 0

    def _release(self, slot: int) -> None:
        del self._slot_of[self._agent_in.pop(slot)]
        self.store.opened[slot] = False
        self._acted[slot] = False
        self._episode_return[slot], self._episode_length[slot] = 0.0, 0
        self._free.append(slot)

    def _complete(
        self, slots: Slots, reward: NDArray[Any], terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> None:
        valid = self._acted[slots]
        self.store.complete(slots, reward, terminated, truncated, valid)
        self.rewards.observe(slots, reward, valid, terminated | truncated)
        self._episode_return[slots] += reward
        self._episode_length[slots] += 1
        self.taken += len(slots)

    def _observed(self, observations: Any, ids: tuple[str, ...], mask: NDArray[np.bool_] | None) -> Observed:
        if isinstance(observations, list):
            space = self.behavior.observation_space
            empty: Any = create_empty_array(space, len(observations))
            observations = concatenate(space, observations, empty)
        features = self.model.observations
        vector = self._check_obs(features.encode(observations), self._turns)
        if mask is not None:
            try:
                mask = self._masks.read(mask, ids)
            except InvalidObservation as error:
                raise TrainingFailed(f"{self.behavior.name}: {error}; fix the environment's masks") from error
        return Observed(vector, features.pixels(observations), mask)

    @torch.inference_mode()
    def act(self, lane: str) -> Any:
        """Return a batch of actions for the agents of a lane that need one; None where there are none."""
        waiting = self._waiting.get(lane)
        if waiting is None:
            return None
        began = time.perf_counter()
        vector, *parts = waiting.obs
        index = waiting.slots
        slots = torch.from_numpy(index).to(self._device)
        arrays = (vector, self._prev_action[index], waiting.is_first)
        obs, prev_action, is_first = (torch.from_numpy(array).to(self._device) for array in arrays)
        pixels, mask = (None if part is None else torch.from_numpy(part).to(self._device) for part in parts)
        params = self.model.act_step(obs, prev_action, is_first, self.cache, slots, pixels)
        distribution = self.model.distribution(params, mask)
        progress = self.env_steps / self._max_steps
        sample, log_prob = self.explorer.draw(distribution, slots, is_first, self.env_steps, progress)
        actions = sample.cpu().numpy()
        self.store.act(index, actions, log_prob.cpu().numpy(), self.version)
        self._prev_action[index] = actions
        self._acted[index] = True
        self.times["act_s"] += time.perf_counter() - began
        return self.model.actions.decode(actions)

    def drop(self, lane: str) -> None:
        """End the episodes of a lane that is lost where they are."""
        self._waiting.pop(lane, None)
        for key, slot in list(self._slot_of.items()):
            if key[0] == lane:
                self._cut(slot)
                self._release(slot)

    def restart(self) -> None:
        """End all episodes where they are, as when a run is resumed."""
        for slot in np.flatnonzero(self.store.opened).tolist():
            self._cut(slot)
            self.store.opened[slot] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the counters; episodes begin anew in a resumed run."""
        counters = {"version": self.version, "env_steps": self.env_steps, "taken": self.taken}
        return {**counters, "episodes": self.episodes.state_dict(), "lanes": []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.version, self.env_steps, self.taken = (int(state[name]) for name in ("version", "env_steps", "taken"))
        self.episodes.load_state_dict(state["episodes"])
