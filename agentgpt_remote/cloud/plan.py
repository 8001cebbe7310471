"""What a command would ask of AWS, shown before anything is asked: requests, cost, checks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.aws import Aws
from agentgpt_remote.cloud.checks import Finding, check_deployment, check_training
from agentgpt_remote.cloud.config import SageMakerConfig
from agentgpt_remote.cloud.cost import (
    Estimate,
    endpoint_estimate,
    training_estimate,
    with_endpoint_budget,
    with_training_budget,
)
from agentgpt_remote.cloud.hosts import check_reachable
from agentgpt_remote.cloud.requests import Request, deployment_requests, job_name, training_job_request, unique_name
from agentgpt_remote.errors import AgentGPTError
from agentgpt_remote.files import replacing
from agentgpt_remote.trainer.hyperparameters import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be asked.

    Attributes:
        config: with what a budget changed.
        requests: in their order.
        estimate: what it costs; None where a price is not known.
        findings: of the checks; none where there are no credentials.
    """

    config: SageMakerConfig
    requests: tuple[Request, ...]
    estimate: Estimate | None
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Checks that failed."""
        return tuple(finding for finding in self.findings if finding.outcome == "failed")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "requests": [asdict(request) for request in self.requests],
            "cost": None if self.estimate is None else asdict(self.estimate),
            "checks": [
                {"name": finding.name, "outcome": finding.outcome, "detail": finding.detail}
                for finding in self.findings
            ],
        }


def plan_training(
    config: SageMakerConfig, hyperparameters: Hyperparameters, *, max_usd: float | None = None, look: bool = True
) -> Plan:
    """Return what a training job would be.

    Args:
        config: where and on what.
        hyperparameters: what to learn.
        max_usd: most that it may cost; the job then ends, with a checkpoint, before that.
        look: ask AWS about the bucket, the image, the role and the quota, where there are credentials.

    Raises:
        ConfigError: a field is missing or refused, or the budget can't be kept.
    """
    if max_usd is not None:
        config = with_training_budget(config, max_usd)
    request = training_job_request(config, hyperparameters, job_name(config, hyperparameters))
    findings: list[Finding] = []
    if look:
        try:
            aws = Aws(config.region)
            aws.account()
        except AgentGPTError as error:
            findings.append(Finding("credentials", "skipped", str(error)))
        else:
            findings += check_training(aws, config)
    findings.append(_reachable(hyperparameters, config))
    return Plan(config=config, requests=(request,), estimate=training_estimate(config), findings=tuple(findings))


def plan_deployment(
    config: SageMakerConfig, name: str | None = None, *, max_usd: float | None = None, look: bool = True
) -> Plan:
    """Return what a deployment would be; the arguments are those of :func:`plan_training`."""
    if max_usd is not None:
        config = with_endpoint_budget(config, max_usd)
    requests = deployment_requests(config, name or config.endpoint_name or unique_name("policy"))
    findings: list[Finding] = []
    if look:
        try:
            aws = Aws(config.region)
            aws.account()
        except AgentGPTError as error:
            findings.append(Finding("credentials", "skipped", str(error)))
        else:
            findings += check_deployment(aws, config)
    return Plan(config=config, requests=tuple(requests), estimate=endpoint_estimate(config), findings=tuple(findings))


def _reachable(hyperparameters: Hyperparameters, config: SageMakerConfig) -> Finding:
    try:
        check_reachable(hyperparameters, config)
    except AgentGPTError as error:
        return Finding("hosts", "failed", str(error), error)
    return Finding("hosts", "ok", f"{len(hyperparameters.env_hosts)} hosts elsewhere")


class Submissions:
    """Remembers in which accounts something was submitted from here: the first time, only a plan is shown."""

    def __init__(self) -> None:
        state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        self._path = Path(state) / "agentgpt" / "cloud.json"

    def _accounts(self) -> set[str]:
        try:
            return set(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return set()

    def __contains__(self, account: str) -> bool:
        """Tell whether something was submitted in an account."""
        return account in self._accounts()

    def add(self, account: str) -> None:
        """Remember an account."""
        _write(self._path, sorted({*self._accounts(), account}))


def _write(path: Path, accounts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(list(accounts)).encode())
