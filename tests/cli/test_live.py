"""The live view: what it shows, and that a real terminal shows it."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentgpt_remote.cli.live import Recent, duration, render, shares, sparkline
from agentgpt_remote.cli.progress import show_progress
from agentgpt_remote.trainer.hyperparameters import Hyperparameters
from agentgpt_remote.trainer.reporting import Progress
from agentgpt_remote.trainer.run_folder import CONFIG_NAME, write_json
from agentgpt_remote.trainer.watching import HostHealth

HEALTH = HostHealth(
    **{"name": "sim-7:8000", "agents": 8, "sps": 1234.0, "round_trip_ms": 2.5, "host_step_ms": 0.5},
    **{"lost": 1, "returned": 1, "rtt_ms": 1.6, "in_flight": 3.1},
)
METRICS = {
    **{"train/policy_loss": -0.01, "train/entropy": 0.6931, "train/gamma": 0.99, "train/lambda": 0.95},
    **{"time/sps": 1234.0, "time/env_s": 0.4, "time/network_s": 0.1, "time/act_s": 0.1, "time/learn_s": 0.5},
}


def progress(env_steps: int, episode_return: float | None, **metrics: float | None) -> Progress:
    return Progress(
        env_steps=env_steps,
        max_steps=1000,
        wall_s=env_steps / 100,
        episode_return=episode_return,
        episodes=3,
        metrics={**METRICS, **metrics},
        hosts=(HEALTH,),
    )


def shown(view: object) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_sparkline_spans_lowest_to_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([5.0]) == "▁"
    assert sparkline([1, 1, 1]) == "▁▁▁"
    assert sparkline([-10, 0]) == "▁█"
    long = sparkline(list(range(1000)), width=20)
    assert len(long) == 20
    assert list(long) == sorted(long)


def test_duration_counts_hours() -> None:
    assert [duration(s) for s in (0, 61, 3600)] == ["0:00", "1:01", "1:00:00"]


def test_shares_add_up() -> None:
    assert shares(METRICS) == [("env/network", "30%/10%"), ("act/learn", "10%/50%")]
    assert shares({}) == [("env/network", "0%/0%"), ("act/learn", "0%/0%")]


def test_view_shows_figures_returns_hosts_and_time_left() -> None:
    now = [0.0]
    recent = Recent(clock=lambda: now[0])
    recent.add(progress(100, None))
    recent.add(progress(200, 10.0, **{"rollout/greedy_return": 77.5}))
    now[0] = 4.0
    last = progress(500, 20.0, **{"rollout/greedy_return": None})
    recent.add(last)
    text = shown(render(last, recent))
    assert "500/1,000 env steps" in text
    assert "0:05 left" in text, "400 steps took 4 s, and 500 are left"
    assert re.search(r"return, sampled +20\b", text)
    assert re.search(r"return, greedy +77.5\b", text), "the last evaluation's, though the last report had none"
    assert re.search(r"entropy +0.6931", text)
    assert "10 ▁█ 20" in text
    assert re.search(r"agents +in flight +steps/s +ceiling +RTT ms", text)
    assert re.search(r"sim-7:8000 +8 +3.1 +1234 +5000 +1.6 +2.5 +0.5 +1 +1", text)


def test_view_of_a_first_report_has_no_figures_yet() -> None:
    recent = Recent()
    first = Progress(env_steps=0, max_steps=10, wall_s=0.0, episode_return=None, episodes=0)
    recent.add(first)
    assert "- left" in shown(render(first, recent))


def test_plain_lines_come_every_few_seconds_and_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resolved = Hyperparameters(env_id="X").resolve("cpu").to_dict()
    write_json(tmp_path / CONFIG_NAME, {"algorithm": "ppo (as told)", "hyperparameters": resolved})
    with show_progress(tmp_path) as report:
        for env_steps in (100, 200, 1000):
            report(progress(env_steps, 10.0, **{"rollout/greedy_return": 77.5}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"run {tmp_path}: algorithm=ppo (as told), device=cpu")
    assert [line.split()[0] for line in lines[1:]] == ["100/1000", "1000/1000"]
    assert "return 10.0 (greedy 77.5), 3 episodes, 1234 steps/s" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_train_on_a_terminal_shows_the_live_view(tmp_path: Path) -> None:
    small = ["max_steps=2000", "num_layers=1", "d_model=32", "rollout_steps=256", "eval_interval_steps=600"]
    words = [sys.executable, "-m", "agentgpt_remote", "train", "CartPole-v1"]
    for setting in small:
        words += ["--set", setting]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = read_all(ours, deadline_s=120)
        assert process.wait(60) == 0
    assert "\x1b[?25l" in text, "the cursor hides: something is drawn again and again"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "num_layers=1" in plain
    assert re.search(r"2,000/2,000 env steps|1,9\d\d/2,000 env steps", plain)
    assert re.search(r"return, greedy +\d", plain)
    assert re.search(r"CartPole-v1 +16( +[\d.,]+){5}", plain)
    assert re.search("[▁▂▃▄▅▆▇█]{3}", plain)
    assert " left" in plain


def read_all(descriptor: int, deadline_s: float) -> str:
    """Read a terminal until the other side is closed."""
    parts, deadline = [], time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # the last process with the other side open has ended
            break
        parts.append(data)
    os.close(descriptor)
    return b"".join(parts).decode(errors="replace")
