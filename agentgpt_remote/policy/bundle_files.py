"""The files of a bundle, read without torch."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from agentgpt_remote._version import __version__
from agentgpt_remote.errors import BundleError, ConfigError, UnsupportedSpace
from agentgpt_remote.policy.config import GPTConfig
from agentgpt_remote.spaces import space_from_dict

FORMAT_VERSION = 1
BEHAVIORS_FIELD = "behaviors"  # of a bundle of several policies: the folder of each, by the behaviour's name
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SIZE_LIMITS = {CONFIG_FILE: 64 * 2**20, WEIGHTS_FILE: 16 * 2**30}  # bytes; nothing larger is read, here or from a hub


@dataclass(frozen=True, kw_only=True)
class BundleFiles:
    """What a bundle's configuration says.

    Attributes:
        path: its folder.
        observation_space: space of one agent's observations.
        action_space: space of one agent's actions.
        config: sizes of the model.
        provenance: where it comes from: environment, hyperparameters, steps, returns.
        fields: the whole of config.json.
    """

    path: Path
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    config: GPTConfig
    provenance: dict[str, Any]
    fields: dict[str, Any]

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the weights by name.

        Raises:
            BundleError: they are missing or damaged.
        """
        with weights_errors(self.path) as path:
            return dict(safetensors.numpy.load(path.read_bytes()))


def read_bundle(path: str | Path) -> BundleFiles:
    """Read a bundle's configuration.

    Args:
        path: its folder, such as ``runs/CartPole-v1/policy``.

    Raises:
        BundleError: the folder or the file is missing, damaged or of another format version.
    """
    folder = Path(path)
    fields = _read_config(folder)
    if BEHAVIORS_FIELD in fields:
        raise BundleError(_several(folder, behavior_folders(folder)))
    try:
        return BundleFiles(
            path=folder,
            observation_space=space_from_dict(fields["observation_space"]),
            action_space=space_from_dict(fields["action_space"]),
            # A bundle that does not name the image encoder is from before there was one.
            config=GPTConfig.from_dict({"image_encoder": "none", **fields["model"]}),
            provenance=dict(fields.get("provenance") or {}),
            fields=fields,
        )
    except (KeyError, TypeError, ConfigError, UnsupportedSpace) as error:
        raise damaged(folder, error) from error


def behavior_folders(path: str | Path) -> dict[str, Path]:
    """Return the folder of each behaviour's policy, by the behaviour's name.

    A bundle of one policy is that of one behaviour, whose name is empty where it was trained on single agents.

    Raises:
        BundleError: the folder or the file is missing, damaged or of another format version.
    """
    folder = Path(path)
    fields = _read_config(folder)
    if BEHAVIORS_FIELD not in fields:
        provenance = fields.get("provenance")
        name = provenance.get("behavior") if isinstance(provenance, dict) else None
        return {str(name or ""): folder}
    told = fields[BEHAVIORS_FIELD]
    if not isinstance(told, dict) or not all(isinstance(one, str) and _PLAIN.fullmatch(one) for one in told.values()):
        raise damaged(folder, ValueError(f"{BEHAVIORS_FIELD} is not a mapping of names to folders beside it"))
    return {str(name): folder / inner for name, inner in told.items()}


def behavior_folder(path: str | Path, behavior: str | None) -> Path:
    """Return the folder of one behaviour's policy.

    Args:
        path: the bundle's folder.
        behavior: name; None where there is one only.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: there is no such behaviour, or there are several and none is named.
    """
    folders = behavior_folders(path)
    if behavior is None:
        if len(folders) > 1:
            raise ConfigError(_several(Path(path), folders))
        return next(iter(folders.values()))
    if behavior not in folders:
        known = ", ".join(map(repr, folders))
        close = difflib.get_close_matches(behavior, folders, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"expected {'one of ' if len(folders) > 1 else ''}{known}"
        raise ConfigError(f"behavior={behavior!r}: {path} has no policy of that name: {hint}")
    return folders[behavior]


def _several(folder: Path, folders: Mapping[str, Path]) -> str:
    names, first = ", ".join(map(repr, folders)), next(iter(folders), "")
    return (
        f"{folder} holds policies of several behaviours ({names}): name one, as in GPTPolicy(..., behavior={first!r}), "
        f"or take its own folder, {folders.get(first, folder)}"
    )


def damaged(folder: Path, error: Exception) -> BundleError:
    """Return the error that says that a configuration makes no sense."""
    return BundleError(f"{folder / CONFIG_FILE} is damaged: {error!r}; train or export the policy again")


@contextlib.contextmanager
def weights_errors(folder: Path) -> Iterator[Path]:
    """Yield the path of the weights, and say what is wrong with them where reading them fails.

    Raises:
        BundleError: they are missing or damaged.
    """
    path = folder / WEIGHTS_FILE
    try:
        _check_size(path)
        yield path
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: copy the whole folder of the bundle") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path} is damaged or cut short ({error}): copy it again") from error


def _check_size(path: Path) -> None:
    size, limit = path.stat().st_size, SIZE_LIMITS[path.name]
    if size > limit:
        raise BundleError(f"{path} has {size:,} bytes: expected a bundle's file of at most {limit:,}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    inner = folder / "policy"
    hint = f": did you mean {inner}?" if (inner / CONFIG_FILE).exists() else ""
    try:
        _check_size(path)
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
        if version == FORMAT_VERSION and BEHAVIORS_FIELD not in fields:
            fields["observation_space"]
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = hint or "; `agentgpt train SOURCE` writes one to runs/RUN_ID/policy"
        raise BundleError(f"no policy bundle at {folder} ({CONFIG_FILE} is missing){hint}") from error
    except BundleError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not a bundle's configuration ({error!r}){hint}") from error
    if version != FORMAT_VERSION:
        side = "upgrade agentgpt-remote" if isinstance(version, int) and version > FORMAT_VERSION else "train it again"
        raise BundleError(
            f"{folder} has bundle format {version!r} (written by agentgpt-remote {fields.get('agentgpt_remote')}), "
            f"this is agentgpt-remote {__version__}, which reads format {FORMAT_VERSION}: {side}{hint}"
        )
    return dict(fields)
