"""One Unity player: its process, its log, and mlagents-envs' UnityEnvironment on top of its connection."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentgpt_remote.errors import PlayerFailed
from agentgpt_remote.wrappers.unity import compat, supervisor
from agentgpt_remote.wrappers.unity.link import PlayerLink

EDITOR_PORT = 5004
_TAIL_BYTES = 4096
_QUIT_S, _KILL_S = 3.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a player is started.

    Attributes:
        program: the player's program; None for the editor, which is started by hand.
        seed: for the player's random numbers.
        graphics: whether it renders; images that agents see need it.
        args: further words of its command line.
        connect_timeout_s: how long it may take to connect, in seconds.
        step_timeout_s: how long it may take to answer a command, in seconds.
        port: where the editor connects.
        log_dir: folder for its logs; by default a temporary one, which is kept where the player fails.
        variables: added to its environment variables.
    """

    program: Path | None
    seed: int = 0
    graphics: bool = False
    args: tuple[str, ...] = ()
    connect_timeout_s: float = 60.0
    step_timeout_s: float = 60.0
    port: int = EDITOR_PORT
    log_dir: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)


class PlayerProcess:
    """A player's process group, and its logs.

    Args:
        launch: how to start it.
        port: where it must connect.

    Attributes:
        pid: of the process that watches over it, which leads its group.
        folder: where its logs are.
    """

    def __init__(self, launch: Launch, port: int) -> None:
        self._kept = launch.log_dir is not None
        if launch.log_dir is not None:
            launch.log_dir.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="player-", dir=launch.log_dir))
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="agentgpt-unity-"))
        words = [str(launch.program), "--mlagents-port", str(port)]
        words += [] if launch.graphics else ["-nographics", "-batchmode"]
        words += ["-logFile", str(self.folder / "player.log"), *launch.args]
        with (self.folder / "output.log").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(supervisor.__file__)), *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **launch.variables},
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the player's exit code, 128 and the signal's number where one ended it; None while it runs."""
        return self._process.poll()

    def keep(self) -> None:
        """Leave its logs where they are when it ends."""
        self._kept = True

    def tail(self) -> str:
        """Return the last lines of what it printed and logged, and where the rest is."""
        texts = []
        for name in ("player.log", "output.log"):
            path = self.folder / name
            if path.exists() and path.stat().st_size:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                    texts.append(f"Last lines of {path}:\n{file.read().decode('utf-8', 'replace').strip()}")
        return "\n".join(texts) or f"Its log in {self.folder} is empty."

    def end(self, wait_s: float) -> None:
        """End the process and all that it started, and wait until they are gone.

        Args:
            wait_s: how long it may take to end by itself first, in seconds.
        """
        if self._process.returncode is None and wait_s:
            try:
                self._process.wait(wait_s)
            except subprocess.TimeoutExpired:
                wait_s = 0.0
        deadline = time.monotonic() + _KILL_S
        while _kill_group(self.pid) and time.monotonic() < deadline:  # also what the player left behind
            self._process.poll()
            time.sleep(0.005)
        self._process.wait(10.0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)


def _kill_group(pid: int) -> bool:
    """Kill what is left of a process group; return whether there was anything."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of processes that have ended
        return False
    return True


@functools.cache
def _player_class() -> Any:
    environment = compat.load()

    class Player(environment.UnityEnvironment):  # type: ignore[misc,name-defined]
        """UnityEnvironment with our own connection, process and end."""

        def __init__(self, launch: Launch, side_channels: list[Any]) -> None:
            self._launch = launch
            self._own: PlayerProcess | None = None
            self._link: PlayerLink | None = None
            try:
                super().__init__(None, seed=launch.seed, side_channels=list(side_channels))
                self._communicator.timeout_s = launch.step_timeout_s
            except PlayerFailed as error:
                raise self.failed(error) from error
            except BaseException:
                self.end(0.0)
                raise
            finally:
                atexit.unregister(self._close)  # it would hold every player that ever was

        def _get_communicator(self, *_: Any) -> PlayerLink:
            launch = self._launch
            self._link = PlayerLink(0 if launch.program else launch.port, launch.connect_timeout_s)
            if launch.program is not None:
                self._own = PlayerProcess(launch, self._link.port)
            return self._link

        def _poll_process(self) -> None:
            code = None if self._own is None else self._own.poll()
            if code is not None:
                how = f"signal {signal.Signals(code - 128).name}" if 128 < code < 160 else f"exit code {code}"
                raise PlayerFailed(f"the Unity player ended ({how})")

        def _close(self, timeout: int | None = None) -> None:
            self.end(0.0)

        def begin_step(self, actions: dict[str, tuple[Any, Any]]) -> None:
            """Send actions: by behaviour continuous ones (n, size) and branches (n, size) of those that need one."""
            rl_input = environment.UnityRLInputProto()
            for name, (numbers, choices) in actions.items():
                add = rl_input.agent_actions[name].value.add
                for one, several in zip(numbers.tolist(), choices.tolist(), strict=True):
                    add(continuous_actions=one, discrete_actions=several, vector_actions_deprecated=one or several)
            rl_input.side_channel = bytes(self._side_channel_manager.generate_side_channel_messages())
            self._communicator.send(self._wrap_unity_input(rl_input))

        def finish_step(self) -> None:
            """Take what the player answers to the actions."""
            output = self._communicator.receive(self._poll_process)
            self._update_behavior_specs(output)
            self._update_state(output.rl_output)

        @property
        def player(self) -> PlayerProcess | None:
            """Its process; None for the editor."""
            return self._own

        def failed(self, error: PlayerFailed) -> PlayerFailed:
            """End the player, and return the error with the tail of its log."""
            if self._own is None:
                self.end(0.0)
                return error
            self._own.keep()
            self.end(0.0)
            return PlayerFailed(f"{error}.\n{self._own.tail()}")

        def end(self, wait_s: float = _QUIT_S) -> None:
            """End the player; it may take so many seconds to quit by itself."""
            self._loaded = False
            if self._link is not None:
                self._link.close()
            if self._own is not None:
                self._own.end(wait_s)

    return Player


def start_player(launch: Launch, side_channels: list[Any]) -> Any:
    """Start a player, or wait for the editor, and return it: a UnityEnvironment that was not reset yet.

    Raises:
        PlayerFailed: it ended, or did not connect in time; holds the tail of its log. It is gone.
        ProtocolMismatch: it speaks another version.
        PortInUse: another process waits for the editor.
    """
    return _player_class()(launch, side_channels)
