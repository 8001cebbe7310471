"""The output of training jobs, in CloudWatch Logs."""

from __future__ import annotations

from typing import Any

from agentgpt_remote.cloud.aws import Aws, error_code, explained

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_PAGE = 10_000


class JobLogs:
    """What the machines of a job have printed; each call reads on from where the last one ended.

    Args:
        aws: of the job's region.
        job: its name.
    """

    def __init__(self, aws: Aws, job: str) -> None:
        self._aws, self._job = aws, job
        self._tokens: dict[str, str] = {}
        self._lines: list[str] = []

    def read(self) -> list[str]:
        """Return the lines that have come since the last call, oldest first.

        Raises:
            AuthError: the credentials may not read them.
        """
        events: list[tuple[int, str]] = []
        for stream in self._streams():
            while True:
                page = self._page(stream)
                events += [(event["timestamp"], event["message"].rstrip("\n")) for event in page["events"]]
                token, self._tokens[stream] = self._tokens.get(stream), page["nextForwardToken"]
                if not page["events"] or token == page["nextForwardToken"]:
                    break
        fresh = [line for _, line in sorted(events, key=lambda event: event[0])]
        self._lines += fresh
        return fresh

    def lines(self) -> list[str]:
        """Return all lines so far."""
        self.read()
        return list(self._lines)

    def _streams(self) -> list[str]:
        from botocore.exceptions import ClientError

        with explained(f"read the log of {self._job}"):
            try:
                found = self._aws.client("logs").describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._job}/"
                )
            except ClientError as error:
                if error_code(error) == "ResourceNotFoundException":  # nothing was printed in this region yet
                    return []
                raise
        return [stream["logStreamName"] for stream in found["logStreams"]]

    def _page(self, stream: str) -> Any:
        token = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
        with explained(f"read the log of {self._job}"):
            return self._aws.client("logs").get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, limit=_PAGE, **token
            )
