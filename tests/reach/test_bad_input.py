"""What goes wrong between host, relay and trainer is told in one line, with the next step; nothing is left running."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentgpt_remote.errors import AuthError, ConfigError, ProtocolMismatch
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.tls import Trust
from agentgpt_remote.tokens import Keyring, Role
from agentgpt_remote.wrappers.remote_env import RemoteEnv
from tests.reach.certificates import certificate
from tests.reach.processes import SECRET, Command, free_port, start_host, start_relay
from tests.support import wait_until
from tests.wrappers.bad_network import CuttingProxy, port_of

Serve = Callable[..., Any]


@pytest.mark.parametrize(
    ("validity", "told"),
    [
        ({"begins": -30, "ends": -1}, r"has expired; renew it, or set this machine's clock, which says \d{4}-"),
        ({"begins": 1, "ends": 30}, r"not yet valid; set this machine's clock, which says \d{4}-"),
        ({"name": "another-machine"}, r"mismatch.*pass its fingerprint with --pin"),
    ],
    ids=["expired", "clock behind", "of another machine"],
)
def test_wrong_certificate_says_what_to_do(
    validity: dict[str, Any], told: str, tmp_path: Path, serve_into: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certificate(tmp_path, **validity)
    monkeypatch.setenv("AGENTGPT_CA_FILE", tls.cert)
    with serve_relay(port=0, secret=SECRET, tls=tls, block=False) as relay:
        room = f"{relay.url}/lab"
        for dial in (lambda: RemoteEnv(url=room, token=SECRET), lambda: serve_into(room, token=SECRET)):
            with pytest.raises(AuthError, match=told):
                dial()


def test_self_signed_certificate_is_pinned_and_kept(tmp_path: Path) -> None:
    port, keyring = free_port(), Keyring(SECRET)
    variables = {"AGENTGPT_RELAY_SECRET": SECRET, "AGENTGPT_HOME": str(tmp_path)}
    pins = []
    for _ in range(2):  # what others have pinned stays right when the relay is started again
        with start_relay(port, "--tls-self-signed", **variables) as relay:
            pin = relay.wait_for(r"sha256:[0-9a-f]{64}")
            room = f"wss://127.0.0.1:{port}/lab"
            token = {"AGENTGPT_TOKEN": keyring.make(Role.HOST, "lab")}
            with start_host(room, "CartPole-v1", "--pin", pin, **token) as host:
                checked = Command("check", room, "--pin", pin, AGENTGPT_TOKEN=keyring.make(Role.TRAINER, "lab"))
                with checked:
                    assert checked.process.wait(60) == 0, checked.output
                assert host.end(signal.SIGINT) == 0
            with Command("serve", "CartPole-v1", "--connect", room, **token) as stranger:
                assert stranger.process.wait(60) == 1
                stranger.drain()
                assert re.search(r"is not trusted: self-signed.*--pin", stranger.output)
        pins.append(pin)
    assert pins[0] == pins[1]


@pytest.mark.parametrize(
    ("pin", "told"), [("sha256:12", "expected sha256: and 64 hexadecimal digits"), ("md5:" + 64 * "0", "sha256:")]
)
def test_pin_that_is_none_is_refused(pin: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Trust.of(pin)


def test_missing_authority_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTGPT_CA_FILE", "no/such.pem")
    with pytest.raises(ConfigError, match=r"can't use the CA file 'no/such\.pem'"):
        Trust.of_environment().context()


class StrippingProxy(CuttingProxy):
    """Removes what asks for an upgrade to WebSocket, as a proxy does that knows plain HTTP only."""

    def _pass_on(self, data: bytes, target: socket.socket) -> bool:
        stripped = re.sub(rb"(?i)(upgrade|connection): ?(websocket|upgrade)\r\n", b"", data)
        return super()._pass_on(stripped, target)


def test_proxy_that_strips_the_upgrade_is_named(serve_into: Serve) -> None:
    with serve_relay(port=0, block=False) as relay:
        serve_into(f"{relay.url}/lab")
        proxy = StrippingProxy(port_of(relay.url), lambda _: None)
        try:
            for dial in (lambda: RemoteEnv(url=f"{proxy.url}/lab"), lambda: serve_into(f"{proxy.url}/lab")):
                with pytest.raises(ProtocolMismatch, match=r"426.*a proxy in between may have removed it"):
                    dial()
        finally:
            proxy.close()


def test_ctrl_c_anywhere_ends_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    port = free_port()
    room = f"ws://127.0.0.1:{port}/lab"
    before = set(psutil.Process().children(recursive=True))
    with start_relay(port) as relay, start_host(room, "CartPole-v1", "--num-envs", "4", "--workers", "2") as host:
        with Command("train", room, "--runs-dir", str(tmp_path), "--set", "max_steps=10000000") as trainer:
            trainer.wait_for(r"\d+/10000000 env steps", 60.0)
            assert trainer.end(signal.SIGINT) == 0
            trainer.drain()
            assert "stopped after" in trainer.output
            assert (tmp_path / f"127.0.0.1-{port}-lab" / "policy" / "config.json").exists()
        assert relay.end(signal.SIGINT) == 0
        assert host.process.poll() is None  # it dials until the relay is back
        assert host.end(signal.SIGINT) == 0
        for command in (relay, host, trainer):
            assert "Traceback" not in command.output
    wait_until(lambda: set(psutil.Process().children(recursive=True)) <= before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "CartPole-v1", "--connect", "ws://127.0.0.1:1"], "names no room"),
        (["serve", "CartPole-v1", "--connect", "ws://127.0.0.1:1/lab", "--tls-self-signed"], "listens nowhere"),
        (["relay", "--tls-cert", "a.pem"], "needs both files"),
        (["relay", "--secret", "short"], "at least 16"),
        (["relay", "--secret-file", "no/such/file"], r"agentgpt token > no/such/file"),
        (["relay", "status", "ws://127.0.0.1:1"], "nothing listens"),
        (["token", "--role", "host"], "--room"),
        (["token", "--role", "king", "--room", "lab"], "host, trainer, admin"),
        (["token", "--role", "host", "--room", "lab"], "made with the relay's secret"),
        (["check", "CartPole-v1", "--pin", "sha256:0"], "sha256"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_one_clear_error(words: list[str], told: str) -> None:
    with Command(*words, AGENTGPT_RELAY_SECRET="") as command:
        assert command.process.wait(60) in (1, 2)
        command.drain()
        assert re.search(told, re.sub(r"\s+", " ", command.output)), command.output
        assert "Traceback" not in command.output
