"""Hosts' tokens in Secrets Manager."""

from __future__ import annotations

from agentgpt_remote.cloud.aws import Aws, explained
from agentgpt_remote.errors import ConfigError


def store_token(aws: Aws, name: str, token: str) -> str:
    """Store a token, in place of an earlier one of that name, and return its ARN.

    Raises:
        ConfigError: the token is empty, or AWS refuses the name.
        AuthError: the credentials may not store secrets.
    """
    if not token:
        raise ConfigError("the token is empty: set AGENTGPT_TOKEN, or type it when asked")
    client = aws.client("secretsmanager")
    with explained(f"store the secret {name}"):
        try:
            made = client.create_secret(
                Name=name,
                SecretString=token,
                Description="token of agentgpt hosts",
                Tags=[{"Key": "agentgpt:created-by", "Value": "agentgpt-remote"}],
            )
        except client.exceptions.ResourceExistsException:
            made = client.put_secret_value(SecretId=name, SecretString=token)
    return str(made["ARN"])
