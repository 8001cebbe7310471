"""Hosts' tokens and certificates in Secrets Manager."""

from __future__ import annotations

from agentgpt_remote.certificates import make_certificate
from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.errors import ConfigError
from agentgpt_remote.tls import pin_of


def store_token(aws: Aws, name: str, token: str) -> str:
    """Store a token, in place of an earlier one of that name, and return its ARN.

    Raises:
        ConfigError: the token is empty, or AWS refuses the name.
        AuthError: the credentials may not store secrets.
    """
    if not token:
        raise ConfigError("the token is empty: set AGENTGPT_TOKEN, or type it when asked")
    return _store(aws, name, token, "token of agentgpt hosts")


def store_certificate(aws: Aws, name: str) -> tuple[str, str]:
    """Make a certificate that signs itself, store it with its key in place of an earlier one of that name.

    Returns:
        ARN of the secret, and the fingerprint that others pin.

    Raises:
        ConfigError: AWS refuses the name.
        AuthError: the credentials may not store secrets.
        ModuleNotFoundError: the library that makes certificates is not installed.
    """
    made = make_certificate("agentgpt")
    return _store(aws, name, made.decode("ascii"), "certificate of agentgpt hosts and relays"), pin_of(made)


def _store(aws: Aws, name: str, text: str, what: str) -> str:
    client = aws.client("secretsmanager")
    with explained(f"store the secret {name}"):
        try:
            made = client.create_secret(
                Name=name,
                SecretString=text,
                Description=what,
                Tags=[{"Key": "agentgpt:created-by", "Value": "agentgpt-remote"}],
            )
        except client.exceptions.ResourceExistsException:
            made = client.put_secret_value(SecretId=name, SecretString=text)
    return str(made["ARN"])
