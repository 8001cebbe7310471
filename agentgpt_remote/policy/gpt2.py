"""The block of ``gpt_type="gpt2"``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.block import Block, RingStep
from agentgpt_remote.policy.config import GPTConfig


def layer_norm(x: Tensor) -> Tensor:
    """Return x with mean 0 and deviation 1; no gain and no bias, since the linear map that follows has them."""
    return F.layer_norm(x, (x.shape[-1],))


class GPT2Block(Block):
    """One pre-norm transformer block: LayerNorm, learned positions, GELU (as in GPT-2; Radford et al. 2019).

    GPT-2 adds a learned vector per absolute position, which a stream without end has no bound for, and which
    would change under a key that stays in the cache while the window slides. What is learned here is a bias of
    the attention per head and age in tokens, from 0 to ``window - 1`` (the relative form; Raffel et al. 2020).
    It depends on nothing but the distance, so cached keys and recomputed ones agree wherever a sequence begins.
    It begins with a slope of its own for each head that favours recent tokens (Press et al. 2022).
    """

    bias = True
    wide_maps = 1
    _age: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        window = self.window
        slope = (4.0 / max(window, 4)) ** (torch.arange(self.num_heads) / max(self.num_heads - 1, 1))
        self.position = nn.Parameter(-slope[:, None] * torch.arange(window))
        age = torch.arange(window)[:, None] + window - torch.arange(2 * window)
        self.register_buffer("_age", age.clamp_(0, window - 1), persistent=False)

    def _rotated(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (..., heads, head_size), from x (..., width); nothing is rotated."""
        heads = self.qkv(layer_norm(x)).unflatten(-1, (3, self.num_heads, self.head_size))
        query, key, value = heads.unbind(-3)
        return query, key, value

    def _biased(self, mask: Tensor) -> Tensor:
        return mask + self.position[:, self._age]  # (B * blocks, 1, W, 2W) + (nh, W, 2W)

    def _ring_biased(self, ring: RingStep) -> Tensor:
        return ring.mask + self.position[:, ring.age].transpose(0, 1).unsqueeze(2)  # (n, nh, 1, W)

    def _causal_bias(self, length: int) -> Tensor | None:
        return self.position[:, self._age[:length, self.window : self.window + length]]  # (nh, T, T)

    def _mlp(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(F.gelu(self.gate_up(layer_norm(x))))
        return result
