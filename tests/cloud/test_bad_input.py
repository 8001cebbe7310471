"""What goes wrong with an account: each is one clear error, and nothing billable is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentgpt_remote import AgentGPT, Hyperparameters, RemoteEnv, SageMakerConfig
from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.hosts import check_reachable
from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.rehearsal.stage import Stage, rehearsal_config
from agentgpt_remote.errors import AuthError, CapacityReached, CloudError, ConfigError, RunExists
from tests.cloud.samples import LONG, SMALL

CONFIG = rehearsal_config()
CARTPOLE = Hyperparameters(env_id="CartPole-v1", **SMALL)


def _train(**changes: Any) -> Any:
    return AgentGPT.train_on_cloud(replace(CONFIG, **changes), CARTPOLE)


@pytest.fixture(autouse=True)
def _no_job_is_left(stage: Stage) -> Iterator[None]:
    before = set(stage.sagemaker.jobs)
    yield
    running = [name for name, job in stage.sagemaker.jobs.items() if name not in before and not job.ended]
    assert running == []


def test_no_credentials(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AuthError, match="no AWS credentials; run `aws configure`"):
        _train()
    with pytest.raises(AuthError, match="no AWS credentials"):
        AgentGPT.run_on_cloud(CONFIG, "any")


def test_expired_credentials(stage: Stage) -> None:
    stage.sagemaker.refusing = "ExpiredTokenException"
    try:
        with pytest.raises(AuthError, match="credentials have expired; get new ones, as with `aws sso login`"):
            _train()
        with pytest.raises(AuthError, match="have expired"):
            AgentGPT.run_on_cloud(CONFIG, "any")
        stage.sagemaker.refusing = "UnrecognizedClientException"
        with pytest.raises(AuthError, match="AWS does not know these credentials"):
            _train()
        stage.sagemaker.refusing = "AccessDeniedException"
        with pytest.raises(AuthError, match=r"not allowed to start the training job .*docs/cloud\.md"):
            _train()
    finally:
        stage.sagemaker.refusing = None


def test_no_region(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(ConfigError, match="no AWS region is set: set region=, AWS_REGION, or run `aws configure`"):
        _train(region=None)
    monkeypatch.setenv("AWS_REGION", "us-moon-1")
    with pytest.raises(ConfigError, match="'us-moon-1' is unknown"):
        _train(region=None)


def test_a_role_that_is_not_there_or_can_not_be_assumed(stage: Stage) -> None:
    with pytest.raises(ConfigError, match=r"there is no such role; docs/cloud\.md says how to make it"):
        _train(role_arn="arn:aws:iam::123456789012:role/nobody")
    statement = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    stage.surroundings.make_role("of-ec2", {"Statement": [statement]})
    with pytest.raises(ConfigError, match=r"does not trust sagemaker\.amazonaws\.com"):
        _train(role_arn="arn:aws:iam::123456789012:role/of-ec2")


def test_a_bucket_that_is_not_there_or_lies_elsewhere(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="there is no bucket 'agentgpt-absent'; make it with `aws s3 mb"):
        _train(output_path="s3://agentgpt-absent/jobs")
    stage.surroundings.make_bucket("agentgpt-in-ireland", "eu-west-1")
    with pytest.raises(ConfigError, match="lies in eu-west-1, the job would run in us-east-1; set region"):
        _train(output_path="s3://agentgpt-in-ireland/jobs")


def test_an_image_that_is_not_there(stage: Stage) -> None:
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/agentgpt:absent"
    with pytest.raises(ConfigError, match="there is no such image; build and push it with `agentgpt cloud image push`"):
        _train(image_uri=image)
    with pytest.raises(ConfigError, match="the image lies in eu-west-1, the machines would be in us-east-1"):
        _train(image_uri="123456789012.dkr.ecr.eu-west-1.amazonaws.com/agentgpt:rehearsal")


def test_a_quota_of_zero(stage: Stage) -> None:
    stage.sagemaker.quotas["ml.g5.48xlarge"] = 0
    try:
        with pytest.raises(ConfigError, match="is 0, the request needs 1: ask for more with `aws service-quotas req"):
            _train(instance_type="ml.g5.48xlarge")
    finally:
        del stage.sagemaker.quotas["ml.g5.48xlarge"]


def test_what_the_checks_may_not_see_is_refused_by_sagemaker_and_explained(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentgpt_remote.cloud.job.check_training", lambda *_: iter(()))
    with pytest.raises(ConfigError, match=r"Could not assume role .*must exist and trust sagemaker\.amazonaws\.com"):
        _train(role_arn="arn:aws:iam::123456789012:role/nobody")
    with pytest.raises(ConfigError, match=r"The S3 bucket agentgpt-absent in S3OutputPath does not exist"):
        _train(output_path="s3://agentgpt-absent/jobs")
    monkeypatch.setitem(stage.sagemaker.quotas, "ml.g5.48xlarge", 0)
    with pytest.raises(CapacityReached, match=r"is 0 Instances.*aws service-quotas"):
        _train(instance_type="ml.g5.48xlarge")
    run = _train(image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/agentgpt:absent")
    with pytest.raises(Exception, match="Cannot pull the image"):
        run.wait(30)


def test_a_job_name_in_use(stage: Stage, trained: CloudTrainingRun) -> None:
    with pytest.raises(RunExists, match=r"the name is in use.*choose another name"):
        _train(job_name=trained.run_id)


def test_a_job_that_is_not_there(stage: Stage) -> None:
    with pytest.raises(ConfigError, match=r"can't look up the training job nothing: .*not found"):
        CloudTrainingRun(Aws("us-east-1"), "nothing")


def test_aws_that_can_not_be_reached(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
    with pytest.raises(CloudError, match=r"AWS can't be reached .*check the network and the region"):
        _train()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ws://127.0.0.1:8000", r"listens on this machine only: let the host dial out to a relay .*tunnel.*cloud host"),
        ("ws://localhost:8000", "listens on this machine only"),
        ("ws://[::1]:8000", "listens on this machine only"),
        ("ws://0.0.0.0:8000", "listens on this machine only"),
        ("ws://192.168.1.7:8000", "has a private address: set subnets and security_group_ids of a VPC"),
        ("ws://10.0.0.7:8000", "has a private address"),
        ("ws://sim-7.local:8000", "has a private address"),
    ],
)
def test_a_host_that_the_cloud_can_not_reach(url: str, message: str) -> None:
    hyperparameters = Hyperparameters.from_dict({"env_hosts": {"sim": {"env_endpoint": url}}})
    with pytest.raises(ConfigError, match=message):
        check_reachable(hyperparameters, CONFIG)
    if "private" in message:
        check_reachable(hyperparameters, replace(CONFIG, subnets=("subnet-0a",), security_group_ids=("sg-0a",)))


def test_an_environment_of_this_process_is_refused_where_no_rehearsal_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "https://api.sagemaker.us-east-1.amazonaws.com")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    config = replace(CONFIG, secrets={"": "arn:aws:secretsmanager:us-east-1:123456789012:secret:x"})
    with RemoteEnv("CartPole-v1") as env, pytest.raises(ConfigError, match="listens on this machine only"):
        AgentGPT.train_on_cloud(config, Hyperparameters(**SMALL), env)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        (Hyperparameters(), "no environment is named"),
        ({"env_id": "CartPole-v1"}, "is a dict: expected Hyperparameters"),
    ],
)
def test_hyperparameters_that_say_nothing(stage: Stage, hyperparameters: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AgentGPT.train_on_cloud(CONFIG, hyperparameters)


def test_a_configuration_without_what_is_needed(stage: Stage) -> None:
    for name in ("role_arn", "image_uri", "output_path"):
        with pytest.raises(ConfigError, match=f"a training job needs {name}"):
            AgentGPT.train_on_cloud(replace(CONFIG, **{name: None}), LONG)
    with pytest.raises(ConfigError, match="a deployment needs model_data: set it to"):
        AgentGPT.run_on_cloud(CONFIG, "no-model")
    with pytest.raises(ConfigError, match="a deployment needs role_arn"):
        AgentGPT.run_on_cloud(SageMakerConfig(region="us-east-1"))
