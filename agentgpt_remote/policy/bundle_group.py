"""One bundle with the policies of several behaviours: a folder for each, and a config.json that names them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgpt_remote._version import __version__
from agentgpt_remote.files import replacing
from agentgpt_remote.policy.bundle import save_bundle
from agentgpt_remote.policy.bundle_files import BEHAVIORS_FIELD, CARD_FILE, CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE
from agentgpt_remote.policy.model import PolicyModel

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def save_bundles(path: str | Path, policies: Mapping[str, tuple[PolicyModel, Mapping[str, Any]]]) -> None:
    """Write the policies of a run, by behaviour; that of a single behaviour is a bundle like any other.

    Args:
        path: folder; made if it is missing.
        policies: at least one; each with the provenance of its bundle.
    """
    folder = Path(path)
    if len(policies) == 1:
        ((model, provenance),) = policies.values()
        save_bundle(folder, model, provenance=provenance)
        return
    folders = _folder_names(policies)
    for name, (model, provenance) in policies.items():
        save_bundle(folder / folders[name], model, provenance=provenance)
    config = {"format_version": FORMAT_VERSION, "agentgpt_remote": __version__, BEHAVIORS_FIELD: folders}
    shown = "\n".join(f"- `{name}`: [{inner}]({inner})" for name, inner in folders.items())
    card = f"# Policies of {len(folders)} behaviours\n\n{shown}\n\nAct with one: `GPTPolicy(folder, behavior=NAME)`.\n"
    for name, text in ((CARD_FILE, card), (CONFIG_FILE, json.dumps(config, indent=2) + "\n")):
        with replacing(folder / name) as file:
            file.write(text.encode())
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)  # of the time when there was one behaviour only
    for old in folder.iterdir():
        if old.is_dir() and old.name not in folders.values() and (old / CONFIG_FILE).exists():
            shutil.rmtree(old)


def _folder_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Return a folder's name for each behaviour, whose own name may hold anything."""
    folders: dict[str, str] = {}
    for name in names:
        base = _UNSAFE.sub("_", name).strip("._") or "behavior"
        chosen, number = base, 2
        while chosen.lower() in {taken.lower() for taken in folders.values()}:
            chosen, number = f"{base}-{number}", number + 1
        folders[name] = chosen
    return folders
