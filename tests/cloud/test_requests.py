from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from agentgpt_remote import EnvHost, Exploration, Hyperparameters
from agentgpt_remote.cloud.encoding import from_strings, hyperparameter_strings, parse_hyperparameters, to_strings
from agentgpt_remote.cloud.metric_lines import DEFINED, metric_definitions, metric_line, read_metric_lines
from agentgpt_remote.cloud.requests import Request, deployment_requests, job_name, training_job_request, unique_name
from agentgpt_remote.cloud.strict import check_request
from agentgpt_remote.errors import ConfigError
from tests.cloud.samples import SECRET_ARN, config

CARTPOLE = Hyperparameters(env_id="CartPole-v1")


def _job(hyperparameters: Hyperparameters = CARTPOLE, **changes: Any) -> dict[str, Any]:
    made = config(**changes)
    return training_job_request(made, hyperparameters, job_name(made, hyperparameters)).arguments


@pytest.mark.parametrize(
    "hyperparameters",
    [
        CARTPOLE,
        Hyperparameters(
            env_hosts={
                f"sim-{n}": EnvHost(env_endpoint=f"wss://sim-{n}.example.org:8000", num_agents=n) for n in range(1, 64)
            },
            lr_init=1e-4,
            learn_gamma=True,
            num_layers=3,
            gpt_type="gpt2",
        ),
        Hyperparameters(
            env_id="null",
            env_kwargs={"text": "äß€\n", "level": [1, 2.5, None], "deep": {"on": True}},
            exploration={"continuous": Exploration(type="ornstein_uhlenbeck")},
            wandb_project="12",
        ),
    ],
)
def test_hyperparameters_survive_as_texts(hyperparameters: Hyperparameters) -> None:
    texts = hyperparameter_strings(hyperparameters)
    assert all(isinstance(text, str) and len(text) <= 2500 for text in texts.values())
    assert len(texts) <= 100
    assert parse_hyperparameters(json.loads(json.dumps(texts))) == hyperparameters


def test_a_missing_part_of_a_long_hyperparameter_is_named() -> None:
    texts = to_strings({"env_kwargs": {"x": "y" * 6000}})
    assert sorted(texts) == ["env_kwargs[0]", "env_kwargs[1]", "env_kwargs[2]"]
    del texts["env_kwargs[1]"]
    with pytest.raises(ConfigError, match=r"env_kwargs has the parts \[0, 2\]: expected 0 to"):
        from_strings(texts)
    with pytest.raises(ConfigError, match="max_steps='many': expected JSON"):
        from_strings({"max_steps": "many"})


