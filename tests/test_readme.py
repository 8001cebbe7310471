"""What the README says is executed: in a copy of the repository, in a fresh virtual environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
TEST_COMMAND = 'pip install -c constraints.txt -e ".[test]" && pytest'


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the repository's files and the environment of a shell in a new virtual environment."""
    root = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    venv.create(root / ".venv", with_pip=True)
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("AGENTGPT_", "PYTEST_", "PYTHON"))
    }
    variables |= {
        "PATH": f"{root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(root / ".venv"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    yield root, variables
    shutil.rmtree(root)


def _run(words: list[str], clone: tuple[Path, dict[str, str]]) -> str:
    root, variables = clone
    done = subprocess.run(words, cwd=root, env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{words[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the README's commands are for a POSIX shell")
@pytest.mark.timeout(1500)
def test_readme_code_blocks_run_in_order(clone: tuple[Path, dict[str, str]]) -> None:
    ran = []
    for language, code in BLOCKS:
        if language == "bash" and code.strip() != TEST_COMMAND:
            ran.append(_run(["bash", "-euo", "pipefail", "-c", code], clone))
        elif language == "python":
            ran.append(_run([str(clone[0] / ".venv" / "bin" / "python"), "-W", "error", "-c", code], clone))
    assert len(ran) >= 3
    assert (clone[0] / "runs" / "CartPole-v1" / "learning_curve.png").stat().st_size > 1000


def test_readme_test_command_is_the_one_that_the_gate_runs() -> None:
    assert TEST_COMMAND in [code.strip() for language, code in BLOCKS if language == "bash"]
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_readme_has_no_block_of_a_language_that_is_not_executed() -> None:
    assert {language for language, _ in BLOCKS} <= {"bash", "python"}


def test_readme_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"
