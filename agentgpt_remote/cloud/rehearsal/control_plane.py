"""What SageMaker's control plane does in a rehearsal: every operation, and the checks that AWS makes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from agentgpt_remote.cloud.rehearsal.endpoints import Endpoint
from agentgpt_remote.cloud.rehearsal.jobs import TrainingJob
from agentgpt_remote.cloud.rehearsal.surroundings import ACCOUNT, Surroundings
from agentgpt_remote.cloud.storage import split_uri


class Refusal(Exception):
    """An error that AWS would answer.

    Attributes:
        code: AWS's, such as ``"ValidationException"``.
        status: of HTTP.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class ControlPlane:
    """Jobs, models and endpoints: a method ``do_OPERATION`` for each of AWS's operations.

    Args:
        folder: for the containers' files.
        surroundings: the rest of AWS.
        environment: variables for the containers.

    Attributes:
        jobs: training jobs by name.
        endpoints: by name.
        models: requests of CreateModel by name.
        configs: requests of CreateEndpointConfig by name.
        quotas: machines that the account may have, by instance type; no limit where a type is missing.
    """

    def __init__(self, folder: Path, surroundings: Surroundings, environment: dict[str, str]) -> None:
        self.jobs: dict[str, TrainingJob] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.quotas: dict[str, int] = {}
        self.surroundings, self._environment = surroundings, environment
        self._tags: dict[str, list[dict[str, str]]] = {}
        self._folder, self._number = folder, 0

    # --- training jobs ---------------------------------------------------------------------------------------------

    def do_CreateTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start a job."""
        name, resources = body["TrainingJobName"], body["ResourceConfig"]
        if name in self.jobs:
            raise Refusal("ResourceInUse", "Training job names must be unique within an AWS account and region")
        self.check_role(body["RoleArn"])
        self._check_bucket(body["OutputDataConfig"]["S3OutputPath"])
        if body.get("EnableManagedSpotTraining") and "MaxWaitTimeInSeconds" not in body["StoppingCondition"]:
            raise Refusal("ValidationException", "MaxWaitTimeInSeconds must be set for managed spot training")
        in_use = sum(
            job.request["ResourceConfig"]["InstanceCount"]
            for job in self.jobs.values()
            if not job.ended and job.request["ResourceConfig"]["InstanceType"] == resources["InstanceType"]
        )
        self._check_quota(resources["InstanceType"], "training job", in_use, resources["InstanceCount"])
        self.jobs[name] = TrainingJob(body, self._new_folder(), self.surroundings, self._environment)
        arn = self.jobs[name].describe()["TrainingJobArn"]
        self._tags[arn] = body.get("Tags", [])
        return {"TrainingJobArn": arn}

    def do_DescribeTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of a job."""
        return self._job(body).describe()

    def do_StopTrainingJob(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask a job to end."""
        job = self._job(body)
        if job.status not in ("InProgress", "Stopping"):
            raise Refusal(
                "ValidationException", f"The request was rejected because the training job is in status {job.status}."
            )
        job.stop()
        return {}

    def do_ListTrainingJobs(self, body: dict[str, Any]) -> dict[str, Any]:
        """List jobs, the newest first."""
        found = [
            {
                key: told[key]
                for key in (
                    "TrainingJobName",
                    "TrainingJobArn",
                    "CreationTime",
                    "LastModifiedTime",
                    "TrainingJobStatus",
                )
            }
            for told in (job.describe() for job in reversed(self.jobs.values()))
            if body.get("NameContains", "") in told["TrainingJobName"]
            and body.get("StatusEquals", told["TrainingJobStatus"]) == told["TrainingJobStatus"]
        ]
        return {"TrainingJobSummaries": found[: body.get("MaxResults", 100)]}

    def _job(self, body: dict[str, Any]) -> TrainingJob:
        if body["TrainingJobName"] not in self.jobs:
            raise Refusal("ValidationException", "Requested resource not found.")
        return self.jobs[body["TrainingJobName"]]

    # --- models and endpoints --------------------------------------------------------------------------------------

    def do_CreateModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keep a model."""
        name = body["ModelName"]
        if name in self.models:
            raise Refusal("ValidationException", f'Cannot create already existing model "{self._arn("model", name)}".')
        self.check_role(body["ExecutionRoleArn"])
        self.models[name] = body
        self._tags[self._arn("model", name)] = body.get("Tags", [])
        return {"ModelArn": self._arn("model", name)}

    def do_DescribeModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of a model."""
        name = body["ModelName"]
        if name not in self.models:
            raise Refusal("ValidationException", f'Could not find model "{self._arn("model", name)}".')
        kept = {key: value for key, value in self.models[name].items() if key != "Tags"}
        return kept | {"ModelArn": self._arn("model", name), "CreationTime": time.time()}

    def do_DeleteModel(self, body: dict[str, Any]) -> dict[str, Any]:
        """Forget a model."""
        self.do_DescribeModel(body)
        del self.models[body["ModelName"]]
        return {}

    def do_CreateEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Keep an endpoint configuration."""
        name = body["EndpointConfigName"]
        if name in self.configs:
            raise Refusal(
                "ValidationException",
                f'Cannot create already existing endpoint configuration "{self._arn("endpoint-config", name)}".',
            )
        for variant in body["ProductionVariants"]:
            self.do_DescribeModel({"ModelName": variant["ModelName"]})
        self.configs[name] = body
        return {"EndpointConfigArn": self._arn("endpoint-config", name)}

    def do_DescribeEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of an endpoint configuration."""
        name = body["EndpointConfigName"]
        if name not in self.configs:
            where = self._arn("endpoint-config", name)
            raise Refusal("ValidationException", f'Could not find endpoint configuration "{where}".')
        kept = {key: value for key, value in self.configs[name].items() if key != "Tags"}
        return kept | {"EndpointConfigArn": self._arn("endpoint-config", name), "CreationTime": time.time()}

    def do_DeleteEndpointConfig(self, body: dict[str, Any]) -> dict[str, Any]:
        """Forget an endpoint configuration."""
        self.do_DescribeEndpointConfig(body)
        del self.configs[body["EndpointConfigName"]]
        return {}

    def do_CreateEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """Deploy an endpoint."""
        name, arn = body["EndpointName"], self._arn("endpoint", body["EndpointName"])
        self._bury()
        if name in self.endpoints:
            raise Refusal("ValidationException", f'Cannot create already existing endpoint "{arn}".')
        self.do_DescribeEndpointConfig(body)
        config = self.configs[body["EndpointConfigName"]]
        variant = config["ProductionVariants"][0]
        in_use = sum(
            len(endpoint.instances)
            for endpoint in self.endpoints.values()
            if endpoint.config["ProductionVariants"][0]["InstanceType"] == variant["InstanceType"]
        )
        self._check_quota(variant["InstanceType"], "endpoint", in_use, variant["InitialInstanceCount"])
        self.endpoints[name] = Endpoint(
            name, config, self.models, self._new_folder(), self.surroundings, self._environment
        )
        self._tags[arn] = body.get("Tags", [])
        return {"EndpointArn": arn}

    def do_DescribeEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell of an endpoint."""
        self._bury()
        name = body["EndpointName"]
        if name not in self.endpoints:
            raise Refusal("ValidationException", f'Could not find endpoint "{self._arn("endpoint", name)}".')
        return self.endpoints[name].describe()

    def do_DeleteEndpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """End an endpoint."""
        if self.do_DescribeEndpoint(body)["EndpointStatus"] == "Creating":
            raise Refusal("ValidationException", "Cannot update in-progress endpoint.")
        self.endpoints[body["EndpointName"]].delete()
        return {}

    def do_ListEndpoints(self, body: dict[str, Any]) -> dict[str, Any]:
        """List endpoints."""
        self._bury()
        found = [
            {
                key: told[key]
                for key in ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
            }
            for told in (endpoint.describe() for endpoint in self.endpoints.values())
            if body.get("NameContains", "") in told["EndpointName"]
        ]
        return {"Endpoints": found[: body.get("MaxResults", 100)]}

    def do_ListTags(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell the tags of something."""
        return {"Tags": self._tags.get(body["ResourceArn"], [])}

    def _bury(self) -> None:
        self.endpoints = {name: endpoint for name, endpoint in self.endpoints.items() if not endpoint.gone}

    # --- what AWS checks -------------------------------------------------------------------------------------------

    def do_ListServiceQuotas(self, body: dict[str, Any]) -> dict[str, Any]:
        """List the quotas."""
        found = [
            {"QuotaCode": f"L-{index:08d}", "QuotaName": f"{name} for {kind} usage", "Value": float(limit)}
            for index, (name, limit) in enumerate(self.quotas.items())
            for kind in ("training job", "spot training job", "endpoint")
        ]
        return {"Quotas": found if body.get("ServiceCode") == "sagemaker" else []}

    def check_role(self, arn: str) -> None:
        """Refuse a role that is not there, or that does not trust SageMaker."""
        if not self.surroundings.has_role(arn):
            raise Refusal(
                "ValidationException",
                f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
                "'sagemaker.amazonaws.com' to assume the role.",
            )

    def _check_bucket(self, uri: str) -> None:
        bucket, _ = split_uri(uri)
        client = self.surroundings.client("s3")
        try:
            client.head_bucket(Bucket=bucket)
        except client.exceptions.ClientError as error:
            raise Refusal("ValidationException", f"The S3 bucket {bucket} in S3OutputPath does not exist.") from error

    def _check_quota(self, instance_type: str, kind: str, in_use: int, wanted: int) -> None:
        limit = self.quotas.get(instance_type)
        if limit is not None and in_use + wanted > limit:
            raise Refusal(
                "ResourceLimitExceeded",
                f"The account-level service limit '{instance_type} for {kind} usage' is {limit} Instances, with "
                f"current utilization of {in_use} Instances and a request delta of {wanted} Instances.",
            )

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.surroundings.region}:{ACCOUNT}:{kind}/{name}"

    def _new_folder(self) -> Path:
        self._number += 1
        return self._folder / f"run-{self._number}"

    def close(self) -> None:
        """End every job and endpoint."""
        for endpoint in list(self.endpoints.values()):
            endpoint.delete()
        for job in self.jobs.values():
            job.close()
        for endpoint in list(self.endpoints.values()):
            endpoint.close()
