"""Endpoints: deployed, reused, rolled back, expired and deleted, by stand-ins for AWS over real HTTP."""

from __future__ import annotations

import _thread
import contextlib
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agentgpt_remote import AgentGPT, GPTPolicy
from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.deployment import deploy, endpoint_status, tear_down
from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.listing import list_running
from agentgpt_remote.cloud.rehearsal.stage import Stage, rehearsal_config
from agentgpt_remote.cloud.requests import expiry_name
from agentgpt_remote.errors import CapacityReached, CloudError, ConfigError, RemoteTimeout
from tests.cloud.samples import LONG
from tests.support import wait_until

CONFIG = rehearsal_config()


@pytest.fixture
def aws(stage: Stage) -> Aws:
    return Aws("us-east-1")


def _nothing_is_left(stage: Stage) -> None:
    wait_until(lambda: not [e for e in stage.sagemaker.endpoints.values() if not e.gone], 40.0)
    assert (stage.sagemaker.models, stage.sagemaker.configs, stage.sagemaker.schedules) == ({}, {}, {})


def _put_model(stage: Stage, folder: Path, key: str, **files: str) -> str:
    """Upload a model.tar.gz of text files, and return its address."""
    archive = folder / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in files.items():
            path = folder / name
            path.write_text(text)
            packed.add(path, arcname=name.replace("_", "."))
    stage.surroundings.client("s3").upload_file(str(archive), "agentgpt-rehearsal", key)
    return f"s3://agentgpt-rehearsal/{key}"


def test_an_endpoint_is_made_reused_and_ends_by_itself(stage: Stage, aws: Aws, trained: CloudTrainingRun) -> None:
    config = replace(CONFIG, model_data=trained.model_data, expiry_hours=2, session_expiry_s=120)
    observations = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    with AgentGPT.run_on_cloud(config, "reused") as policy, trained.policy() as local:
        for observation in observations:
            assert policy(observation) == local(observation)
    [entry] = list_running(aws)
    assert (entry.name, entry.status, entry.machines) == ("reused", "InService", "1 x ml.m5.xlarge")
    assert entry.per_hour == pytest.approx(0.23)
    created = len([call for call, _ in stage.sagemaker.calls if call == "CreateEndpoint"])
    # Nothing but its name is needed to use it again.
    with AgentGPT.run_on_cloud(replace(CONFIG, role_arn=None, image_uri=None), "reused") as policy:
        assert policy(observations[0]) in (0, 1)
    assert len([call for call, _ in stage.sagemaker.calls if call == "CreateEndpoint"]) == created
    assert stage.sagemaker.models["reused"]["PrimaryContainer"]["Environment"] == {"AGENTGPT_SESSION_EXPIRY_S": "120"}
    stage.sagemaker.advance(2.01)
    wait_until(lambda: endpoint_status(aws, "reused") is None, 40.0)
    stage.sagemaker.advance(-2.01)
    assert stage.sagemaker.schedules == {}
    with pytest.raises(ConfigError, match=r"Endpoint reused of account .* not found"):
        GPTPolicy("sagemaker://reused?region=us-east-1", timeout_s=5)
    assert tear_down(aws, "reused") == ["endpoint config reused", "model reused"]
    with pytest.raises(CloudError, match="there is no endpoint 'reused'"):
        tear_down(aws, "reused")
    _nothing_is_left(stage)


