"""What runs the model for :class:`~agentgpt_remote.policy.engine.PolicyEngine`: one interface, without torch."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures
from agentgpt_remote.policy.history import Rows
from agentgpt_remote.policy.images import UInt8

Engine = Literal["auto", "eager", "compile", "onnx"]
Bools = NDArray[np.bool_]


def check_engine(engine: object) -> Engine:
    """Return an engine's name.

    Raises:
        ConfigError: there is no such engine.
    """
    if engine not in get_args(Engine):
        raise ConfigError(f"engine={engine!r}: expected {', '.join(map(repr, get_args(Engine)))}")
    return cast(Engine, engine)


class SlotIndex(NamedTuple):
    """Some slots.

    Attributes:
        rows: int64 array.
        at: the same, as a slice where they are consecutive, which is faster to read and write.
    """

    rows: Rows
    at: slice | Rows


class ActorSpec(Protocol):
    """What a model tells of itself.

    Attributes:
        observation_space: of one agent.
        action_space: of one agent.
        config: its sizes.
        observations: the compact vector of the observation space.
        actions: the compact vector of the action space.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    config: GPTConfig
    observations: ObservationFeatures
    actions: ActionFeatures


class Runner(Protocol):
    """A model with the KV cache of all slots.

    Attributes:
        log_std: float32 array of shape (numeric action columns,).
    """

    log_std: Float32

    @property
    def model(self) -> ActorSpec:
        """What is run."""

    def grow(self, capacity: int) -> None:
        """Make room for more slots; what is held stays."""

    def step(self, obs: Float32, previous: Float32, is_first: Bools, index: SlotIndex, pixels: UInt8 | None) -> Float32:
        """Return the outputs for one new token per slot, float32 of shape (n, num_params)."""

    def rebuild(self, rows: Rows, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> None:
        """Fill slots from the last tokens of their agents, (n, T, ...), T a multiple of the window."""

    def short(self, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> Float32:
        """Return the outputs for the last token of sequences of at most a window, (n, T, ...)."""

    def replace(self, model: Any) -> None:
        """Run a model of the same sizes and spaces from here on."""

    def describe(self) -> dict[str, Any]:
        """Return which engine it is, and why."""
