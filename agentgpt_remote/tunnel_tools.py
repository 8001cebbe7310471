"""What is known of the tools that make tunnels: how each is started, what it prints, what its errors mean."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gymnasium.error import DependencyNotInstalled

from agentgpt_remote.errors import ConfigError

AUTO = "auto"
PORT_FIELD = "{port}"
_QUICK_TUNNEL = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com", re.IGNORECASE)
_LOCALTUNNEL = re.compile(r"your url is:\s*(https?://\S+)", re.IGNORECASE)
_URL = re.compile(r"(?:https?|wss?)://[^\s\"'<>|,)\]]+")
_LOGFMT = re.compile(r"(\w+)=(\"(?:[^\"\\]|\\.)*\"|\S*)")
_SHIM_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool that makes a port of this machine reachable from elsewhere.

    Attributes:
        name: for people; never its arguments, which may hold a secret.
        command: returns what to run for a port.
        find_urls: returns the public URLs that a line of its output tells.
        is_up: tells whether a line says that the tunnel carries traffic; ``None`` where that is so with the URL.
        advice: what a text in its output means, and what to do.
        secrets: texts that no error may hold.
    """

    name: str
    command: Callable[[int], list[str]]
    find_urls: Callable[[str], Sequence[str]]
    is_up: Callable[[str], bool] | None = None
    advice: Sequence[tuple[str, str]] = ()
    secrets: Sequence[str] = ()

    def advise(self, output: str) -> str:
        """Return what to do about what the tool printed, as a sentence to append; empty where that is not known."""
        return next((f" {advice}." for text, advice in self.advice if text.lower() in output.lower()), "")


def find_tool(name: str) -> Tool:
    """Return the tool of a name, or a command of the user's own.

    Args:
        name: ``cloudflared``, ``ngrok``, ``localtunnel``, ``auto`` for the first of them that is installed, or a
            command that holds ``{port}``.

    Raises:
        ConfigError: no such tool; names the closest.
        DependencyNotInstalled: none of the tools is installed; names the commands that install them.
    """
    if name == AUTO:
        return _first_installed()
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"tunnel={name!r}: expected {', '.join(TOOLS)}, or a command with {PORT_FIELD}")
    if name in TOOLS:
        return TOOLS[name]
    if PORT_FIELD not in name:
        close = difflib.get_close_matches(name.lower(), [*TOOLS, "lt", "cloudflare"], 1)
        known = {"lt": "localtunnel", "cloudflare": "cloudflared"}
        meant = f"; did you mean {known.get(close[0], close[0])}?" if close else ""
        raise ConfigError(
            f"tunnel={name.split()[0]!r}: expected {', '.join(TOOLS)}, or a command with {PORT_FIELD} in it, such as "
            f"'ssh -R 80:localhost:{PORT_FIELD} nokey@localhost.run'{meant}"
        )
    return _custom(name)


def _first_installed() -> Tool:
    for tool in TOOLS.values():
        if _EXECUTABLES[tool.name]() is not None:
            return tool
    ways = ", or ".join(f"`{_install_command(name)}` ({name})" for name in TOOLS)
    raise DependencyNotInstalled(f"no tunnel is installed: run {ways}, or name a command with {PORT_FIELD}")


def _install_command(name: str) -> str:
    """Return the command that installs a tool on this machine."""
    if name == "ngrok":
        return 'pip install "agentgpt-remote[tunnel]"'
    if name == "localtunnel":
        return "npm install -g localtunnel"
    if sys.platform == "darwin":
        return "brew install cloudflared"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    place = "https://github.com/cloudflare/cloudflared/releases/latest/download"
    return f"sudo curl -fLo /usr/local/bin/cloudflared {place}/cloudflared-linux-{machine} && sudo chmod +x $_"


def _executable(name: str) -> str:
    found = _EXECUTABLES[name]()
    if found is None:
        raise DependencyNotInstalled(f"{name} is not installed: run `{_install_command(name)}`")
    return found


def _find_ngrok() -> str | None:
    """Return ngrok itself, or that of pyngrok, or the name that stands for one that pyngrok is to fetch."""
    on_path = shutil.which("ngrok")
    if on_path is not None and b"pyngrok" not in _first_bytes(on_path):  # which is a script that fetches it
        return on_path
    if importlib.util.find_spec("pyngrok") is None:
        return None
    from pyngrok import conf

    return str(conf.get_default().ngrok_path)


