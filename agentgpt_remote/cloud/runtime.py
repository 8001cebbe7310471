"""SageMaker's runtime API: calls of an inference endpoint."""

from __future__ import annotations

import os
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from agentgpt_remote.cloud.strict import guard
from agentgpt_remote.endpoints import EndpointReply
from agentgpt_remote.errors import AuthError, ConfigError, ConnectionLost, ProtocolError, RemoteTimeout

_BINARY = "application/octet-stream"
_CONNECT_TIMEOUT_S = 5.0
_DENIED = {"AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"}
# The instance of the session is gone, or is being replaced.
_SESSION_GONE = {"ModelNotReadyException", "ServiceUnavailable", "InternalFailure", "InternalDependencyException"}
_THROTTLED = {"ThrottlingException", "TooManyRequestsException"}
_MAX_CLIENTS = 4


class SageMakerRuntime:
    """One endpoint.

    Credentials are found as boto3 finds them, and the region too where the name has none;
    ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME`` names another address.

    Args:
        name: of the endpoint, with ``?region=...`` behind it where it lies in another region than the usual one.

    Raises:
        ConfigError: the name makes no sense, or no region is set.
    """

    def __init__(self, name: str) -> None:
        self._name, query, parameters = name.partition("?")
        key, _, region = parameters.partition("=")
        if not self._name or "/" in name or (query and (key != "region" or not region)):
            raise ConfigError(f"sagemaker://{name}: expected sagemaker://ENDPOINT_NAME, with ?region=REGION or not")
        self._session = boto3.session.Session(region_name=region or os.environ.get("AWS_REGION"))
        self._clients: dict[float, Any] = {}

    def _client(self, timeout_s: float) -> Any:
        """Return a client whose deadline is ``timeout_s`` to two digits: a client has one for all its calls."""
        limit = float(f"{max(timeout_s, 0.01):.2g}")
        if limit not in self._clients:
            while len(self._clients) >= _MAX_CLIENTS:
                self._clients.pop(next(iter(self._clients))).close()
            # Whoever asks repeats a request, within the same deadline.
            config = Config(
                connect_timeout=min(limit, _CONNECT_TIMEOUT_S), read_timeout=limit, retries={"total_max_attempts": 1}
            )
            try:
                self._clients[limit] = self._session.client("sagemaker-runtime", config=config)
                guard(self._clients[limit])
            except botocore.exceptions.NoRegionError as error:
                raise ConfigError("no AWS region is set: set AWS_REGION or run `aws configure`") from error
        return self._clients[limit]

    def invoke(self, body: bytes, *, session_id: str | None, timeout_s: float) -> EndpointReply:
        """Send a request; see :class:`agentgpt_remote.endpoints.Endpoint`."""
        session = {} if session_id is None else {"SessionId": session_id}
        try:
            answer = self._client(timeout_s).invoke_endpoint(
                EndpointName=self._name, Body=body, ContentType=_BINARY, Accept=_BINARY, **session
            )
            content = answer["Body"].read()
        except botocore.exceptions.ReadTimeoutError as error:
            raise RemoteTimeout(f"endpoint {self._name} did not answer within {timeout_s:.3g} s") from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise AuthError(f"no AWS credentials for endpoint {self._name}: run `aws configure`") from error
        except botocore.exceptions.ClientError as error:
            raise self._refused(error) from error
        except botocore.exceptions.BotoCoreError as error:
            raise ConnectionLost(f"endpoint {self._name} can't be reached: {error}") from error
        return EndpointReply(
            body=content,
            new_session=_name_of(answer.get("NewSessionId")),
            closed_session=_name_of(answer.get("ClosedSessionId")),
        )

    def _refused(self, error: botocore.exceptions.ClientError) -> Exception:
        code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        text = f"endpoint {self._name} refused the request: {code} {message}"
        if code in _DENIED:
            return AuthError(text)
        if code in _SESSION_GONE | _THROTTLED or status >= 500 or "session" in message.lower():
            return ConnectionLost(text)
        if code == "ModelError":
            original = error.response.get("OriginalStatusCode", 0)
            return ConnectionLost(text) if original >= 500 else ProtocolError(text)
        return ConfigError(text)

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _name_of(header: str | None) -> str | None:
    """Return the id in a session header, such as ``"abc; Expires=2026-11-23T01:50:01Z"``."""
    return header.partition(";")[0].strip() if header else None
