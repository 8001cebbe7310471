"""From streams to sequence chunks with context, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgpt_remote.policy.encoder import TokenEncoder, TokenInputs
from agentgpt_remote.policy.trunk import window_mask
from agentgpt_remote.trainer.streams import StreamStore

Int64 = NDArray[np.int64]


@dataclass(kw_only=True, eq=False)
class Window:
    """The tokens of all streams that are new since the last update, with equal columns for all streams.

    Column c of stream s is token ``start[s] + c``; columns beyond ``length[s]`` are not there.

    Attributes:
        start: int64 (S,): first new token.
        length: int64 (S,): completed new tokens; one more column holds the open token.
        columns: the largest length.
    """

    start: Int64
    length: Int64
    columns: int

    @classmethod
    def of(cls, store: StreamStore) -> Window:
        """Return the window of a store's untrained tokens, at most as many as its rings hold."""
        start = store.trained.copy()
        length = store.position - start
        return cls(start=start, length=length, columns=int(length.max()))

    def gather(self, store: StreamStore, values: NDArray[Any]) -> NDArray[Any]:
        """Return a store's array over the window, (S, columns, ...)."""
        tokens = self.start[:, None] + np.arange(self.columns)
        result: NDArray[Any] = values[np.arange(len(self.start))[:, None], tokens % store.capacity]
        return result

    def present(self) -> NDArray[np.bool_]:
        """Return which columns are there, bool (S, columns)."""
        return np.arange(self.columns) < self.length[:, None]


@dataclass(kw_only=True, eq=False)
class Chunks:
    """Sequences to train on: context, then up to ``steps`` new tokens, then one more for its value.

    Attributes:
        inputs: prepared tokens, (C, T, ...); T is a multiple of the attention window.
        mask_is_first: bool (C, T): where attention starts anew, padding included.
        stream: int64 (C,).
        column: int64 (C, steps): column of the window.
        inside: bool (C, steps): the column is there.
        context: tokens before the first trained one.
    """

    inputs: TokenInputs
    mask_is_first: Tensor
    stream: Int64
    column: Int64
    inside: NDArray[np.bool_]
    context: int

    def masks(self, window: int) -> Tensor:
        """Return the attention masks, (C, blocks, 1, W, 2W)."""
        count = self.mask_is_first.shape[0]
        mask = window_mask(self.mask_is_first, window)
        return mask.view(count, -1, *mask.shape[1:])


def read_tokens(
    store: StreamStore, streams: Int64, first: Int64, count: int, encoder: TokenEncoder, device: torch.device
) -> tuple[TokenInputs, Tensor]:
    """Return prepared tokens of some streams, padded where a stream had not begun or the ring has moved on.

    Args:
        store: the streams.
        streams: int64 (C,).
        first: int64 (C,): first token of each sequence; may be negative.
        count: tokens per sequence, up to and including the open token at most.
        encoder: of the model that reads them.
        device: where the tensors go.

    Returns:
        Inputs of shape (C, count, ...) and a bool tensor (C, count): where attention starts anew.
    """
    tokens = first[:, None] + np.arange(count)
    rows, index = streams[:, None], tokens % store.capacity
    position = store.position[streams][:, None]
    absent = (tokens < 0) | (tokens > position) | (tokens <= position - store.capacity)
    is_first = store.is_first[rows, index]
    arrays = (store.obs[rows, index], store.prev_action(rows, tokens), is_first)
    obs, prev_action, first_flag = (torch.from_numpy(array).to(device) for array in arrays)
    with torch.no_grad():
        inputs = encoder.prepare(obs, prev_action, first_flag)
    # The token after an absent one starts anew as well: what was before it is not there.
    starts = is_first | absent
    starts[:, 1:] |= absent[:, :-1]
    return inputs, torch.from_numpy(starts).to(device)


def cut_chunks(
    store: StreamStore,
    window: Window,
    *,
    steps: int,
    context: int,
    attention: int,
    encoder: TokenEncoder,
    device: torch.device,
) -> Chunks:
    """Cut a window into chunks.

    Args:
        store: the streams.
        window: what is new in them.
        steps: new tokens per chunk.
        context: tokens in front that make recomputed outputs exact.
        attention: the attention window, whose multiple the sequences' length is.
        encoder: of the model that reads them.
        device: where the tensors go.
    """
    steps = min(steps, window.columns)
    length = -(-(context + steps + 1) // attention) * attention
    context = length - steps - 1
    stream, begin = np.nonzero(np.arange(0, window.columns, steps) < window.length[:, None])
    column = begin[:, None] * steps + np.arange(steps)
    inputs, starts = read_tokens(store, stream, window.start[stream] + column[:, 0] - context, length, encoder, device)
    inside = column < window.length[stream][:, None]
    return Chunks(
        inputs=inputs,
        mask_is_first=starts,
        stream=stream,
        column=np.minimum(column, window.columns - 1),
        inside=inside,
        context=context,
    )
