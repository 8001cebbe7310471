"""``agentgpt cloud`` as a user meets it: real processes, against stand-ins for AWS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.rehearsal.stage import Stage, rehearsal_config
from tests.support import is_running, wait_until

AGENTGPT = [sys.executable, "-m", "agentgpt_remote"]
SMALL = ["--set", "num_envs=4", "--set", "num_layers=1", "--set", "d_model=32", "--set", "rollout_steps=256"]
SECRET = "hunter2-never-shown"


@pytest.fixture
def folder(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration in the default file, and a state of its own."""
    fields = {name: value for name, value in rehearsal_config().to_dict().items() if isinstance(value, str)}
    (tmp_path / "agentgpt-cloud.toml").write_text("\n".join(f'{name} = "{value}"' for name, value in fields.items()))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def _run(*words: str, cwd: Path, timeout_s: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENTGPT, "cloud", *words],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_the_first_submit_shows_the_plan_and_the_second_trains(stage: Stage, folder: Path) -> None:
    words = ["train", "CartPole-v1", *SMALL, "--set", "max_steps=1000", "--max-usd", "0.2"]
    before = len(stage.sagemaker.jobs)
    first = _run(*words, cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "CreateTrainingJob" in first.stdout
    assert "nothing was started: add --submit" in first.stdout
    assert "cost:    $0.236 per hour, at most $0.20" in first.stdout
    assert "ok       quota" in first.stdout
    assert len(stage.sagemaker.jobs) == before
    second = _run(*words, "--submit", "--wait", "--json", cwd=folder)
    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout.splitlines()[-1])
    assert told["status"] == "Completed"
    assert "1000 env steps" in second.stderr
    third = _run(*words, "--json", cwd=folder)  # the account is known from here on
    name = json.loads(third.stdout)["job"]
    stopped = _run("stop", name, "--json", cwd=folder)
    assert json.loads(stopped.stdout)["status"] in ("Stopped", "Completed")
    dry = _run(*words, "--dry-run", "--json", cwd=folder)
    assert json.loads(dry.stdout)["requests"][0]["operation"] == "CreateTrainingJob"


