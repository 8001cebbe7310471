"""The command line as a user meets it: real processes, exit codes, one clear line per error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import imageio_ffmpeg
import numpy as np
import pytest

from agentgpt_remote import GPTPolicy, RemoteEnv
from agentgpt_remote._version import __version__

AGENTGPT = [sys.executable, "-m", "agentgpt_remote"]
SMALL = ["--set", "max_steps=600", "--set", "num_layers=1", "--set", "d_model=32", "--set", "rollout_steps=256"]
TOKEN = "token-of-the-command-line"


def _run(*words: str, cwd: Path, timeout_s: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    unwanted = ("AGENTGPT_TOKEN", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in unwanted} | variables
    return subprocess.run(
        [*AGENTGPT, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/CartPole-v1, trained briefly by the command."""
    folder = tmp_path_factory.mktemp("trained")
    done = _run("train", "CartPole-v1", "--json", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert {"run_id", "run_dir", "bundle", "env_steps", "wall_s", "episode_return"} <= summary.keys()
    assert (summary["run_id"], summary["bundle"]) == ("CartPole-v1", "runs/CartPole-v1/policy")
    assert summary["episode_return"] > 0
    assert "num_layers=1, d_model=32" in done.stderr
    return folder


class Server:
    """A server command in a process."""

    def __init__(self, *words: str, cwd: Path, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*AGENTGPT, *words],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | variables,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"ws://\S+?:\d+", self.line)
        self.url = found.group() if found else ""

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = ["serve", "CartPole-v1", "--port", "0", "--num-envs", "8"]
    with Server(*words, cwd=tmp_path_factory.mktemp("host")) as server:
        yield server
        assert server.end(signal.SIGINT) == 0


def test_serve_announces_its_url_and_answers(host: Server) -> None:
    assert "serving CartPole-v1" in host.line
    assert httpx.get(host.url.replace("ws://", "http://") + "/health").json()["source"] == "CartPole-v1"
    with RemoteEnv(url=host.url) as env:
        assert env.reset(seed=0)[0].shape == (4,)


def test_serve_with_a_token_keeps_it_to_itself(tmp_path: Path) -> None:
    words = ["serve", "CartPole-v1", "--host", "0.0.0.0", "--port", "0", "--insecure"]
    with Server(*words, cwd=tmp_path, AGENTGPT_TOKEN=TOKEN) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with RemoteEnv(url=url, token=TOKEN) as env:
            env.reset(seed=0)
        refused = _run("check", url, "--token", "wrong", cwd=tmp_path)
        assert refused.returncode == 1
        assert "token" in refused.stderr
        assert TOKEN not in server.line
        assert server.end(signal.SIGTERM) == 0


