"""The way to a policy server behind a managed inference endpoint, such as SageMaker's."""

from __future__ import annotations

import contextlib
import time

import msgspec

from agentgpt_remote._version import __version__
from agentgpt_remote.endpoints import Endpoint
from agentgpt_remote.errors import AgentGPTError, ConnectionLost, ProtocolError, RemoteTimeout
from agentgpt_remote.policy import wire

NEW_SESSION = "NEW_SESSION"
_RETRY_S = 0.2
_CLOSE_TIMEOUT_S = 2.0


class EndpointChannel:
    """Requests to an endpoint, in a session that stays on one instance while it lives.

    Args:
        endpoint: the endpoint.
        url: how it is called in errors.

    Attributes:
        url: as above.
        max_body_bytes: largest request that the endpoint takes.
    """

    max_body_bytes = 6_291_456

    def __init__(self, endpoint: Endpoint, url: str) -> None:
        self._endpoint, self.url = endpoint, url
        self._session_id: str | None = None
        self._greeted = False

    @property
    def connected(self) -> bool:
        """Whether the last session may still be there."""
        return self._greeted

    def open(self, deadline: float, *, patient: bool = False) -> wire.Welcome:
        """Greet; the session begins with the next request.

        Args:
            deadline: on the monotonic clock, in seconds.
            patient: try again until then while the endpoint can't be reached.
        """
        self._session_id = None
        hello = wire.encode(wire.Hello(protocol=wire.PROTOCOL_VERSION, version=__version__))
        message = wire.pack_frame(wire.HELLO, 0, 0, 0, (), hello)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RemoteTimeout(f"{self.url} did not greet in time")
            try:
                frame = wire.unpack_frame(self._endpoint.invoke(message, session_id=None, timeout_s=left).body)
                break
            except ConnectionLost:
                if not patient or time.monotonic() + _RETRY_S >= deadline:
                    raise
                time.sleep(_RETRY_S)
        if frame.kind == wire.FAILED:
            wire.raise_failure(frame)
        try:
            welcome = msgspec.msgpack.decode(frame.tail, type=wire.Welcome)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"{self.url} does not greet as a policy server: {error}") from error
        wire.check_version(welcome.protocol, welcome.version, "server")
        self._greeted = True
        return welcome

    def exchange(self, message: bytes, timeout_s: float) -> wire.Message:
        """Return the reply to a message.

        Raises:
            ConnectionLost: the endpoint can't be reached, or the session is gone.
            RemoteTimeout: there was no reply in time.
        """
        try:
            reply = self._endpoint.invoke(message, session_id=self._session_id or NEW_SESSION, timeout_s=timeout_s)
        except (AgentGPTError, KeyboardInterrupt):
            self.drop()
            raise
        if reply.new_session is not None:
            self._session_id = reply.new_session
        if len(reply.body) >= wire.RAW_OFFSET and _names_nobody(wire.unpack_frame(reply.body)):
            self.drop()
            raise ConnectionLost(f"the session at {self.url} has ended")
        return reply.body

    def drop(self) -> None:
        """Forget the session."""
        self._session_id, self._greeted = None, False

    def close(self) -> None:
        """End the session."""
        if self._session_id is not None:
            with contextlib.suppress(AgentGPTError):  # it ends by itself later
                message = wire.pack_frame(wire.BYE, 0, 0, 0, ())
                self._endpoint.invoke(message, session_id=self._session_id, timeout_s=_CLOSE_TIMEOUT_S)
        self.drop()
        self._endpoint.close()


def _names_nobody(frame: wire.Frame) -> bool:
    """Tell whether a reply says that the whole session is lost."""
    return frame.kind == wire.LOST and msgspec.msgpack.decode(frame.tail, type=wire.AgentList).ids is None
