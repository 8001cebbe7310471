"""Relays in threads of the test's process, with tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from agentgpt_remote.server import serve
from agentgpt_remote.server.relay import serve_relay
from agentgpt_remote.server.rooms import RelayLimits
from agentgpt_remote.serving import BackgroundServer
from agentgpt_remote.tokens import Keyring, Role
from tests.reach.processes import SECRET
from tests.wrappers.odd_envs import CountingEnv


@dataclass(frozen=True)
class Guarded:
    """A relay with tokens, and a host in its room ``lab``.

    Attributes:
        relay: the relay.
        keyring: makes its tokens.
    """

    relay: BackgroundServer
    keyring: Keyring

    @property
    def room(self) -> str:
        """URL of the room."""
        return f"{self.relay.url}/lab"

    def token(self, role: Role, room: str = "lab") -> str:
        """Return a token."""
        return self.keyring.make(role, room)


@pytest.fixture
def serve_into() -> Iterator[Callable[..., Any]]:
    """Start hosts that dial out from threads of this process, which end with the test."""
    with ExitStack() as stack:

        def start(room: str, source: Any = CountingEnv, **options: Any) -> Any:
            return stack.enter_context(serve(source, connect=room, block=False, **options))

        yield start


@pytest.fixture
def guarded(serve_into: Callable[..., Any]) -> Iterator[Guarded]:
    limits = RelayLimits(stall_timeout_s=1.0, max_frame_bytes=4_000_000)
    with serve_relay(port=0, secret=SECRET, limits=limits, block=False) as relay:
        guarded = Guarded(relay, Keyring(SECRET))
        serve_into(guarded.room, num_envs=64, token=guarded.token(Role.HOST))
        yield guarded
