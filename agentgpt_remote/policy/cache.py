"""Keys and values of the last tokens of every agent, in rings that are written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from agentgpt_remote.policy.config import GPTConfig, rope_period

Slots = slice | Tensor


class KVCache:
    """Ring buffers for ``num_slots`` agents.

    A token's ring index is its clock modulo the window. Clocks run on over episodes, modulo the period of
    the rotary embedding, so they never lose precision; ``length`` counts the tokens of the current episode.

    Attributes:
        num_slots: agents that fit.
        keys: float tensor of shape (num_layers, num_slots, num_heads, window, head_size), rotated.
        values: float tensor of the same shape.
        clock: int64 tensor of shape (num_slots,): tokens seen, modulo ``period``.
        length: int64 tensor of shape (num_slots,): tokens of the episode that are held, at most the window.
    """

    def __init__(self, config: GPTConfig, num_slots: int, device: torch.device | str = "cpu") -> None:
        self.num_slots = num_slots
        self.window = config.max_input_states
        self.period = rope_period(self.window)
        shape = (config.num_layers, num_slots, config.num_heads, self.window, config.head_size)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.clock = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.length = torch.zeros(num_slots, dtype=torch.int64, device=device)
        ring = torch.arange(self.window, device=device)
        # age[i, j]: how many tokens ago ring index j was written when the current token sits at i.
        self._age = (ring[:, None] - ring[None, :]) % self.window
        self._rows = torch.arange(num_slots, device=device)

    def rows(self, slots: Slots) -> Tensor:
        """Return the slot numbers as an int64 tensor."""
        return self._rows[slots]

    def advance(self, slots: Slots, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count one token for each of the slots.

        Args:
            slots: which slots.
            is_first: bool tensor of shape (n,): the token begins an episode, which empties the slot.

        Returns:
            The tokens' positions (n,), ring indices (n,), the additive attention mask (n, 1, 1, window), and how
            many tokens ago each ring index was written (n, window), where it was.
        """
        position = self.clock[slots].clone()
        index = position % self.window
        length = self.length[slots].masked_fill(is_first, 0).add_(1).clamp_(max=self.window)
        self.length[slots] = length
        self.clock[slots] = (position + 1) % self.period
        age = self._age[index]
        hidden = age >= length[:, None]
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return position, index, mask[:, None, None, :], age

    def reset(self, slots: Slots) -> None:
        """Forget what the slots hold."""
        self.length[slots] = 0

    def save_slots(self, slots: slice) -> dict[str, Tensor]:
        """Return a copy of what the slots hold, on the CPU."""
        parts = {"keys": self.keys[:, slots], "values": self.values[:, slots]}
        parts |= {"clock": self.clock[slots], "length": self.length[slots]}
        return {name: part.detach().cpu().clone() for name, part in parts.items()}

    def load_slots(self, slots: slice, saved: dict[str, Tensor]) -> None:
        """Restore what ``save_slots`` returned."""
        self.keys[:, slots] = saved["keys"].to(self.keys.device)
        self.values[:, slots] = saved["values"].to(self.values.device)
        self.clock[slots] = saved["clock"].to(self.clock.device)
        self.length[slots] = saved["length"].to(self.length.device)
