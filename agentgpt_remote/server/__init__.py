"""The host: sessions that own environments, served over WebSocket."""

from __future__ import annotations

from agentgpt_remote.server.serve import serve

__all__ = ["serve"]
