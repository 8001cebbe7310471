"""The model card of a bundle: what a person who finds the folder, or its repository on a model hub, wants to know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_TAGS = ("reinforcement-learning", "gymnasium", "agentgpt-remote")
_ENV_TAG = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_LABELS = {
    "source": "environment, as it was named",
    "env_id": "environment",
    "env_steps": "environment steps of training",
    "policy_env_steps": "environment steps after which these weights were taken",
    "episode_return": "mean return of the last 20 episodes of training, whose actions were sampled",
    "commit": "git revision of the folder that it was trained in",
    "package_version": "version of agentgpt-remote",
}
_QUANTILES = (("min", "min"), ("25 %", "q25"), ("50 %", "q50"), ("75 %", "q75"), ("max", "max"))


def model_card(source: str, config: Mapping[str, Any]) -> str:
    """Return the card's Markdown, with a header as model hubs read it.

    Values are written so that none of them, whatever it holds, becomes Markdown, HTML or another field.

    Args:
        source: what ``GPTPolicy`` is given to load it.
        config: what the bundle's config.json holds, without secrets.
    """
    provenance = dict(config["provenance"])
    hyperparameters = provenance.pop("hyperparameters", None)
    evaluation = provenance.pop("evaluation", None)
    env_id = str(provenance.get("env_id") or provenance.get("source") or "an environment")
    if provenance.get("env_id") == provenance.get("source"):
        provenance.pop("env_id", None)
    model = config["model"]
    lines = [
        *_header(env_id, provenance, evaluation),
        "",
        f"# A GPT policy for {_escaped(env_id)}",
        "",
        f"A causal transformer ({_escaped(model['gpt_type'])}) of {int(model['num_layers'])} layers, width "
        f"{int(model['d_model'])} and {int(model['num_heads'])} heads, that sees the last "
        f"{int(model['max_input_states'])} steps; trained by reinforcement learning with agentgpt-remote "
        f"{_escaped(config['agentgpt_remote'])}.",
        "",
        *_fenced(
            "from agentgpt_remote import GPTPolicy\n\n"
            f"policy = GPTPolicy({json.dumps(_printable(source), ensure_ascii=False)})\n"
            "action = policy(observation)  # policy.reset() between episodes",
            "python",
        ),
        "",
        "## Spaces",
        "",
        f"- observation space: {_code(config['observation_space'])}",
        f"- action space: {_code(config['action_space'])}",
        "",
        "## Training",
        "",
        *(f"- {_escaped(_LABELS.get(name, name))}: {_code(value)}" for name, value in provenance.items()),
    ]
    if evaluation:
        lines += ["", "## Evaluation", "", *_evaluation(evaluation)]
    if hyperparameters is not None:
        text = json.dumps(hyperparameters, indent=2, default=str)
        lines += ["", "## Hyperparameters", "", *_fenced(text, "json")]
    return "\n".join(lines) + "\n"


def _header(env_id: str, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """Return the YAML header; a text in it is a JSON string, which YAML reads as such."""
    tags = [*_TAGS, *([env_id] if _ENV_TAG.fullmatch(env_id) else [])]
    lines = ["---", "library_name: agentgpt-remote", "tags:", *(f"- {_quoted(tag)}" for tag in tags)]
    if evaluation:
        reached, name = evaluation.get("mean"), f"mean return of {evaluation.get('episodes')} greedy episodes"
    else:
        reached, name = provenance.get("episode_return"), "mean return of the last 20 training episodes"
    if isinstance(reached, int | float) and abs(reached) < float("inf"):
        env = _quoted(env_id)
        lines += ["model-index:", f"- name: {_quoted('GPT policy for ' + env_id)}", "  results:"]
        lines += ["  - task:", "      type: reinforcement-learning", "      name: reinforcement-learning"]
        lines += ["    dataset:", f"      name: {env}", f"      type: {env}", "    metrics:"]
        lines += ["    - type: mean_reward", f"      value: {float(reached)!r}", f"      name: {_quoted(name)}"]
        lines += ["      verified: false"]
    return [*lines, "---"]


def _evaluation(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures of whole episodes as lines of Markdown."""
    quantiles = ", ".join(f"{label} {_number(figures.get(name))}" for label, name in _QUANTILES)
    return [
        f"- return of {_number(figures.get('episodes'))} greedy episodes: mean {_number(figures.get('mean'))}, "
        f"standard deviation {_number(figures.get('std'))}",
        f"- quantiles: {quantiles}",
        f"- mean length: {_number(figures.get('episode_length'))} steps",
    ]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return f"{value:g}" if isinstance(value, int) else f"{value:.2f}"


def _printable(text: Any) -> str:
    """Return a text in one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _quoted(text: str) -> str:
    return json.dumps(_printable(text), ensure_ascii=False)


def _escaped(text: Any) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>&|~#!$@])", r"\\\1", _printable(text))


def _code(value: Any) -> str:
    """Return a value as a span of code, whatever backticks it holds."""
    text = _printable(value if isinstance(value, str) else json.dumps(value, default=str)).strip() or " "
    ticks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text: str, language: str) -> list[str]:
    fence = "`" * max(3, _longest_run(text) + 1)
    return [f"{fence}{language}", *text.splitlines(), fence]


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
