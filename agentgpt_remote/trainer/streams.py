"""Ring storage of what agents saw and did: one stream per agent."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agentgpt_remote.errors import ConfigError

logger = logging.getLogger("agentgpt_remote.trainer")
MAX_STORE_BYTES = 8 * 2**30
_SCALAR_BYTES = 32  # of a token, beside observation, action and mask
Streams = slice | NDArray[np.int64]  # which streams: a range, or different numbers
_COMPLETED = ("action", "log_prob", "version", "reward", "terminated", "truncated", "valid")


class StreamStore:
    """Tokens of many agents, each in a ring of its own.

    A token is opened by an observation, gets an action, and is completed by the reward. An episode's last
    token holds the final observation and is never ``valid``: nothing was decided there. Observations and
    rewards are raw; whoever samples normalises them. Streams are independent: each has its own position.

    Args:
        num_streams: agents.
        capacity: tokens kept per agent.
        obs_width: columns of a compact observation.
        action_width: columns of a compact action.
        pixel_width: bytes of an observation's images, which are kept as uint8.
        sized_by: the hyperparameter that sets the capacity; named in the error.

    Attributes:
        position: int64 array (num_streams,): tokens completed so far; the open token sits there.
        trained: int64 array (num_streams,): tokens before this one have been trained on.
        pixels: uint8 array (num_streams, capacity, pixel_width): images of the observations.
        action_mask: bool array (num_streams, capacity, categories): what was allowed; None until there is a mask.
        begun: int64 array (num_streams,): tokens before this one were never stored here.
        opened: bool array (num_streams,): streams that have an open token.

    Raises:
        ConfigError: it would take more than 8 GiB.
    """

    def __init__(
        self,
        num_streams: int,
        capacity: int,
        obs_width: int,
        action_width: int,
        pixel_width: int = 0,
        sized_by: str = "rollout_steps",
    ) -> None:
        shape = (num_streams, capacity)
        token_bytes = 4 * (obs_width + action_width) + pixel_width + _SCALAR_BYTES
        if num_streams * capacity * token_bytes > MAX_STORE_BYTES:
            raise ConfigError(
                f"{sized_by}: keeping {capacity} steps of each of {num_streams} agents, at {token_bytes} bytes a step "
                f"({pixel_width} of images), takes {num_streams * capacity * token_bytes / 2**30:.1f} GiB: expected at "
                f"most {MAX_STORE_BYTES / 2**30:g}; lower {sized_by} or num_envs, or make the observations smaller"
            )
        if pixel_width:
            image_gib = num_streams * capacity * pixel_width / 2**30
            logger.info("store streams=%d steps_each=%d images_gib=%.2f", num_streams, capacity, image_gib)
        self.pixel_width = pixel_width
        self.pixels = np.zeros((*shape, pixel_width), np.uint8)
        self.action_mask: NDArray[np.bool_] | None = None
        self.num_streams, self.capacity = shape
        self.obs = np.zeros((*shape, obs_width), np.float32)
        self.action = np.zeros((*shape, action_width), np.float32)
        self.is_first = np.ones(shape, np.bool_)
        self.log_prob = np.zeros(shape, np.float32)
        self.version = np.zeros(shape, np.int64)
        self.reward = np.zeros(shape, np.float64)
        self.terminated = np.zeros(shape, np.bool_)
        self.truncated = np.zeros(shape, np.bool_)
        self.valid = np.zeros(shape, np.bool_)
        self.position = np.zeros(num_streams, np.int64)
        self.trained = np.zeros(num_streams, np.int64)
        self.begun = np.zeros(num_streams, np.int64)
        self.opened = np.zeros(num_streams, np.bool_)

    def open(
        self,
        streams: Streams,
        obs: NDArray[Any],
        is_first: NDArray[np.bool_],
        *,
        pixels: NDArray[np.uint8] | None = None,
        action_mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Begin a token for each of the streams.

        Args:
            streams: which streams, n of them.
            obs: compact observations, (n, obs_width).
            is_first: bool array (n,): an episode begins here.
            pixels: bytes of the observations' images, (n, pixel_width), where there are any.
            action_mask: what is allowed here, (n, categories); None allows everything.
        """
        rows, index = self._at(streams)
        self.obs[rows, index] = obs
        self.is_first[rows, index] = is_first
        self.opened[streams] = True
        if pixels is not None:
            self.pixels[rows, index] = pixels
        if action_mask is not None and self.action_mask is None:
            self._mask_actions(action_mask.shape[1])
        if self.action_mask is not None:
            self.action_mask[rows, index] = True if action_mask is None else action_mask

    def _mask_actions(self, width: int) -> None:
        self.action_mask = np.ones((self.num_streams, self.capacity, width), np.bool_)

    def act(self, streams: Streams, action: NDArray[Any], log_prob: NDArray[Any], version: int) -> None:
        """Store the decision taken at the open tokens: compact action (n, action_width), log-probability (n,)."""
        rows, index = self._at(streams)
        self.action[rows, index] = action
        self.log_prob[rows, index] = log_prob
        self.version[rows, index] = version

    def complete(
        self,
        streams: Streams,
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
    ) -> None:
        """Complete the open tokens with what the environment answered; each array has shape (n,)."""
        rows, index = self._at(streams)
        self.reward[rows, index] = reward
        self.terminated[rows, index] = terminated
        self.truncated[rows, index] = truncated
        self.valid[rows, index] = valid
        self.position[streams] += 1

    def cut(self, streams: Streams) -> None:
        """End the streams where they are, as when their host is lost: bootstrap from the open token."""
        rows = _rows(streams)
        last = (self.position[streams] - 1) % self.capacity
        ended = self.terminated[rows, last]
        self.truncated[rows, last] |= ~ended & self.valid[rows, last]

    def restart(self, streams: Streams) -> None:
        """End the streams' episodes where they are, for new ones to be opened.

        The open token becomes the episode's last one, from which the value is bootstrapped; nothing is joined.
        """
        self.cut(streams)
        for stream in _rows(streams).tolist():
            if self.opened[stream]:
                no = np.zeros(1, np.bool_)
                self.complete(slice(stream, stream + 1), np.zeros(1), no, no, no)
                self.opened[stream] = False

    def oldest(self) -> NDArray[np.int64]:
        """Return the oldest token that each stream still holds, int64 (num_streams,)."""
        return np.maximum(self.begun, self.position - self.capacity + 1)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that hold one row per token, without those whose rows are empty."""
        shape = (self.num_streams, self.capacity)
        arrays = {name: value for name, value in vars(self).items() if getattr(value, "shape", ())[:2] == shape}
        return {name: value for name, value in arrays.items() if value.size}

    def state_dict(self, context: int, replay: int = 0) -> dict[str, Any]:
        """Return what is untrained, what is before it, and the open tokens, as tensors.

        Args:
            context: tokens before the untrained ones that are kept per stream, as far as they are there.
            replay: tokens that are kept per stream whether they were trained on or not.
        """
        first = np.maximum(np.minimum(self.trained - context, self.position - replay), self.oldest())
        rows, tokens = _ragged(first, self.position + 1)
        index = tokens % self.capacity
        arrays = {name: value[rows, index] for name, value in self._arrays().items()}
        for name in _COMPLETED:
            arrays[name][tokens == self.position[rows]] = 0  # what the ring held there before
        return {
            "arrays": {name: torch.from_numpy(value) for name, value in arrays.items()},
            **{name: torch.from_numpy(getattr(self, name).copy()) for name in ("position", "trained", "opened")},
            "first": torch.from_numpy(first),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, from a store of as many streams; the capacity may differ."""
        first = state["first"].numpy()
        for name in ("position", "trained", "opened"):
            getattr(self, name)[:] = state[name].numpy()
        rows, tokens = _ragged(first, self.position + 1)
        self.begun[:] = first
        if "action_mask" in state["arrays"]:
            self._mask_actions(state["arrays"]["action_mask"].shape[1])
        held = tokens >= self.oldest()[rows]
        for name, value in self._arrays().items():
            value[rows[held], tokens[held] % self.capacity] = state["arrays"][name].numpy()[held]
        np.maximum(self.trained, self.oldest(), out=self.trained)

    def new_tokens(self) -> int:
        """Return how many completed tokens have not been trained on."""
        return int((self.position - self.trained).sum())

    def most_new_tokens(self) -> int:
        """Return how many completed tokens have not been trained on in the stream that has most of them."""
        return int((self.position - self.trained).max())

    def prev_action(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the actions before the tokens, broadcast over rows and tokens; shape (..., action_width)."""
        return self.action[rows, (tokens - 1) % self.capacity]

    def _at(self, streams: Streams) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _rows(streams), self.position[streams] % self.capacity


def _rows(streams: Streams) -> NDArray[np.int64]:
    return np.arange(streams.start, streams.stop) if isinstance(streams, slice) else streams


def _ragged(first: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return streams and tokens of one range per stream, one after the other."""
    count = stop - first
    rows = np.repeat(np.arange(len(first)), count)
    tokens = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count) + first[rows]
    return rows, tokens
