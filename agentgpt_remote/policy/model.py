"""The policy: a causal transformer over one agent's stream of observations and actions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from agentgpt_remote.policy.cache import KVCache, Slots
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.distributions import ActionHead, JointDistribution
from agentgpt_remote.policy.encoder import TokenEncoder, TokenInputs
from agentgpt_remote.policy.features import ActionFeatures, ObservationFeatures
from agentgpt_remote.policy.trunk import Trunk, window_mask


class SequenceModel(nn.Module):
    """A token encoder, a trunk and a linear head.

    A token is the current observation, the previous action and whether the episode begins here.

    Args:
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        config: sizes.
        num_outputs: outputs per token.
        head_gain: scale of the head's first weights.

    Raises:
        UnsupportedSpace: a space that can't be learned from.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: GPTConfig,
        num_outputs: int,
        head_gain: float,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space, self.config = observation_space, action_space, config
        self.observations = ObservationFeatures(observation_space, images=config.image_encoder == "cnn")
        self.actions = ActionFeatures(action_space)
        self.encoder = TokenEncoder(self.observations, self.actions, config.d_model)
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.d_model, num_outputs)
        nn.init.normal_(self.head.weight, std=head_gain * config.d_model**-0.5)
        nn.init.zeros_(self.head.bias)

    def outputs(self, inputs: TokenInputs, mask: Tensor, *, trim: bool = False) -> Tensor:
        """Return outputs of prepared tokens.

        Args:
            inputs: of shape (B, T, ...), T a multiple of the window.
            mask: from :func:`~agentgpt_remote.policy.trunk.window_mask`.
            trim: leave out the first ``num_layers * window`` tokens, which are context.

        Returns:
            float tensor of shape (B, T, num_outputs), or as many tokens fewer as are left out.
        """
        result: Tensor = self.head(self.trunk(self.encoder(inputs), mask, trim=trim))
        return result

    def forward(self, obs: Tensor, prev_action: Tensor, is_first: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Return the outputs of every token of whole sequences.

        Attention is causal, within the window and within the episode. What precedes the first token is taken
        not to exist; a token depends on at most ``config.context_tokens`` tokens before it.

        Args:
            obs: compact observations, float tensor of shape (B, T, Fo).
            prev_action: compact previous actions, float tensor of shape (B, T, Fa); ignored where is_first.
            is_first: bool tensor of shape (B, T).
            pixels: bytes of the observations' images, uint8 tensor of shape (B, T, P), where there are any.

        Returns:
            float tensor of shape (B, T, num_outputs).
        """
        length = is_first.shape[1]
        padding = -length % self.config.max_input_states
        if padding:
            obs, prev_action = F.pad(obs, (0, 0, 0, padding)), F.pad(prev_action, (0, 0, 0, padding))
            is_first = F.pad(is_first, (0, padding), value=True)
            pixels = None if pixels is None else F.pad(pixels, (0, 0, 0, padding))
        inputs = self.encoder.prepare(obs, prev_action, is_first, pixels)
        return self.outputs(inputs, window_mask(is_first, self.config.max_input_states))[:, :length]


class PolicyModel(SequenceModel):
    """The actor: what a bundle holds.

    Its outputs are the parameters of a :class:`JointDistribution` over compact action vectors.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: GPTConfig
    ) -> None:
        """Build with random weights from torch's global generator.

        Raises:
            UnsupportedSpace: a space that can't be learned from.
        """
        action_head = ActionHead(ActionFeatures(action_space), config.squashed)
        super().__init__(observation_space, action_space, config, action_head.num_params, head_gain=0.01)
        self.action_head = action_head
        first = 0.0 if config.squashed else config.init_log_std
        self.log_std = nn.Parameter(torch.full((action_head.numeric,), first))

    def make_cache(self, num_slots: int) -> KVCache:
        """Return an empty cache for ``num_slots`` agents."""
        return KVCache(self.config, num_slots, self.log_std.device)

    def act_step(
        self,
        obs: Tensor,
        prev_action: Tensor,
        is_first: Tensor,
        cache: KVCache,
        slots: Slots,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """Return the outputs for one new token per agent, equal to :meth:`forward` over the whole episode.

        Args:
            obs: compact observations, float tensor of shape (n, Fo).
            prev_action: compact previous actions, float tensor of shape (n, Fa); ignored where is_first.
            is_first: bool tensor of shape (n,); True empties the agent's slot first.
            cache: from :meth:`make_cache`; written in place.
            slots: n different slots, an int64 tensor or (faster) a slice.
            pixels: bytes of the observations' images, uint8 tensor of shape (n, P), where there are any.

        Returns:
            float tensor of shape (n, num_outputs).
        """
        inputs = self.encoder.prepare(obs, prev_action, is_first, pixels)
        result: Tensor = self.head(self.trunk.step(self.encoder(inputs), is_first, cache, slots))
        return result

    def act_short(self, obs: Tensor, prev_action: Tensor, is_first: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Return the outputs for the last token of whole sequences of at most a window, equal to :meth:`forward`'s.

        Args:
            obs: compact observations, float tensor of shape (B, T, Fo).
            prev_action: compact previous actions, float tensor of shape (B, T, Fa); ignored where is_first.
            is_first: bool tensor of shape (B, T).
            pixels: bytes of the observations' images, uint8 tensor of shape (B, T, P), where there are any.

        Returns:
            float tensor of shape (B, num_outputs).
        """
        inputs = self.encoder.prepare(obs, prev_action, is_first, pixels)
        result: Tensor = self.head(self.trunk.short(self.encoder(inputs), is_first))
        return result

    def rebuild_cache(self, inputs: TokenInputs, is_first: Tensor, cache: KVCache, slots: Slots) -> None:
        """Fill the cache from the tokens that agents saw, as after a change of weights.

        Args:
            inputs: the last tokens of every agent, (B, T, ...), T a multiple of the window and at least
                ``config.context_tokens``, padded in front.
            is_first: bool tensor of shape (B, T), True for padding.
            cache: written in place.
            slots: B slots.
        """
        window = self.config.max_input_states
        self.trunk.fill(self.encoder(inputs), window_mask(is_first, window), cache, slots)
        # Tokens since the last one that began an episode, that one included.
        last_first = is_first.shape[1] - 1 - is_first.flip(1).long().argmax(1)
        held = torch.where(is_first.any(1), is_first.shape[1] - last_first, is_first.shape[1])
        cache.length[slots] = held.clamp(max=window)

    def distribution(self, params: Tensor, action_mask: Tensor | None = None) -> JointDistribution:
        """Return the action distribution for outputs of shape (..., num_params), within the masks where given."""
        return JointDistribution(self.action_head, params, self.log_std, action_mask)


class ValueModel(SequenceModel):
    """The critic: one value per token, with a trunk of its own."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], config: GPTConfig
    ) -> None:
        super().__init__(observation_space, action_space, config, num_outputs=1, head_gain=0.1)
