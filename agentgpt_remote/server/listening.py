"""A trainer that hosts dial in to: a relay of its own with one room."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.serving import TLS
from agentgpt_remote.tokens import Keyring, Role, check_room

_ADDRESS = re.compile(r"(?P<host>\[[^\]]+\]|[^\[\]:/]*):(?P<port>\d{1,5})(?:/(?P<room>.+))?")
_ALL = "0.0.0.0"
DEFAULT_ROOM = "train"


class Address(NamedTuple):
    """Where to listen.

    Attributes:
        host: address.
        port: TCP port; 0 takes a free one.
        room: that hosts dial in to.
    """

    host: str
    port: int
    room: str


class MeetingPlace(NamedTuple):
    """A trainer's own room.

    Attributes:
        url: of the room, as this machine reaches it.
        public_url: as hosts are to dial it, but for the machine's name where it listens on all addresses.
        token: the trainer's, or ``None`` where none is asked for.
        pin: fingerprint of the certificate, or ``None`` without TLS.
    """

    url: str
    public_url: str
    token: str | None
    pin: str | None

    def __repr__(self) -> str:
        return f"MeetingPlace({self.public_url!r})"


def parse_address(text: str) -> Address:
    """Return what ``HOST:PORT``, ``:PORT`` or ``HOST:PORT/ROOM`` says.

    >>> parse_address("127.0.0.1:9000")
    Address(host='127.0.0.1', port=9000, room='train')

    Raises:
        ConfigError: it says something else.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ConfigError(f"can't listen on {text!r}: expected HOST:PORT, such as 127.0.0.1:9000, or :9000/ROOM")
    return Address(found["host"].strip("[]") or _ALL, int(found["port"]), check_room(found["room"] or DEFAULT_ROOM))


@contextlib.contextmanager
def listening(
    address: Address, *, secret: str | None = None, tls: TLS | None = None, insecure: bool | None = None
) -> Iterator[MeetingPlace]:
    """Let hosts dial in to this process for as long as the block runs.

    Args:
        address: where to listen.
        secret: with which tokens are made and checked; ``None`` for this machine's hosts only.
        tls: certificate to serve ``wss://`` with.
        insecure: whether another address than loopback may be served without TLS.

    Raises:
        AuthError: the address is not loopback, and there is no secret or no TLS.
        ConfigError: the secret is too short.
        PortInUse: another process listens on the port.
    """
    with serve_relay(
        host=address.host, port=address.port, secret=secret, tls=tls, insecure=insecure, block=False
    ) as relay:
        scheme, _, rest = relay.url.partition("://")
        port = rest.rpartition(":")[2]
        public_url = f"{relay.url}/{address.room}"
        url = f"{scheme}://{_own_name(address.host)}:{port}/{address.room}"
        token = None if secret is None else Keyring(secret).make(Role.TRAINER, address.room)
        yield MeetingPlace(url, public_url, token, None if tls is None else tls.pin)


def _own_name(host: str) -> str:
    """Return the address at which this machine reaches itself."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return f"[{host}]" if address.version == 6 else host
    return host