def test_many_agents_outlive_the_machine_that_remembered_them(
    stage: Stage, aws: Aws, trained: CloudTrainingRun
) -> None:
    config = replace(CONFIG, model_data=trained.model_data, endpoint_instance_count=2)
    draws = np.random.default_rng(1)
    ids = [f"agent-{index}" for index in range(8)]
    with (
        AgentGPT.run_on_cloud(config, "killed", deterministic=False, seed=3) as policy,
        trained.policy(deterministic=False, seed=3) as local,
    ):
        for step in range(60):
            if step == 30:
                endpoint = stage.sagemaker.endpoints["killed"]
                busiest = max(endpoint.instances, key=lambda instance: instance.num_requests)
                busiest.container.kill()
            observations = draws.normal(size=(8, 4)).astype(np.float32)
            wanted = local.select_action(ids, observations)
            assert np.array_equal(policy.select_action(ids, observations), wanted), step
    wait_until(lambda: busiest not in endpoint.instances, 20.0)
    tear_down(aws, "killed")
    _nothing_is_left(stage)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme_md": "no policy"}, r"did not pass the ping health check.*holds no policy"),
        ({"config_json": "{}"}, r"did not pass the ping health check.*config\.json"),
    ],
)
def test_an_endpoint_that_never_becomes_healthy_is_rolled_back(
    stage: Stage, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    model = _put_model(stage, tmp_path, "broken/model.tar.gz", **files)
    with pytest.raises(CloudError, match=f"(?s){message}"):
        deploy(replace(CONFIG, model_data=model), "broken")
    _nothing_is_left(stage)


def test_a_model_that_is_not_there_is_named_and_rolled_back(stage: Stage) -> None:
    with pytest.raises(CloudError, match="Could not find model data at s3://agentgpt-rehearsal/no/model"):
        deploy(replace(CONFIG, model_data="s3://agentgpt-rehearsal/no/model.tar.gz"), "no-model")
    _nothing_is_left(stage)


def test_a_quota_that_is_used_up_leaves_nothing(stage: Stage, trained: CloudTrainingRun) -> None:
    stage.sagemaker.quotas["ml.g5.xlarge"] = 1
    config = replace(
        CONFIG, model_data=trained.model_data, endpoint_instance_type="ml.g5.xlarge", endpoint_instance_count=2
    )
    with pytest.raises(ConfigError, match=r"the quota 'ml\.g5\.xlarge for endpoint usage' is 1, the request needs 2"):
        deploy(config, "too-many")
    # Where the quota may not be looked up, the request itself is refused, after the model was made.
    listing, stage.sagemaker.do_ListServiceQuotas = stage.sagemaker.do_ListServiceQuotas, lambda _: {"Quotas": []}  # type: ignore[method-assign]
    try:
        with pytest.raises(CapacityReached, match=r"service limit 'ml\.g5\.xlarge for endpoint usage' is 1"):
            deploy(config, "too-many")
    finally:
        stage.sagemaker.do_ListServiceQuotas = listing  # type: ignore[method-assign]
        del stage.sagemaker.quotas["ml.g5.xlarge"]
    _nothing_is_left(stage)


def test_an_endpoint_that_takes_too_long_can_not_be_deleted_yet_and_keeps_its_expiry(
    stage: Stage, aws: Aws, trained: CloudTrainingRun
) -> None:
    still = r"is still Creating after 0 s. Still there: Endpoint slow .*in-progress.*`agentgpt cloud stop slow` removes"
    with pytest.raises(RemoteTimeout, match=still):
        deploy(replace(CONFIG, model_data=trained.model_data), "slow", timeout_s=0.3)
    assert expiry_name("slow") in stage.sagemaker.schedules
    assert {"slow"} == stage.sagemaker.configs.keys() == stage.sagemaker.models.keys()
    assert endpoint_status(aws, "slow") in ("Creating", "InService")
    assert "endpoint slow" in tear_down(aws, "slow")
    _nothing_is_left(stage)


def test_an_expiry_that_comes_while_an_endpoint_is_made_deletes_it_later(
    stage: Stage, aws: Aws, trained: CloudTrainingRun
) -> None:
    ahead = [9.0]

    def look(status: str) -> None:
        if ahead and status == "Creating":
            stage.sagemaker.advance(ahead.pop())

    with contextlib.suppress(CloudError):  # it may be gone before it was seen in service
        deploy(replace(CONFIG, model_data=trained.model_data), "late", on_status=look)
    assert ahead == []
    wait_until(lambda: endpoint_status(aws, "late") is None, 40.0)
    stage.sagemaker.advance(-9)
    if stage.sagemaker.models:
        tear_down(aws, "late")
    _nothing_is_left(stage)


def test_ctrl_c_says_what_keeps_running(stage: Stage, aws: Aws, trained: CloudTrainingRun) -> None:
    config = replace(CONFIG, model_data=trained.model_data)
    with pytest.raises(KeyboardInterrupt, match=r"endpoint left goes on being made.*`agentgpt cloud stop left`"):
        deploy(config, "left", on_status=lambda _: _thread.interrupt_main())
    assert endpoint_status(aws, "left") in ("Creating", "InService")
    assert tear_down(aws, "left")[0] == "endpoint left"
    run = AgentGPT.train_on_cloud(CONFIG, LONG)
    with pytest.raises(KeyboardInterrupt, match="keeps running, and is paid for: `agentgpt cloud stop agentgpt-"):
        run.wait(60, on_status=lambda _: _thread.interrupt_main())
    [job] = [entry for entry in list_running(aws) if entry.kind == "job"]
    stage.sagemaker.jobs[job.name].stop()
    stage.sagemaker.jobs[job.name].wait(60)
    _nothing_is_left(stage)
