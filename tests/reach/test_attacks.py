"""Attacks on a relay and on hosts: each is refused, and who is in meanwhile is not disturbed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from agentgpt_remote import half_open
from agentgpt_remote.connection import WebSocketConnection
from agentgpt_remote.errors import AuthError, ConfigError, ConnectionLost, ProtocolError, ProtocolMismatch
from agentgpt_remote.frames import BINARY, masked_header
from agentgpt_remote.half_open import MAX_WAITING, Waiting
from agentgpt_remote.handshake import Open, Opened, Refused, Resume, Resumed, decode_from_host, encode_handshake
from agentgpt_remote.protocol import Kind, join_message
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.server.rooms import RelayLimits
from agentgpt_remote.tokens import Keyring, Role, new_secret
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from agentgpt_remote.wrappers.remote_vector_env import RemoteVectorEnv
from agentgpt_remote.wrappers.rooms import Room
from tests.reach.certificates import certificate
from tests.reach.conftest import Guarded
from tests.reach.processes import COUNTING, SECRET, Attempt, Command, free_port, start_host, start_relay
from tests.support import wait_until
from tests.wrappers.odd_envs import CountingEnv

Serve = Callable[..., Any]
STEPS_MEANWHILE = 50


@contextlib.contextmanager
def undisturbed(guarded: Guarded) -> Iterator[None]:
    """Have a session step meanwhile; at the end, all of its steps must have counted once, and more must be possible."""
    stop = threading.Event()
    count = 0
    with RemoteVectorEnv(url=guarded.room, token=guarded.token(Role.TRAINER), num_envs=2, length=10**9) as envs:
        envs.reset()

        def step() -> None:
            nonlocal count
            while not stop.is_set():
                count += 1
                assert envs.step(np.array([0, 1]))[0][:, 1].tolist() == [count, count]

        stepping = Attempt(step)
        wait_until(lambda: count > STEPS_MEANWHILE)
        yield
        before = count
        wait_until(lambda: count > before + STEPS_MEANWHILE)
        stop.set()
        stepping.finish(20.0)


def _tokens(guarded: Guarded, kind: str) -> str | None:
    keyring = guarded.keyring
    return {
        "none": None,
        "wrong": "agpt-trainer.lab.0.AAAA",
        "garbage": "%&/()=",
        "of another relay": Keyring(new_secret()).make(Role.TRAINER, "lab"),
        "with another room written into it": keyring.make(Role.TRAINER, "other").replace("other", "lab"),
        "a host's": keyring.make(Role.HOST, "lab"),
        "an admin's": keyring.make(Role.ADMIN),
        "of another room": keyring.make(Role.TRAINER, "other"),
        "expired": keyring.make(Role.TRAINER, "lab", time.time() - 10),
        "a trainer's": keyring.make(Role.TRAINER, "lab"),
        "a host's of another room": keyring.make(Role.HOST, "other"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("none", "a trainer's token is required"),
        ("wrong", "not made with this relay's secret"),
        ("garbage", "not made with this relay's secret"),
        ("of another relay", "not made with this relay's secret"),
        ("with another room written into it", "not made with this relay's secret"),
        ("a host's", "this is a host's token, and a trainer's is needed here"),
        ("an admin's", "this is an admin's token, and a trainer's is needed here"),
        ("of another room", "the token is for room 'other', not for 'lab'"),
        ("expired", r"the token expired at \d{4}-.* \(the relay's clock says \d{4}-.*set the clock"),
    ],
)
def test_trainer_without_the_right_token_is_refused(
    kind: str, told: str, guarded: Guarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    token = _tokens(guarded, kind)
    host_url = Room(guarded.room, guarded.token(Role.TRAINER)).members()[0].url
    with undisturbed(guarded):
        for url in (guarded.room, host_url):
            with pytest.raises(AuthError, match=told) as caught:
                RemoteEnv(url=url, token=token)
            assert token is None or token not in f"{caught.value}{caplog.text}"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("none", "a host's token is required"),
        ("wrong", "not made with this relay's secret"),
        ("a trainer's", "this is a trainer's token, and a host's is needed here"),
        ("a host's of another room", "the token is for room 'other', not for 'lab'"),
    ],
)
def test_host_without_the_right_token_is_refused(
    kind: str, told: str, guarded: Guarded, serve_into: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    with undisturbed(guarded), pytest.raises(AuthError, match=told):
        serve_into(guarded.room, token=_tokens(guarded, kind))


def test_rooms_can_be_listed_by_admins_only(guarded: Guarded) -> None:
    url = guarded.relay.url.replace("ws://", "http://")
    for token in (None, guarded.token(Role.TRAINER), guarded.token(Role.HOST)):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        refused = httpx.get(f"{url}/status", headers=headers)
        assert refused.status_code in (401, 403)
        assert "lab" not in refused.text
    admin = {"Authorization": f"Bearer {guarded.keyring.make(Role.ADMIN)}"}
    assert httpx.get(f"{url}/status", headers=admin).json()["rooms"].keys() == {"lab"}


def test_tokens_can_not_be_guessed_fast_and_right_ones_pass_meanwhile(guarded: Guarded) -> None:
    url = guarded.room.replace("ws://", "http://") + "/hosts"
    right = {"Authorization": f"Bearer {guarded.token(Role.TRAINER)}"}
    with undisturbed(guarded):
        assert httpx.get(url, headers=right).status_code == 200
        statuses = [
            httpx.get(url, headers={"Authorization": f"Bearer agpt-trainer.lab.0.guess{index}"}).status_code
            for index in range(60)
        ]
        assert statuses[:20] == [401] * 20
        assert statuses[-20:].count(429) >= 15  # one is looked at every two seconds
        assert httpx.get(url, headers=right).status_code == 200
        unseen = guarded.keyring.make(Role.TRAINER, "lab", time.time() + 1000)
        answers = [httpx.get(url, headers={"Authorization": f"Bearer {unseen}x"}) for _ in range(3)]
        limited = next(answer for answer in answers if answer.status_code == 429)
        assert "too many wrong tokens" in limited.json()["error"]


def _open(guarded: Guarded) -> tuple[WebSocketConnection, Opened, str]:
    """Return a connection with a session, and the URL of its host."""
    token = guarded.token(Role.TRAINER)
    url = Room(guarded.room, token).members()[0].url
    connection = WebSocketConnection.connect(url, path="/session", token=token)
    connection.send(encode_handshake(Open()))
    opened = decode_from_host(connection.recv(10.0))
    assert isinstance(opened, Opened)
    return connection, opened, url


def _resume(guarded: Guarded, url: str, message: Resume) -> Resumed | Refused:
    with WebSocketConnection.connect(url, path="/session", token=guarded.token(Role.TRAINER)) as connection:
        connection.send(encode_handshake(message))
        answer = decode_from_host(connection.recv(10.0))
        assert isinstance(answer, Resumed | Refused)
        return answer


def test_session_can_not_be_stolen_without_its_secret(guarded: Guarded) -> None:
    with undisturbed(guarded):
        owner, opened, url = _open(guarded)
        with owner:
            for secret in ("", "guess", opened.session_id):
                answer = _resume(guarded, url, Resume.of(opened.session_id, secret, 1))
                assert isinstance(answer, Refused)
                assert "belongs to another client" in answer.error["message"]
            owner.send(join_message(Kind.RESET, 1, []))
            assert owner.recv(10.0)


def test_handshake_can_not_be_replayed(guarded: Guarded) -> None:
    with undisturbed(guarded):
        owner, opened, url = _open(guarded)
        with owner:
            seen = Resume.of(opened.session_id, opened.secret, 1)
            assert isinstance(_resume(guarded, url, seen), Resumed)
            answer = _resume(guarded, url, seen)
            assert isinstance(answer, Refused)
            assert "can't be resumed" in answer.error["message"]
            assert isinstance(_resume(guarded, url, Resume.of(opened.session_id, opened.secret, 2)), Resumed)


def test_ticket_is_good_once(guarded: Guarded) -> None:
    """A data connection with a made-up ticket, or one that was used, is not joined with anybody."""
    with undisturbed(guarded):
        for ticket in ("", "guess", "A" * 22):
            with pytest.raises(ProtocolMismatch, match="ticket is not good"):
                WebSocketConnection.connect(
                    guarded.room, path="/data", token=guarded.token(Role.HOST), headers={"agentgpt-ticket": ticket}
                )


@pytest.mark.parametrize("is_announced_only", [True, False])
def test_frame_over_the_limit_ends_its_connection_with_the_reason(is_announced_only: bool, guarded: Guarded) -> None:
    size = 4_000_001
    with undisturbed(guarded):
        owner, _, _ = _open(guarded)
        with owner:
            owner._socket.sendall(masked_header(BINARY, size) + bytes(4))
            if not is_announced_only:
                with contextlib.suppress(OSError):
                    owner._socket.sendall(bytes(size))
            with pytest.raises(ProtocolError, match="4000001 bytes, over the relay's limit of 4000000"):
                owner.recv(10.0)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    return host, int(port)


def test_a_thousand_half_open_connections_keep_nobody_out(guarded: Guarded) -> None:
    address = _address(guarded.relay.url)
    with undisturbed(guarded), contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(1000)]
        for sock in waiting[::2]:
            sock.sendall(b"GET /lab/hosts HTTP/1.1\r\nHost: rel")
        with RemoteEnv(url=guarded.room, token=guarded.token(Role.TRAINER)) as env:
            env.reset()

        def alive() -> int:
            own = psutil.Process().net_connections(kind="tcp")
            return sum(item.laddr.port == address[1] and item.status == "ESTABLISHED" for item in own)

        wait_until(lambda: alive() < MAX_WAITING + 100)


def test_slow_request_ends_at_a_deadline(serve_into: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_open, "Waiting", functools.partial(Waiting, timeout_s=1.0))
    with serve_relay(port=0, secret=SECRET, block=False) as relay:
        guarded = Guarded(relay, Keyring(SECRET))
        serve_into(guarded.room, num_envs=8, token=guarded.token(Role.HOST))
        with undisturbed(guarded), socket.create_connection(_address(relay.url)) as sock:
            began = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT012 - a reset, or a broken pipe
                for letter in b"GET /lab/hosts HTTP/1.1\r\nHost: relay\r\nX: " + bytes(1000):
                    sock.sendall(bytes((letter,)))
                    time.sleep(0.1)
            assert 0.5 < time.monotonic() - began < 10.0


def test_client_that_sends_one_byte_at_a_time_is_dropped(guarded: Guarded) -> None:
    with undisturbed(guarded):
        owner, _, _ = _open(guarded)
        with owner:
            owner._socket.sendall(masked_header(BINARY, 100) + bytes(4))
            began = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT012
                for _ in range(99):
                    owner._socket.sendall(b"\0")
                    time.sleep(0.2)
            assert 0.5 < time.monotonic() - began < 10.0
            wait_until(lambda: "sessions_dropped_total 1\n" in _metrics(guarded.relay.url))


def test_client_that_reads_nothing_is_dropped_and_holds_little_memory() -> None:
    port, clients = free_port(), 16
    room = f"ws://127.0.0.1:{port}/lab"
    with (
        start_relay(port, "--stall-timeout-s", "4") as relay,
        start_host(room, "tests.wrappers.odd_envs:LargeEnv") as host,
        RemoteEnv(url=room) as other,
        contextlib.ExitStack() as stack,
    ):
        other.reset()
        processes = [psutil.Process(command.process.pid) for command in (relay, host)]
        before = [process.memory_info().rss for process in processes]
        url = Room(room, None).members()[0].url
        for _ in range(clients):
            deaf = stack.enter_context(WebSocketConnection.connect(url, path="/session"))
            deaf.send(encode_handshake(Open()))
            assert isinstance(decode_from_host(deaf.recv(10.0)), Opened)
            deaf.send(join_message(Kind.RESET, 1, []))
            for sequence in range(2, 80):  # each is answered with a megabyte
                deaf.send(join_message(Kind.STEP, sequence, [struct.pack("<q", 0)]))
        other.step(0)
        time.sleep(1.0)
        grown = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
        assert grown[0] < clients * 1e6, grown
        assert grown[1] < clients * 30e6, grown
        wait_until(lambda: f"sessions_dropped_total {clients}\n" in _metrics(room.removesuffix("/lab")), 20.0)
        other.step(0)


def _metrics(relay_url: str) -> str:
    return httpx.get(relay_url.replace("ws://", "http://") + "/metrics").text


def _other_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address: str = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    return address


def test_token_is_not_sent_in_plaintext_to_another_machine(serve_into: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGPT_INSECURE", raising=False)
    with serve_relay(host=_other_address(), port=0, secret=SECRET, insecure=True, block=False) as relay:
        room, keyring = f"{relay.url}/lab", Keyring(SECRET)
        for dial in (
            lambda: RemoteEnv(url=room, token=keyring.make(Role.TRAINER, "lab")),
            lambda: serve_into(room, token=keyring.make(Role.HOST, "lab")),
        ):
            with pytest.raises(AuthError, match=r"refusing to send a token unencrypted to ws://.*--insecure"):
                dial()
        monkeypatch.setenv("AGENTGPT_INSECURE", "1")
        serve_into(room, num_envs=4, token=keyring.make(Role.HOST, "lab"))
        with RemoteEnv(url=room, token=keyring.make(Role.TRAINER, "lab")) as env:
            env.reset()


@pytest.mark.parametrize("serve", [serve_relay, functools.partial(__import__("agentgpt_remote").serve, CountingEnv)])
def test_plaintext_is_not_served_to_other_machines_unasked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGPT_INSECURE", raising=False)
    secret = {"secret": SECRET} if serve is serve_relay else {"token": SECRET}
    with pytest.raises(AuthError, match=r"refusing to listen on '0\.0\.0\.0' without TLS.*--insecure"):
        serve(host="0.0.0.0", port=0, block=False, **secret)


class Eavesdropper(threading.Thread):
    """Listens where a server is expected, answers nothing of use, and keeps what it was told."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self.heard = b""
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = self._listener.accept()[0]
                with contextlib.suppress(OSError):
                    if self._context is not None:
                        sock = self._context.wrap_socket(sock, server_side=True)
                    sock.settimeout(2.0)
                    self.heard += sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                sock.close()

    def close(self) -> None:
        self._listener.close()


