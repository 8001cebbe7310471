"""Connections that have not asked for anything yet: they get a deadline, and there may be only so many."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S: Final = 10.0
MAX_WAITING: Final = 512
_logger = logging.getLogger("agentgpt_remote.serving")


class Waiting:
    """The connections of a server that lack their first request, oldest first.

    Where there are too many, the oldest makes room: a client that means it sends its request at once.

    Args:
        timeout_s: seconds that a connection has for the whole head of its first request.
        limit: connections at a time.
    """

    def __init__(self, timeout_s: float = REQUEST_TIMEOUT_S, limit: int = MAX_WAITING) -> None:
        self._timeout_s, self._limit = timeout_s, limit
        self._timers: OrderedDict[asyncio.Transport, asyncio.TimerHandle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._timers)

    def add(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first request of a connection."""
        loop = asyncio.get_running_loop()
        self._timers[transport] = loop.call_later(self._timeout_s, self._end, transport)
        if len(self._timers) > self._limit:
            self._end(next(iter(self._timers)))

    def _end(self, transport: asyncio.Transport) -> None:
        self.discard(transport)
        _logger.info("connection without a request dropped peer=%s", transport.get_extra_info("peername"))
        transport.abort()

    def discard(self, transport: asyncio.Transport) -> None:
        """Wait no longer: the request is here, or the connection is gone."""
        timer = self._timers.pop(transport, None)
        if timer is not None:
            timer.cancel()


def impatient_protocol(waiting: Waiting) -> type[asyncio.Protocol]:
    """Return an HTTP protocol for uvicorn whose connections must send their first request in time."""

    class ImpatientProtocol(H11Protocol):
        """HTTP whose first request has a deadline."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            waiting.add(transport)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._stop_waiting()

        def _stop_waiting(self) -> None:
            if self.scope is not None:  # the head of a request was complete
                waiting.discard(self.transport)

        def connection_lost(self, exc: Exception | None) -> None:
            waiting.discard(self.transport)
            super().connection_lost(exc)

    return ImpatientProtocol
