"""A trained policy in a folder: config.json, model.safetensors and a model card, loaded without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors
import safetensors.torch

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import BundleError, ConfigError, UnsupportedSpace
from agentgpt_remote.files import replacing
from agentgpt_remote.policy.card import model_card
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.spaces import space_from_dict, space_to_dict

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


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
        provenance: JSON-able facts about its training, shown in the model card.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        "agentgpt_remote": __version__,
        "observation_space": space_to_dict(model.observation_space, "observation_space"),
        "action_space": space_to_dict(model.action_space, "action_space"),
        "model": model.config.to_dict(),
        "provenance": dict(provenance),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    contents = {
        WEIGHTS_FILE: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        CARD_FILE: model_card(folder, config).encode(),
        # The configuration comes last: without it the folder is no bundle yet.
        CONFIG_FILE: json.dumps(config, indent=2, default=str).encode() + b"\n",
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
    folder = Path(path)
    fields = _read_config(folder)
    try:
        observation_space = space_from_dict(fields["observation_space"])
        action_space = space_from_dict(fields["action_space"])
        # A bundle that does not name the image encoder is from before there was one.
        config = GPTConfig.from_dict({"image_encoder": "none", **fields["model"]})
        model = PolicyModel(observation_space, action_space, config)
    except (KeyError, TypeError, ConfigError, UnsupportedSpace) as error:
        raise BundleError(f"{folder / CONFIG_FILE} is damaged: {error!r}; train or export the policy again") from error
    _load_weights(model, folder / WEIGHTS_FILE)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r}: expected a torch device of this machine, such as 'cpu'") from error
    return Bundle(
        path=folder,
        model=model.eval().requires_grad_(False),
        observation_space=observation_space,
        action_space=action_space,
        config=config,
        provenance=dict(fields.get("provenance") or {}),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    inner = folder / "policy"
    hint = f": did you mean {inner}?" if (inner / CONFIG_FILE).exists() else ""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version, _ = fields["format_version"], fields["observation_space"]
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = hint or "; `agentgpt train SOURCE` writes one to runs/RUN_ID/policy"
        raise BundleError(f"no policy bundle at {folder} ({CONFIG_FILE} is missing){hint}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not a bundle's configuration ({error!r}){hint}") from error
    if version != FORMAT_VERSION:
        side = "upgrade agentgpt-remote" if isinstance(version, int) and version > FORMAT_VERSION else "train it again"
        raise BundleError(
            f"{folder} has bundle format {version!r} (written by agentgpt-remote {fields.get('agentgpt_remote')}), "
            f"this is agentgpt-remote {__version__}, which reads format {FORMAT_VERSION}: {side}"
        )
    return dict(fields)


def _load_weights(model: PolicyModel, path: Path) -> None:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        model.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: copy the whole folder of the bundle") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path} is damaged or cut short ({error}): copy it again") from error
    except (RuntimeError, KeyError) as error:
        raise BundleError(f"{path} does not fit {CONFIG_FILE} beside it: {error}") from error