def _first_bytes(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_SHIM_BYTES)


def _ngrok_command(port: int) -> list[str]:
    path = _executable("ngrok")
    if not Path(path).exists():
        _fetch_ngrok(path)
    return [path, "http", f"http://127.0.0.1:{port}", "--log", "stdout", "--log-format", "json"]


def _fetch_ngrok(path: str) -> None:
    from pyngrok import ngrok
    from pyngrok.exception import PyngrokError

    try:
        ngrok.install_ngrok()
    except (PyngrokError, OSError) as error:
        raise DependencyNotInstalled(
            f"pyngrok could not fetch ngrok to {path} ({error}): install it from https://ngrok.com/download"
        ) from error


def _ngrok_urls(line: str) -> list[str]:
    """Return the URL of a line that says that a tunnel started, in either format of ngrok's log."""
    fields: dict[str, object] = {}
    if line.startswith("{"):
        try:
            fields = json.loads(line)
        except ValueError:
            return []
    else:
        fields = {key: value.strip('"') for key, value in _LOGFMT.findall(line)}
    url = fields.get("url")
    return [url] if fields.get("msg") == "started tunnel" and isinstance(url, str) else []


def _cloudflared_command(port: int) -> list[str]:
    # A configuration of a named tunnel, where the user has one, would stand in the way of a quick one.
    words = ["tunnel", "--config", os.devnull, "--no-autoupdate", "--url", f"http://127.0.0.1:{port}"]
    return [_executable("cloudflared"), *words]


def _localtunnel_command(port: int) -> list[str]:
    return [_executable("localtunnel"), "--port", str(port), "--local-host", "127.0.0.1"]


def _custom(command: str) -> Tool:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"tunnel: can't read the command ({error}): check its quotes") from error
    program = Path(words[0]).name

    def fill_in(port: int) -> list[str]:
        if shutil.which(words[0]) is None:
            raise DependencyNotInstalled(f"{program} is not installed: there is no such program to run the tunnel with")
        return [word.replace(PORT_FIELD, str(port)) for word in words]

    secrets = [word for before, word in itertools.pairwise(words) if _tells_of_secret(before)]
    secrets += [word.partition("=")[2] for word in words if "=" in word and _tells_of_secret(word.partition("=")[0])]
    return Tool(name=program, command=fill_in, find_urls=_URL.findall, secrets=secrets)


def _tells_of_secret(option: str) -> bool:
    return any(part in option.lower() for part in ("token", "secret", "pass", "key", "auth"))


_EXECUTABLES: dict[str, Callable[[], str | None]] = {
    "cloudflared": lambda: shutil.which("cloudflared"),
    "ngrok": _find_ngrok,
    "localtunnel": lambda: shutil.which("lt"),
}
_NGROK_ACCOUNT = (
    "ngrok needs a free account: run `ngrok config add-authtoken TOKEN` with the token of "
    "https://dashboard.ngrok.com/get-started/your-authtoken, or set NGROK_AUTHTOKEN"
)
TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            name="cloudflared",
            command=_cloudflared_command,
            find_urls=_QUICK_TUNNEL.findall,
            is_up=lambda line: "Registered tunnel connection" in line,
            advice=(
                ("429 Too Many Requests", "Cloudflare limits new quick tunnels: wait some minutes and try again"),
                ("no such host", "this machine can't look up Cloudflare's names: check its DNS and its way out"),
                ("failed to request quick Tunnel", "check that this machine may reach api.trycloudflare.com:443"),
            ),
        ),
        Tool(
            name="ngrok",
            command=_ngrok_command,
            find_urls=_ngrok_urls,
            advice=(
                ("ERR_NGROK_4018", _NGROK_ACCOUNT),
                ("ERR_NGROK_105", _NGROK_ACCOUNT),
                ("ERR_NGROK_107", _NGROK_ACCOUNT),
                ("ERR_NGROK_108", "the account's tunnels are all in use: end the other ngrok first"),
                ("ERR_NGROK_121", "this ngrok is too old: run `ngrok update`"),
            ),
        ),
        Tool(
            name="localtunnel",
            command=_localtunnel_command,
            find_urls=_LOCALTUNNEL.findall,
            advice=(("connection refused", "localtunnel.me does not answer: try cloudflared or ngrok"),),
        ),
    )
}
