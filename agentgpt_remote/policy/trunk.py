"""The transformer: windowed attention over a stack of blocks, of either type."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.block import Block, RingStep
from agentgpt_remote.policy.cache import KVCache, Slots
from agentgpt_remote.policy.config import GPTConfig, rope_period
from agentgpt_remote.policy.gpt2 import GPT2Block, layer_norm
from agentgpt_remote.policy.norms import rms_norm


def rope_table(head_size: int, window: int) -> Tensor:
    """Return cosines and signed sines of the rotary embedding (Su et al. 2021, eq. 34).

    Frequencies are whole multiples of one turn per period, so positions may be taken modulo the period, and
    spread from one radian per token down to one radian per four windows.

    Returns:
        float32 tensor of shape (2, period, head_size).
    """
    period = rope_period(window)
    half = head_size // 2
    wanted = (4.0 * window) ** (-torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    turns = (wanted * period / (2 * math.pi)).round().clamp(min=1)
    steps = torch.arange(period, dtype=torch.float64)[:, None] * turns
    angle = torch.remainder(steps, period) * (2 * math.pi / period)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1))).float()


def window_mask(is_first: Tensor, window: int) -> Tensor:
    """Return the additive mask of blocked attention: causal, age below the window, same episode.

    Each block of ``window`` queries sees its own block and the one before it, which makes the cost linear
    in the length of the sequence.

    Args:
        is_first: bool tensor of shape (B, T), T a multiple of the window: a token begins an episode.
        window: attention window in tokens.

    Returns:
        float tensor of shape (B, T / window, 1, window, 2 * window).
    """
    batch, length = is_first.shape
    blocks = length // window
    episode = is_first.long().cumsum(1)
    query = episode.view(batch, blocks, window, 1)
    before = F.pad(episode, (window, 0), value=-1)[:, :length].view(batch, blocks, 1, window)
    same = query == torch.cat((before, query.transpose(2, 3)), dim=3)  # (B, blocks, W, 2W)
    ring = torch.arange(window, device=is_first.device)
    age = ring[:, None] + window - torch.arange(2 * window, device=is_first.device)
    visible = same & (age >= 0) & (age < window)
    mask = torch.zeros(visible.shape, device=is_first.device).masked_fill_(~visible, float("-inf"))
    return mask.unsqueeze(2)


class Trunk(nn.Module):
    """A stack of blocks over embedded tokens."""

    rope: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        rotary = config.gpt_type == "llama"
        self._norm = rms_norm if rotary else layer_norm
        self._stack = [(Block if rotary else GPT2Block)(config) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(self._stack)
        self.register_buffer(
            "rope", rope_table(config.head_size if rotary else 0, config.max_input_states), persistent=False
        )

    def forward(self, x: Tensor, mask: Tensor, *, trim: bool = False) -> Tensor:
        """Run over whole sequences.

        Args:
            x: embedded tokens, float tensor of shape (B, T, d_model), T a multiple of the window.
            mask: see :func:`window_mask`.
            trim: leave out the first ``num_layers`` blocks, which are context: each layer drops one, so that
                nothing is computed that no output depends on.

        Returns:
            Normalised outputs, float tensor of shape (B, T, d_model), or (B, T - num_layers * window, d_model).
        """
        rope = self._positions(x.shape[1])
        for block in self._stack:
            if trim:
                mask = mask[:, 1:]
            x, _, _ = block(x, rope[:, -x.shape[1] :], mask, trim)
        return self._norm(x)

    def short(self, x: Tensor, is_first: Tensor) -> Tensor:
        """Run over whole sequences of at most a window of tokens, at the cost of no more tokens than there are.

        Args:
            x: embedded tokens, float tensor of shape (B, T, d_model).
            is_first: bool tensor of shape (B, T): a token begins an episode.

        Returns:
            Normalised outputs of the last token, float tensor of shape (B, d_model).
        """
        length = x.shape[1]
        episode = is_first.long().cumsum(1)
        visible = (episode[:, :, None] == episode[:, None, :]).tril()  # (B, T, T)
        mask = torch.zeros(visible.shape, device=x.device).masked_fill_(~visible, float("-inf")).unsqueeze(1)
        rope = self._positions(length)
        for block in self._stack:
            x = block.short(x, rope, mask)
        return self._norm(x[:, -1])

    def fill(self, x: Tensor, mask: Tensor, cache: KVCache, slots: Slots) -> None:
        """Write the last ``window`` tokens' keys and values of B sequences to B slots; the caller sets ``length``.

        Args:
            x: embedded tokens, float tensor of shape (B, T, d_model), T a multiple of the window.
            mask: see :func:`window_mask`.
            cache: written in place.
            slots: B slots.
        """
        window, length = self.config.max_input_states, x.shape[1]
        rope = self._positions(length)
        for layer, block in enumerate(self._stack):
            x, key, value = block(x, rope, mask, False)
            # T is a multiple of the window, so token T - W lies at ring index 0.
            cache.keys[layer, slots] = key[:, -window:].transpose(1, 2)
            cache.values[layer, slots] = value[:, -window:].transpose(1, 2)
        cache.clock[slots] = length % cache.period

    def _positions(self, length: int) -> Tensor:
        """Return the rotary table of so many consecutive tokens, (2, T, 1, 1, head_size)."""
        period = self.rope.shape[1]
        rope = self.rope if length <= period else self.rope.repeat(1, -(-length // period), 1)
        return rope[:, :length, None, None]

    def step(self, x: Tensor, is_first: Tensor, cache: KVCache, slots: Slots) -> Tensor:
        """Run over one token per agent; see :meth:`PolicyModel.act_step`."""
        position, index, mask, age = cache.advance(slots, is_first)
        rows = cache.rows(slots)
        rope = self.rope[:, position, None, None]  # (2, n, 1, 1, hs)
        for layer, block in enumerate(self._stack):
            ring = RingStep(cache.keys[layer], cache.values[layer], slots, rows, index, mask, age)
            x = block.step(x, rope, ring)
        return self._norm(x)
