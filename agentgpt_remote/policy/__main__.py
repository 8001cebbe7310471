"""The child process of a policy server that the package started: reports its URL, ends with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import msgspec
from gymnasium.error import DependencyNotInstalled

from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.policy.server import PolicyServerOptions, serve_policy
from agentgpt_remote.processes import read_payload, report_ready, watch_parent
from agentgpt_remote.remote_errors import error_to_dict

_THREADS = 4


def main() -> None:
    """Serve the bundle that the payload names; report the URL, or the error that kept it from starting."""
    settings: dict[str, Any] = msgspec.json.decode(read_payload())
    watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with contextlib.suppress(ImportError):
        import torch

        # torch's own number already respects OMP_NUM_THREADS and the cores that are really there.
        torch.set_num_threads(min(_THREADS, torch.get_num_threads()))
    try:
        options = PolicyServerOptions(**settings.pop("options"))
        serve_policy(**settings, options=options, on_ready=lambda url: report_ready(url=url))
    except (AgentGPTError, DependencyNotInstalled) as error:
        report_ready(error=error_to_dict(error))


if __name__ == "__main__":
    main()
