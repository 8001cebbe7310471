"""Random and mutated frames at a live host: no crash, no hang, no growth, and nobody else disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from typing import Any

import httpx
import psutil
import pytest
from gymnasium.vector import SyncVectorEnv

from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import ProtocolError, RemoteTimeout
from agentgpt_remote.frames import BINARY, CLOSE, PING, frame_header
from agentgpt_remote.handshake import MAGIC, Open, Resume, encode_handshake
from agentgpt_remote.packing import pack_value
from agentgpt_remote.protocol import HEADER, Kind, join_message
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from tests.server.host_process import start_host
from tests.support import wait_until
from tests.wire.equality import exactly_equal
from tests.wrappers.bad_network import port_of
from tests.wrappers.odd_envs import CountingEnv, TangledEnv

SEED = int(os.environ.get("FUZZ_SEED", "7"))
ANSWER_TIMEOUT_S = 20.0
MAX_FRAME_BYTES = 100_000
KINDS = 2
TANGLED_ACTION = {"move": [0.5, -0.5], "press": [1, 2], "kind": 3}
ACTIONS: list[Any] = [0, 1, -5, 2**70, "Infinity", [0, 1], None, TANGLED_ACTION, [TANGLED_ACTION], [[[]]]]
UPGRADE = (
    b"GET /session HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def make_kind(kind: int = 0, render_mode: str | None = None) -> Any:
    return TangledEnv() if kind else CountingEnv(render_mode=render_mode)


class Fuzzer:
    """Makes connections full of nonsense.

    Args:
        rng: decides everything.

    Attributes:
        frames: how many were made.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.frames = 0

    def _mutated(self, data: bytes) -> bytes:
        """Return ``data`` with some of its bytes changed, left out, repeated or followed by others."""
        rng, mutated = self._rng, bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            at, count = rng.randrange(len(mutated) + 1), rng.choice([1, 2, 4, 8])
            change = rng.choice(["set", "set", "wild", "cut", "insert", "repeat", "end"])
            if change == "set":
                mutated[at : at + 1] = rng.randbytes(1)
            elif change == "wild":
                mutated[at : at + count] = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * count
            elif change == "cut":
                del mutated[at : at + count]
            elif change == "insert":
                mutated[at:at] = rng.randbytes(count)
            elif change == "repeat":
                mutated[at:at] = mutated[:at][-40:]
            else:
                del mutated[at:]
        return bytes(mutated)

    def _packed(self) -> bytes:
        rng = self._rng
        values: list[Any] = [
            [rng.randrange(9), {"level": [1, (2, 3.0)]}],
            [None, {"reset_mask": rng.random() < 0.5, "big": 1 << rng.randrange(200)}],
            [
                rng.choice(["call", "get", "set", "fly"]),
                rng.choice(["count", "add", "length", "step"]),
                [1],
                {"times": 2},
            ],
            ["call", "close", (), {}],
            [[0, 1], {"a": {1, 2}}, CountingEnv().observation_space.sample()],
            rng.randbytes(rng.randrange(30)),
            0,
        ]
        data = pack_value(rng.choice(values))
        return self._mutated(data) if rng.random() < 0.7 else data

    def _request(self, sequence: int) -> bytes:
        """Return a request whose header is in order, and whose content seldom is."""
        rng = self._rng
        kind = rng.choice([Kind.RESET, Kind.STEP, Kind.STEP, Kind.RENDER, Kind.CALL, Kind.ERROR, 0, 6, 99, 254])
        parts = [rng.randbytes(rng.choice([0, 3, 8, 16, 32, 48, 64, 200]))]
        if rng.random() < 0.01:
            parts.append(bytes(rng.randrange(MAX_FRAME_BYTES // 2, MAX_FRAME_BYTES + 100)))
        flags = rng.choice([0, 0, 4, 8, 8, rng.randrange(256)])
        data = join_message(
            kind, sequence, parts, flags=flags, extras=self._packed() if rng.random() < 0.7 else b"", aux=sequence - 1
        )
        if rng.random() < 0.02:  # extras anywhere, and an aux from the future or the past
            fields = list(HEADER.unpack_from(data))
            fields[3] = rng.choice([0, 1, 31, 32, len(data), len(data) + 1, 2**32 - 1])
            fields[5] = rng.choice([0, 2**64 - 1, sequence + 5])
            data = HEADER.pack(*fields) + data[HEADER.size :]
        return data

    def _frame(self, data: bytes, opcode: int = BINARY) -> bytes:
        self.frames += 1
        return frame_header(opcode, len(data), 0x80) + bytes(4) + data

    def _handshake(self) -> bytes:
        rng = self._rng
        message = Open(
            num_envs=rng.choice([None, None, 1, 2, 3]),
            kwargs=pack_value({"kind": rng.randrange(KINDS)}),
            autoreset_mode=rng.choice([None, "NextStep", "SameStep", "Disabled"]),
            render_mode=rng.choice([None, "ansi"]),
        )
        return encode_handshake(message)

    def _bad_handshake(self) -> bytes:
        rng = self._rng
        return rng.choice(
            [
                self._mutated(self._handshake()),
                self._mutated(encode_handshake(Resume.of(rng.randbytes(8).hex(), "x" * 32, 1))),
                encode_handshake(Open(num_envs=rng.choice([-1, 0, 99, 2**62]), kwargs=self._packed())),
                MAGIC + self._packed(),
                rng.randbytes(rng.randrange(200)),
            ]
        )

    def _last_words(self, sequence: int) -> bytes:
        """Return what the host should end the connection for, whole or not."""
        rng = self._rng
        step = join_message(Kind.STEP, sequence, [bytes(16)])
        self.frames += 1
        return rng.choice(
            [
                self._frame(self._mutated(step)),
                self._frame(join_message(Kind.STEP, rng.choice([0, sequence + 1, 2**64 - 1]), [])),
                self._frame(b"text", opcode=1),
                self._frame(b"", opcode=rng.choice([0, 3, 7, 11, 15])),
                self._frame(bytes(126), opcode=PING),
                self._frame(rng.randbytes(rng.randrange(4)), opcode=CLOSE),
                self._mutated(self._frame(step)),
                frame_header(BINARY, len(step)) + step,  # without a mask
                frame_header(BINARY, rng.choice([MAX_FRAME_BYTES + 1, 2**40, 2**63]), 0x80) + bytes(40),
                bytes([BINARY, 0x80 | 1]) + bytes(5) + bytes([BINARY, 0x80]) + bytes(4),  # a fragment in a fragment
                (bytes([BINARY, 0x80]) + bytes(4)) + (bytes([0, 0x81]) + bytes(5)) * 50,  # fragments without an end
                self._frame(join_message(Kind.CLOSE, sequence, [])),
                rng.randbytes(rng.randrange(100)),
            ]
        )

    def raw(self) -> bytes:
        """Return what is hardly an opening handshake of a WebSocket."""
        rng = self._rng
        self.frames += 1
        return rng.choice([self._mutated(UPGRADE), rng.randbytes(rng.randrange(1, 300)), UPGRADE[: rng.randrange(99)]])

    def conversation(self) -> tuple[list[bytes], bytes]:
        """Return frames that are each to be answered unless the connection ends, and last words."""
        rng = self._rng
        if rng.random() < 0.2:
            return [self._frame(self._bad_handshake())], rng.randbytes(9)
        sequences = range(1, rng.randrange(20, 80))
        requests = [self._frame(self._request(sequence)) for sequence in sequences]
        if rng.random() < 0.3:  # asked for again
            at = rng.randrange(len(requests))
            requests.insert(at, requests[at])
        return [self._frame(self._handshake()), *requests], self._last_words(sequences.stop)

    def rest_request(self, session_id: str) -> tuple[str, str, bytes]:
        """Return method, path and body of a REST request, seldom in order."""
        rng = self._rng
        self.frames += 1
        bodies: dict[str, Any] = {
            "": {"kwargs": {"kind": rng.randrange(KINDS)}, "num_envs": rng.choice([1, 2, None, 0, -1, 1e300, 4001])},
            "/reset": {"seed": rng.choice([None, 3, -1, [1, None], 2**60, "x"]), "options": {"level": [1, {"a": 2.5}]}},
            "/step": {"action": rng.choice(ACTIONS), **rng.choice([{}, {}, {"sequence": rng.choice([1, 2, 0, 2.5])}])},
            "/render": {},
            "/fly": [1, 2],
        }
        name = rng.choice([*bodies, "/step", "/step"])
        data = json.dumps(bodies[name] if rng.random() < 0.9 else rng.choice([*bodies.values()])).encode()
        if rng.random() < 0.3:
            data = self._mutated(data)
        elif rng.random() < 0.01:
            data = rng.choice([b"[" * 20_000, b"0" * (MAX_FRAME_BYTES + 1), b'{"action":' + b"[[" * 40_000])
        path = f"/{session_id}{name}" if name else ""
        return rng.choice(["POST"] * 9 + ["GET", "PUT"]), f"/v1/sessions{path}", data


def _ask(client: httpx.Client, fuzzer: Fuzzer, rng: random.Random, count: int) -> int:
    """Ask for nonsense in and around REST sessions; return how often it was understood. Every answer must be JSON."""
    secrets: dict[str, str] = {"nobody": "?"}
    understood = 0
    for _ in range(count):
        session_id = [*secrets][-1]
        if session_id == "nobody":
            method, path, data = "POST", "/v1/sessions", json.dumps({"kwargs": {"kind": rng.randrange(KINDS)}}).encode()
        else:
            method, path, data = fuzzer.rest_request(session_id)
        headers = {
            "content-type": rng.choice(["application/json"] * 19 + ["text/plain"]),
            "x-session-secret": rng.choice([secrets[session_id]] * 19 + ["wrong"]),
        }
        response = client.request(method, path, content=data, headers=headers)
        answer = response.json()
        assert response.status_code != 500 or "traceback" in response.text, response.text
        understood += response.status_code < 300
        if response.status_code == 201:
            secrets[answer["session_id"]] = answer["secret"]
    for session_id, secret in secrets.items():
        client.delete(f"/v1/sessions/{session_id}", headers={"x-session-secret": secret})
    return understood


def _talk(url: str, frames: list[bytes], last_words: bytes) -> int:
    """Send all frames at once, then the last words; return how many answers came until the connection ended."""
    answers = 0
    with (
        WebSocketConnection.connect(url, path="/session") as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as raw,
    ):
        try:
            raw.sendall(b"".join(frames))
            for _ in frames:
                connection.recv(ANSWER_TIMEOUT_S)
                answers += 1
            raw.sendall(last_words)
            raw.shutdown(socket.SHUT_WR)
            while True:
                connection.recv(ANSWER_TIMEOUT_S)
        except (RemoteTimeout, BlockingIOError):  # the host neither answers nor ends it, or takes no more
            raise
        except (OSError, ProtocolError):
            return answers


def _say(url: str, data: bytes) -> None:
    """Send bytes to the server's port and wait until it ends the connection."""
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=ANSWER_TIMEOUT_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1 << 16):
                continue


class Bystander(threading.Thread):
    """Another client: steps environments next to their twins, and asks after the host's health."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self.steps = 0
        self.slowest_health_s = 0.0

    def run(self) -> None:
        try:
            self._step()
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            self.failure = error

    def _step(self) -> None:
        twin = SyncVectorEnv([TangledEnv] * 2)
        with RemoteVectorEnv(url=self._url, num_envs=2, kind=1) as envs:
            assert exactly_equal(envs.reset(seed=1), twin.reset(seed=1))
            while not self.ended.wait(0.002):
                actions = twin.action_space.sample()
                assert exactly_equal(envs.step(actions), twin.step(actions))
                self.steps += 1
                if self.steps % 50 == 0:
                    before = time.monotonic()
                    assert _health(self._url)["status"] == "ok"
                    self.slowest_health_s = max(self.slowest_health_s, time.monotonic() - before)


def _http(url: str) -> str:
    return url.replace("ws://", "http://")


def _health(url: str) -> Any:
    return httpx.get(f"{_http(url)}/health", timeout=ANSWER_TIMEOUT_S).json()


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(5_000, id=f"5000 frames of FUZZ_SEED={SEED}"),
        pytest.param(100_000, id=f"100000 frames of FUZZ_SEED={SEED}", marks=pytest.mark.slow),
    ],
)
def test_nonsense_harms_neither_host_nor_other_sessions(frames: int) -> None:
    rng = random.Random(SEED)
    fuzzer = Fuzzer(rng)
    with contextlib.ExitStack() as stack:
        limits = {"num_envs": 4000, "resume_window_s": 0.5, "max_frame_bytes": MAX_FRAME_BYTES}
        host = stack.enter_context(start_host("tests.server.test_fuzz:make_kind", **limits))
        url, process = host.ready["url"], psutil.Process(host.pid)
        client = stack.enter_context(httpx.Client(base_url=_http(url), timeout=ANSWER_TIMEOUT_S))
        bystander = Bystander(url)
        bystander.start()
        answers = understood = settled_bytes = 0
        while fuzzer.frames < frames:
            answers += _talk(url, *fuzzer.conversation())
            _say(url, fuzzer.raw())
            understood += _ask(client, fuzzer, rng, 10)
            assert host.poll() is None, host.log_tail()
            assert bystander.failure is None
            if not settled_bytes and fuzzer.frames > frames // 5:
                settled_bytes = process.memory_info().rss
        wait_until(lambda: _health(url)["sessions"] == 1, what="the end of the lost sessions")
        grown = process.memory_info().rss - settled_bytes
        bystander.ended.set()
        bystander.join(ANSWER_TIMEOUT_S)
        log = host.log_tail()
    assert bystander.failure is None
    assert not bystander.is_alive()
    assert bystander.steps > 50
    assert bystander.slowest_health_s < 5.0
    assert grown < 50e6
    assert understood > frames / 50
    assert answers > fuzzer.frames / 2  # most were understood well enough to be executed or refused
    assert "Traceback" not in log, log
