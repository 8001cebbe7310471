"""Exceptions across the wire: the one place where they become fields, and exceptions again.

What the package and Gymnasium define arrives as the same class; anything that an environment raised
arrives as :class:`RemoteEnvError` with the traceback of the host.
"""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Any

import gymnasium.error

from agentgpt_remote import errors
from agentgpt_remote.errors import AgentGPTError, RemoteEnvError

_HOST_FOLDERS = (str(Path(__file__).parent / "server"), str(Path(asyncio.__file__).parent))
_OWN = "agentgpt_remote"
_GYMNASIUM = "gymnasium"


def error_to_dict(error: BaseException) -> dict[str, str]:
    """Return the fields of an exception, as strings."""
    if isinstance(error, RemoteEnvError):
        return {
            "origin": "env",
            "type": error.remote_type,
            "message": error.remote_message,
            "traceback": error.remote_traceback,
        }
    kind = type(error)
    fields = {"origin": "env", "type": kind.__qualname__, "message": _text(error), "traceback": _traceback(error)}
    if isinstance(error, AgentGPTError) and getattr(errors, kind.__name__, None) is kind:
        fields |= {"origin": _OWN, "traceback": ""}
    elif getattr(gymnasium.error, kind.__name__, None) is kind:
        fields["origin"] = _GYMNASIUM
    elif kind.__module__ not in ("builtins", "__main__"):
        fields["type"] = f"{kind.__module__}.{kind.__qualname__}"
    if error.__cause__ is not None and isinstance(error.__cause__, RemoteEnvError):
        fields["traceback"] = error.__cause__.remote_traceback
    # A file name that is not UTF-8 leaves lone surrogates in a text, which no message can carry.
    return {name: text.encode("utf-8", "backslashreplace").decode() for name, text in fields.items()}


def error_from_dict(fields: dict[str, Any]) -> Exception:
    """Return the exception that :func:`error_to_dict` described."""
    origin, name = fields.get("origin"), str(fields.get("type", "Exception"))
    message, remote_traceback = str(fields.get("message", "")), str(fields.get("traceback", ""))
    module = {_OWN: errors, _GYMNASIUM: gymnasium.error}.get(str(origin))
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, (AgentGPTError, gymnasium.error.Error))):
        return RemoteEnvError(name, message, remote_traceback)
    if kind is RemoteEnvError:
        return RemoteEnvError(name, message, remote_traceback)
    error = kind(message)
    if remote_traceback:
        error.__cause__ = RemoteEnvError(name, message, remote_traceback)
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"<no message: {type(failure).__name__} in __str__>"


def _traceback(error: BaseException) -> str:
    """Return the formatted traceback, without the frames of the host itself."""
    formatted = traceback.TracebackException.from_exception(error, limit=-50)
    seen: set[int] = set()
    chain: list[traceback.TracebackException | None] = [formatted]
    while chain:
        entry = chain.pop()
        if entry is not None and id(entry) not in seen:
            seen.add(id(entry))
            frames = [frame for frame in entry.stack if not frame.filename.startswith(_HOST_FOLDERS)]
            entry.stack = traceback.StackSummary.from_list(frames)
            chain += (entry.__cause__, entry.__context__)
    return "".join(formatted.format())
