"""The transformer: RMSNorm, rotary positions, windowed attention, SwiGLU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.cache import KVCache, Slots, rope_period
from agentgpt_remote.policy.config import GPTConfig


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


def _rms_norm(x: Tensor) -> Tensor:
    # No gain: the linear map that follows can express it.
    return F.rms_norm(x, (x.shape[-1],))


class RingStep(NamedTuple):
    """Where one layer of the cache is written and read for one token per agent.

    Attributes:
        keys: the layer's keys, (num_slots, num_heads, window, head_size).
        values: the layer's values, of the same shape.
        slots: the n agents' slots.
        rows: the same as an int64 tensor.
        position: ring indices that the token is written to, (n,).
        mask: additive attention mask, (n, 1, 1, window).
    """

    keys: Tensor
    values: Tensor
    slots: Slots
    rows: Tensor
    position: Tensor
    mask: Tensor


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.hidden_size
        self.num_heads, self.head_size, self.window = config.num_heads, config.head_size, config.max_input_states
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        shrink = 1.0 / math.sqrt(2 * config.num_layers)
        for layer, gain in ((self.qkv, 1.0), (self.project, shrink), (self.gate_up, 1.0), (self.down, shrink)):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))

    def _rotated(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys (rotated) and values, each (..., heads, head_size), from x (..., width)."""
        heads = self.qkv(_rms_norm(x)).unflatten(-1, (3, self.num_heads, self.head_size))
        # Split rather than index: each index's gradient would be a tensor of zeros that the part is copied into.
        qk, value = heads.split((2, 1), -3)
        qk = torch.addcmul(qk * rope[0], qk.roll(self.head_size // 2, -1), rope[1])
        query, key = qk.unbind(-3)
        return query, key, value.squeeze(-3)

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(_rms_norm(x)).chunk(2, -1)
        result: Tensor = x + self.down(F.silu(gate) * up)
        return result

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, trim: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Run over whole sequences.

        Args:
            x: float tensor of shape (B, T, d_model), T a multiple of the window.
            rope: the table's rows of the positions, shape (2, T, 1, 1, head_size).
            mask: (B, blocks, 1, window, 2 * window), of the blocks that are returned.
            trim: the first block only gives context to the second and is not returned.

        Returns:
            The new x, (B, T or T - window, d_model), and the keys and values of all tokens, each
            (B, T, num_heads, head_size).
        """
        query, key, value = self._rotated(x, rope)  # (B, T, nh, hs)
        if trim:
            query, x = query[:, self.window :], x[:, self.window :]
        batch, length, width = x.shape
        shape = (batch * (length // self.window), self.window, self.num_heads, self.head_size)
        attended = F.scaled_dot_product_attention(
            query.reshape(shape).transpose(1, 2),  # (B * blocks, nh, W, hs)
            self._with_previous(key, trim).transpose(1, 2),  # (B * blocks, nh, 2W, hs)
            self._with_previous(value, trim).transpose(1, 2),
            attn_mask=mask.flatten(0, 1),
        )
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        return self._mlp(x), key, value

    def _with_previous(self, x: Tensor, trim: bool) -> Tensor:
        """Return each block of tokens after the one before it: (B, T, nh, hs) -> (B * blocks, 2W, nh, hs)."""
        if not trim:
            x = F.pad(x, (0, 0, 0, 0, self.window, 0))
        blocks = x.reshape(x.shape[0], -1, self.window, self.num_heads, self.head_size)
        return torch.cat((blocks[:, :-1], blocks[:, 1:]), dim=2).flatten(0, 1)

    def step(self, x: Tensor, rope: Tensor, ring: RingStep) -> Tensor:
        """Run over one token per agent, x of shape (n, d_model), with the ring cache written in place."""
        query, key, value = self._rotated(x, rope)  # (n, nh, hs)
        ring.keys[ring.rows, :, ring.position] = key
        ring.values[ring.rows, :, ring.position] = value
        keys, values = ring.keys[ring.slots], ring.values[ring.slots]  # (n, nh, W, hs)
        attended = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=ring.mask)
        return self._mlp(x + self.project(attended.flatten(1)))


class Trunk(nn.Module):
    """A stack of blocks over embedded tokens."""

    rope: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self._stack = [Block(config) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(self._stack)
        self.register_buffer("rope", rope_table(config.head_size, config.max_input_states), persistent=False)

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
        return _rms_norm(x)

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
        position, index, mask = cache.advance(slots, is_first)
        rows = cache.rows(slots)
        rope = self.rope[:, position, None, None]  # (2, n, 1, 1, hs)
        for layer, block in enumerate(self._stack):
            x = block.step(x, rope, RingStep(cache.keys[layer], cache.values[layer], slots, rows, index, mask))
        return _rms_norm(x)
