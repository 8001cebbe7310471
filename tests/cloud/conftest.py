"""A stage that stands in for AWS, and a job that has been trained on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentgpt_remote import AgentGPT, Hyperparameters
from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.rehearsal.stage import Stage, rehearsal_config
from tests.cloud.samples import SMALL


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    before = os.environ.pop("AGENTGPT_TOKEN", None)
    with Stage(rehearsal_config()) as made:
        yield made
    if before is not None:
        os.environ["AGENTGPT_TOKEN"] = before


@pytest.fixture(scope="package")
def trained(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> CloudTrainingRun:
    """A job that has completed."""
    runs: Path = tmp_path_factory.mktemp("runs")
    hyperparameters = Hyperparameters(env_id="CartPole-v1", max_steps=3000, **SMALL)
    run = AgentGPT.train_on_cloud(rehearsal_config(), hyperparameters, runs_dir=runs)
    assert run.wait(120).state == "completed"
    return run
