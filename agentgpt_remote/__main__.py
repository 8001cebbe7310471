"""``python -m agentgpt_remote`` is the ``agentgpt`` command."""

from __future__ import annotations

from agentgpt_remote.cli import main

main()