def test_deploy_status_logs_and_stop(stage: Stage, folder: Path, trained: CloudTrainingRun) -> None:
    planned = _run("deploy", trained.run_id, "--name", "by-command", cwd=folder)
    assert "CreateSchedule" in planned.stdout, planned.stderr
    assert stage.sagemaker.endpoints == {}
    done = _run("deploy", trained.run_id, "--name", "by-command", "--submit", "--max-usd", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "at most $1.00" in done.stdout
    listed = _run("status", cwd=folder)
    assert "endpoint by-command  InService  1 x ml.m5.xlarge  $0.230/h" in listed.stdout
    assert json.loads(_run("status", "--json", cwd=folder).stdout)[0]["name"] == "by-command"
    logged = _run("logs", trained.run_id, "--tail", "3", cwd=folder)
    assert "completed after" in logged.stdout
    stopped = _run("stop", "by-command", cwd=folder)
    assert "endpoint by-command" in stopped.stdout
    assert "nothing runs in us-east-1" in _run("status", cwd=folder).stdout


def test_following_a_log_ends_with_the_job_and_ctrl_c_leaves_it_running(stage: Stage, folder: Path) -> None:
    words = ["train", "CartPole-v1", *SMALL, "--set", "max_steps=10000000", "--submit", "--wait"]
    with subprocess.Popen([*AGENTGPT, "cloud", *words], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "env steps" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait(30) == 130
    assert "keeps running, and is paid for: `agentgpt cloud stop agentgpt-CartPole" in told
    name = told.partition("job ")[2].split()[0]
    with subprocess.Popen(
        [*AGENTGPT, "cloud", "logs", name, "--follow"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        assert _run("stop", name, cwd=folder).returncode == 0
        assert "stopped after" in following.stdout.read()
        assert following.wait(60) == 0


def test_a_token_is_stored_and_never_shown(stage: Stage, folder: Path) -> None:
    done = _run("secret", "agentgpt/command", cwd=folder, AGENTGPT_TOKEN=SECRET)
    assert done.stdout.startswith("arn:aws:secretsmanager:us-east-1:"), done.stderr
    shown = [done.stdout, done.stderr]
    for words in (
        ["plan", "wss://93.184.216.34:8000", "--json"],
        ["train", "wss://93.184.216.34:8000", "--dry-run"],
        ["train", f"wss://me:{SECRET}@93.184.216.34:8000", "--submit"],
        ["train", "CartPole-v1", "--set", f'env_kwargs={{"api_key": "{SECRET}"}}', "--submit"],
        ["plan", "CartPole-v1", "--aws", f'secrets={{"": "{SECRET}"}}'],
        ["status", "--debug"],
    ):
        done = _run(*words, cwd=folder, AGENTGPT_TOKEN=SECRET)
        shown += [done.stdout, done.stderr]
    assert SECRET not in "".join(shown)
    assert SECRET not in json.dumps(stage.sagemaker.calls, default=str)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("plan CartPole-v1 --aws output_path=s3://your-bucket/x", 2, "placeholder 'your'"),
        ("plan CartPole-v1 --aws instance_tpye=ml.m5.large", 2, "did you mean 'instance_type'"),
        ("plan CartPole-v1 --aws instance_type", 2, "--aws 'instance_type': expected FIELD=VALUE"),
        ("plan CartPole-v1 --max-usd 0.01", 2, "is not enough"),
        ("plan CartPole-v1 --config absent.toml", 2, "absent.toml can't be read"),
        ("plan ws://127.0.0.1:8000", 1, ""),
        ("train ws://192.168.1.7:8000 --submit", 2, "has a private address"),
        (
            "train CartPole-v1 --submit --aws image_uri=123456789012.dkr.ecr.us-east-1.amazonaws.com/no:1",
            2,
            "image push",
        ),
        ("deploy no-such-job", 2, "no-such-job"),
        ("deploy s3://agentgpt-absent/model.tar.gz --submit", 2, "there is no bucket 'agentgpt-absent'"),
        ("logs no-such-job", 2, "can't look up the training job no-such-job"),
        ("stop nothing-there", 1, "there is no endpoint 'nothing-there'"),
        ("status --region us-moon-1", 2, "'us-moon-1' is unknown"),
    ],
)
def test_wrong_input_is_one_clear_error(stage: Stage, folder: Path, words: str, code: int, message: str) -> None:
    before = len(stage.sagemaker.jobs)
    done = _run(*words.split(), cwd=folder)
    assert done.returncode == code, done.stderr + done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(stage.sagemaker.jobs) == before


@pytest.mark.timeout(400)
def test_the_rehearsal_trains_stops_resumes_deploys_breaks_expires_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "AGENTGPT_"))}
    environment["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [*AGENTGPT, "cloud", "rehearse", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = ["train and stop", "resume", "evaluate", "fail", "deploy", "invoke", "expire", "delete"]
    assert [step["name"] for step in report["steps"]] == names
    assert report["episode_return"] >= 475
    assert report["seconds"] < 180
    # ONNX Runtime leaves a file of its own in the temporary folder of every process that imports it.
    assert [path for path in (tmp_path / "tmp").iterdir() if path.name != ".ses"] == []
    if Path("/proc/mounts").exists():
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
        assert "/opt/ml" not in Path("/proc/mounts").read_text()
        assert _containers(tmp_path / "tmp") == []


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_containers_end_with_a_rehearsal_that_was_killed(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "AGENTGPT_"))}
    environment["TMPDIR"] = str(tmp_path)
    with subprocess.Popen(
        [*AGENTGPT, "cloud", "rehearse", "--set", "max_steps=10000000"], cwd=tmp_path, env=environment
    ) as process:
        wait_until(lambda: len(_containers(tmp_path)) > 0, 60.0)
        pids = _containers(tmp_path)
        process.kill()
        process.wait(10)
    wait_until(lambda: not any(is_running(pid) for pid in pids), 20.0)


def _containers(folder: Path) -> list[int]:
    """Return the processes whose working directory lies in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "cwd").readlink()).startswith(f"{folder}/agentgpt-rehearsal"):
                    found.append(int(entry.name))
            except OSError:  # not ours, or gone
                continue
    return found
