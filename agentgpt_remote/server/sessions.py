"""Sessions of a host: they own environments, survive a dropped connection, and end when their client is gone."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import AutoresetMode

from agentgpt_remote.connection import DEFAULT_MAX_FRAME_BYTES
from agentgpt_remote.errors import (
    CapacityReached,
    ConfigError,
    ConnectionLost,
    ProtocolError,
    RemoteTimeout,
)
from agentgpt_remote.handshake import MAX_ENVS, Limits, Open, Opened, Resume, Resumed, resume_proof, versions
from agentgpt_remote.packing import unpack_value
from agentgpt_remote.protocol import (
    Arrival,
    Buffer,
    Envelope,
    HostSession,
    Kind,
    Reply,
    join_message,
    parse_envelope,
    reply_nbytes,
)
from agentgpt_remote.server.hosted import HostedEnv, failure
from agentgpt_remote.server.hosted_agents import HostedAgents
from agentgpt_remote.server.runner import InlineRunner, Pace, SessionThread, timed
from agentgpt_remote.server.sources import EnvRequest, EnvSource
from agentgpt_remote.server.workers import WorkerPool

_logger = logging.getLogger("agentgpt_remote.server")
_CLOSE_TIMEOUT_S = 8.0
_WORKER_START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """What a host allows.

    Attributes:
        num_envs: environments in all sessions together; ``None`` for no limit.
        max_sessions: sessions at a time.
        resume_window_s: how long a session waits for its client after a dropped connection, in seconds.
        step_timeout_s: how long one request may take an environment before its session is given up, in seconds.
        max_frame_bytes: largest message, in bytes.
        workers: processes that run the environments; 0 for the host's own, ``None`` for as many as slow ones need.
    """

    num_envs: int | None = None
    max_sessions: int = 1024
    resume_window_s: float = 60.0
    step_timeout_s: float = 600.0
    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES
    workers: int | None = None


class Session:
    """One client's environments.

    Attributes:
        session_id: public name of the session.
        num_envs: how many environments it holds.
    """

    def __init__(self, env: HostedEnv, thread: SessionThread, inline: InlineRunner, limits: HostLimits) -> None:
        self.session_id = secrets.token_hex(8)
        self.secret = secrets.token_urlsafe(24)
        self.num_envs = env.num_envs or 1
        self.ended = False
        self._resume_attempt = 0
        self._hangs = False
        self._env = env
        self._thread = thread
        self._inline = inline
        self._limits = limits
        # A worker that hangs is ended at the limit itself; this one then only waits for another to start.
        self._timeout_s = limits.step_timeout_s + (_WORKER_START_S if env.in_workers else 0.0)
        self._numbering = HostSession()
        self._executing: asyncio.Future[Reply] | None = None
        self._paces: dict[int, Pace] = {}
        if env.may_run_inline:
            self._paces = {Kind.RESET: Pace(), Kind.STEP: Pace()}
        self.detach: Callable[[], None] | None = None

    def opened(self) -> Opened:
        """Return the answer to the handshake that made the session."""
        limits = Limits(
            max_frame_bytes=self._limits.max_frame_bytes, resume_window_s=float(self._limits.resume_window_s)
        )
        return self._env.opened(self.session_id, self.secret, limits)

    def takes(self, message: Resume) -> bool:
        """Tell whether a message proves that its sender holds the secret, and has not been received before."""
        proof = resume_proof(self.session_id, self.secret, message.attempt)
        if not hmac.compare_digest(proof, message.proof) or message.attempt <= self._resume_attempt:
            return False
        self._resume_attempt = message.attempt
        return True

    def resumed(self) -> Resumed:
        """Return the answer to a handshake that resumes the session."""
        return Resumed(versions=versions(), executed=self._numbering.executed)

    def handle(self, data: Buffer) -> Reply | asyncio.Future[Reply]:
        """Take a request: execute it, or find the kept reply where it was executed before.

        Returns:
            The reply, or the future of it where the environment steps in the session's thread.

        Raises:
            ProtocolError: the request is malformed or out of order.
        """
        envelope = parse_envelope(data)
        arrival = self._numbering.receive(envelope)
        if arrival is Arrival.ANSWERED:
            return self._numbering.kept_reply(envelope.sequence)
        if arrival is Arrival.EXECUTE:
            pace = self._paces.get(envelope.kind)
            if pace is not None and pace.cheap:
                reply, seconds = self._inline.run(self._env.execute, envelope)
                pace.record(seconds)
                if reply is None:
                    reply = self._give_up(envelope)
                return self._numbering.answer(envelope.sequence, self._checked(envelope, reply))
            if self._executing is None or self._executing.done():
                self._env.begin(envelope)
            self._executing = asyncio.ensure_future(self._execute_in_thread(envelope, pace))
        if self._executing is None:
            raise ProtocolError(f"request {envelope.sequence} is neither executed nor executing")
        return self._executing

    async def _execute_in_thread(self, envelope: Envelope, pace: Pace | None) -> Reply:
        job = self._thread.run(timed, self._env.execute, envelope)
        try:
            reply, seconds = await asyncio.wait_for(job, self._timeout_s)
        except TimeoutError:
            reply, seconds = self._give_up(envelope), self._timeout_s
        if pace is not None:
            pace.record(seconds)
        return self._numbering.answer(envelope.sequence, self._checked(envelope, reply))

    def _give_up(self, envelope: Envelope) -> bytes:
        error = RemoteTimeout(
            f"the environment took longer than step_timeout_s={self._limits.step_timeout_s:g} for one request; "
            "its session has ended. Connect again, or start the host with a longer step_timeout_s"
        )
        _logger.warning("environment hangs session=%s kind=%d", self.session_id, envelope.kind)
        self.ended = self._hangs = True
        return _error_reply(envelope.sequence, error)

    def _checked(self, envelope: Envelope, reply: Reply) -> Reply:
        """Return the reply, or an error in its place where it is too large to be sent."""
        if envelope.kind == Kind.CLOSE:
            self.ended = True
        size = reply_nbytes(reply)
        if size <= self._limits.max_frame_bytes:
            return reply
        error = ProtocolError(
            f"a reply of {size} bytes is over the host's frame limit of {self._limits.max_frame_bytes}: "
            "use fewer environments in one session, or start the host with a larger max_frame_bytes"
        )
        return _error_reply(envelope.sequence, error)

    async def end(self) -> None:
        """Close the environments, waiting for a while; one that hangs is left behind with its thread."""
        self.ended = True
        closing = self._thread.run(self._env.close)
        self._thread.end()
        if self._hangs:
            return
        try:
            await asyncio.wait_for(closing, _CLOSE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - an environment may raise anything from close
            _logger.warning("environment did not close session=%s error=%r", self.session_id, error)


def _close_all(envs: list[HostedEnv]) -> None:
    for env in envs:
        try:
            env.close()
        except Exception as error:  # noqa: BLE001 - an environment may raise anything from close
            _logger.warning("environment did not close error=%r", error)


def _error_reply(sequence: int, error: Exception) -> bytes:
    parts, flags, extras = failure(error)
    return join_message(Kind.ERROR, sequence, parts, flags=flags, extras=extras)


class SessionTable:
    """All sessions of a host, and its capacity.

    Args:
        source: what is served.
        limits: how much of it.

    Attributes:
        on_change: called when what :meth:`health` tells has changed.
    """

    def __init__(self, source: EnvSource, limits: HostLimits) -> None:
        self.source = source
        self.limits = limits
        self._workers = WorkerPool(source, limits.workers, limits.step_timeout_s)
        self._inline = InlineRunner(limits.step_timeout_s)
        self._sessions: dict[str, Session] = {}
        self._reserved_envs = 0
        self._reserved_sessions = 0
        self._reapers: dict[str, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def session_count(self) -> int:
        """Number of sessions."""
        return self._reserved_sessions

    @property
    def env_count(self) -> int:
        """Number of environments in all sessions."""
        return self._reserved_envs

    async def open(self, message: Open) -> Session:
        """Make a session and its environments.

        Raises:
            NameNotFound: the client expects another environment.
            CapacityReached: the host has no room for it.
            ConfigError: the request makes no sense.
            Exception: whatever the environment's constructor raised.
        """
        self.source.check_name(message.source)
        request, count = self._read(message)
        envs = 1 if count is None else count
        self._reserve(envs)
        thread = SessionThread("agentgpt-session", asyncio.get_running_loop())
        made: list[HostedEnv] = []
        try:
            job = thread.run(lambda: made.append(self._make(request)))
            await asyncio.wait_for(job, self.limits.step_timeout_s)
            session = Session(made[0], thread, self._inline, self.limits)
        except BaseException as error:
            thread.run(_close_all, made)  # what a constructor makes that was not waited for any longer
            thread.end()
            self._release(envs)
            if isinstance(error, TimeoutError) and not isinstance(error, RemoteTimeout):
                raise RemoteTimeout(
                    f"the environment's constructor took longer than {self.limits.step_timeout_s:g} s"
                ) from error
            raise
        self._sessions[session.session_id] = session
        _logger.info("session opened session=%s envs=%d", session.session_id, envs)
        return session

    def _make(self, request: EnvRequest) -> HostedEnv:
        if request.agents:
            return HostedAgents(self.source.make_agents, request)
        return HostedEnv(self._workers.make, request)

    def _read(self, message: Open) -> tuple[EnvRequest, int | None]:
        """Return the request and the number of environments, ``None`` for a single env."""
        count = message.num_envs
        if count == 0:
            count = self.limits.num_envs or 1
        if count is not None and count < 1:
            raise ConfigError(f"num_envs={count} is out of range: expected at least 1")
        try:
            mode = AutoresetMode(message.autoreset_mode or AutoresetMode.NEXT_STEP)
        except ValueError as error:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ConfigError(f"unknown autoreset_mode {message.autoreset_mode!r}: expected {modes}") from error
        kwargs = unpack_value(message.kwargs) if message.kwargs else {}
        if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
            raise ProtocolError("the environment's arguments must be a dict with names as keys")
        request = EnvRequest(
            source=message.source,
            num_envs=count,
            autoreset_mode=mode,
            render_mode=message.render_mode,
            kwargs=kwargs,
            agents=message.agents,
        )
        return request, count

    def _reserve(self, envs: int) -> None:
        limits = self.limits
        if self._reserved_sessions >= limits.max_sessions:
            raise CapacityReached(f"the host is at its limit of max_sessions={limits.max_sessions}")
        if self.source.instance is not None and self._reserved_sessions:
            raise CapacityReached(f"{self.source.name} is served as an instance: one session at a time")
        if limits.num_envs is not None and self._reserved_envs + envs > limits.num_envs:
            lost = len(self._reapers)
            kept = f" ({lost} lost sessions are kept for up to {limits.resume_window_s:g} s)" if lost else ""
            raise CapacityReached(
                f"asked for {envs} environments: the host offers num_envs={limits.num_envs}, "
                f"{self._reserved_envs} of them in use{kept}. Ask for fewer, or start it with more --num-envs"
            )
        if envs > MAX_ENVS:  # a slip of the client's must not take all memory of a host without a limit
            raise CapacityReached(f"asked for {envs} environments: one session has at most {MAX_ENVS}. Ask for fewer")
        self._reserved_sessions += 1
        self._reserved_envs += envs
        self.on_change()

    def _release(self, envs: int) -> None:
        self._reserved_sessions -= 1
        self._reserved_envs -= envs
        self.on_change()

    def resume(self, message: Resume) -> Session:
        """Return the session that a client lost its connection to.

        Raises:
            ConnectionLost: there is none by that id and secret (any more), or the message is one of before.
        """
        session = self._sessions.get(message.session_id)
        if session is None or session.ended or not session.takes(message):
            raise ConnectionLost(
                f"session {message.session_id} can't be resumed: it ended, or was lost for longer than "
                f"{self.limits.resume_window_s:g} s, or belongs to another client. Make the environment again"
            )
        self._keep(session)
        detach, session.detach = session.detach, None
        if detach is not None:
            detach()
        _logger.info("session resumed session=%s", session.session_id)
        return session

    def _keep(self, session: Session) -> None:
        reaper = self._reapers.pop(session.session_id, None)
        if reaper is not None:
            reaper.cancel()
            self.on_change()

    def lost(self, session: Session) -> None:
        """Take note that a session's connection is gone: it is ended unless it resumes in time."""
        if session.session_id not in self._sessions:
            return
        if session.ended:
            self.end(session)
            return
        _logger.info("connection lost session=%s window_s=%g", session.session_id, self.limits.resume_window_s)
        self._keep(session)
        self._reapers[session.session_id] = asyncio.get_running_loop().call_later(
            self.limits.resume_window_s, self.end, session
        )
        self.on_change()

    def end(self, session: Session) -> None:
        """End a session; its environments close in the background."""
        if self._sessions.pop(session.session_id, None) is None:
            return
        self._keep(session)
        session.ended = True
        task = asyncio.ensure_future(self._finish(session))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _finish(self, session: Session) -> None:
        await session.end()
        self._release(session.num_envs)
        _logger.info("session ended session=%s", session.session_id)

    async def close(self) -> None:
        """End all sessions and wait for their environments to close."""
        for session in list(self._sessions.values()):
            self.end(session)
        if self._ending:
            await asyncio.wait(list(self._ending), timeout=_CLOSE_TIMEOUT_S)
        self._inline.close()
        await asyncio.to_thread(self._workers.close)

    def health(self) -> dict[str, Any]:
        """Return what the health endpoint tells."""
        return {
            "source": self.source.name,
            "sessions": self.session_count,
            "envs": self.env_count,
            "num_envs": self.limits.num_envs,
            "workers": self._workers.running,
            "lost_envs": sum(self._sessions[session_id].num_envs for session_id in self._reapers),
            "resume_window_s": self.limits.resume_window_s,
        }
