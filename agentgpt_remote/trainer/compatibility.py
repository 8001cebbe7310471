"""Hyperparameters and spaces that can't work together, refused before the first step."""

from __future__ import annotations

import os
from typing import Any

import torch
from gymnasium import spaces

from agentgpt_remote.errors import ConfigError, UnsupportedSpace
from agentgpt_remote.policy.features import ActionFeatures, ObservationFeatures
from agentgpt_remote.trainer.hyperparameters import Hyperparameters

_FLOAT_BYTES = 4


def check_compatible(
    hyperparameters: Hyperparameters,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    num_agents: int,
) -> None:
    """Check what no single field shows.

    Args:
        hyperparameters: resolved.
        observation_space: of one agent.
        action_space: of one agent.
        num_agents: agents that are trained on at once.

    Raises:
        ConfigError: names the field, its value and the remedy.
        UnsupportedSpace: there is nothing to observe, or nothing to decide.
    """
    _check_spaces(observation_space, action_space)
    _check_device(hyperparameters.device)
    hyperparameters.critic_config()
    _check_sequences(hyperparameters)
    _check_tuning(hyperparameters)
    _check_cache(hyperparameters, num_agents)


def _check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    seen = ObservationFeatures(observation_space)
    if not seen.width and not seen.images:
        raise UnsupportedSpace(f"observation_space is {observation_space!r}, which is empty: there is nothing to see")
    actions = ActionFeatures(action_space)
    choices = actions.numeric_width + actions.binary_width + sum(size > 1 for size in actions.category_sizes)
    if not choices:
        raise UnsupportedSpace(
            f"action_space is {action_space!r}, which leaves no choice: expected at least two actions to learn from"
        )


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={device!r}: not a torch device of this machine ({str(error).splitlines()[0]}); "
            "expected 'auto', 'cpu' or a GPU that torch.cuda lists"
        ) from error


def _check_sequences(hp: Hyperparameters) -> None:
    batch, chunk = hp.batch_size or 1, hp.chunk_steps or 1
    if batch < chunk:
        raise ConfigError(
            f"batch_size={batch}: expected at least chunk_steps={chunk}, the steps of one sequence; "
            f"set batch_size={chunk} or chunk_steps={batch}"
        )


def _check_tuning(hp: Hyperparameters) -> None:
    """Check that what is learned has room on both sides: 0 and 1 lie at infinity of what is learned."""
    for name in ("gamma", "lambda"):
        value = getattr(hp, f"{name}_init")
        if getattr(hp, f"learn_{name}") and not 0.0 < value < 1.0:
            raise ConfigError(
                f"{name}_init={value!r}: expected more than 0 and less than 1 to learn {name} from; "
                f"set {name}_init=0.9, or learn_{name}=false"
            )


def _check_cache(hp: Hyperparameters, num_agents: int) -> None:
    """Check that what acting remembers fits in memory; torch would end the process later, without a reason."""
    layers, width, window = hp.num_layers or 1, hp.d_model or 1, hp.max_input_states
    per_state = 2 * layers * width * num_agents * _FLOAT_BYTES
    room = _memory_bytes(hp.device) // 2
    if room and per_state * window > room:
        raise ConfigError(
            f"max_input_states={window}: {num_agents} agents would remember {per_state * window / 2**30:.1f} GiB, of "
            f"{2 * room / 2**30:.1f} GiB on {hp.device}; expected at most {max(1, room // per_state)}, or fewer "
            "agents, layers or a smaller d_model"
        )


def _memory_bytes(device: str) -> int:
    """Return the memory of a device; 0 where it is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every platform
        return 0
