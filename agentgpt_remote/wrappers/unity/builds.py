"""Where a Unity build's program lies."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

from agentgpt_remote.errors import ConfigError

UNITY_PREFIX = "unity:"
_PROGRAMS = (".x86_64", ".x86", ".exe")


def is_build(path: str) -> bool:
    """Tell whether a text is the path of a Unity build: a program with its usual ending, or a folder that holds one."""
    if not path or "\0" in path:
        return False
    found = Path(path).expanduser()
    if found.is_dir():
        return found.suffix == ".app" or bool(_programs(found))
    return found.suffix in _PROGRAMS and found.is_file()


def find_program(path: str) -> Path:
    """Return the program of a build.

    Args:
        path: of the program, with or without its ending, of the folder that holds it, or of a macOS bundle.

    Raises:
        ConfigError: there is none, more than one, or it may not be executed.
    """
    given = Path(path).expanduser()
    found = given
    if not given.exists():
        with_ending = [given.with_name(given.name + ending) for ending in (*_PROGRAMS, ".app")]
        existing = [one for one in with_ending if one.exists()]
        if not existing:
            raise ConfigError(f"{path!r} is no Unity build: there is no such file or folder.{_hint(given)}")
        found = existing[0]
    if found.suffix == ".app":
        found = found / "Contents" / "MacOS"
    if found.is_dir():
        programs = _programs(found) if found.name != "MacOS" else sorted(found.iterdir())
        if len(programs) != 1:
            held = ", ".join(one.name for one in programs) or "none"
            raise ConfigError(
                f"{path!r} is no Unity build: the folder holds {held} of *.x86_64; name the program itself"
            )
        found = programs[0]
    if not os.access(found, os.X_OK):
        raise ConfigError(f"{str(found)!r} may not be executed: run `chmod +x {found}` on the host")
    return found.resolve()


def _programs(folder: Path) -> list[Path]:
    endings = (".exe",) if sys.platform == "win32" else (".x86_64", ".x86")
    return sorted(one for one in folder.iterdir() if one.suffix in endings and one.is_file())


def _hint(given: Path) -> str:
    if not given.parent.is_dir():
        return f" There is no folder {str(given.parent)!r} either."
    close = difflib.get_close_matches(given.name, [one.name for one in given.parent.iterdir()], n=1)
    return f" Did you mean: `{given.parent / close[0]}`?" if close else ""
