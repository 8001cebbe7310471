"""A trained policy in a folder: config.json, model.safetensors and a model card, loaded without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors.torch

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import BundleError, ConfigError, UnsupportedSpace
from agentgpt_remote.files import replacing
from agentgpt_remote.policy.bundle_files import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    damaged,
    read_bundle,
    weights_errors,
)
from agentgpt_remote.policy.card import model_card
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.provenance import config_text, public_provenance
from agentgpt_remote.spaces import space_to_dict


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded policy.

    Attributes:
        path: its folder.
        model: the actor, in evaluation mode.
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        config: sizes of the model.
        provenance: where it comes from: environment, hyperparameters, steps, returns.
    """

    path: Path
    model: PolicyModel
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    config: GPTConfig
    provenance: dict[str, Any]


def save_bundle(path: str | Path, model: PolicyModel, *, provenance: Mapping[str, Any]) -> None:
    """Write a bundle, replacing one that is there file by file, so that a reader always finds a whole one.

    Args:
        path: its folder; made if it is missing.
        model: the actor.
        provenance: JSON-able facts about its training, shown in the model card; secrets in it are left out.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        "agentgpt_remote": __version__,
        "observation_space": space_to_dict(model.observation_space, "observation_space"),
        "action_space": space_to_dict(model.action_space, "action_space"),
        "model": model.config.to_dict(),
        "provenance": public_provenance(provenance),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    contents = {
        WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CARD_FILE: model_card(folder.as_posix(), config).encode(),
        # The configuration comes last: without it the folder is no bundle yet.
        CONFIG_FILE: config_text(config),
    }
    for name, data in contents.items():
        with replacing(folder / name) as file:
            file.write(data)


def load_bundle(path: str | Path, *, device: str = "cpu") -> Bundle:
    """Load a bundle.

    Args:
        path: its folder, such as ``runs/CartPole-v1/policy``.
        device: torch device of the model.

    Raises:
        BundleError: the folder or a file is missing, damaged, of another format version, or the weights do
            not fit the configuration.
        ConfigError: there is no such device here.
    """
    files = read_bundle(path)
    try:
        model = PolicyModel(files.observation_space, files.action_space, files.config)
    except (ConfigError, UnsupportedSpace) as error:
        raise damaged(files.path, error) from error
    with weights_errors(files.path) as weights:
        tensors = safetensors.torch.load(weights.read_bytes())
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        raise BundleError(f"{files.path / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {error}") from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r}: expected a torch device of this machine, such as 'cpu'") from error
    return Bundle(
        path=files.path,
        model=model.eval().requires_grad_(False),
        observation_space=files.observation_space,
        action_space=files.action_space,
        config=files.config,
        provenance=files.provenance,
    )
