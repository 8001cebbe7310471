"""Train GPT policies by reinforcement learning on Gymnasium environments that live anywhere.

Importing the package makes every registered environment id available as ``agentgpt/<id>`` in
:func:`gymnasium.make` and :func:`gymnasium.make_vec`. Public names load on first use, so that a
simulation machine needs neither torch nor a web server to import it.
"""

from __future__ import annotations

from agentgpt_remote._version import __version__

__all__ = ["__version__"]
