"""From compact observations and previous actions to embedded tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agentgpt_remote.policy.cnn import ImageCNN
from agentgpt_remote.policy.features import ActionFeatures, ObservationFeatures

OBSERVATION_CLIP = 10.0


class TokenInputs(NamedTuple):
    """What the embedding reads, free of parameters: computed once per token, embedded many times.

    Attributes:
        numeric: float tensor of shape (..., numeric inputs).
        categories: int64 tensor of shape (..., categorical inputs): rows of the embedding table.
        pixels: uint8 tensor of shape (..., P), the bytes of all images; None where the space has none.
    """

    numeric: Tensor
    categories: Tensor
    pixels: Tensor | None = None

    def tokens(self, rows: Tensor | slice, first: int, stop: int | None = None) -> TokenInputs:
        """Return some rows of inputs of shape (B, T, ...), from their token ``first`` on, up to ``stop``."""
        pixels = None if self.pixels is None else self.pixels[rows, first:stop]
        return TokenInputs(self.numeric[rows, first:stop], self.categories[rows, first:stop], pixels)


class TokenEncoder(nn.Module):
    """Sums an embedding of every leaf of the observation, the previous action and the start-of-episode flag.

    Numeric observations are normalised by ``obs_mean`` and ``obs_scale`` and clipped; a trainer sets them.
    Images go through a CNN each.
    """

    obs_mean: Tensor
    obs_scale: Tensor
    _offsets: Tensor
    _none: Tensor
    _action_clip: Tensor

    def __init__(self, observations: ObservationFeatures, actions: ActionFeatures, width: int) -> None:
        super().__init__()
        self.observations, self.actions = observations, actions
        self.register_buffer("obs_mean", torch.zeros(observations.numeric_width))
        self.register_buffer("obs_scale", torch.ones(observations.numeric_width))
        # A previous action has one more category than the action itself: none.
        sizes = [*observations.category_sizes, *(n + 1 for n in actions.category_sizes), 2]
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("_offsets", offsets, persistent=False)
        self.register_buffer("_none", torch.tensor(actions.category_sizes, dtype=torch.float32), persistent=False)
        clip = torch.where(torch.from_numpy(actions.bounded), 1.0, OBSERVATION_CLIP)
        self.register_buffer("_action_clip", clip.float(), persistent=False)
        self._obs_floats = observations.numeric_width + observations.binary_width
        self._action_floats = actions.numeric_width + actions.binary_width
        floats = self._obs_floats + self._action_floats
        self.numeric = nn.Linear(floats, width, bias=False) if floats else None
        self.table = nn.Parameter(torch.empty(sum(sizes), width))
        nn.init.normal_(self.table, std=0.5)
        if self.numeric is not None:
            nn.init.normal_(self.numeric.weight, std=max(self._obs_floats, 1) ** -0.5)
        self._cnns = [ImageCNN(leaf, width) for leaf in observations.images]
        self.images = nn.ModuleList(self._cnns)

    def prepare(self, obs: Tensor, prev_action: Tensor, is_first: Tensor, pixels: Tensor | None = None) -> TokenInputs:
        """Normalise, clip and index; needs no gradient.

        Args:
            obs: compact observations, float tensor of shape (..., Fo).
            prev_action: compact previous actions, float tensor of shape (..., Fa); ignored where is_first.
            is_first: bool tensor of shape (...).
            pixels: uint8 tensor of shape (..., P); None where the observation has no images.
        """
        observations, actions = self.observations, self.actions
        first = is_first.unsqueeze(-1)
        floats = []
        if observations.numeric_width:
            numeric = obs[..., : observations.numeric_width]
            floats.append(((numeric - self.obs_mean) * self.obs_scale).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP))
        if observations.binary_width:
            floats.append(obs[..., observations.numeric_width : self._obs_floats])
        if actions.numeric_width:
            numeric = torch.clamp(prev_action[..., : actions.numeric_width], -self._action_clip, self._action_clip)
            floats.append(numeric.masked_fill_(first, 0.0))
        if actions.binary_width:
            floats.append(prev_action[..., actions.numeric_width : self._action_floats].masked_fill(first, 0.0))
        columns = [obs[..., self._obs_floats :]] if observations.category_sizes else []
        if actions.category_sizes:
            columns.append(torch.where(first, self._none, prev_action[..., self._action_floats :]))
        columns.append(first.to(obs.dtype))
        categories = (torch.cat(columns, -1) if len(columns) > 1 else columns[0]).long() + self._offsets
        numeric = floats[0] if len(floats) == 1 else torch.cat(floats, -1) if floats else obs[..., :0]
        return TokenInputs(numeric, categories, pixels)

    def forward(self, inputs: TokenInputs) -> Tensor:
        """Return embedded tokens of shape (..., width)."""
        categories = inputs.categories
        x = F.embedding_bag(categories.reshape(-1, categories.shape[-1]), self.table, mode="sum")
        x = x.view(*categories.shape[:-1], -1)
        if self.numeric is not None:
            x = x + self.numeric(inputs.numeric)
        for cnn in self._cnns:
            if inputs.pixels is None:
                raise ValueError("the tokens have no pixels: expected those of the observation's images")
            x = x + cnn(inputs.pixels)
        return x
