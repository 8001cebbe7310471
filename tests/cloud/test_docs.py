"""docs/cloud.md: its policies are JSON, and allow what is asked of AWS."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path

from agentgpt_remote import SageMakerConfig
from agentgpt_remote.cloud.job import CloudTrainingRun
from agentgpt_remote.cloud.rehearsal.stage import Stage

TEXT = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text(encoding="utf-8")
TRUST, ROLE, USER, HOSTING = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)]


def _actions(policy: dict[str, list[dict[str, object]]]) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        actions = statement["Action"]
        found |= {actions} if isinstance(actions, str) else set(actions)  # type: ignore[arg-type]
    return found


def test_the_users_policy_allows_every_operation_that_was_asked_for(stage: Stage, trained: CloudTrainingRun) -> None:
    services = {"CreateSchedule": "scheduler", "DeleteSchedule": "scheduler", "ListServiceQuotas": "servicequotas"}
    asked = {f"{services.get(call, 'sagemaker')}:{call}" for call, _ in stage.sagemaker.calls}
    assert "sagemaker:CreateTrainingJob" in asked
    assert asked <= _actions(USER)


def test_policies_allow_no_more_than_is_listed() -> None:
    for policy in (ROLE, USER, HOSTING):
        assert not any("*" in action for action in _actions(policy))
        for statement in policy["Statement"]:
            resources = statement["Resource"]
            for resource in [resources] if isinstance(resources, str) else resources:
                if resource == "*":
                    continue
                assert fnmatch.fnmatch(resource, "arn:aws:*BUCKET*") or "ACCOUNT" in resource, resource
    assert TRUST["Statement"][0]["Principal"]["Service"] == ["sagemaker.amazonaws.com", "scheduler.amazonaws.com"]


def test_the_configuration_works_once_its_words_are_replaced() -> None:
    block = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)[0]
    own = block.replace("ACCOUNT", "123456789012").replace("REGION", "eu-west-1").replace("BUCKET", "agentgpt-runs")
    config = SageMakerConfig.from_dict(tomllib.loads(own))
    assert config.region == "eu-west-1"
