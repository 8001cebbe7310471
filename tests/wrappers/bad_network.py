"""TCP proxies that do to connections what bad networks do."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CuttingProxy:
    """Forwards connections to ``port`` and cuts each as ``next_cut`` says.

    Args:
        port: where the real server listens.
        next_cut: called for each connection with its number; returns the direction (``up`` or ``down``) and the
            number of bytes after which to cut it, or ``None`` to let it live.

    Attributes:
        url: where the proxy listens.
        connections: how many it has accepted.
        passed: how many bytes went ``up`` and ``down`` in all.
        refusing: whether new connections are closed at once.
        refusal: what they are told before that, once they have said something.
    """

    def __init__(self, port: int, next_cut: Callable[[int], tuple[str, int] | None]) -> None:
        self._port = port
        self._next_cut = next_cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.passed = {"up": 0, "down": 0}
        self.refusing = False
        self.refusal = b""
        self._left: dict[str, float] = {}  # of the latest connection
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self.refusing:
                if self.refusal and client.recv(65536):
                    client.sendall(self.refusal)
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            cut = self._next_cut(self.connections)
            self._left = {"up": float("inf"), "down": float("inf"), **({} if cut is None else {cut[0]: cut[1]})}
            self.connections += 1
            threading.Thread(target=self._forward, args=(client, server, self._left), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, left: dict[str, float]) -> None:
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    way, target = ("up", server) if source is client else ("down", client)
                    data = source.recv(65536)
                    # Counted before it is sent: whoever receives it may ask for the next cut at once.
                    self.passed[way] += len(data)
                    allowed, left[way] = left[way], left[way] - len(data)
                    is_last = not data or left[way] <= 0
                    if not self._pass_on(data[: int(min(allowed, len(data)))], target) or is_last:
                        return

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        """Send what arrived; return whether the connection may live on."""
        target.sendall(data)
        return True

    def cut_after(self, way: str, count: int) -> None:
        """Cut the latest connection when ``count`` more bytes have gone one way."""
        self._left[way] = count

    def cut_all(self) -> None:
        """Cut every open connection now."""
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Stop listening and cut what is open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        self._thread.join(5.0)


class ChaoticProxy(CuttingProxy):
    """Delays, splits, stalls and cuts at random.

    Args:
        port: where the real server listens.
        seed: of its whims.
        cuts: how often what arrives is cut off, from 0 to 1.
    """

    def __init__(self, port: int, seed: int, cuts: float = 0.02) -> None:
        self._rng = random.Random(seed)
        self._cuts = cuts
        super().__init__(port, lambda _: None)

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        rng, start = self._rng, 0
        if rng.random() < 0.1:
            time.sleep(rng.uniform(0.0, 0.005))
        elif rng.random() < 0.002:  # a stall, long enough for others to overtake
            time.sleep(rng.uniform(0.1, 0.8))
        if rng.random() < self._cuts:
            target.sendall(data[: rng.randrange(len(data) + 1)])
            if rng.random() < 0.5:  # closing it sends a reset rather than an end
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        while rng.random() < 0.2 and start < len(data):
            end = rng.randrange(start, len(data)) + 1
            target.sendall(data[start:end])
            time.sleep(rng.uniform(0.0, 0.001))
            start = end
        target.sendall(data[start:])
        return True


@contextmanager
def cutting_proxy(url: str, next_cut: Callable[[int], tuple[str, int] | None]) -> Iterator[CuttingProxy]:
    """Run a proxy in front of a server."""
    with contextlib.closing(CuttingProxy(port_of(url), next_cut)) as proxy:
        yield proxy


def port_of(url: str) -> int:
    """Return the port of a server's URL."""
    return int(url.rpartition(":")[2])
