"""Hosts for the tests: real servers, in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from agentgpt_remote.server import serve
from agentgpt_remote.serving import BackgroundServer

ServeFunction = Callable[..., BackgroundServer]


@pytest.fixture
def serve_here() -> Iterator[ServeFunction]:
    """Start hosts on free ports, which end with the test."""
    with ExitStack() as stack:

        def start(source: Any, **options: Any) -> BackgroundServer:
            return stack.enter_context(serve(source, port=0, block=False, **options))

        yield start
