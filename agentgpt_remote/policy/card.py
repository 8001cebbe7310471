"""The model card of a bundle: what a person who finds the folder wants to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_card(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the card's Markdown.

    Args:
        folder: the bundle's folder, as the code to load it names it.
        config: what the bundle's config.json holds.
    """
    provenance = dict(config["provenance"])
    hyperparameters = provenance.pop("hyperparameters", None)
    env_id = provenance.get("source") or "an environment"
    model = config["model"]
    lines = [
        "---",
        "library_name: agentgpt-remote",
        "tags: [reinforcement-learning, gymnasium]",
        "---",
        "",
        f"# A GPT policy for {env_id}",
        "",
        f"A causal transformer ({model['gpt_type']}) of {model['num_layers']} layers, width {model['d_model']} "
        f"and {model['num_heads']} heads, that sees the last {model['max_input_states']} steps; trained with "
        f"agentgpt-remote {config['agentgpt_remote']}.",
        "",
        "```python",
        "from agentgpt_remote import GPTPolicy",
        "",
        f'policy = GPTPolicy("{folder.as_posix()}")',
        "action = policy(observation)  # policy.reset() between episodes",
        "```",
        "",
        f"- observation space: `{json.dumps(config['observation_space'])}`",
        f"- action space: `{json.dumps(config['action_space'])}`",
    ]
    lines += [f"- {name}: {json.dumps(value, default=str)}" for name, value in provenance.items()]
    if hyperparameters is not None:
        lines += ["", "## Hyperparameters", "", "```json", json.dumps(hyperparameters, indent=2, default=str), "```"]
    return "\n".join(lines) + "\n"
