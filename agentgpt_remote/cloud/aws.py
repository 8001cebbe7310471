"""AWS clients whose requests are checked before they are sent, and whose errors say what to do."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
from botocore import xform_name
from botocore.config import Config

from agentgpt_remote._version import __version__
from agentgpt_remote.cloud.field_checks import known_regions
from agentgpt_remote.cloud.requests import Request
from agentgpt_remote.cloud.strict import guard
from agentgpt_remote.errors import AgentGPTError, AuthError, CapacityReached, CloudError, ConfigError, RunExists

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN = {
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "InvalidAccessKeyId",
    "AuthFailure",
}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
_LIMITS = {"ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"}
_TAKEN = {"ResourceInUse", "ResourceInUseException", "ConflictException"}
_POLICY = "docs/cloud.md has the policy that is needed"
_NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
)
_NO_LOGIN = (
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.UnauthorizedSSOTokenError,
)


class Aws:
    """Clients of one region, found as boto3 finds region and credentials.

    Args:
        region: such as ``"eu-west-1"``; None takes that of the environment or of the profile.

    Raises:
        ConfigError: no region is set, or boto3's configuration is broken.
    """

    def __init__(self, region: str | None = None) -> None:
        try:
            self.session = boto3.session.Session(region_name=region or os.environ.get("AWS_REGION"))
        except botocore.exceptions.BotoCoreError as error:
            raise ConfigError(f"AWS is not set up: {error}; run `aws configure`") from error
        if self.session.region_name is None:
            raise ConfigError("no AWS region is set: set region=, AWS_REGION, or run `aws configure`")
        self.region: str = self.session.region_name
        if self.region not in known_regions():
            raise ConfigError(f"AWS region {self.region!r} is unknown: expected one such as 'us-east-1'")
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """Return the client of a service; every request of it is checked first."""
        if service not in self._clients:
            config = Config(
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 4},
                user_agent_extra=f"agentgpt-remote/{__version__}",
            )
            with explained(f"open {service}"):
                made = self.session.client(service, config=config)
            guard(made)
            self._clients[service] = made
        return self._clients[service]

    def send(self, request: Request, doing: str) -> Any:
        """Send a request and return the answer.

        Args:
            request: what to send.
            doing: words for errors, such as ``"create the endpoint x"``.

        Raises:
            AgentGPTError: as :func:`explained` has it.
        """
        client = self.client(request.service)
        with explained(doing):
            return getattr(client, xform_name(request.operation))(**request.arguments)

    def is_rehearsal(self) -> bool:
        """Tell whether SageMaker's requests go to a stand-in on this machine."""
        host = urlsplit(self.client("sagemaker").meta.endpoint_url).hostname or ""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"

    def account(self) -> str:
        """Return the number of the account that the credentials belong to.

        Raises:
            AuthError: there are none, or they are not valid.
        """
        client = self.client("sts")
        with explained("find out whose credentials these are"):
            return str(client.get_caller_identity()["Account"])


def error_code(error: BaseException) -> str:
    """Return AWS's code of an error, or an empty text."""
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Have errors of boto3 leave the block as this package's, with the next step.

    Raises:
        AuthError: credentials are missing, expired, unknown or not allowed to.
        ConfigError: AWS can't be reached under that region, or refuses the request's values.
        CapacityReached: a quota is used up.
        RunExists: a name is taken.
        CloudError: AWS failed.
    """
    try:
        yield
    except _NO_CREDENTIALS as error:
        raise AuthError(f"can't {doing}: no AWS credentials; run `aws configure` or `aws sso login`") from error
    except _NO_LOGIN as error:
        raise AuthError(f"can't {doing}: the AWS login has ended ({error}); run `aws sso login`") from error
    except botocore.exceptions.NoRegionError as error:
        raise ConfigError("no AWS region is set: set region=, AWS_REGION, or run `aws configure`") from error
    except botocore.exceptions.ClientError as error:
        raise _refused(error, doing) from error
    except (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectTimeoutError) as error:
        raise CloudError(f"can't {doing}: AWS can't be reached ({error}); check the network and the region") from error
    except botocore.exceptions.BotoCoreError as error:
        raise CloudError(f"can't {doing}: {error}") from error


def _refused(error: botocore.exceptions.ClientError, doing: str) -> AgentGPTError:
    code, message = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    if code in _EXPIRED:
        return AuthError(f"can't {doing}: the AWS credentials have expired; get new ones, as with `aws sso login`")
    if code in _UNKNOWN:
        return AuthError(
            f"can't {doing}: AWS does not know these credentials ({code}); check `aws sts get-caller-identity`"
        )
    if code in _DENIED:
        return AuthError(f"not allowed to {doing}: {message}; {_POLICY}")
    if code in _LIMITS:
        return CapacityReached(
            f"can't {doing}: {message} Ask for more with `aws service-quotas list-service-quotas --service-code "
            "sagemaker` and `aws service-quotas request-service-quota-increase`, or take another instance_type"
        )
    if code in _TAKEN or "already exist" in message:
        return RunExists(f"can't {doing}: the name is in use ({message}); choose another name")
    if "assume" in message.lower() and "role" in message.lower():
        return ConfigError(
            f"can't {doing}: {message} The role must exist and trust sagemaker.amazonaws.com and "
            "scheduler.amazonaws.com; docs/cloud.md has its trust policy"
        )
    if code in ("ValidationException", "ValidationError", "InvalidParameterValue", "InvalidParameterException"):
        return ConfigError(f"can't {doing}: AWS refuses the request: {message}")
    return CloudError(f"can't {doing}: AWS answered {code}: {message}")
