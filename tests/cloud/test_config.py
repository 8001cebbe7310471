from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.errors import ConfigError
from tests.cloud.samples import FIELDS, SECRET_ARN, config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("role_arn", "agentgpt", "role_arn"),
        ("role_arn", "arn:aws:iam::12:role/agentgpt", r"expected the form arn:aws"),
        ("role_arn", "arn:aws:iam::<account>:role/x", "placeholder '<'"),
        ("output_path", "s3://your-bucket/output", "placeholder 'your'"),
        ("output_path", "s3://my-bucket/output", "placeholder 'my-bucket'"),
        ("output_path", "/tmp/output", "output_path='/tmp/output': expected"),
        ("output_path", "https://bucket.s3.amazonaws.com/x", r"expected s3://BUCKET"),
        ("output_path", "s3://Bad_Bucket/x", r"expected s3://BUCKET"),
        ("image_uri", "i" * 256, "256 characters: expected at most 255"),
        ("image_uri", "{account}.dkr.ecr.us-east-1.amazonaws.com/agentgpt", "placeholder"),
        ("model_data", "model.tar.gz", "model_data='model.tar.gz': expected the form"),
        ("instance_type", "ml.m5.xlrge", "ml.m5.xlarge"),
        ("instance_type", 5, "instance_type=5: expected an instance type"),
        ("instance_count", 0, "instance_count=0: expected an integer from 1 to 100"),
        ("instance_count", True, "instance_count=True"),
        ("instance_count", 2.0, "instance_count=2.0"),
        ("endpoint_name", "my_endpoint", "endpoint_name='my_endpoint': expected the form"),
        ("endpoint_name", "e" * 64, "64 characters: expected at most 63"),
        ("job_name", "-job", "job_name='-job': expected the form"),
        ("region", "us-est-1", "did you mean 'us-west-1'|did you mean 'us-east-1'"),
        ("region", "moon", "region='moon'"),
        ("max_run", 0, "max_run has 0: expected at least 1"),
        ("max_run", "1h", "max_run='1h': expected an integer, got str"),
        ("max_run", 10**8, "at most 2419200 seconds"),
        ("max_wait", 4000, "only a spot job waits"),
        ("keep_alive_s", 30000, "expected at most 21600"),
        ("volume_gb", -1, "volume_gb=-1: expected an integer from 1"),
        ("subnets", ["subnet-1"], "set subnets and security_group_ids, or neither"),
        ("subnets", "subnet-1", "expected a list of ids"),
        ("tags", {"a": "y" * 257}, "257 characters: expected at most 256"),
        ("tags", {"aws:x": "1"}, "are taken"),
        ("tags", [("a", "b")], "expected a mapping"),
        ("expiry_hours", 0.1, "expiry_hours=0.1: expected hours, at least 0.5"),
        ("expiry_hours", float("nan"), "expiry_hours=nan"),
        ("session_expiry_s", 5, "session_expiry_s=5: expected an integer from 60"),
        ("spot", "yes", "spot='yes': expected true or false"),
        ("secrets", {"sim-7": SECRET_ARN}, "expected the URL of a host"),
    ],
)
def test_config_refuses_each_bad_field_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(**{field: value})
    assert field in str(caught.value)


def test_config_refuses_spot_waits_that_can_not_be() -> None:
    with pytest.raises(ConfigError, match="expected at least max_run=3600"):
        config(spot=True, max_wait=60)
    with pytest.raises(ConfigError, match="spot machines can't be kept"):
        config(spot=True, keep_alive_s=60)


@pytest.mark.parametrize("token", ["hunter2-the-token", "hunter2<{your}>"])
def test_config_never_shows_a_token_that_was_given_for_an_arn(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(secrets={"": token})
    assert "hunter2" not in str(caught.value)
    assert "agentgpt cloud secret" in str(caught.value)


def test_config_takes_what_aws_takes() -> None:
    made = config(
        spot=True,
        max_wait=7200,
        subnets=["subnet-0a1b"],
        security_group_ids=["sg-0a1b"],
        tags={"team": "simulation"},
        secrets={"": SECRET_ARN, "wss://sim-7.example.org": SECRET_ARN},
        checkpoint_path="s3://agentgpt-runs/checkpoints",
    )
    assert SageMakerConfig.from_dict(made.to_dict()) == made


def test_config_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text('region = "eu-west-1"\nmax_run = 60\n[tags]\nteam = "simulation"\n')
    assert SageMakerConfig.from_file(path, max_run=90) == SageMakerConfig(
        region="eu-west-1", max_run=90, tags={"team": "simulation"}
    )
    with pytest.raises(ConfigError, match=r"absent\.toml can't be read"):
        SageMakerConfig.from_file(tmp_path / "absent.toml")
    path.write_text("region = ")
    with pytest.raises(ConfigError, match="can't be read as TOML"):
        SageMakerConfig.from_file(path)
    path.write_text('rgion = "eu-west-1"')
    with pytest.raises(ConfigError, match="did you mean 'region'"):
        SageMakerConfig.from_file(path)


def test_config_shows_no_default_that_a_job_could_not_run_with() -> None:
    with pytest.raises(ConfigError, match=r"a training job needs role_arn: .*docs/cloud\.md"):
        SageMakerConfig().required("role_arn", "a training job")
    assert SageMakerConfig(**FIELDS).required("role_arn", "a training job") == FIELDS["role_arn"]
