"""Run a host that dials out: in this thread until a signal, or in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import threading
from collections.abc import Callable
from typing import Self

from agentgpt_remote.errors import HostUnreachable, RemoteTimeout
from agentgpt_remote.server.dialling import DialingHost

_ENTER_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 25.0


def _new_loop() -> asyncio.AbstractEventLoop:
    if importlib.util.find_spec("uvloop"):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def run_dialler(host: DialingHost) -> None:
    """Run the host until SIGINT or SIGTERM.

    Raises:
        AuthError: the relay refused the token on the first try.
        ProtocolMismatch: what listens there is no relay.
        KeyboardInterrupt: SIGINT ended it.
    """
    interrupted = False

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            host.stop()

        with contextlib.suppress(NotImplementedError):  # on Windows, KeyboardInterrupt ends the loop
            loop.add_signal_handler(signal.SIGINT, interrupt)
            loop.add_signal_handler(signal.SIGTERM, host.stop)
        await host.run()

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(work())
    if interrupted:
        raise KeyboardInterrupt


class BackgroundDialler:
    """A host that dials out from a thread of this process.

    Args:
        host: the host.

    Attributes:
        url: where trainers reach it.

    Raises:
        AuthError: the relay refused the token.
        ProtocolMismatch: what listens there is no relay.
        HostUnreachable: the relay did not let it in in time.
    """

    def __init__(self, host: DialingHost) -> None:
        self.url = host.url
        self._host = host
        self._failure: BaseException | None = None
        entered = threading.Event()
        before: Callable[[str], None] | None = host.on_ready

        def on_ready(url: str) -> None:
            if before is not None:
                before(url)
            entered.set()

        host.on_ready = on_ready
        self._thread = threading.Thread(target=self._run, args=(entered,), name="agentgpt-dialler", daemon=True)
        self._thread.start()
        in_time = entered.wait(_ENTER_TIMEOUT_S)
        if self._failure is not None:
            raise self._failure
        if not in_time:
            self.close()
            raise HostUnreachable(
                f"no relay let the host in at {self.url} within {_ENTER_TIMEOUT_S:.0f} s: {host.why_not}"
            )

    def _run(self, entered: threading.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=_new_loop) as runner:
                runner.run(self._host.run())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that started it
            self._failure = error
        finally:
            entered.set()

    @property
    def running(self) -> bool:
        """Whether the host is in its room, or on its way there."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the host and its sessions, and wait for it; a second call does nothing.

        Raises:
            RemoteTimeout: an environment did not close in time.
        """
        self._host.stop()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            raise RemoteTimeout(f"the host at {self.url} did not stop within {_CLOSE_TIMEOUT_S:.0f} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