def test_training_job_request_says_what_the_configuration_says() -> None:
    job = _job(
        spot=True,
        max_run=600,
        instance_type="ml.g5.xlarge",
        instance_count=2,
        subnets=["subnet-0a"],
        security_group_ids=["sg-0a"],
        tags={"team": "simulation"},
        secrets={"": SECRET_ARN},
    )
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200}
    assert job["ResourceConfig"] == {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30}
    assert job["VpcConfig"] == {"SecurityGroupIds": ["sg-0a"], "Subnets": ["subnet-0a"]}
    assert job["CheckpointConfig"]["S3Uri"] == f"s3://agentgpt-runs/jobs/{job['TrainingJobName']}/checkpoints"
    assert {"Key": "team", "Value": "simulation"} in job["Tags"]
    assert json.loads(job["HyperParameters"]["token_secrets"]) == {"": SECRET_ARN}
    assert "MetricDefinitions" in job["AlgorithmSpecification"]
    quiet = _job(Hyperparameters(env_id="CartPole-v1", use_cloudwatch=False))
    assert "MetricDefinitions" not in quiet["AlgorithmSpecification"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job.update(TrainingJobName="bad_name"), "TrainingJobName='bad_name': expected the form"),
        (lambda job: job.update(RoleArn="arn:aws:iam::1:role/x"), "RoleArn"),
        (lambda job: job["ResourceConfig"].update(InstanceType="ml.m5.giant"), "InstanceType='ml.m5.giant'"),
        (lambda job: job["ResourceConfig"].update(KeepAlivePeriodInSeconds=99999), "expected at most 21600"),
        (lambda job: job["ResourceConfig"].update(InstanceCount="2"), "expected an integer, got str"),
        (lambda job: job["HyperParameters"].update(x="y" * 2501), "2501 characters: expected at most 2500"),
        (lambda job: job["HyperParameters"].update({f"h{n}": "" for n in range(101)}), "expected at most 100"),
        (lambda job: job["Environment"].update({"no-hyphen": "x"}), "no-hyphen"),
        (lambda job: job["Environment"].update(LONG="x" * 513), "513 characters: expected at most 512"),
        (lambda job: job["StoppingCondition"].update(MaxRuntimeInSeconds=0), "expected at least 1"),
        (lambda job: job["Tags"].extend([{"Key": str(n), "Value": ""} for n in range(50)]), "expected at most 50"),
        (lambda job: job["OutputDataConfig"].update(S3OutputPath="bucket"), "S3OutputPath='bucket'"),
        (lambda job: job["AlgorithmSpecification"].pop("TrainingInputMode"), "TrainingInputMode is missing"),
        (lambda job: job.update(TrainingJobname="x"), "did you mean TrainingJobName"),
        (
            lambda job: job["AlgorithmSpecification"].update(MetricDefinitions=[{"Name": "a", "Regex": "b"}] * 41),
            "at most 40",
        ),
        (lambda job: job.update(EnableManagedSpotTraining=1), "expected a boolean, got int"),
    ],
)
def test_strict_walk_refuses_each_class_of_bad_request(change: Any, message: str) -> None:
    job = json.loads(json.dumps(_job()))
    check_request("sagemaker", "CreateTrainingJob", job)
    change(job)
    with pytest.raises(ConfigError, match=message):
        Request(service="sagemaker", operation="CreateTrainingJob", arguments=job)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"env_hosts": {"a": {"env_endpoint": "wss://me:hunter2@sim.example.org"}}}, "holds more than an address"),
        ({"env_hosts": {"a": {"env_endpoint": "wss://sim.example.org/?token=hunter2"}}}, "holds more than an address"),
        ({"env_id": "CartPole-v1", "env_kwargs": {"server": {"api_key": "hunter2"}}}, r"env_kwargs\['api_key'\]"),
    ],
)
def test_a_secret_in_a_hyperparameter_is_refused_unseen(hyperparameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _job(Hyperparameters.from_dict(hyperparameters))
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_is_scheduled_to_end_before_it_is_made() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    requests = deployment_requests(config(expiry_hours=1.5, endpoint_instance_count=3), "policy-1", now=now)
    assert [request.operation for request in requests] == [
        "CreateModel",
        "CreateEndpointConfig",
        "CreateSchedule",
        "CreateEndpoint",
    ]
    schedule = requests[2].arguments
    assert schedule["ScheduleExpression"] == "at(2026-01-02T04:34:05)"
    assert json.loads(schedule["Target"]["Input"]) == {"EndpointName": "policy-1"}
    assert {"Key": "agentgpt:expires", "Value": "2026-01-02T04:34:05Z"} in requests[3].arguments["Tags"]
    assert requests[1].arguments["ProductionVariants"][0]["InitialInstanceCount"] == 3


def test_the_longest_endpoint_name_has_a_schedule() -> None:
    assert len(deployment_requests(config(), "e" * 63)) == 4


@pytest.mark.parametrize("name", ["role_arn", "image_uri", "output_path"])
def test_a_missing_field_is_named_with_the_next_step(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a training job needs {name}"):
        _job(**{name: None})


def test_names_are_valid_whatever_the_environment_is_called() -> None:
    for base in ("ALE/Pong-v5", "package.module:Name-v0", "x" * 200, "---", "ünïcode"):
        check_request("sagemaker", "DescribeTrainingJob", {"TrainingJobName": unique_name(base)})


def test_metric_definitions_read_what_is_printed() -> None:
    values = {name: (index - 3) * 1.5e-7**index for index, name in enumerate(DEFINED)} | {"env_steps": 123_456_789}
    line = f"2026-01-02 {metric_line(values)}"
    definitions = metric_definitions()
    assert len(definitions) <= 40
    for definition in definitions:
        found = re.search(definition["Regex"], line)
        assert found is not None, definition["Name"]
        assert float(found[1]) == pytest.approx(values[definition["Name"]], rel=1e-6)
    [row] = read_metric_lines(["noise env_steps=1", line, "agentgpt metrics broken"])
    assert row == {name: pytest.approx(value, rel=1e-6) for name, value in values.items()}
