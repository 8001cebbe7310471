"""A tunnel's tool that needs no internet: prints what the real one prints, and forwards TLS from another port.

It is put on PATH under a real tool's name. Variables tell it what to do: ``STAND_IN_PORT`` is a file for the port on
which it accepts connections to the public name, ``STAND_IN_FAULT`` what goes wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

TLS = Path(__file__).parent.parent / "tls"
HOSTS = {
    "cloudflared": "seasonal-deck-organisms-sf.trycloudflare.com",
    "ngrok": "4f2a-203-0-113-7.ngrok-free.app",
    "lt": "flabby-seahorse-12.loca.lt",
    "mytunnel": "lab.tunnel.example",
}
AUTHTOKEN = "2cX9fakeauthtokenofthetests"
_FAULT = os.environ.get("STAND_IN_FAULT", "")


def say(text: str, stream: int = 1) -> None:
    os.write(stream, (text + "\n").encode())


def cloudflared(host: str) -> tuple[list[str], list[str]]:
    """Return the lines up to the URL, and those after it; all of them go to standard error."""
    at, width = "2026-02-11T09:14:27Z", 92
    boxed = "  Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):"
    before = [
        f"{at} INF Thank you for trying Cloudflare Tunnel. Doing so, without a Cloudflare account, is a quick way to "
        "experiment and try it out. However, be aware that these account-less Tunnels have no uptime guarantee, are "
        "subject to the Cloudflare Online Services Terms of Use (https://www.cloudflare.com/website-terms/), and "
        "Cloudflare reserves the right to investigate your use of Tunnels for violations of such terms. If you intend "
        "to use Tunnels in production you should use a pre-created named tunnel by following: "
        "https://developers.cloudflare.com/cloudflare-one/connections/connect-apps",
        f"{at} INF Requesting new quick Tunnel on trycloudflare.com...",
    ]
    after = [
        f"{at} INF +{'-' * width}+",
        f"{at} INF |{boxed:<{width}}|",
        f"{at} INF |{f'  https://{host}':<{width}}|",
        f"{at} INF +{'-' * width}+",
        f"{at} ERR Configuration file /dev/null was empty",
        f"{at} INF Version 2026.1.2 (Checksum 1b2c)",
        f"{at} INF GOOS: linux, GOVersion: go1.24.9, GoArch: amd64",
        f"{at} INF Generated Connector ID: 6e1f3c7a-58a4-4f0b-9d9e-0f4e8e0a2f11",
        f"{at} INF Initial protocol quic",
        f"{at} INF Starting metrics server on 127.0.0.1:20241/metrics",
        f"{at} INF Registered tunnel connection connIndex=0 connection=f1d3 event=0 ip=198.41.200.13 location=fra08 "
        "protocol=quic",
    ]
    return before, after


def ngrok(host: str, target: str, log_format: str) -> tuple[list[str], list[str]]:
    if log_format == "json":
        return (
            [
                '{"lvl":"info","msg":"no configuration paths supplied","t":"2026-02-11T09:14:27.1Z"}',
                '{"addr":"127.0.0.1:4040","allow_hosts":[],"lvl":"info","msg":"starting web service","obj":"web",'
                '"t":"2026-02-11T09:14:27.2Z"}',
                '{"lvl":"info","msg":"client session established","obj":"tunnels.session","t":"2026-02-11T09:14:27Z"}',
            ],
            [
                f'{{"addr":"{target}","lvl":"info","msg":"started tunnel","name":"command_line","obj":"tunnels",'
                f'"t":"2026-02-11T09:14:27.8Z","url":"https://{host}"}}'
            ],
        )
    return (
        ['t=2026-02-11T09:14:27+0000 lvl=info msg="starting web service" obj=web addr=127.0.0.1:4040 allow_hosts=[]'],
        [
            't=2026-02-11T09:14:27+0000 lvl=info msg="started tunnel" obj=tunnels name=command_line '
            f"addr={target} url=https://{host}"
        ],
    )


def ngrok_refusal() -> list[str]:
    return [
        '{"err":"authentication failed: The authtoken you specified is properly formed, but it is invalid.'
        f'\\nYour authtoken: {AUTHTOKEN}\\n\\nERR_NGROK_107\\n","lvl":"eror","msg":"failed to auth","obj":"csess"}}',
        "ERROR:  authentication failed: The authtoken you specified is properly formed, but it is invalid.",
        f"ERROR:  Your authtoken: {AUTHTOKEN}",
        "ERROR:  ERR_NGROK_107",
    ]


def custom(host: str) -> tuple[list[str], list[str]]:
    return (
        ["Welcome! Read https://docs.tunnel.example/start first.", f"password: {AUTHTOKEN}"],
        [f"\x1b[32mForwarding\x1b[0m http://{host} and https://{host}/ to this machine"],
    )


def forward(listener: socket.socket, target: tuple[str, int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "tunnel-cert.pem", TLS / "tunnel-key.pem")
    while True:
        client = listener.accept()[0]
        threading.Thread(target=_join, args=(context, client, target), daemon=True).start()


def _join(context: ssl.SSLContext, client: socket.socket, target: tuple[str, int]) -> None:
    try:
        public, near = context.wrap_socket(client, server_side=True), socket.create_connection(target)
        threading.Thread(target=_pump, args=(near, public), daemon=True).start()
        _pump(public, near)
    except OSError:
        client.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def arguments(name: str) -> tuple[int, str]:
    """Return the port to forward to and ngrok's log format; refuse what the real tool does not know."""
    parser = argparse.ArgumentParser(name)
    if name == "cloudflared":
        parser.add_argument("command", choices=["tunnel"])
        parser.add_argument("--config", required=True)
        parser.add_argument("--no-autoupdate", action="store_true")
        parser.add_argument("--url", required=True)
    elif name == "ngrok":
        parser.add_argument("command", choices=["http"])
        parser.add_argument("url")
        parser.add_argument("--log", required=True)
        parser.add_argument("--log-format", default="term")
    elif name == "lt":
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--local-host", default="localhost")
    else:
        parser.add_argument("port", type=int)
        parser.add_argument("--authtoken")
    found = parser.parse_args()
    port = urlsplit(found.url).port if "url" in found else found.port
    return port or 80, os.environ.get("STAND_IN_LOG_FORMAT", getattr(found, "log_format", ""))


def main() -> None:
    name = Path(sys.argv[0]).name
    port, log_format = arguments(name)
    host = HOSTS[name]
    stream = 2 if name == "cloudflared" else 1
    if _FAULT == "refused":
        for line in ngrok_refusal():
            say(line)
        sys.exit(1)
    if _FAULT == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # As a tool that has helpers of its own.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    listener = socket.create_server(("127.0.0.1", 0))
    listening = Path(os.environ["STAND_IN_PORT"])
    if _FAULT != "elsewhere":
        listening.write_text(str(listener.getsockname()[1]))
    threading.Thread(target=forward, args=(listener, ("127.0.0.1", port)), daemon=True).start()
    if name == "cloudflared":
        before, after = cloudflared(host)
    elif name == "ngrok":
        before, after = ngrok(host, f"http://127.0.0.1:{port}", log_format)
    elif name == "lt":
        before, after = [], [f"your url is: https://{host}"]
    else:
        before, after = custom(host)
    for line in before:
        say(line, stream)
    if _FAULT != "silent":
        for line in after:
            say(line, stream)
    (listening.parent / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.02)
        if (listening.parent / "die").exists():
            say("ERR the edge closed the connection", stream)
            sys.exit(3)


if __name__ == "__main__":
    main()
