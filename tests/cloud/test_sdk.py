"""Our request for a training job equals that of SageMaker's own SDK for the same inputs.

The SDK is large and not installed with the tests: what it made of them is recorded in sdk_request.json. Where an
interpreter has it (this one, or the one in AGENTGPT_SDK_PYTHON), it is asked again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from agentgpt_remote import Hyperparameters
from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.rehearsal.stage import Stage
from agentgpt_remote.cloud.requests import training_job_request
from tests.cloud.samples import config

HERE = Path(__file__).parent
HYPERPARAMETERS = Hyperparameters(env_id="CartPole-v1", env_kwargs={"levels": [1, 2.5, True]}, lr_init=1e-4)
CONFIG = config(
    spot=True,
    max_wait=7200,
    subnets=["subnet-0a"],
    security_group_ids=["sg-0a"],
    tags={"team": "simulation"},
    instance_count=2,
)


def _ours() -> dict[str, Any]:
    return training_job_request(CONFIG, HYPERPARAMETERS, "job").arguments


def _inputs() -> dict[str, Any]:
    """Return what the SDK is told: the configuration's fields, and Python values for hyperparameters."""
    ours = _ours()
    return CONFIG.to_dict() | {
        "hyperparameters": {k: v for k, v in HYPERPARAMETERS.to_dict().items() if v is not None and v != {}},
        "environment": ours["Environment"],
        "tags": ours["Tags"],
        "checkpoint_path": ours["CheckpointConfig"]["S3Uri"],
        "metrics": ours["AlgorithmSpecification"]["MetricDefinitions"],
    }


def test_request_equals_the_recorded_one_of_the_sdk() -> None:
    assert _ours() == json.loads((HERE / "sdk_request.json").read_text())


def _interpreter() -> str | None:
    if os.environ.get("AGENTGPT_SDK_PYTHON"):
        return os.environ["AGENTGPT_SDK_PYTHON"]
    return sys.executable if importlib.util.find_spec("sagemaker") is not None else None


@pytest.mark.skipif(_interpreter() is None, reason="SageMaker's SDK is not installed")
def test_request_equals_that_of_the_sdk() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(_interpreter()), str(HERE / "sdk_request.py")],
        input=json.dumps(_inputs()),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == _ours()


@pytest.mark.skipif(_interpreter() is None, reason="SageMaker's SDK is not installed")
def test_the_sdk_finds_the_job(stage: Stage, trained: CloudTrainingRun) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[3])\n"
        "from agentgpt_remote.cloud.aws import Aws\n"
        "from agentgpt_remote.cloud.job import CloudTrainingRun\n"
        "job = CloudTrainingRun(Aws('us-east-1'), sys.argv[2]).sdk()\n"
        "print(type(job).__module__, job.training_job_name, job.training_job_status)"
    )
    libraries = str(Path(gymnasium.__file__).parents[1])  # that an interpreter with the SDK may lack
    words = [str(_interpreter()), "-c", code, str(HERE.parents[1]), trained.run_id, libraries]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"sagemaker.core.resources {trained.run_id} Completed"


def test_the_sdk_that_is_missing_is_named(
    stage: Stage, trained: CloudTrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sagemaker", None)
    with pytest.raises(Exception, match=r'pip install "agentgpt-remote\[sagemaker\]"'):
        trained.sdk()
