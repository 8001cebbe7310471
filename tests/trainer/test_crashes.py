"""Training processes that are killed, and disks that are full or damaged."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentgpt_remote.trainer.checkpoint import Checkpoints
from tests.support import wait_until
from tests.trainer.test_exact_resume import last_state, same_bits, stable

START_TIMEOUT_S = 60.0


def start(run_dir: Path, max_steps: int, limit: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.trainer.train_process", str(run_dir), f"max_steps={max_steps}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=limit)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, output = process.communicate(timeout=120.0)
    return process.returncode, output.decode()


def checkpoints_of(run_dir: Path) -> Checkpoints:
    return Checkpoints(run_dir / "checkpoints", keep=3)


def newest(run_dir: Path) -> str:
    return max((path.name for path in (run_dir / "checkpoints").glob("step-*.pt")), default="")


def kill_at_random_moments(run_dir: Path, kills: int, max_steps: int) -> None:
    """Kill a trainer with SIGKILL at random moments while it writes checkpoints all the time, and go on."""
    moments = random.Random()
    for _ in range(kills):
        before = newest(run_dir)
        process = start(run_dir, max_steps)
        wait_until(lambda before=before: newest(run_dir) > before, START_TIMEOUT_S, "a checkpoint")  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.3))  # the moment is what is tested
        os.kill(process.pid, signal.SIGKILL)
        code, output = finish(process)
        assert code == -signal.SIGKILL, output
        state = checkpoints_of(run_dir).load_last()
        assert state is not None
        assert f"step-{state['env_steps']:012d}.pt" == newest(run_dir) >= before
        assert not list((run_dir / "checkpoints").glob("*.damaged"))
        assert checkpoints_of(run_dir).load_best() is not None or state["collector"]["episodes"]["count"] == 0


def check_kills(tmp_path: Path, kills: int, max_steps: int) -> None:
    kill_at_random_moments(tmp_path / "killed", kills, max_steps)
    assert finish(start(tmp_path / "killed", max_steps)) == (0, "")
    assert finish(start(tmp_path / "whole", max_steps)) == (0, "")
    same_bits(last_state(tmp_path / "whole"), last_state(tmp_path / "killed"))
    assert stable(tmp_path / "whole") == stable(tmp_path / "killed")


def test_run_killed_at_random_moments_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=2, max_steps=2_500)


@pytest.mark.slow
def test_run_killed_at_many_random_moments_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    check_kills(tmp_path, kills=8, max_steps=20_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_full_disk_ends_the_run_and_leaves_the_previous_checkpoint_whole(small_disk: Path) -> None:
    run_dir = small_disk / "run"
    code, output = finish(start(run_dir, 10**6))
    assert code == 1, output
    assert "TrainingFailed: could not write" in output
    assert "No space left on device" in output
    state = checkpoints_of(run_dir).load_last()
    assert state is not None
    assert not list((run_dir / "checkpoints").glob("*.tmp"))


def test_file_size_limit_ends_the_run_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    assert finish(start(tmp_path / "run", 300)) == (0, "")
    state = checkpoints_of(tmp_path / "run").load_last()
    assert state is not None
    limit = (tmp_path / "run" / "checkpoints" / newest(tmp_path / "run")).stat().st_size // 2
    code, output = finish(
        start(tmp_path / "run", 500, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    )
    assert code == 1, output
    assert "TrainingFailed: could not write the checkpoint" in output
    again = checkpoints_of(tmp_path / "run").load_last()
    assert again is not None
    same_bits(state, again)
    assert finish(start(tmp_path / "run", 500)) == (0, "")
    assert last_state(tmp_path / "run")["env_steps"] > 480


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    assert finish(start(tmp_path, 500)) == (0, "")
    damaged = tmp_path / "checkpoints" / newest(tmp_path)
    whole = checkpoints_of(tmp_path).paths()[-2].name
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.unlink()  # it may also be the best one
    damaged.write_bytes(data)
    code, output = finish(start(tmp_path, 500))
    assert code == 0
    assert f"{damaged.name} is damaged" in output
    assert f"going on from {whole}" in output
    assert damaged.with_name(damaged.name + ".damaged").exists()
    assert last_state(tmp_path)["env_steps"] > 490