def test_downgrade_to_plaintext_is_refused_before_anything_is_said(serve_into: Serve) -> None:
    spy = Eavesdropper()
    with contextlib.closing(spy):
        room = f"wss://127.0.0.1:{spy.port}/lab"
        for dial in (lambda: RemoteEnv(url=room, token=SECRET), lambda: serve_into(room, token=SECRET)):
            with pytest.raises(ProtocolMismatch, match=r"does not speak TLS.*nothing was sent to it"):
                dial()
        assert b"Bearer" not in spy.heard
        assert SECRET.encode() not in spy.heard


@pytest.mark.parametrize("how", ["pin", "authority"])
def test_certificate_of_somebody_in_between_is_refused_before_the_token_is_sent(
    how: str, tmp_path: Path, serve_into: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = certificate(tmp_path / "right"), certificate(tmp_path / "wrong")
    told = "not the pinned one: somebody may be in between"
    if how == "pin":
        monkeypatch.setenv("AGENTGPT_PIN", right.pin)
    else:
        monkeypatch.setenv("AGENTGPT_CA_FILE", right.cert)
        told = "is not trusted.*--pin"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(wrong.cert, wrong.key)
    spy = Eavesdropper(context)
    with contextlib.closing(spy):
        room = f"wss://127.0.0.1:{spy.port}/lab"
        for dial in (lambda: RemoteEnv(url=room, token=SECRET), lambda: serve_into(room, token=SECRET)):
            with pytest.raises(AuthError, match=told):
                dial()
        assert spy.heard == b""
    with serve_relay(port=0, secret=SECRET, tls=right, block=False) as relay:
        keyring = Keyring(SECRET)
        serve_into(f"{relay.url}/lab", num_envs=4, token=keyring.make(Role.HOST, "lab"))
        with RemoteEnv(url=f"{relay.url}/lab", token=keyring.make(Role.TRAINER, "lab")) as env:
            env.reset()


def test_limits_of_sessions_keep_their_number_bounded(serve_into: Serve) -> None:
    with serve_relay(port=0, limits=RelayLimits(max_sessions=3, max_hosts=1), block=False) as relay:
        room = f"{relay.url}/lab"
        serve_into(room, num_envs=64)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(RemoteEnv(url=room))
            with pytest.raises(ConnectionLost, match="at its limit of max_sessions=3"):
                RemoteEnv(url=room, connect_timeout_s=0.5)
        with Command("serve", COUNTING, "--connect", room) as host:
            host.wait_for("max_hosts=1")
            assert host.end(signal.SIGINT) == 0


def test_url_with_a_token_in_it_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        RemoteEnv(url="ws://user:hunter2@127.0.0.1:1/lab")
    assert "hunter2" not in str(caught.value)


def test_no_token_in_process_list_or_repr(guarded: Guarded) -> None:
    token = guarded.token(Role.TRAINER)
    with RemoteVectorEnv(url=guarded.room, token=token, num_envs=1) as envs:
        assert token not in f"{envs!r} {vars(envs)!r} {Room(guarded.room, token)!r} {guarded.keyring!r}"
        assert SECRET not in f"{guarded.keyring!r} {vars(guarded.relay)!r}"
    assert token not in " ".join(psutil.Process(os.getpid()).cmdline())
