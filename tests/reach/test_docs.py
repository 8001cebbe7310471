"""The commands of docs/reach.md are ones that the command line takes, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from agentgpt_remote.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
REACH = (DOCS / "reach.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", REACH, flags=re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    lines = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
    found = []
    for line in lines:
        words = shlex.split(line.partition(" > ")[0], comments=True)
        found.append(words[words.index("agentgpt") + 1 :])
    return found


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_command_of_the_page_is_known_with_its_options(words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    with command.make_context(words[0], words[1:]) as parsed:
        assert not parsed.args


def test_page_shows_a_picture_and_a_command_for_every_way() -> None:
    titles = ["The same machine", "The same network", "Through a relay", "Through a tunnel"]
    for title in titles:
        section = REACH.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        kinds = [language for language, _ in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]
        assert kinds[0] == "", f"{title} begins with a picture"
        assert "bash" in kinds


@pytest.mark.parametrize("page", ["reach.md", "security.md", "../SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"
