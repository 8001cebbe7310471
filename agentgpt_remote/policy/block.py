"""The block of ``gpt_type="llama"``, and attention over blocks of a window and over the ring cache."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.cache import Slots
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.norms import rms_norm


class RingStep(NamedTuple):
    """Where one layer of the cache is written and read for one token per agent.

    Attributes:
        keys: the layer's keys, (num_slots, num_heads, window, head_size).
        values: the layer's values, of the same shape.
        slots: the n agents' slots.
        rows: the same as an int64 tensor.
        position: ring indices that the token is written to, (n,).
        mask: additive attention mask, (n, 1, 1, window).
        age: how many tokens ago each ring index was written, int64 (n, window).
    """

    keys: Tensor
    values: Tensor
    slots: Slots
    rows: Tensor
    position: Tensor
    mask: Tensor
    age: Tensor


class Block(nn.Module):
    """One pre-norm transformer block: RMSNorm, rotary positions, SwiGLU (as in Llama; Touvron et al. 2023)."""

    bias = False
    wide_maps = 2  # a gate and what it gates

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.hidden_size
        self.num_heads, self.head_size, self.window = config.num_heads, config.head_size, config.max_input_states
        self.qkv = nn.Linear(width, 3 * width, bias=self.bias)
        self.project = nn.Linear(width, width, bias=self.bias)
        self.gate_up = nn.Linear(width, self.wide_maps * hidden, bias=self.bias)
        self.down = nn.Linear(hidden, width, bias=self.bias)
        shrink = 1.0 / math.sqrt(2 * config.num_layers)
        for layer, gain in ((self.qkv, 1.0), (self.project, shrink), (self.gate_up, 1.0), (self.down, shrink)):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            if self.bias:
                nn.init.zeros_(layer.bias)

    def _rotated(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys (rotated) and values, each (..., heads, head_size), from x (..., width)."""
        heads = self.qkv(rms_norm(x)).unflatten(-1, (3, self.num_heads, self.head_size))
        # Split rather than index: each index's gradient would be a tensor of zeros that the part is copied into.
        qk, value = heads.split((2, 1), -3)
        qk = torch.addcmul(qk * rope[0], qk.roll(self.head_size // 2, -1), rope[1])
        query, key = qk.unbind(-3)
        return query, key, value.squeeze(-3)

    def _biased(self, mask: Tensor) -> Tensor:
        """Return the additive mask of attention in blocks, (..., 1, W, 2W), with what positions add to it."""
        return mask

    def _ring_biased(self, ring: RingStep) -> Tensor:
        """Return the additive mask of attention to the ring, (n, 1, 1, W), with what positions add to it."""
        return ring.mask

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(rms_norm(x)).chunk(2, -1)
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
            attn_mask=self._biased(mask.flatten(0, 1)),
        )
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        return self._mlp(x), key, value

    def _with_previous(self, x: Tensor, trim: bool) -> Tensor:
        """Return each block of tokens after the one before it: (B, T, nh, hs) -> (B * blocks, 2W, nh, hs)."""
        if not trim:
            x = F.pad(x, (0, 0, 0, 0, self.window, 0))
        blocks = x.reshape(x.shape[0], -1, self.window, self.num_heads, self.head_size)
        return torch.cat((blocks[:, :-1], blocks[:, 1:]), dim=2).flatten(0, 1)

    def _causal_bias(self, length: int) -> Tensor | None:
        """Return what positions add to the attention of T tokens among themselves, (heads, T, T), or None."""
        return None

    def short(self, x: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
        """Run over whole sequences of at most a window, x of shape (B, T, d_model), mask additive of (B, 1, T, T)."""
        query, key, value = self._rotated(x, rope)  # (B, T, nh, hs)
        bias = self._causal_bias(x.shape[1])
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask if bias is None else mask + bias,
        )
        return self._mlp(x + self.project(attended.transpose(1, 2).flatten(2)))

    def step(self, x: Tensor, rope: Tensor, ring: RingStep) -> Tensor:
        """Run over one token per agent, x of shape (n, d_model), with the ring cache written in place."""
        query, key, value = self._rotated(x, rope)  # (n, nh, hs)
        ring.keys[ring.rows, :, ring.position] = key
        ring.values[ring.rows, :, ring.position] = value
        keys, values = ring.keys[ring.slots], ring.values[ring.slots]  # (n, nh, W, hs)
        attended = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=self._ring_biased(ring))
        return self._mlp(x + self.project(attended.flatten(1)))
