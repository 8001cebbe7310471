"""The model at work: token streams of many agents in the slots of one KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentgpt_remote.errors import BundleError, CapacityReached, ConfigError
from agentgpt_remote.policy.choosing import ActionChooser
from agentgpt_remote.policy.control import NeutralActions
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.history import Rows, StepHistory, Steps, history_length
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.options import ActOptions
from agentgpt_remote.policy.runner import ActorSpec, Runner, SlotIndex

DEFAULT_MAX_AGENTS = 65_536
MAX_CACHE_BYTES = 4 * 2**30
_FIRST_SLOTS = 16
_CHUNK_TOKENS = 16_384
_FLOAT_BYTES = 4
_NOBODY = np.int64(2**62)

Dropped = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One batch of agents that need an action.

    Attributes:
        obs: compact observations, float32 of shape (n, observation width).
        pixels: bytes of the observations' images, uint8 of shape (n, P), where there are any.
        is_first: bool of shape (n,): the observation begins an episode.
        index: n different slots.
        options: how to choose.
    """

    obs: Float32
    pixels: UInt8 | None
    is_first: NDArray[np.bool_]
    index: SlotIndex
    options: ActOptions


class PolicyEngine:
    """Acts for agents that each have a slot.

    A slot holds the agent's last steps, and the keys and values that the model made of them. The latter are made
    anew where they are stale: after a change of weights, after steps with a shorter memory, or when the steps came
    from elsewhere. Slots double when they are all taken, up to ``max_agents``; then the agents that have not acted
    for longest make room.

    Args:
        runner: what runs the model; or the model itself, which torch runs eagerly.
        max_agents: most agents at once; by default 65,536, or as many as fit in 4 GiB.
    """

    def __init__(self, runner: Any, max_agents: int | None = None) -> None:
        self.runner = _as_runner(runner)
        model = self.model
        self.history = StepHistory(model.observations, model.actions, history_length(model.config))
        if max_agents is None:
            slot_bytes = _cache_bytes(model) + self.history.slot_bytes
            max_agents = max(1, min(DEFAULT_MAX_AGENTS, MAX_CACHE_BYTES // slot_bytes))
        self.max_agents = max_agents
        self.num_dropped = 0
        self._neutral = NeutralActions(model.actions)
        self._chooser = self._new_chooser()
        self._capacity, self._tick = 0, 0
        self._previous = np.zeros((0, model.actions.width), np.float32)
        self._stale = np.zeros(0, np.bool_)
        self._used = np.zeros(0, np.int64)  # the round in which each slot last acted
        self._owners: list[tuple[str, Dropped] | None] = []
        self._free: list[int] = []
        self._grow(min(_FIRST_SLOTS, max_agents))

    @property
    def model(self) -> ActorSpec:
        """The actor: its spaces and sizes."""
        return self.runner.model

    def _new_chooser(self) -> ActionChooser:
        return ActionChooser(self.model.actions, self.model.config.squashed, self.runner.log_std)

    @property
    def num_agents(self) -> int:
        """Slots that are taken."""
        return self._capacity - len(self._free)

    @property
    def max_input_states(self) -> int:
        """The attention window of the model."""
        return self.model.config.max_input_states

    def _grow(self, capacity: int) -> None:
        old, extra = self._capacity, capacity - self._capacity
        self.runner.grow(capacity)
        self._previous = np.concatenate((self._previous, np.zeros((extra, self._previous.shape[1]), np.float32)))
        self._stale = np.concatenate((self._stale, np.zeros(extra, np.bool_)))
        self._used = np.concatenate((self._used, np.full(extra, _NOBODY)))
        self._owners.extend([None] * extra)
        self.history.grow(capacity)
        self._free[:0] = range(capacity - 1, old - 1, -1)
        self._capacity = capacity

    def begin(self) -> None:
        """Begin a round: agents that are used from here on can't be dropped in it."""
        self._tick += 1

    def use(self, index: SlotIndex) -> None:
        """Keep slots from being dropped in this round."""
        self._used[index.at] = self._tick

    def allocate(self, owners: Sequence[tuple[str, Dropped]]) -> list[int]:
        """Return a slot per owner, of those that are nobody's or have not acted for longest.

        Args:
            owners: the agent's id, and what is called with it when the agent is dropped.

        Raises:
            CapacityReached: more than ``max_agents`` would act in this round; nothing has changed.
        """
        count = len(owners)
        missing = self.num_agents + count - self.max_agents
        if missing > 0:
            self._make_room(missing)
        while len(self._free) < count:
            self._grow(min(2 * self._capacity, self.max_agents))
        slots = [self._free.pop() for _ in owners]
        for slot, owner in zip(slots, owners, strict=True):
            self._owners[slot] = owner
        self._used[slots] = self._tick
        return slots

    def _make_room(self, count: int) -> None:
        idle = np.flatnonzero(self._used < self._tick)
        if len(idle) < count:
            raise CapacityReached(
                f"{self.max_agents + count - len(idle)} agents at once: this policy holds at most {self.max_agents}; "
                "terminate agents that are gone"
            )
        longest = idle[np.argsort(self._used[idle], kind="stable")[:count]]
        for slot in longest.tolist():
            owner = self._owners[slot]
            if owner is not None:
                self.num_dropped += 1
                owner[1](owner[0])
        self.release(longest.tolist())

    def hand_over(self, slot: int, owner: tuple[str, Dropped]) -> None:
        """Give a slot that is taken to another agent, which has begun its first episode there."""
        self._owners[slot] = owner

    def release(self, slots: list[int]) -> None:
        """Give slots back."""
        for slot in slots:
            self._owners[slot] = None
        self._used[slots] = _NOBODY
        self.history.clear(np.asarray(slots, np.int64))
        self._free.extend(slots)

    def restore(self, slot: int, steps: Steps, previous: Float32) -> None:
        """Give a slot the steps of an agent that another server, or this one before, knew.

        Args:
            slot: whose.
            steps: its last steps, oldest first.
            previous: compact action that followed them, float32 of shape (action width,).
        """
        self.history.restore(slot, steps)
        self._previous[slot] = previous
        self._stale[slot] = True

    def replace_model(self, model: Any) -> None:
        """Act with other weights from here on; the agents' memories are made anew from their steps.

        Raises:
            BundleError: the model has other sizes or other spaces.
        """
        own = self.model
        same = model.config == own.config and model.action_space == own.action_space
        if not same or model.observation_space != own.observation_space:
            raise BundleError(
                "the new bundle has other spaces or sizes than the one that is served: start a new server"
            )
        self.runner.replace(model)
        self._chooser = self._new_chooser()
        self._stale[:] = True

    def index(self, slots: list[int]) -> SlotIndex:
        """Return the slots as arrays; as slices where they are consecutive, which are faster to read and write."""
        start, count = slots[0], len(slots)
        rows = np.asarray(slots, np.int64)
        if slots == list(range(start, start + count)):
            part = slice(start, start + count)
            return SlotIndex(rows, part)
        return SlotIndex(rows, rows)

    def decide(self, decisions: Sequence[Decision]) -> list[Float32]:
        """Return compact actions for each of some batches, whose slots all differ.

        Batches that see equally many steps go through the model together.

        Returns:
            float32 arrays of shape (n, action width).
        """
        if len(decisions) == 1:
            return self._decide(decisions)
        results: list[Float32 | None] = [None] * len(decisions)
        for window in {self.window(decision.options.num_input_states) for decision in decisions}:
            which = [i for i, d in enumerate(decisions) if self.window(d.options.num_input_states) == window]
            for i, actions in zip(which, self._decide([decisions[i] for i in which]), strict=True):
                results[i] = actions
        return [actions for actions in results if actions is not None]

    def window(self, num_input_states: int) -> int:
        """Return how many steps the model sees, where 0 asks for the maximum.

        Raises:
            ConfigError: it is out of range.
        """
        if not 0 <= num_input_states <= self.max_input_states:
            raise ConfigError(f"num_input_states={num_input_states}: expected 1 to {self.max_input_states}")
        return num_input_states or self.max_input_states

    def _decide(self, decisions: Sequence[Decision]) -> list[Float32]:
        """Act for batches that see equally many steps."""
        joint = decisions[0] if len(decisions) == 1 else self._joined(decisions)
        previous = self._previous[joint.index.at]
        window = self.window(joint.options.num_input_states)
        if window == self.max_input_states:
            params = self._next_token(joint, previous)
        else:
            params = self._short_memory(joint, previous, window)
        vectors = self._choose(decisions, params)
        self.history.record(joint.index.rows, joint.obs, previous, joint.is_first, joint.pixels)
        self._stale[joint.index.at] = window < self.max_input_states
        self._previous[joint.index.at] = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
        return vectors

    def _joined(self, decisions: Sequence[Decision]) -> Decision:
        pixels = [decision.pixels for decision in decisions if decision.pixels is not None]
        return Decision(
            obs=np.concatenate([decision.obs for decision in decisions]),
            pixels=np.concatenate(pixels) if pixels else None,
            is_first=np.concatenate([decision.is_first for decision in decisions]),
            index=self.index([slot for decision in decisions for slot in decision.index.rows.tolist()]),
            options=decisions[0].options,
        )

    def _next_token(self, decision: Decision, previous: Float32) -> Float32:
        """Return the model's outputs by the KV cache."""
        stale = self._stale[decision.index.at] & ~decision.is_first
        if np.count_nonzero(stale):
            self._rebuild(decision.index.rows[stale])
        return self.runner.step(decision.obs, previous, decision.is_first, decision.index, decision.pixels)

    def _rebuild(self, rows: Rows) -> None:
        """Make keys and values of slots anew from their last steps."""
        window = self.max_input_states
        length = -(-int(self.history.held(rows).max()) // window) * window
        for chunk in _chunks(rows, length):
            steps = self.history.last(chunk, length)
            self.runner.rebuild(chunk, *self.history.split(steps.rows), steps.pixels)

    def _short_memory(self, decision: Decision, previous: Float32, window: int) -> Float32:
        """Return the outputs of a model that is given the last ``window`` steps and nothing before them."""
        rows = self.history.row(decision.obs, previous, decision.is_first)
        outputs = []
        for chunk in _chunks(np.arange(len(rows)), window):
            before = self.history.last(decision.index.rows[chunk], window - 1)
            steps = np.concatenate((before.rows, rows[chunk, None]), axis=1)
            pixels = None
            if before.pixels is not None and decision.pixels is not None:
                pixels = np.concatenate((before.pixels, decision.pixels[chunk, None]), axis=1)
            steps[:, 0, -1] = 1.0
            outputs.append(self.runner.short(*self.history.split(steps), pixels))
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _choose(self, decisions: Sequence[Decision], params: Float32) -> list[Float32]:
        """Return the actions of each batch from the outputs of all of them."""
        if len(decisions) == 1:
            return [self._choose_one(decisions[0].options, params)]
        ends = np.cumsum([len(decision.obs) for decision in decisions])[:-1]
        if not all(d.options.deterministic and d.options.action_mask is None for d in decisions):
            parts = np.split(params, ends)
            return [self._choose_one(d.options, part) for d, part in zip(decisions, parts, strict=True)]
        vectors = np.split(self._chooser.mode(params, None), ends)
        for decision, part in zip(decisions, vectors, strict=True):
            if decision.options.in_control is not None:
                self._neutral.take_over(part, decision.options.in_control, None)
        return vectors

    def _choose_one(self, options: ActOptions, params: Float32) -> Float32:
        if options.deterministic:
            vectors = self._chooser.mode(params, options.action_mask)
        else:
            # A seed per call makes draws the same however often a call is repeated, and wherever.
            vectors = self._chooser.sample(params, options.action_mask, options.seed)
        if options.in_control is not None:
            self._neutral.take_over(vectors, options.in_control, options.action_mask)
        return vectors


def _as_runner(runner: Any) -> Runner:
    if hasattr(runner, "rebuild"):
        result: Runner = runner
        return result
    from agentgpt_remote.policy.torch_runner import TorchRunner

    return TorchRunner(runner)


def _chunks(rows: Rows, tokens: int) -> list[Rows]:
    """Return the rows in parts of at most some thousands of tokens, to bound the memory that they take."""
    size = max(1, _CHUNK_TOKENS // max(tokens, 1))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _cache_bytes(model: ActorSpec) -> int:
    """Return the size of one agent's keys and values in the cache."""
    config = model.config
    return 2 * _FLOAT_BYTES * config.num_layers * config.d_model * config.max_input_states
