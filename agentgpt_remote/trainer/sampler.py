"""From streams to sequence chunks with context, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgpt_remote.policy.encoder import TokenEncoder, TokenInputs
from agentgpt_remote.policy.model import SequenceModel
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
    """Sequences to train on: some blocks of context, then up to ``steps`` new tokens.

    Attributes:
        inputs: prepared tokens, (C, T, ...); T is a multiple of the attention window.
        mask: attention mask, (C, T / W, 1, W, 2W).
        stream: int64 (C,).
        column: int64 (C, steps): column of the window.
        inside: bool (C, steps): the column is there.
        context_blocks: blocks of context, as many as the deepest model has layers.
        encoder: that prepared the tokens.
    """

    inputs: TokenInputs
    mask: Tensor
    stream: Int64
    column: Int64
    inside: NDArray[np.bool_]
    context_blocks: int
    encoder: TokenEncoder

    def outputs(self, model: SequenceModel, index: Tensor | slice = slice(None)) -> Tensor:
        """Return a model's outputs for the new tokens of some chunks, (n, steps, num_outputs)."""
        skip = self.context_blocks - model.config.num_layers
        first = skip * model.config.max_input_states
        return model.outputs(self.inputs.tokens(index, first), self.mask[index, skip:], trim=True)[:, : self.steps]

    def reordered(self, order: Tensor) -> Chunks:
        """Return the chunks in another order, copied once: minibatches are then slices."""
        rows = order.cpu().numpy()
        return replace(
            self,
            inputs=self.inputs.tokens(order, 0),
            mask=self.mask[order],
            stream=self.stream[rows],
            column=self.column[rows],
            inside=self.inside[rows],
        )

    @property
    def steps(self) -> int:
        """New tokens of a chunk."""
        return int(self.column.shape[1])


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
    absent = (tokens < store.oldest()[streams][:, None]) | (tokens > store.position[streams][:, None])
    is_first = store.is_first[rows, index] | absent
    arrays = [store.obs[rows, index], store.prev_action(rows, tokens)]
    if store.pixel_width:
        arrays.append(store.pixels[rows, index])
    for array in arrays:
        array[absent] = 0  # what the ring held there before: it would change the order of sums
    obs, prev_action, *images = (torch.from_numpy(array).to(device) for array in arrays)
    first_flag, pixels = torch.from_numpy(is_first).to(device), images[0] if images else None
    with torch.no_grad():
        inputs = encoder.prepare(obs, prev_action, first_flag, pixels)
    # The token after an absent one starts anew as well: what was before it is not there.
    starts = is_first.copy()
    starts[:, 1:] |= absent[:, :-1]
    return inputs, torch.from_numpy(starts).to(device)


def cut_chunks(
    store: StreamStore, window: Window, steps: int, model: SequenceModel, context_blocks: int, device: torch.device
) -> Chunks:
    """Cut a window into chunks.

    Args:
        store: the streams.
        window: what is new in them.
        steps: new tokens per chunk.
        model: whose encoder prepares them.
        context_blocks: attention windows of context, as many as the deepest model has layers.
        device: where the tensors go.
    """
    attention = model.config.max_input_states
    steps = min(steps, window.columns)
    context = context_blocks * attention
    length = context + -(-steps // attention) * attention
    stream, begin = np.nonzero(np.arange(0, window.columns, steps) < window.length[:, None])
    column = begin[:, None] * steps + np.arange(steps)
    first = window.start[stream] + column[:, 0] - context
    inputs, starts = read_tokens(store, stream, first, length, model.encoder, device)
    return Chunks(
        inputs=inputs,
        mask=window_mask(starts, attention),
        stream=stream,
        column=np.minimum(column, window.columns - 1),
        inside=column < window.length[stream][:, None],
        context_blocks=context_blocks,
        encoder=model.encoder,
    )


@torch.no_grad()
def window_values(
    store: StreamStore, window: Window, chunks: Chunks, critic: SequenceModel, device: torch.device
) -> NDArray[np.float64]:
    """Return a critic's outputs over a window and at the open tokens after it.

    Args:
        store: the streams.
        window: the window.
        chunks: cut from it.
        critic: one output per token; its inputs are prepared as the chunks' are.
        device: where the tensors go.

    Returns:
        Outputs (S, columns + 1); a stream's open token comes after its last completed one.
    """
    attention = critic.config.max_input_states
    count = (critic.config.num_layers + 1) * attention
    streams = np.arange(store.num_streams)
    inputs, starts = read_tokens(store, streams, store.position - count + 1, count, chunks.encoder, device)
    last = critic.outputs(inputs, window_mask(starts, attention), trim=True)[:, -1, 0]
    inner = chunks.outputs(critic)[..., 0]
    result = np.zeros((store.num_streams, window.columns + 1))
    result[streams, window.length] = last.cpu().numpy()
    rows = np.broadcast_to(chunks.stream[:, None], chunks.column.shape)
    result[rows[chunks.inside], chunks.column[chunks.inside]] = inner.cpu().numpy()[chunks.inside]
    return result
