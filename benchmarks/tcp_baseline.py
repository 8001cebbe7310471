"""Raw TCP to read the benchmarks beside: a server that answers with so many bytes, its client, and a line with a delay.

Server and line run in processes of their own, which end with the one that started them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np

from agentgpt_remote.processes import ChildProcess, read_payload, report_ready, watch_parent

_TIMEOUT_S = 30
_ACTIONS = 512
_CHUNK_BYTES = 1 << 20


class PingPong:
    """Sends requests to :func:`answering`, with blocking system calls and nothing else.

    Args:
        port: where the server listens, or a line that leads there.
        request_bytes: size of a request.
        reply_bytes: size of a reply.
        reuse_memory: receive each reply into the same memory, instead of memory of its own.
    """

    def __init__(self, port: int, request_bytes: int, reply_bytes: int, *, reuse_memory: bool = False) -> None:
        self._request, self._reply = bytes(request_bytes), np.empty(reply_bytes, np.uint8)
        self._reuse_memory = reuse_memory
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._socket.settimeout(None)  # Python's own timeout costs a system call for each one
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT_S, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self) -> np.ndarray:
        """Send a request and return the reply, a uint8 array of shape (reply_bytes,)."""
        self._socket.sendall(self._request)
        # The one before is held meanwhile, as a loop holds the latest observation while the next arrives.
        reply = self._reply if self._reuse_memory else np.empty_like(self._reply)
        if not _receive(self._socket, reply.data):
            raise ConnectionError("the server closed the connection")
        self._reply = reply
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def answering(
    request_bytes: int, reply_bytes: int, *, source: str | None = None, num_envs: int | None = None
) -> ChildProcess:
    """Start a server that answers ``request_bytes`` with ``reply_bytes``, to one client at a time; ``ready["port"]``.

    Args:
        request_bytes: size of a request.
        reply_bytes: size of a reply.
        source: an environment that it steps before it answers, if any.
        num_envs: how many of them; ``None`` for a single one.
    """
    return _start(_answer, request_bytes, reply_bytes, source, num_envs)


def delaying(ports: Sequence[int], delay_s: float) -> ChildProcess:
    """Start lines to these ports that deliver everything ``delay_s`` later, each way; ``ready["ports"]``."""
    return _start(_delay, list(ports), delay_s)


def make_env(source: str, num_envs: int | None) -> Any:
    """Return an environment of this process, or a ``SyncVectorEnv`` of ``num_envs`` of them."""
    return gym.make(source) if num_envs is None else gym.make_vec(source, num_envs, vectorization_mode="sync")


def sample_actions(space: gym.Space[Any]) -> itertools.cycle[Any]:
    """Return random actions without end, sampled beforehand."""
    space.seed(0)
    return itertools.cycle([space.sample() for _ in range(_ACTIONS)])


def stepper(env: Any) -> Callable[[], object]:
    """Return a function that steps an environment once, or resets a single one whose episode has ended."""
    actions = sample_actions(env.action_space)
    env.reset(seed=0)
    if hasattr(env, "num_envs"):
        return lambda: env.step(next(actions))
    ended = False

    def step_or_reset() -> None:
        nonlocal ended
        if ended:
            env.reset()
            ended = False
        else:
            _, _, terminated, truncated, _ = env.step(next(actions))
            ended = terminated or truncated

    return step_or_reset


def _receive(sock: socket.socket, view: memoryview) -> bool:
    """Fill the view; return whether the other end sent that much."""
    filled = sock.recv_into(view)
    while 0 < filled < len(view):
        count = sock.recv_into(view[filled:])
        if count == 0:
            return False
        filled += count
    return filled > 0


def _answer(request_bytes: int, reply_bytes: int, source: str | None, num_envs: int | None) -> None:
    step = None if source is None else stepper(make_env(source, num_envs))
    request, reply = memoryview(bytearray(request_bytes)), bytes(reply_bytes)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        report_ready(port=listener.getsockname()[1])
        while True:
            with listener.accept()[0] as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while _receive(client, request):
                    if step is not None:
                        step()
                    client.sendall(reply)


def _delay(ports: list[int], delay_s: float) -> None:
    asyncio.run(_run_lines(ports, delay_s))


async def _run_lines(ports: list[int], delay_s: float) -> None:
    def connect_to(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_forward(reader, far_writer, delay_s), _forward(far_reader, writer, delay_s))

        return connected

    servers = [await asyncio.start_server(connect_to(port), "127.0.0.1", 0) for port in ports]
    report_ready(ports=[server.sockets[0].getsockname()[1] for server in servers])
    await asyncio.gather(*(server.serve_forever() for server in servers))


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Deliver what arrives, and its end, ``delay_s`` later and in order."""
    clock = asyncio.get_running_loop().time
    line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        data = b"..."
        while data:
            due, data = await line.get()
            await asyncio.sleep(due - clock())
            writer.write(data)
        writer.close()

    delivery = asyncio.create_task(deliver())
    data = b"..."
    while data:
        try:
            data = await reader.read(_CHUNK_BYTES)
        except ConnectionError:  # an end like any other
            data = b""
        line.put_nowait((clock() + delay_s, data))
    await delivery


_ROLES = {role.__name__: role for role in (_answer, _delay)}


def _start(role: Callable[..., None], *arguments: Any) -> ChildProcess:
    return ChildProcess.start(["-m", "benchmarks.tcp_baseline"], json.dumps([role.__name__, arguments]).encode())


def main() -> None:
    """Do, in a child, what the parent asks for."""
    role, arguments = json.loads(read_payload())
    watch_parent(lambda: os._exit(0))
    with contextlib.suppress(ConnectionError):
        _ROLES[role](*arguments)


if __name__ == "__main__":
    main()
