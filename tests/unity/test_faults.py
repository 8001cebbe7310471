"""Players that end, hang and leave things behind; and what is no player."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gymnasium.error import ResetNeeded

from agentgpt_remote.errors import ConfigError, InvalidObservation, PlayerFailed, PortInUse, ProtocolMismatch
from agentgpt_remote.wrappers.unity.agents import UnityAgents
from agentgpt_remote.wrappers.unity.builds import find_program, is_build
from tests.support import is_running, wait_until
from tests.unity.echo import answers, wrong_actions
from tests.unity.stand_in import write_player

NAME = "Walker?team=0"


def _group(pid: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_running(int(entry.name)):
            try:
                if os.getpgid(int(entry.name)) == pid:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (1, r"ended \(exit code 3\)"),
        (3, r"ended \(signal SIGSEGV\)"),
        (4, r"ended \(exit code 0\)"),
        (5, "exit code 4"),
    ],
)
def test_player_that_ends_is_noticed_at_once_and_started_again(tmp_path: Path, fault: int, cause: str) -> None:
    env = UnityAgents(write_player(tmp_path, agents=3))
    turns = env.step(answers(env, env.reset()))
    pid, latest = env.player_pid, turns[NAME].acting
    assert pid is not None
    env.send_raw(b"fault %d" % fault)
    start = time.monotonic()
    turns = env.step(answers(env, turns))
    took_s = time.monotonic() - start
    ended = turns[NAME].ended
    assert took_s < 1.0 + 4.0  # noticed within 1 s, and another one started
    assert ended.agent_ids == latest.agent_ids
    assert ended.truncated.all()
    assert not ended.terminated.any()
    assert (ended.observations == latest.observations).all()
    assert all(re.search(cause, info["host_loss"]) for info in ended.infos.values())
    assert "stand-in player, words" in ended.infos[latest.agent_ids[0]]["host_loss"]
    assert turns[NAME].acting.begins.all()
    assert _group(pid) == []  # what it left behind is gone too
    for _ in range(5):
        turns = env.step(answers(env, turns))
    assert wrong_actions(env) == 0
    assert env.relaunches == 1
    env.close()


def test_crash_is_noticed_within_a_second(tmp_path: Path) -> None:
    env = UnityAgents(write_player(tmp_path, agents=1))
    turns = env.reset()
    env.send_raw(b"fault 1")
    env.send(answers(env, turns))
    start = time.monotonic()
    with pytest.raises(PlayerFailed, match="exit code 3"):
        env._player.finish_step()
    assert time.monotonic() - start < 1.0
    env.close()


def test_player_that_hangs_is_ended_after_the_step_timeout(tmp_path: Path) -> None:
    env = UnityAgents(write_player(tmp_path, agents=2), step_timeout_s=1.0)
    turns, pid = env.reset(), env.player_pid
    assert pid is not None
    env.send_raw(b"fault 2")
    start = time.monotonic()
    turns = env.step(answers(env, turns))
    assert 1.0 <= time.monotonic() - start < 6.0
    assert "did not answer" in turns[NAME].ended.infos[f"{NAME}#0"]["host_loss"]
    assert _group(pid) == []
    env.close()


def test_close_does_not_wait_for_a_player_that_hangs(tmp_path: Path) -> None:
    env = UnityAgents(write_player(tmp_path, agents=1))
    turns, pid = env.reset(), env.player_pid
    assert pid is not None
    env.send_raw(b"fault 2")
    env.send(answers(env, turns))
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 5.0
    assert _group(pid) == []


def test_player_that_never_recovers_tells_why(tmp_path: Path) -> None:
    with pytest.raises(PlayerFailed, match=r"exit code 3\)\.(.|\n)*the player gives up"):
        UnityAgents(write_player(tmp_path, agents=1, crash=1.0))


def test_player_ends_with_a_host_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from agentgpt_remote.wrappers.unity.agents import UnityAgents\n"
        "env = UnityAgents(sys.argv[1]); print(env.player_pid, flush=True); time.sleep(60)"
    )
    host = subprocess.Popen([sys.executable, "-c", code, write_player(tmp_path)], stdout=subprocess.PIPE)
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    assert len(_group(pid)) >= 2
    host.kill()
    host.wait(10)
    host.stdout.close()
    wait_until(lambda: _group(pid) == [], 5.0, "the end of the player")


def test_interpreter_with_an_open_player_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from agentgpt_remote.wrappers.unity.agents import UnityAgents\n"
        "env = UnityAgents(sys.argv[1]); env.reset(); 1 / 0"
    )
    done = subprocess.run([sys.executable, "-c", code, write_player(tmp_path)], capture_output=True, timeout=30)
    assert b"ZeroDivisionError" in done.stderr


def test_paths_that_are_no_build(tmp_path: Path) -> None:
    path = Path(write_player(tmp_path, name="Ball.app.2"))
    assert find_program(str(path)) == path  # .app within the path is no ending
    assert find_program(str(path.with_suffix(""))) == path
    assert find_program(str(tmp_path)) == path
    assert is_build(str(path))
    assert is_build(str(tmp_path))
    assert not is_build("CartPole-v1")
    with pytest.raises(ConfigError, match=r"is no Unity build: there is no such file .*Did you mean: `.*Ball\.app\.2"):
        UnityAgents(str(tmp_path / "Bal.app.2"))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"may not be executed: run `chmod \+x"):
        UnityAgents(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="the folder holds none"):
        UnityAgents(str(tmp_path / "empty"))


def test_program_that_is_no_player_tells_what_it_said(tmp_path: Path) -> None:
    program = tmp_path / "tool.x86_64"
    program.write_text("#!/bin/sh\necho this is no player\nexit 7\n")
    program.chmod(0o755)
    with pytest.raises(PlayerFailed, match=r"exit code 7\)\.(.|\n)*this is no player"):
        UnityAgents(str(program))
    program.write_text("no program at all")
    with pytest.raises(PlayerFailed, match="can't be started"):
        UnityAgents(str(program))


def test_player_that_never_connects_tells_what_to_check(tmp_path: Path) -> None:
    path = write_player(tmp_path, connects=False)
    with pytest.raises(PlayerFailed, match=r"did not connect.*within 1 s(.|\n)*stand-in player, words"):
        UnityAgents(path, connect_timeout_s=1.0)


def test_version_mismatch_tells_both_versions(tmp_path: Path) -> None:
    path = write_player(tmp_path, api="2.1.0")
    with pytest.raises(ProtocolMismatch, match=r"communicator API 2\.1\.0 \(ML-Agents package 2\.0\.1\).* 1\.5\.0"):
        UnityAgents(path)


def test_players_are_waited_for_on_loopback_only(tmp_path: Path) -> None:
    env = UnityAgents(write_player(tmp_path, agents=1))
    port = env._player._communicator.port
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    listening = [row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert len(listening) == 1
    assert listening[0] in ("0100007F", "0000000000000000FFFF00000100007F")  # 127.0.0.1, of an IPv4 or an IPv6 socket
    env.close()


def test_two_hosts_can_not_wait_for_one_editor() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} is taken"):
            UnityAgents(None, port=port, connect_timeout_s=1.0)


def test_editor_connects_to_the_port_that_is_waited_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    editor = subprocess.Popen([write_player(tmp_path, agents=2), "--mlagents-port", str(port)])
    env = UnityAgents(None, port=port, connect_timeout_s=20.0)
    turns = env.step(answers(env, env.reset()))
    with pytest.warns(UserWarning, match="seed=5 has no effect"):
        env.reset(seed=5)
    turns = env.reset()
    env.send_raw(b"fault 1")
    with pytest.raises(PlayerFailed):  # it can't be started again
        _step_until_failure(env, turns)
    env.close()
    assert editor.wait(10) == 3


def _step_until_failure(env: UnityAgents, turns: Any) -> None:
    env._player._communicator.timeout_s = 3.0
    for _ in range(3):
        turns = env.step(answers(env, turns))


def test_image_of_a_wrong_layout_names_it_and_ends_the_player(tmp_path: Path) -> None:
    env = UnityAgents(write_player(tmp_path, agents=2, observations=("vector", "image")))
    turns, pid = env.reset(), env.player_pid
    assert pid is not None
    env.send_raw(b"fault 6")
    with pytest.raises(InvalidObservation, match=r"'camera' of shape \(12, 16, 3\) holds a PNG of 6 x 16"):
        env.step(answers(env, turns))
    assert _group(pid) == []
    with pytest.raises(ResetNeeded):
        env.step(answers(env, turns))
    turns = env.step(answers(env, env.reset()))  # a new player
    assert wrong_actions(env) == 0
    env.close()


def test_behaviour_that_vanishes_is_named(tmp_path: Path) -> None:
    path = write_player(tmp_path, behaviors=("Red?team=0", "Blue?team=1"))
    env = UnityAgents(path)
    turns = env.reset()
    write_player(tmp_path, behaviors=("Red?team=0",))  # the build was replaced
    env.send_raw(b"fault 1")
    with pytest.raises(PlayerFailed, match=r"behaviour 'Blue\?team=1' has vanished"):
        env.step(answers(env, turns))
    env.close()


def test_wrong_options_are_named(tmp_path: Path) -> None:
    path = write_player(tmp_path)
    with pytest.raises(ConfigError, match="unknown visual='png'"):
        UnityAgents(path, visual="png")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed=-1"):
        UnityAgents(path, seed=-1)
    with pytest.raises(ConfigError, match="step_timeout_s=0"):
        UnityAgents(path, step_timeout_s=0)
