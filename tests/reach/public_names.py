"""Have the stand-in's public names lead to it, as the internet would; also where this is found as sitecustomize."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

PUBLIC = (".trycloudflare.com", ".ngrok-free.app", ".loca.lt", ".tunnel.example")
UNKNOWN = "docs.tunnel.example"
_real = socket.getaddrinfo


def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
    """Resolve a public name to the port that the stand-in wrote down, and all others as ever."""
    name = host.decode() if isinstance(host, bytes) else str(host)
    if not name.endswith(PUBLIC):
        return _real(host, port, *args, **kwargs)
    try:
        if name == UNKNOWN:
            raise ValueError(name)
        port = int(Path(os.environ["STAND_IN_PORT"]).read_text())
    except (FileNotFoundError, ValueError) as error:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


if "STAND_IN_PORT" in os.environ:
    socket.getaddrinfo = getaddrinfo
