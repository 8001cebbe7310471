"""Print, as JSON, the request that SageMaker's own SDK makes of the inputs on standard input.

Run by test_sdk.py with an interpreter that has ``sagemaker`` (3.27 or newer, below 4).
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"SAGEMAKER_VALIDATE_ROLE": "false", "AWS_EC2_METADATA_DISABLED": "true"}

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import (
    CheckpointConfig,
    Compute,
    MetricDefinition,
    Networking,
    OutputDataConfig,
    StoppingCondition,
    Tag,
)

given = json.load(sys.stdin)
session = boto3.session.Session(
    region_name=given["region"], aws_access_key_id="made-up", aws_secret_access_key="made-up"
)
trainer = ModelTrainer(
    sagemaker_session=Session(boto_session=session, default_bucket="agentgpt-runs"),
    training_image=given["image_uri"],
    role=given["role_arn"],
    base_job_name="job",
    hyperparameters=given["hyperparameters"],
    environment=given["environment"],
    tags=[Tag(key=tag["Key"], value=tag["Value"]) for tag in given["tags"]],
    compute=Compute(
        instance_type=given["instance_type"],
        instance_count=given["instance_count"],
        volume_size_in_gb=given["volume_gb"],
        enable_managed_spot_training=given["spot"],
    ),
    networking=Networking(subnets=given["subnets"], security_group_ids=given["security_group_ids"]),
    stopping_condition=StoppingCondition(
        max_runtime_in_seconds=given["max_run"], max_wait_time_in_seconds=given["max_wait"]
    ),
    output_data_config=OutputDataConfig(s3_output_path=given["output_path"]),
    checkpoint_config=CheckpointConfig(s3_uri=given["checkpoint_path"], local_path="/opt/ml/checkpoints"),
)
trainer.with_metric_definitions(
    [MetricDefinition(name=metric["Name"], regex=metric["Regex"]) for metric in given["metrics"]]
)
request = trainer._create_training_job_args(boto3=True)
request["TrainingJobName"] = "job"  # the SDK adds the time
sys.stdout.write(json.dumps(request, sort_keys=True) + "\n")
