"""Hosts behind tunnels: real processes that print what the real tools print, and forward TLS from a public name."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from gymnasium.error import DependencyNotInstalled

from agentgpt_remote import EnvLauncher, RemoteEnv, serve
from agentgpt_remote.errors import (
    AuthError,
    ChildProcessFailed,
    ConfigError,
    HostUnreachable,
    RemoteTimeout,
)
from agentgpt_remote.tunnel_tools import TOOLS, find_tool
from agentgpt_remote.tunnels import Tunnel
from tests.conftest import ServeFunction
from tests.reach import public_names
from tests.reach.processes import Command
from tests.reach.stand_in_tunnel import AUTHTOKEN, HOSTS
from tests.support import is_running, wait_until

ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "tests" / "tls" / "tunnel-cert.pem"
TOKEN = "token-of-a-host-behind-a-tunnel"
CUSTOM = "mytunnel --authtoken an-authtoken {port}"
NAMES = {"cloudflared": "cloudflared", "ngrok": "ngrok", "localtunnel": "lt", CUSTOM: "mytunnel"}


class Tools:
    """Stand-ins on PATH.

    Attributes:
        folder: where they leave what they tell the test.
        bin: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()

    def install(self, *names: str) -> None:
        """Put stand-ins of these executables on PATH."""
        for name in names:
            path = self.bin / name
            path.write_text(
                f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                "from tests.reach.stand_in_tunnel import main\nmain()\n"
            )
            path.chmod(0o755)

    @property
    def pid(self) -> int:
        """Process id of the tool, once it has said all that it says."""
        wait_until((self.folder / "pid").exists, what="the tool's process id")
        return int((self.folder / "pid").read_text())

    def die(self) -> None:
        """Have the tool end by itself."""
        (self.folder / "die").touch()

    def group_of(self, pid: int) -> list[int]:
        """Return the processes of a process group that run."""
        listed = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [member for member, group in pairs if group == pid and is_running(member)]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools(tmp_path)
    tools.install(*NAMES.values())
    monkeypatch.setenv("PATH", f"{tools.bin}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_PORT", str(tmp_path / "port"))
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.delenv("AGENTGPT_TOKEN", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", public_names.getaddrinfo)
    return tools


@contextmanager
def _command_line(tools: Tools, tmp_path: Path, *words: str) -> Iterator[Command]:
    """Run a command in a process that resolves the public names too."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(Path(public_names.__file__).read_text())
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with Command(*words, PYTHONPATH=paths, PYTHONUNBUFFERED="1") as command:
        yield command


@pytest.mark.parametrize(("tool", "log_format"), [*((tool, "json") for tool in NAMES), ("ngrok", "logfmt")])
def test_host_is_reached_at_its_public_url_and_the_tool_ends_with_it(
    tool: str, log_format: str, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_LOG_FORMAT", log_format)
    monkeypatch.setenv("AGENTGPT_TOKEN", TOKEN)
    with EnvLauncher.launch_on_local_with_url("CartPole-v1", tool) as launcher:
        assert launcher.url == f"wss://{HOSTS[NAMES[tool]]}"
        assert launcher.token == TOKEN
        assert TOKEN not in repr(launcher)
        with RemoteEnv(url=launcher.url, token=TOKEN) as env:
            assert env.reset(seed=3)[0].shape == (4,)
            assert env.step(1)[1] == 1.0
        with pytest.raises(AuthError):
            RemoteEnv(url=launcher.url, token="a-guess")
        assert TOKEN not in Path(f"/proc/{tools.pid}/environ").read_text(), "the tool needs no token"
        assert len(tools.group_of(tools.pid)) == 2
    assert not tools.group_of(tools.pid)
    assert launcher.lost is None


def test_token_is_made_where_none_is_given(tools: Tools) -> None:
    with EnvLauncher.launch_on_local_with_url("CartPole-v1") as launcher:
        assert launcher.url.endswith("trycloudflare.com"), "the first that is installed"
        assert launcher.token is not None
        assert len(launcher.token) >= 32
        RemoteEnv(url=launcher.url, token=launcher.token).close()
        with pytest.raises(AuthError):
            RemoteEnv(url=launcher.url)


def test_tunnel_without_a_token_or_beyond_loopback_is_refused(tools: Tools) -> None:
    with pytest.raises(AuthError, match="makes the host public"):
        serve("CartPole-v1", port=0, block=False, tunnel="cloudflared")
    with pytest.raises(ConfigError, match="loopback only"):
        serve("CartPole-v1", port=0, host="0.0.0.0", token=TOKEN, block=False, tunnel="cloudflared")


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("cloudflared", "cloudflared"),
        ("ngrok", r'pip install "agentgpt-remote\[tunnel\]"'),
        ("localtunnel", "npm install -g localtunnel"),
        ("auto", "cloudflared.* or `pip install .* or `npm install"),
        ("nothere {port}", "no such program"),
    ],
)
def test_missing_tool_names_the_command_that_installs_it(
    tool: str, command: str, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tools.folder / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyNotInstalled, match=command):
        find_tool(tool).command(8000)


@pytest.mark.parametrize(
    ("name", "meant"), [("cloudflare", "cloudflared"), ("lt", "localtunnel"), ("ngrokk", "ngrok"), ("ssh host", "")]
)
def test_unknown_tool_names_the_closest(name: str, meant: str) -> None:
    with pytest.raises(
        ConfigError, match=r"expected cloudflared, ngrok, localtunnel, or a command with \{port\}"
    ) as told:
        find_tool(name)
    assert (f"did you mean {meant}?" in str(told.value)) == bool(meant)


def test_refusal_of_the_tool_is_told_with_advice_and_without_its_secret(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", "refused")
    with pytest.raises(ChildProcessFailed, match=r"ngrok config add-authtoken[\s\S]*ERR_NGROK_107") as told:
        EnvLauncher.launch_on_local_with_url("CartPole-v1", "ngrok")
    assert AUTHTOKEN not in str(told.value)
    assert "Your authtoken: (hidden)" in str(told.value)


@pytest.mark.parametrize(
    ("tool", "fault", "error", "text"),
    [
        ("cloudflared", "silent", RemoteTimeout, r"told no public URL within 0.6 s.*INF Requesting new quick Tunnel"),
        (
            CUSTOM,
            "elsewhere",
            HostUnreachable,
            "no way to the host within 0.6 s: wss://lab.tunnel.example does not answer",
        ),
    ],
)
def test_url_that_is_not_told_or_leads_nowhere_is_an_error_in_time(
    tool: str,
    fault: str,
    error: type[Exception],
    text: str,
    tools: Tools,
    serve_here: ServeFunction,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    port = int(serve_here("CartPole-v1", token=TOKEN).url.rpartition(":")[2])
    with pytest.raises(error, match=f"(?s){text}") as told:
        Tunnel(tool, port, token=TOKEN, timeout_s=0.6)
    assert AUTHTOKEN not in str(told.value)
    assert "an-authtoken" not in str(told.value)
    assert not tools.group_of(tools.pid)


def test_token_is_not_shown_to_whatever_else_is_behind_the_url(tools: Tools, serve_here: ServeFunction) -> None:
    seen: list[str | None] = []

    class Impostor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "instance": "0123456789abcdef"}')

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Impostor) as impostor:
        threading.Thread(target=impostor.serve_forever, daemon=True).start()
        port = int(serve_here("CartPole-v1", token=TOKEN).url.rpartition(":")[2])
        command = f"mytunnel {impostor.server_port} --authtoken {{port}}"
        with pytest.raises(HostUnreachable, match="leads to another host"):
            Tunnel(command, port, token=TOKEN, timeout_s=0.5)
        impostor.shutdown()
    assert seen
    assert set(seen) == {None}


def test_plaintext_url_is_refused(tools: Tools, serve_here: ServeFunction) -> None:
    port = int(serve_here("CartPole-v1", token=TOKEN).url.rpartition(":")[2])
    plain = tools.bin / "plain"
    plain.write_text("#!/bin/sh\necho http://203.0.113.7:$1 and http://127.0.0.1:$1\nsleep 60\n")
    plain.chmod(0o755)
    with pytest.raises(AuthError, match=r"ws://203\.0\.113\.7:\d+, where anyone on the way could read the token"):
        Tunnel("plain {port}", port, token=TOKEN, timeout_s=0.5)


def test_tool_that_ends_meanwhile_is_noticed_and_told(tools: Tools, caplog: pytest.LogCaptureFixture) -> None:
    with EnvLauncher.launch_on_local_with_url("CartPole-v1", "cloudflared") as launcher:
        assert launcher.lost is None
        with caplog.at_level(logging.ERROR, "agentgpt_remote.tunnels"):
            tools.die()
            wait_until(lambda: launcher.lost is not None, what="the loss of the tunnel")
        assert "can't be reached from outside any more" in str(launcher.lost)
        assert "ERR the edge closed the connection" in str(launcher.lost)
        assert "tunnel lost" in caplog.text
        assert not tools.group_of(tools.pid), "nor is a helper of the tool left"


def test_launcher_that_is_forgotten_ends_its_tunnel(tools: Tools) -> None:
    launcher = EnvLauncher.launch_on_local_with_url("CartPole-v1", "localtunnel")
    pid = tools.pid
    assert tools.group_of(pid)
    del launcher
    gc.collect()
    assert not tools.group_of(pid)


def test_tool_that_ignores_requests_to_end_is_killed(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAULT", "stubborn")
    monkeypatch.setattr("agentgpt_remote.tunnel_process._GRACE_S", 0.3)
    launcher = EnvLauncher.launch_on_local_with_url("CartPole-v1", "ngrok")
    launcher.close()
    assert not tools.group_of(tools.pid)


def test_ngrok_of_pyngrok_is_used_where_there_is_no_other(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyngrok import conf

    fetched = tools.folder / "fetched" / "ngrok"
    fetched.parent.mkdir()
    (tools.bin / "ngrok").rename(fetched)
    (tools.bin / "ngrok").write_text("#!/bin/sh\n# from pyngrok.ngrok import main: this would fetch it\nexit 1\n")
    (tools.bin / "ngrok").chmod(0o755)
    monkeypatch.setattr(conf, "_default_pyngrok_config", conf.PyngrokConfig(ngrok_path=str(fetched)))
    assert TOOLS["ngrok"].command(8000)[0] == str(fetched)
    with EnvLauncher.launch_on_local_with_url("CartPole-v1", "ngrok") as launcher:
        assert launcher.url == f"wss://{HOSTS['ngrok']}"


def test_failure_to_fetch_ngrok_says_where_it_comes_from(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyngrok import conf
    from pyngrok.exception import PyngrokNgrokInstallError

    def fail(*_: object, **__: object) -> None:
        raise PyngrokNgrokInstallError("An error occurred while downloading ngrok: no way out")

    (tools.bin / "ngrok").unlink()
    missing = tools.folder / "missing" / "ngrok"
    monkeypatch.setattr(conf, "_default_pyngrok_config", conf.PyngrokConfig(ngrok_path=str(missing)))
    monkeypatch.setattr("pyngrok.installer.install_ngrok", fail)
    with pytest.raises(DependencyNotInstalled, match=r"no way out.*https://ngrok.com/download"):
        TOOLS["ngrok"].command(8000)


def _interrupt(command: Command) -> None:
    assert command.end(signal.SIGINT) == 0


def _terminate(command: Command) -> None:
    assert command.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("end", [_interrupt, _terminate, Command.kill])
def test_command_shows_url_and_new_token_once_and_leaves_nothing_running(
    end: Callable[[Command], None], tools: Tools, tmp_path: Path
) -> None:
    with _command_line(tools, tmp_path, "serve", "CartPole-v1", "--port", "0", "--tunnel", "cloudflared") as command:
        url = command.wait_for(r"wss://[\w.-]+")
        token = command.wait_for(r"shown once: \S+;").split()[-1].rstrip(";")
        with RemoteEnv(url=url, token=token) as env:
            env.reset(seed=0)
        assert command.output.count(token) == 1
        pid = tools.pid
        end(command)
        wait_until(lambda: not tools.group_of(pid), what="the end of the tool")


def test_command_ends_with_an_error_when_its_tunnel_is_lost(tools: Tools, tmp_path: Path) -> None:
    words = ("serve", "CartPole-v1", "--port", "0", "--token", TOKEN, "--tunnel", CUSTOM)
    with _command_line(tools, tmp_path, *words) as command:
        command.wait_for(r"serving CartPole-v1 at wss://lab.tunnel.example")
        tools.die()
        assert command.process.wait(20) == 1
        command.wait_for(r"agentgpt: error: the tunnel's tool mytunnel ended")
        assert "Traceback" not in command.output
        assert TOKEN not in command.output


def test_interpreter_that_ends_without_closing_leaves_no_tool(tools: Tools, tmp_path: Path) -> None:
    code = (
        "from tests.reach import public_names\nfrom agentgpt_remote import EnvLauncher\n"
        "launcher = EnvLauncher.launch_on_local_with_url('CartPole-v1', 'cloudflared')\nprint(launcher.url)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("wss://")
    assert not done.stderr
    assert not tools.group_of(tools.pid)
