"""The ``agentgpt`` command: each command is one call into the package.

Exit codes: 0 done, 1 failed (one clear line, the traceback with ``--debug``), 2 wrong usage.
"""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        arguments: words after the program's name; ``sys.argv[1:]`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, _exit_on_sigterm)

    from agentgpt_remote.cli.app import app

    try:
        app(args=[word for word in words if word != "--debug"], prog_name="agentgpt")
    except KeyboardInterrupt:
        sys.exit(DONE)
    except Exception as error:  # noqa: BLE001 - the one place where any failure becomes a line and an exit code
        sys.exit(_report(error, debug=debug))
    sys.exit(DONE)


def _exit_on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(DONE)


def _report(error: Exception, *, debug: bool) -> int:
    """Print an error as one line, or with its traceback, and return the exit code."""
    from agentgpt_remote.errors import ConfigError, missing_dependency

    if debug:
        logging.getLogger("agentgpt_remote.cli").error("traceback of the failure", exc_info=error)
    shown = missing_dependency(error) if isinstance(error, ModuleNotFoundError) else error
    text = str(shown).partition("\n\n")[0].strip() or type(shown).__name__
    if type(shown).__module__ == "builtins" and not isinstance(shown, OSError):
        text = f"{type(shown).__name__}: {text} (--debug shows where)"
    print(f"agentgpt: error: {text}", file=sys.stderr)
    return WRONG_USAGE if isinstance(error, ConfigError) else FAILED
