"""A TCP proxy that cuts connections after a given number of bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class CuttingProxy:
    """Forwards connections to ``port`` and cuts each as ``next_cut`` says.

    Args:
        port: where the real server listens.
        next_cut: called for each connection with its number; returns the direction (``up`` or ``down``) and the
            number of bytes after which to cut it, or ``None`` to let it live.
    """

    def __init__(self, port: int, next_cut: Callable[[int], tuple[str, int] | None]) -> None:
        self._port = port
        self._next_cut = next_cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.refusing = False
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
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            cut = self._next_cut(self.connections)
            self.connections += 1
            threading.Thread(target=self._forward, args=(client, server, cut), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket, cut: tuple[str, int] | None) -> None:
        left = {"up": float("inf"), "down": float("inf")}
        if cut is not None:
            left[cut[0]] = cut[1]
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    way, target = ("up", server) if source is client else ("down", client)
                    data = source.recv(65536)
                    target.sendall(data[: int(min(left[way], len(data)))])
                    left[way] -= len(data)
                    if not data or left[way] <= 0:
                        return

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


@contextmanager
def cutting_proxy(url: str, next_cut: Callable[[int], tuple[str, int] | None]) -> Iterator[CuttingProxy]:
    """Run a proxy in front of a server."""
    proxy = CuttingProxy(int(url.rpartition(":")[2]), next_cut)
    try:
        yield proxy
    finally:
        proxy.close()
