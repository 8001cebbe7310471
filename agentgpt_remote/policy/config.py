"""The shape of the GPT, as saved in a bundle."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from agentgpt_remote.errors import ConfigError

GPTType = Literal["llama", "gpt2"]
ImageEncoder = Literal["cnn", "none"]


def rope_period(window: int) -> int:
    """Return after how many tokens positions repeat; a multiple of the window."""
    return max(64, -(-4096 // window)) * window


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of the transformer.

    Attributes:
        num_layers: transformer blocks.
        d_model: width of a token.
        num_heads: attention heads; ``d_model / num_heads`` must be an even integer.
        max_input_states: attention window in tokens, the current one included.
        gpt_type: "llama" (RMSNorm, rotary positions, SwiGLU) or "gpt2" (LayerNorm, learned positions, GELU).
        image_encoder: "cnn" encodes uint8 images by a CNN, "none" takes them for plain numbers.
        init_log_std: first log standard deviation of continuous actions, in units of half the action range.
        squashed: continuous actions have a deviation that depends on the state, and go through a hyperbolic tangent
            into their bounds.
    """

    num_layers: int = 2
    d_model: int = 64
    num_heads: int = 4
    max_input_states: int = 16
    gpt_type: GPTType = "llama"
    image_encoder: ImageEncoder = "cnn"
    init_log_std: float = -0.5
    squashed: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a size is out of range, the heads do not divide the width, or a kind is not known.
        """
        for name in ("num_layers", "d_model", "num_heads", "max_input_states"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected an integer of at least 1")
        for name, kinds in (("gpt_type", GPTType), ("image_encoder", ImageEncoder)):
            if getattr(self, name) not in get_args(kinds):
                expected = " or ".join(map(repr, get_args(kinds)))
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expected}")
        if self.d_model % (2 * self.num_heads):
            raise ConfigError(
                f"d_model={self.d_model} with num_heads={self.num_heads}: "
                f"expected d_model to be a multiple of 2 * num_heads = {2 * self.num_heads}"
            )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    @property
    def hidden_size(self) -> int:
        """Width inside the feed-forward layer; a gated one has two maps to it, so it is half as wide."""
        return (2 if self.gpt_type == "llama" else 4) * self.d_model

    @property
    def context_tokens(self) -> int:
        """Tokens before the current one that its output depends on, over all layers."""
        return self.num_layers * (self.max_input_states - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPTConfig:
        """Build from ``to_dict``'s result.

        Raises:
            ConfigError: an unknown field (the closest name is given) or a value out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f": did you mean {close[0]!r}?" if close else f": expected one of {', '.join(names)}"
                raise ConfigError(f"unknown model field {name!r}{hint}")
        return cls(**values)
