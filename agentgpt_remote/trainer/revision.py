"""The git revision that a run belongs to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_TIMEOUT_S = 5.0


def git_revision(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder, with ``-dirty`` where tracked files differ from it.

    Args:
        folder: in a working tree.

    Returns:
        None where there is no repository or commit, no git, or no answer within 5 s.
    """
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
