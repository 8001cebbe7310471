"""Environments that take their process down, or hang, when told to."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.wrappers.odd_envs import CountingEnv

CRASH, HANG = 1, 2


class DoomedEnv(CountingEnv):
    """Ends its process on action 1 and never returns on action 2."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == CRASH:
            os.write(1, b"segmentation fault, they say\n")
            os._exit(9)
        while action == HANG:
            time.sleep(1.0)
        return super().step(action)

    def process_id(self) -> int:
        return os.getpid()
