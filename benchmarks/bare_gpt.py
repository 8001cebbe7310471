"""The actor's and the critic's forward pass written bare: what a training step is measured against.

Plain modules and functions, the same parameters under the same names (so that weights can be loaded), the same
attention over blocks of the window, the same context left out layer by layer. Nothing else: no streams, targets,
distributions, clipping or optimizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.trunk import rope_table


class BareBlock(nn.Module):
    """One block: RMSNorm, rotary positions, attention over two windows, SwiGLU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.hidden_size
        self.heads, self.window = config.num_heads, config.max_input_states
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Return the new x without its first block, (B, T - W, d)."""
        batch, length, width = x.shape
        window, size = self.window, width // self.heads
        query, key, value = self.qkv(F.rms_norm(x, (width,))).view(batch, length, 3, self.heads, size).unbind(2)
        query = query * cos + query.roll(size // 2, -1) * sin
        key = key * cos + key.roll(size // 2, -1) * sin
        query, x = query[:, window:], x[:, window:]
        blocks = length // window - 1
        query = query.reshape(batch * blocks, window, self.heads, size).transpose(1, 2)
        key, value = (self._pairs(part, batch, size).transpose(1, 2) for part in (key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.project(attended.transpose(1, 2).reshape(x.shape))
        gate, up = self.gate_up(F.rms_norm(x, (width,))).chunk(2, -1)
        result: Tensor = x + self.down(F.silu(gate) * up)
        return result

    def _pairs(self, x: Tensor, batch: int, size: int) -> Tensor:
        blocks = x.reshape(batch, -1, self.window, self.heads, size)
        return torch.cat((blocks[:, :-1], blocks[:, 1:]), 2).flatten(0, 1)


class BareModel(nn.Module):
    """An embedding, the blocks and a linear head.

    Args:
        config: sizes.
        numeric: numeric inputs of a token.
        rows: rows of the embedding table.
        outputs: per token.
    """

    def __init__(self, config: GPTConfig, numeric: int, rows: int, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Module()
        self.encoder.table = nn.Parameter(torch.empty(rows, config.d_model))
        self.encoder.numeric = nn.Linear(numeric, config.d_model, bias=False)
        self.trunk = nn.Module()
        self.trunk.blocks = nn.ModuleList(BareBlock(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.d_model, outputs)
        self.cos, self.sin = rope_table(config.head_size, config.max_input_states)[:, :, None]

    def forward(self, numeric: Tensor, categories: Tensor, mask: Tensor) -> Tensor:
        """Return the outputs of all tokens but the context, (B, T - num_layers * W, outputs)."""
        table, linear, blocks = self.encoder.table, self.encoder.numeric, self.trunk.blocks
        x = F.embedding_bag(categories.flatten(0, 1), table, mode="sum").view(*categories.shape[:2], -1)  # type: ignore[arg-type]
        x = x + linear(numeric)  # type: ignore[operator]
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for block in blocks:  # type: ignore[union-attr]
            mask = mask[:, 1:]
            x = block(x, cos[-x.shape[1] :], sin[-x.shape[1] :], mask.flatten(0, 1))
        result: Tensor = self.head(F.rms_norm(x, (x.shape[-1],)))
        return result
