"""Where a bundle comes from: told to whoever finds it, and therefore without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgpt_remote.files import replacing
from agentgpt_remote.policy.bundle_files import CARD_FILE, CONFIG_FILE, read_bundle
from agentgpt_remote.policy.card import model_card
from agentgpt_remote.scrubbing import host_only, without_secrets


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a training that anybody may see.

    Values whose name tells of a secret are hidden, and of the URLs of hosts scheme, host and port remain.

    Args:
        provenance: JSON-able facts; ``source`` and ``hyperparameters`` as the trainer writes them.
    """
    told = without_secrets(provenance)
    if isinstance(told.get("source"), str):
        told["source"] = ", ".join(host_only(part) for part in str(provenance["source"]).split(", "))
    hyperparameters = told.get("hyperparameters")
    if isinstance(hyperparameters, dict) and isinstance(hyperparameters.get("env_hosts"), Mapping):
        hyperparameters["env_hosts"] = _public_hosts(hyperparameters["env_hosts"])
    return told


def _public_hosts(hosts: Mapping[str, Any]) -> dict[str, Any]:
    """Return hosts under their addresses: the names may be made of whole URLs."""
    told: dict[str, Any] = {}
    for host in hosts.values():
        fields = dict(host) if isinstance(host, Mapping) else {}
        url = host_only(str(fields.get("env_endpoint", "")))
        name = address = url.partition("://")[2] or "host"
        while name in told:
            name = f"{address} ({len(told) + 1})"
        told[name] = {"env_endpoint": url, "num_agents": fields.get("num_agents")}
    return told


def note_evaluation(path: str | Path, evaluation: Mapping[str, float | int]) -> None:
    """Write the returns of whole greedy episodes into a bundle's configuration and model card.

    Args:
        path: the bundle's folder.
        evaluation: the figures, see :class:`~agentgpt_remote.trainer.evaluation.Evaluation`.

    Raises:
        BundleError: there is no bundle, or it is damaged.
    """
    files = read_bundle(path)
    fields = {**files.fields, "provenance": public_provenance({**files.provenance, "evaluation": dict(evaluation)})}
    contents = {
        CARD_FILE: model_card(files.path.as_posix(), fields).encode(),
        CONFIG_FILE: config_text(fields),
    }
    for name, data in contents.items():
        with replacing(files.path / name) as file:
            file.write(data)


def config_text(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a bundle's config.json."""
    return json.dumps(fields, indent=2, default=str).encode() + b"\n"
