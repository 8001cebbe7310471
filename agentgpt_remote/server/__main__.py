"""A host that another process started for itself: ``python -m agentgpt_remote.server``.

What to serve and the token arrive through the private pipe from the parent, and it ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import cloudpickle

from agentgpt_remote.processes import read_payload, report_ready, watch_parent
from agentgpt_remote.remote_errors import error_to_dict

_GRACE_S = 10.0


def _end() -> None:
    """End this process: politely, so that environments close, then at once."""
    deadline = threading.Timer(_GRACE_S, os._exit, (1,))
    deadline.daemon = True
    deadline.start()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Serve what the parent handed over; return the exit code."""
    from agentgpt_remote.server.serve import serve

    with contextlib.suppress(OSError):  # a leader of its group already
        os.setsid()  # Ctrl-C in the terminal is for the client, which may want to step on
    payload = cloudpickle.loads(read_payload())
    watch_parent(_end)
    try:
        sys.path[:] = payload["sys_path"]
        source = payload["source"]
        serve(
            cloudpickle.loads(source) if isinstance(source, bytes) else source,
            num_envs=payload["num_envs"],
            workers=payload["workers"],
            port=0,
            token=payload["token"],
            on_ready=lambda url: report_ready(url=url),
        )
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        report_ready(error=error_to_dict(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
