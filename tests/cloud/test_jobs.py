"""Training jobs: the exact requests and containers, with stand-ins for AWS over real HTTP."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentgpt_remote import AgentGPT, GPTPolicy, Hyperparameters, RemoteVectorEnv, TrainingRun
from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.job import CloudTrainingRun, find_job
from agentgpt_remote.cloud.metric_lines import DEFINED
from agentgpt_remote.cloud.rehearsal.stage import Stage, rehearsal_config
from agentgpt_remote.cloud.secret import store_token
from agentgpt_remote.errors import BundleError, ConfigError, RemoteTimeout, TrainingFailed
from tests.cloud.samples import LONG, SMALL
from tests.conftest import ServeFunction
from tests.support import is_running, wait_until

CONFIG = rehearsal_config()
TOKEN = "token-that-never-travels"


def _train(folder: Path, hyperparameters: Hyperparameters = LONG, env: Any = None, **changes: Any) -> CloudTrainingRun:
    return AgentGPT.train_on_cloud(replace(CONFIG, **changes), hyperparameters, env, runs_dir=folder)


def _acts(policy: GPTPolicy) -> None:
    with policy:
        assert policy(np.zeros(4, np.float32)) in (0, 1)


def test_a_completed_job_has_metrics_logs_and_a_policy(stage: Stage, trained: CloudTrainingRun) -> None:
    assert isinstance(trained, TrainingRun)
    status = trained.status()
    assert (status.state, status.job_status) == ("completed", "Completed")
    assert 2900 <= status.env_steps <= 3000
    assert status.billable_s >= 1
    assert trained.latest_training_job.name.startswith("agentgpt-CartPole-v1-")
    assert trained.hyperparameters.max_steps == 3000
    assert trained.metrics()[-1]["env_steps"] == status.env_steps
    assert any("completed after" in line for line in trained.logs(5))
    _acts(trained.policy())
    job = stage.sagemaker.jobs[trained.run_id]
    # Every metric that SageMaker is told to look for in the first report of a job was found there.
    found = {entry["MetricName"] for entry in job.describe()["FinalMetricDataList"]}
    assert found <= set(DEFINED)
    assert {"env_steps", "rollout/episode_return", "train/policy_loss", "time/sps", "remote/lanes"} <= found


def test_a_job_is_found_again_by_name(stage: Stage, trained: CloudTrainingRun) -> None:
    found = find_job(Aws("us-east-1"), trained.run_id)
    assert found is not None
    assert found.hyperparameters == trained.hyperparameters
    assert found.status().env_steps == trained.status().env_steps
    assert find_job(Aws("us-east-1"), "no-such-job") is None


def test_a_stopped_job_keeps_all_and_the_next_goes_on(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, checkpoint_path="s3://agentgpt-rehearsal/stopped")
    wait_until(lambda: run.status().env_steps > 1000, 60.0)
    _acts(run.policy())  # of the last checkpoint, while the job runs
    status = run.stop()
    assert (status.state, status.job_status) == ("stopped", "Stopped")
    _acts(run.policy())
    shorter = replace(LONG, max_steps=status.env_steps + 1000)
    resumed = _train(tmp_path, shorter, checkpoint_path="s3://agentgpt-rehearsal/stopped")
    ended = resumed.wait(120)
    assert ended.job_status == "Completed"
    assert status.env_steps + 900 <= ended.env_steps <= status.env_steps + 1000
    assert min(row["env_steps"] for row in resumed.metrics()) >= status.env_steps


def test_a_spot_job_goes_on_when_its_machine_is_taken_away(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, spot=True)
    wait_until(lambda: run.status().env_steps > 1000, 60.0)
    job = stage.sagemaker.jobs[run.run_id]
    first = job.containers[0].pid
    job.interrupt()
    wait_until(lambda: any("going on with the run" in line for line in run.logs()), 60.0)
    assert not is_running(first)
    status = run.stop()
    assert status.state == "stopped"
    lines = run.logs()
    again = next(index for index, line in enumerate(lines) if "going on with the run" in line)
    steps = [int(row["env_steps"]) for row in run.metrics()]
    assert steps == sorted(steps), "nothing was lost: a stopped machine leaves a checkpoint of its last step"
    assert any("stopped after" in line for line in lines[:again])


def test_a_machine_that_dies_without_a_word_costs_at_most_the_last_checkpoints(stage: Stage, tmp_path: Path) -> None:
    where = "s3://agentgpt-rehearsal/killed"
    run = _train(tmp_path, checkpoint_path=where)
    wait_until(lambda: run.status().env_steps > 5000, 60.0)
    stage.sagemaker.jobs[run.run_id].containers[0].kill()
    with pytest.raises(TrainingFailed, match="exit code: -9"):
        run.wait(60)
    reports = [row for row in run.metrics() if "time/wall_s" in row]
    # A checkpoint every half second, and a copy of it to S3 every second.
    safe = [int(row["env_steps"]) for row in reports if row["time/wall_s"] < reports[-1]["time/wall_s"] - 3.0]
    resumed = _train(tmp_path, checkpoint_path=where)
    wait_until(lambda: resumed.status().env_steps > 0, 60.0)
    assert resumed.stop().job_status == "Stopped"
    first = min(int(row["env_steps"]) for row in resumed.metrics())
    assert first >= max(safe, default=1)


def test_the_last_second_of_a_job_leaves_a_checkpoint_and_a_policy(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, max_run=6)
    status = run.wait(120)
    assert (status.state, status.secondary_status) == ("stopped", "MaxRuntimeExceeded")
    assert status.env_steps > 0
    _acts(run.policy())


def test_a_job_runs_in_a_base_directory_where_namespaces_are_not_allowed(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentgpt_remote.cloud.rehearsal.containers.namespaces_allowed", lambda: False)
    run = _train(tmp_path, replace(LONG, max_steps=600))
    assert run.wait(120).job_status == "Completed"
    assert not any("the policy is in /opt/ml/model" in line for line in run.logs())
    _acts(run.policy())


def test_a_failed_job_says_why(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, Hyperparameters(env_id="CartPoll-v1"))
    with pytest.raises(TrainingFailed, match=r"(?s)failed: AlgorithmError: NameNotFound.*CartPole.*cloud logs"):
        run.wait(120)
    assert run.status().state == "failed"
    with pytest.raises(BundleError, match="has written no policy yet"):
        run.policy()


def test_a_host_that_is_not_there_is_named_in_the_failure(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, Hyperparameters(env_hosts={"gone": {"env_endpoint": "ws://127.0.0.1:9"}}, **SMALL))  # type: ignore[dict-item]
    with pytest.raises(TrainingFailed, match=r"nothing listens at ws://127\.0\.0\.1:9"):
        run.wait(120)


def test_waiting_ends_at_its_deadline_and_the_job_goes_on(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path)
    with pytest.raises(RemoteTimeout, match=r"keeps running after 0\.5 s"):
        run.wait(0.5)
    assert run.status().state == "running"
    # Stopped while it starts: that also ends well.
    assert run.stop().job_status == "Stopped"


def test_two_machines_learn_together(stage: Stage, tmp_path: Path) -> None:
    run = _train(tmp_path, replace(LONG, max_steps=4000), instance_count=2)
    status = run.wait(200)
    assert status.job_status == "Completed"
    assert any("machine 2 of 2" in line for line in run.logs())
    assert 3500 <= status.env_steps <= 4000
    _acts(run.policy())


@pytest.mark.slow
def test_two_machines_stop_together(stage: Stage, tmp_path: Path) -> None:
    stopped = _train(tmp_path, instance_count=2)
    wait_until(lambda: stopped.status().env_steps > 1000, 90.0)
    assert stopped.stop().job_status == "Stopped"
    assert stopped.run_id in str(stopped)
    _acts(stopped.policy())


def test_hosts_with_a_token_are_trained_on_and_the_token_never_travels(
    stage: Stage, tmp_path: Path, serve_here: ServeFunction
) -> None:
    host = serve_here("CartPole-v1", token=TOKEN)
    arn = store_token(Aws("us-east-1"), "agentgpt/hosts", TOKEN)
    assert store_token(Aws("us-east-1"), "agentgpt/hosts", TOKEN) == arn
    hyperparameters = Hyperparameters(max_steps=1000, **SMALL)
    with RemoteVectorEnv(url=host.url, num_envs=4, token=TOKEN) as env:
        with pytest.raises(ConfigError, match="has a token, which never travels") as refused:
            _train(tmp_path, hyperparameters, env)
        run = _train(tmp_path, hyperparameters, env, secrets={"": arn})
    assert run.wait(120).state == "completed"
    told = [run.logs(), run.status(), repr(run), str(refused.value), stage.sagemaker.calls, repr(CONFIG)]
    told.append(stage.sagemaker.jobs[run.run_id].describe())
    assert TOKEN not in json.dumps(told, default=str)
    assert run.hyperparameters.env_hosts[next(iter(run.hyperparameters.env_hosts))].env_endpoint == host.url


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stop_at_any_moment_loses_at_most_one_interval(stage: Stage, tmp_path: Path) -> None:
    chance = random.Random(7)
    where, reached = "s3://agentgpt-rehearsal/moments", 0
    for _ in range(20):
        run = _train(tmp_path, checkpoint_path=where)
        time.sleep(chance.uniform(0.5, 7.0))
        before = run.status()
        assert before.state == "running", before.failure
        after = run.stop()
        assert after.job_status == "Stopped", after.failure
        steps = [int(row["env_steps"]) for row in run.metrics()]
        if steps:
            # The stop leaves a checkpoint of the last step, so nothing is lost at all.
            assert steps[0] >= reached, f"the job before reached {reached}, this one began at {steps[0]}"
            assert steps[-1] == max(steps)
            reached = steps[-1]
    assert reached > 0
