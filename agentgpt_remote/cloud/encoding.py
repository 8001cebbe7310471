"""Hyperparameters as SageMaker carries them: texts of at most 2,500 characters, at most a hundred.

A text stays as it is, and everything else is JSON, as SageMaker's SDK writes them. What is not set is left out, and a
value that is too long is cut into parts ``name[0]``, ``name[1]``, ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.trainer.hyperparameters import Hyperparameters

MAX_LENGTH = 2500
_PART = re.compile(r"(.+)\[(\d+)\]")
_TEXT_FIELDS = frozenset(field.name for field in fields(Hyperparameters) if str(field.type).startswith("str"))
_LITERALS = frozenset(field.name for field in fields(Hyperparameters) if str(field.type).startswith(("Literal", "GPT")))


def to_strings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as texts; those that are None or empty are left out.

    >>> to_strings({"env_id": "CartPole-v1", "max_steps": 1000, "learn_gamma": False, "num_layers": None})
    {'env_id': 'CartPole-v1', 'max_steps': '1000', 'learn_gamma': 'false'}
    """
    texts = {}
    for name, value in values.items():
        if value is None or value == {}:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) <= MAX_LENGTH:
            texts[name] = text
        else:
            parts = [text[start : start + MAX_LENGTH] for start in range(0, len(text), MAX_LENGTH)]
            texts |= {f"{name}[{index}]": part for index, part in enumerate(parts)}
    return texts


def from_strings(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return what :func:`to_strings` was given, without what it left out.

    Raises:
        ConfigError: a text is neither JSON nor that of a field that holds one, or a part of a value is missing.
    """
    values: dict[str, Any] = {}
    for name, text in _joined(texts).items():
        if name in _TEXT_FIELDS or name in _LITERALS:
            values[name] = text
            continue
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"hyperparameter {name}={text!r}: expected JSON, such as 0.1, true or [1, 2]") from error
    return values


def _joined(texts: Mapping[str, str]) -> dict[str, str]:
    whole: dict[str, str] = {}
    parts: dict[str, dict[int, str]] = {}
    for name, text in texts.items():
        found = _PART.fullmatch(name)
        if found is None:
            whole[name] = text
        else:
            parts.setdefault(found[1], {})[int(found[2])] = text
    for name, numbered in parts.items():
        if sorted(numbered) != list(range(len(numbered))):
            raise ConfigError(f"hyperparameter {name} has the parts {sorted(numbered)}: expected 0 to {max(numbered)}")
        whole[name] = "".join(numbered[index] for index in range(len(numbered)))
    return whole


def hyperparameter_strings(hyperparameters: Hyperparameters) -> dict[str, str]:
    """Return hyperparameters as SageMaker carries them."""
    return to_strings(hyperparameters.to_dict())


def parse_hyperparameters(texts: Mapping[str, str]) -> Hyperparameters:
    """Return hyperparameters from a container's ``hyperparameters.json``.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range.
    """
    return Hyperparameters.from_dict(from_strings(texts))
