"""Configurations that tests of the cloud share."""

from __future__ import annotations

from typing import Any

from agentgpt_remote import Hyperparameters
from agentgpt_remote.cloud.config import SageMakerConfig

ACCOUNT = "123456789012"
FIELDS: dict[str, Any] = {
    "role_arn": f"arn:aws:iam::{ACCOUNT}:role/agentgpt",
    "region": "us-east-1",
    "image_uri": f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/agentgpt:0.1.0",
    "output_path": "s3://agentgpt-runs/jobs",
    "model_data": "s3://agentgpt-runs/jobs/x/output/model.tar.gz",
}
SMALL: dict[str, Any] = {"num_envs": 4, "num_layers": 1, "d_model": 32, "rollout_steps": 256}
LONG = Hyperparameters(env_id="CartPole-v1", max_steps=10_000_000, checkpoint_interval_s=0.5, **SMALL)
SECRET_ARN = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:agentgpt/host-AbCdEf"


def config(**changes: Any) -> SageMakerConfig:
    return SageMakerConfig(**FIELDS | changes)
