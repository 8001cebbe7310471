"""Sequences drawn from everything that the streams still hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgpt_remote.policy.encoder import TokenInputs
from agentgpt_remote.policy.model import SequenceModel
from agentgpt_remote.policy.trunk import window_mask
from agentgpt_remote.trainer.sampler import read_tokens
from agentgpt_remote.trainer.streams import StreamStore

RECENT_STEPS = 4096


class Replay(NamedTuple):
    """C sequences of T tokens to train on and one more, with context before them.

    Attributes:
        inputs: prepared tokens, context included, (C, blocks * W, ...).
        mask: attention mask, (C, blocks, 1, W, 2W).
        context_blocks: blocks of context, as many as the deepest model has layers.
        action: compact actions, float (C, T + 1, Fa).
        log_prob: of the actions under the policy that took them, float (C, T + 1).
        reward: raw, float (C, T).
        terminated: float (C, T): 1 where nothing comes after.
        cut: float (C, T): 1 where the next token belongs to another decision sequence, or was not decided.
        weight: float (C, T): 1 where a decision is to be trained on.
        lag: mean number of updates since the decisions.
        total_weight: sum of the weights, of all ranks where there are several.
        action_mask: what was allowed, bool (C, T + 1, categories); None where nothing was ever masked.
    """

    inputs: TokenInputs
    mask: Tensor
    context_blocks: int
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    cut: Tensor
    weight: Tensor
    lag: float
    total_weight: Tensor
    action_mask: Tensor | None = None

    def outputs(self, model: SequenceModel) -> Tensor:
        """Return a model's outputs for the tokens to train on and the one after them, (C, T + 1, num_outputs)."""
        skip = self.context_blocks - model.config.num_layers
        first = skip * model.config.max_input_states
        inputs = self.inputs.tokens(slice(None), first)
        return model.outputs(inputs, self.mask[:, skip:], trim=True)[:, : self.action.shape[1]]

    def current(self) -> TokenInputs:
        """Return the tokens to train on and the one after them, without context."""
        first = self.inputs.categories.shape[1] - self._padded
        return self.inputs.tokens(slice(None), first, first + self.action.shape[1])

    def normalised_weight(self) -> Tensor:
        """Return the weights divided by their sum."""
        return self.weight / self.total_weight.clamp(min=1.0)

    @property
    def _padded(self) -> int:
        blocks, window = self.mask.shape[1], self.mask.shape[3]
        return (blocks - self.context_blocks) * window


def held_tokens(store: StreamStore) -> NDArray[np.int64]:
    """Return how many completed tokens each stream still holds, int64 (S,)."""
    held: NDArray[np.int64] = store.position - store.oldest()
    return held


def draw(
    store: StreamStore,
    rng: np.random.Generator,
    *,
    sequences: int,
    steps: int,
    model: SequenceModel,
    context_blocks: int,
    recent_fraction: float,
    recent_steps: int = RECENT_STEPS,
    version: int,
    device: torch.device,
) -> Replay:
    """Draw sequences from the tokens that are held, a part of them from the newest only.

    Args:
        store: the streams; at least one token is completed.
        rng: of the draw.
        sequences: how many.
        steps: tokens to train on in each.
        model: whose encoder prepares the tokens.
        context_blocks: attention windows of context.
        recent_fraction: part of the sequences that is drawn from the newest tokens only; what the policy does now would
            else be ever rarer in a batch.
        recent_steps: how many these are, of all streams together; at least one sequence of each.
        version: the policy's version now.
        device: where the tensors go.
    """
    held = held_tokens(store)
    stream = rng.choice(store.num_streams, sequences, p=held / held.sum())
    reach = held[stream]
    newest = slice(0, round(recent_fraction * sequences))
    reach[newest] = np.minimum(reach[newest], max(recent_steps // store.num_streams, steps))
    room = np.maximum(reach - steps, 0) + 1
    begin = store.position[stream] - reach + (rng.random(sequences) * room).astype(np.int64)
    attention = model.config.max_input_states
    context = context_blocks * attention
    length = context + -(-(steps + 1) // attention) * attention
    inputs, starts = read_tokens(store, stream, begin - context, length, model.encoder, device)
    tokens = begin[:, None] + np.arange(steps + 1)
    rows, index = stream[:, None], tokens % store.capacity
    there = tokens < store.position[stream][:, None]
    valid = store.valid[rows, index] & there
    ended = store.terminated[rows, index] | store.truncated[rows, index]
    # The last token's trace would need the one after it.
    cut = ended | ~np.concatenate((valid[:, 1:], np.zeros((sequences, 1), np.bool_)), axis=1)
    cut[:, steps - 1] = True
    arrays = (
        store.action[rows, index],
        store.log_prob[rows, index],
        store.reward[rows, index][:, :steps],
        store.terminated[rows, index][:, :steps],
        cut[:, :steps],
        valid[:, :steps],
    )
    action, log_prob, reward, terminated, traces_end, weight = (
        torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device) for array in arrays
    )
    allowed = None if store.action_mask is None else torch.from_numpy(store.action_mask[rows, index]).to(device)
    decided = valid[:, :steps]
    lag = (version - store.version[rows, index][:, :steps])[decided]
    return Replay(
        inputs=inputs,
        mask=window_mask(starts, attention),
        context_blocks=context_blocks,
        action=action,
        log_prob=log_prob,
        reward=reward,
        terminated=terminated,
        cut=traces_end,
        weight=weight,
        lag=float(lag.mean()) if decided.any() else 0.0,
        total_weight=weight.sum(),
        action_mask=allowed,
    )