def test_check_reports_every_check(host: Server, tmp_path: Path) -> None:
    done = _run("check", host.url, "--json", cwd=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {"health", "gymnasium check_env", "determinism", "round trip"} <= checks.keys()
    assert {check["outcome"] for check in checks.values()} <= {"ok", "warning", "skipped"}, checks
    assert "\x1b" not in done.stdout
    assert "ms" in checks["round trip"]["detail"]


def test_doctor_finds_this_machine_well(tmp_path: Path) -> None:
    done = _run("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"ok +local host: step round trip", done.stdout)


def test_eval_prints_the_statistics(trained: Path, host: Server) -> None:
    words = ["eval", "runs/CartPole-v1/policy"]
    done = _run(*words, "CartPole-v1", "--episodes", "3", "--seed", "1", "--json", cwd=trained)
    result = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert {"episodes", "mean", "std", "min", "max", "episode_length"} <= result.keys()
    assert result["episodes"] == 3
    assert result["min"] <= result["q25"] <= result["q50"] <= result["q75"] <= result["max"]
    assert result["min"] <= result["mean"] <= result["max"]
    assert result["greedy"] == {name: value for name, value in result.items() if name not in ("greedy", "sampled")}
    at_host = _run(*words, host.url, "--episodes", "3", "--seed", "1", "--json", cwd=trained)
    assert json.loads(at_host.stdout)["mean"] == result["mean"]
    sampled = _run(*words, "CartPole-v1", "--episodes", "3", "--seed", "1", "--sampled", "--json", cwd=trained)
    assert json.loads(sampled.stdout)["sampled"] == result["sampled"] != result["greedy"]
    assert "greedy" not in json.loads(sampled.stdout)


def test_eval_prints_a_table_of_greedy_and_sampled_returns(trained: Path) -> None:
    done = _run("eval", "runs/CartPole-v1/policy", "CartPole-v1", "--episodes", "2", cwd=trained)
    first, titles, greedy, sampled = done.stdout.splitlines()
    assert re.fullmatch(r"2 episodes: return \S+ ± \S+ \(min \S+, max \S+\), length \S+", first)
    assert titles.split() == ["actions", "mean", "std", "min", "25", "%", "50", "%", "75", "%", "max", "length"]
    assert (greedy.split()[0], sampled.split()[0]) == ("greedy", "sampled")
    low, *inner, high = (float(word) for word in greedy.split()[3:8])
    assert low <= inner[0] <= inner[1] <= inner[2] <= high


def test_play_writes_a_video_of_what_it_was_trained_on(trained: Path) -> None:
    words = ["play", "runs/CartPole-v1/policy", "--video", "cartpole.mp4", "--episodes", "2", "--max-steps", "20"]
    done = _run(*words, "--seed", "1", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    assert [episode["seed"] for episode in played] == [1, 2]
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(trained / "cartpole.mp4"))
    assert count == sum(episode["episode_length"] + 1 for episode in played)
    again = _run(*words, "--seed", "1", "--fps", "10", cwd=trained)
    assert again.stdout.splitlines()[-1] == "wrote cartpole.mp4"
    _, seconds = imageio_ffmpeg.count_frames_and_secs(str(trained / "cartpole.mp4"))
    assert seconds == pytest.approx(count / 10, abs=0.2)


def test_train_writes_its_evaluation_into_the_model_card(trained: Path) -> None:
    card = (trained / "runs" / "CartPole-v1" / "policy" / "README.md").read_text()
    assert "# A GPT policy for CartPole-v1" in card
    assert "- return of 20 greedy episodes: mean " in card
    assert 'GPTPolicy("runs/CartPole-v1/policy")' in card


def test_run_serves_a_policy(trained: Path) -> None:
    with Server("run", "runs/CartPole-v1/policy", "--port", "0", "--watch", "--max-agents", "8", cwd=trained) as server:
        with GPTPolicy(server.url) as policy:
            assert policy(np.zeros(4, np.float32)) in (0, 1)
        assert server.end(signal.SIGINT) == 0


def test_export_writes_a_file_that_acts(trained: Path) -> None:
    done = _run("export", "runs/CartPole-v1/policy", "--out", "cartpole.onnx", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_difference"] <= 1e-5
    with GPTPolicy(trained / "cartpole.onnx") as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)


def test_train_on_urls_and_resume(trained: Path, host: Server) -> None:
    first = _run("train", host.url, "--run-id", "remote", "--json", *SMALL, cwd=trained)
    assert first.returncode == 0, first.stderr
    again = _run("train", host.url, "--run-id", "remote", "--resume", "--json", "--set", "max_steps=1200", cwd=trained)
    assert again.returncode == 0, again.stderr
    assert 1100 <= json.loads(again.stdout)["env_steps"] <= 1200
    config = json.loads((trained / "runs" / "remote" / "config.json").read_text())
    assert config["hyperparameters"]["num_layers"] == 1, "resuming keeps what the run was told"


def test_train_interrupted_leaves_a_usable_bundle(tmp_path: Path) -> None:
    words = [*AGENTGPT, "train", "CartPole-v1", "--json", "--set", "max_steps=1000000", *SMALL[2:]]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        metrics = tmp_path / "runs" / "CartPole-v1" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["stopped"] is True
    with GPTPolicy(tmp_path / "runs" / "CartPole-v1" / "policy") as policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)


def test_second_run_gets_a_name_of_its_own(trained: Path) -> None:
    done = _run("train", "CartPole-v1", "--json", "--set", "max_steps=64", *SMALL[2:], cwd=trained)
    assert json.loads(done.stdout)["run_id"] == "CartPole-v1-2"
    shutil.rmtree(trained / "runs" / "CartPole-v1-2")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train CartPoll-v1", 1, "CartPole"),
        ("train CartPole-v1 --set max_stepz=9", 2, "did you mean 'max_steps'"),
        ("train CartPole-v1 --set max_steps=-1", 2, "max_steps=-1: expected"),
        ("train CartPole-v1 --set lr_init=fast", 2, "lr_init='fast': expected a number"),
        ("train CartPole-v1 --set lr_init", 2, "FIELD=VALUE"),
        ("train CartPole-v1 ws://127.0.0.1:9", 2, "expected one source"),
        ("train CartPole-v1 --resume --force", 2, "exclude each other"),
        ("train CartPole-v1 --resume --run-id none", 2, "no run to resume"),
        ("train CartPole-v1 --run-id CartPole-v1", 1, "exists: continue it with --resume"),
        ("train ws://127.0.0.1:9", 1, "nothing listens at ws://127.0.0.1:9"),
        ("train", 2, "Name a source or URLs"),
        ("serve CartPoll-v1", 1, "CartPole"),
        ("serve CartPole-v1 --host 0.0.0.0", 1, "without a token"),
        ("serve CartPole-v1 --port 70000", 2, "port 70000"),
        ("serve no_such_module:factory", 2, "no_such_module"),
        ("run nowhere", 1, "no policy bundle at nowhere"),
        ("run runs/CartPole-v1/policy --max-agents 0", 2, "max-agents"),
        ("run runs/CartPole-v1/policy --tls-cert cert.pem", 2, "both files"),
        ("run runs/CartPole-v1/policy --tls-cert cert.pem --tls-key key.pem", 2, "can't use the certificate"),
        ("run runs/CartPole-v1", 1, "did you mean runs/CartPole-v1/policy"),
        ("eval runs/CartPole-v1/policy Pendulum-v1 --episodes 1", 1, "observation"),
        ("eval runs/CartPole-v1/policy CartPole-v1 --greedy --sampled", 2, "exclude each other"),
        ("eval ws://127.0.0.1:9 CartPole-v1", 1, "agentgpt run"),
        ("play runs/CartPole-v1/policy", 1, "--video episode.mp4"),
        ("play runs/CartPole-v1/policy --video x.avi", 2, "x.avi: expected a file that ends in .mp4 or .gif"),
        ("play runs/CartPole-v1/policy --video x.mp4 --fps 0", 2, "fps=0"),
        ("play runs/CartPole-v1/policy --video x.mp4 --env CartPoll-v1", 1, "CartPole"),
        ("play runs/CartPole-v1/policy --video x.mp4 --env examples.envs:t_maze", 1, "'rgb_array'"),
        ("play ws://127.0.0.1:9 --video x.mp4", 2, "--env SOURCE"),
        ("check ws://127.0.0.1:9", 1, "agentgpt serve"),
        ("check ftp://127.0.0.1", 2, "expected ws://"),
        ("nonsense", 2, "No such command"),
    ],
)
def test_wrong_input_is_one_clear_error(trained: Path, words: str, code: int, message: str) -> None:
    before = sorted(path.name for path in (trained / "runs").iterdir())
    done = _run(*words.split(), cwd=trained, timeout_s=60)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if "Usage:" not in done.stderr:
        assert [
            line for line in done.stderr.splitlines() if line.startswith("agentgpt: error: ")
        ] == done.stderr.splitlines()
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before


def test_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = _run("serve", "CartPole-v1", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert done.returncode == 1
    assert "in use" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = _run("run", "nowhere", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_version_is_printed(tmp_path: Path) -> None:
    assert _run("--version", cwd=tmp_path).stdout.strip() == __version__
