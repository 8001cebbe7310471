"""Action values: for each of a few discrete actions, or for an action that is given."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.distributions import ActionHead
from agentgpt_remote.policy.encoder import TokenInputs
from agentgpt_remote.policy.features import ActionFeatures
from agentgpt_remote.policy.model import SequenceModel

TWINS = 2


class DiscreteCritic(SequenceModel):
    """Two dueling action values (Wang et al. 2016) of one Discrete space, on a trunk of their own."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: GPTConfig
    ) -> None:
        self.num_actions = ActionFeatures(action_space).category_sizes[0]
        outputs = TWINS * (1 + self.num_actions)
        super().__init__(observation_space, action_space, config, num_outputs=outputs, head_gain=0.1)

    def action_values(self, outputs: Tensor) -> Tensor:
        """Return both critics' values of every action, (2, ..., num_actions), from :meth:`outputs`."""
        twins = torch.stack(outputs.chunk(TWINS, -1))
        value, advantage = twins[..., :1], twins[..., 1:]
        return value + advantage - advantage.mean(-1, keepdim=True)


class ActionEncoding(nn.Module):
    """Compact actions as what a network reads: numbers and bits as they are, categories one-hot.

    Attributes:
        width: columns of the result.
    """

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self._floats, self._sizes = head.numeric + head.binary, head.sizes
        self.width = self._floats + sum(head.sizes)

    def forward(self, actions: Tensor) -> Tensor:
        """Return floats of shape (..., width) from compact actions (..., num_columns)."""
        if not self._sizes:
            return actions
        parts = [actions[..., : self._floats]] if self._floats else []
        for column, size in enumerate(self._sizes, start=self._floats):
            parts.append(F.one_hot(actions[..., column].long(), size).to(actions.dtype))
        return torch.cat(parts, -1)


class TwinMLP(nn.Module):
    """Two residual networks with LayerNorm (Lee et al. 2024, SimBa) that share no weight, as batched products."""

    def __init__(self, inputs: int, width: int, blocks: int = 1) -> None:
        super().__init__()
        self._first = _twin_linear(inputs, width)
        self._up = nn.ParameterList([_twin_linear(width, 2 * width) for _ in range(blocks)])
        self._down = nn.ParameterList([_twin_linear(2 * width, width, gain=0.5) for _ in range(blocks)])
        self._last = _twin_linear(width, 1, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return values (2, N) of inputs (N, inputs)."""
        h = _affine(x.expand(TWINS, *x.shape), self._first)
        for up, down in zip(self._up, self._down, strict=True):
            normed = F.layer_norm(h, h.shape[-1:])
            h = h + _affine(F.relu(_affine(normed, up)), down)
        return _affine(F.layer_norm(h, h.shape[-1:]), self._last)[..., 0]


def _twin_linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Parameter:
    """Return weights and, in the last row, biases of two linear maps: (2, inputs + 1, outputs)."""
    weights = torch.randn(TWINS, inputs + 1, outputs) * (gain / math.sqrt(inputs))
    weights[:, -1] = 0.0
    return nn.Parameter(weights)


def _affine(x: Tensor, weights: Tensor) -> Tensor:
    return torch.baddbmm(weights[:, -1:], x, weights[:, :-1])


class ActionCritic(SequenceModel):
    """Two values of a given action, on what is seen now and, with ``memory``, on a trunk that remembers.

    Args:
        observation_space: of one agent.
        action_space: of one agent.
        config: sizes of the trunk.
        memory: without it, the values depend on the current token only, and the trunk is not computed.
        width: of the values' networks.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: GPTConfig,
        *,
        memory: bool,
        width: int = 128,
    ) -> None:
        super().__init__(observation_space, action_space, config, num_outputs=1, head_gain=0.1)
        self.head = nn.Identity()  # type: ignore[assignment]
        self.memory = memory
        self.encoding = ActionEncoding(ActionHead(self.actions))
        if not memory:
            self.trunk = nn.Identity()  # type: ignore[assignment]
        inputs = (2 if memory else 1) * config.d_model + self.encoding.width
        self.values = TwinMLP(inputs, width)

    def state(self, current: TokenInputs, remembered: Tensor | None) -> Tensor:
        """Return what the values depend on besides the action.

        Args:
            current: prepared tokens (..., ) without context.
            remembered: the trunk's outputs for them, with ``memory``.
        """
        seen = self.encoder(current)
        return seen if remembered is None else torch.cat((seen, remembered), -1)

    def action_values(self, state: Tensor, actions: Tensor) -> Tensor:
        """Return both critics' values, (2, ...), of compact actions (..., num_columns) in states (..., width)."""
        inputs = torch.cat((state, self.encoding(actions)), -1)
        values: Tensor = self.values(inputs.flatten(0, -2))
        return values.view(TWINS, *inputs.shape[:-1])
