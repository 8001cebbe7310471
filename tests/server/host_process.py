"""A host in a process of its own, with the limits that a test asks for."""

from __future__ import annotations

from agentgpt_remote.processes import ChildProcess

_CODE = """
from agentgpt_remote import serve
from agentgpt_remote.processes import report_ready
serve({source!r}, port=0, on_ready=lambda url: report_ready(url=url), **{limits!r})
"""


def start_host(source: str, **limits: int | float) -> ChildProcess:
    """Serve ``source`` from another process; its URL is ``ready["url"]``."""
    return ChildProcess.start(["-c", _CODE.format(source=source, limits=limits)])
