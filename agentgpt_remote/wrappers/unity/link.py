"""The connection that a player makes to its host: a gRPC server on loopback, for one player."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from agentgpt_remote.errors import PlayerFailed, PortInUse, ProtocolMismatch
from agentgpt_remote.wrappers.unity import compat

_OK, _QUIT = 200, 400
_POLL_S = 0.1
_LARGE = 2**31 - 1
_END = None


class _Threads(Executor):
    """A daemon thread for each call: ThreadPoolExecutor's are joined at exit, where a call may wait for ever."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - handed to whoever holds the future
                future.set_exception(error)

        threading.Thread(target=work, name="agentgpt-unity", daemon=True).start()
        return future


class PlayerLink:
    """What UnityEnvironment calls a communicator; unlike its own, on loopback only, on a port that nobody else has.

    Args:
        port: to listen on; 0 takes a free one.
        timeout_s: how long to wait for the player, in seconds; may be changed.

    Attributes:
        port: where it listens.
        timeout_s: as above.

    Raises:
        PortInUse: another process listens on the port.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        compat.load()
        import grpc
        from mlagents_envs.communicator_objects import unity_to_external_pb2_grpc as service
        from mlagents_envs.communicator_objects.unity_message_pb2 import UnityMessageProto

        self.timeout_s = timeout_s
        self._message = UnityMessageProto
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_open = True
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_send_message_length", _LARGE),
            ("grpc.max_receive_message_length", _LARGE),
        ]
        self._server = grpc.server(_Threads(), options=options)
        service.add_UnityToExternalProtoServicer_to_server(self, self._server)
        reason: Exception | None = None
        try:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            self.port, reason = 0, error
        if not self.port:
            self._server.stop(None)
            raise PortInUse(
                f"port {port} is taken: another host waits for the Unity editor there. End it, or choose another "
                "port on both sides"
            ) from reason
        self._server.start()

    def Exchange(self, request: Any, context: Any) -> Any:
        """Hand the player's message over, and answer when there is a command for it."""
        answered: list[bool] = []

        def on_done() -> None:
            if not answered:  # the player hung up instead of waiting for its command
                self._inbox.put(_END)

        context.add_callback(on_done)
        self._inbox.put(request)
        reply = self._outbox.get()
        answered.append(True)
        return self._quit() if reply is _END else reply

    def _quit(self) -> Any:
        message = self._message()
        message.header.status = _QUIT
        return message

    def _receive(self, poll: Callable[[], None] | None, what: str) -> Any:
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                message = self._inbox.get(timeout=max(0.0, min(_POLL_S, deadline - time.monotonic())))
            except queue.Empty:
                if poll is not None:
                    poll()
                if time.monotonic() >= deadline:
                    raise PlayerFailed(f"the Unity player {what} within {self.timeout_s:g} s") from None
                continue
            if message is _END:
                if poll is not None:
                    self._await_end(poll)
                raise PlayerFailed("the Unity player closed its connection")
            if message.header.status != _OK and message.header.status:
                raise PlayerFailed(f"the Unity player quit (status {message.header.status})")
            return message

    def _await_end(self, poll: Callable[[], None]) -> None:
        """Give a player that hung up a moment to end, so that its exit code can be told."""
        for _ in range(10):
            poll()
            time.sleep(0.02)

    def send(self, inputs: Any) -> None:
        """Send a command."""
        message = self._message()
        message.header.status = _OK
        message.unity_input.CopyFrom(inputs)
        self._outbox.put(message)

    def initialize(self, inputs: Any, poll_callback: Callable[[], None] | None = None) -> Any:
        """Return what the player tells of itself, and answer with the initial parameters.

        Raises:
            PlayerFailed: it ended, or did not connect in time.
            ProtocolMismatch: it speaks another version.
        """
        output = self._receive(poll_callback, _NEVER_CONNECTED).unity_output
        theirs = output.rl_initialization_output.communication_version
        ours = inputs.rl_initialization_input.communication_version
        if theirs.split(".")[0] != ours.split(".")[0]:
            package = output.rl_initialization_output.package_version or "unknown"
            raise ProtocolMismatch(
                f"the Unity player speaks communicator API {theirs or 'unknown'} (ML-Agents package {package}), this "
                f"host {ours}: build the player with an ML-Agents package of API {ours.split('.')[0]}.x, such as 2.0"
            )
        self.send(inputs)
        self._receive(poll_callback, "did not go on after the first message")
        return output

    def exchange(self, inputs: Any, poll_callback: Callable[[], None] | None = None) -> Any:
        """Send a command and return what the player answers.

        Raises:
            PlayerFailed: it ended, hung up, quit, or did not answer in time.
        """
        self.send(inputs)
        return self.receive(poll_callback)

    def receive(self, poll_callback: Callable[[], None] | None = None) -> Any:
        """Return what the player answers to the command that was sent; raises as :meth:`exchange`."""
        return self._receive(poll_callback, "did not answer (it hangs, or one step takes longer)").unity_output

    def close(self) -> None:
        """Tell the player to quit, and end the server; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            for _ in range(2):  # as many as may wait
                self._outbox.put(_END)
            self._server.stop(0.5)


_NEVER_CONNECTED = (
    "did not connect. Is it a build with ML-Agents whose Behavior Type is Default, and does it start without a "
    "screen or a question? It did not"
)
