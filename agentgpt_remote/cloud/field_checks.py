"""Checks of a configuration's fields, each with an error that names the field."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from typing import Any

import botocore.session

from agentgpt_remote.cloud.strict import input_shape, violations
from agentgpt_remote.errors import ConfigError

_PLACEHOLDER = re.compile(
    r"[<>{}]|(?<![a-z0-9])(your|placeholder|changeme|todo|my-?bucket|(the-)?bucket-?name|example-?bucket|x{3,}|"
    r"account[-_]?id|region-here)(?![a-z0-9])",
    re.IGNORECASE,
)
_BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/\S*)?")
_SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@!-]+")
_OWN_TAG = "agentgpt:"


def refuse_placeholders(name: str, value: Any) -> None:
    """Refuse a text, or a collection of texts, in which a placeholder was left."""
    texts = [*value, *value.values()] if isinstance(value, Mapping) else value
    for text in texts if isinstance(texts, list | tuple) else [texts]:
        found = _PLACEHOLDER.search(text) if isinstance(text, str) else None
        if found is not None:
            raise ConfigError(f"{name}={text!r} still holds the placeholder {found[0]!r}: put in your own value")


def check_shape(name: str, value: Any, operation: str, path: str) -> None:
    """Check a value against the service model; None passes."""
    if value is None:
        return
    faults = list(violations(input_shape("sagemaker", operation, path), value, name))
    if faults:
        raise ConfigError(faults[0])
    if isinstance(value, str) and (not value or value != value.strip() or "\n" in value):
        raise ConfigError(f"{name}={value!r}: expected a text without space around it")


def checked_list(name: str, value: Any, operation: str, path: str) -> tuple[str, ...]:
    """Return a list of ids as a tuple, checked against the service model."""
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ConfigError(f"{name}={value!r}: expected a list of ids")
    if value:
        faults = list(violations(input_shape("sagemaker", operation, path), list(value), name))
        if faults:
            raise ConfigError(faults[0])
    return tuple(value)


def check_s3(name: str, value: str | None) -> None:
    """Check an ``s3://`` address; None passes."""
    if value is not None and _BUCKET.fullmatch(value) is None:
        raise ConfigError(
            f"{name}={value!r}: expected s3://BUCKET/FOLDER with a bucket of 3 to 63 small letters or digits"
        )


def check_count(name: str, value: Any, least: int, most: int) -> None:
    """Check an integer; None passes where the field has a default elsewhere."""
    if value is None and name.startswith("endpoint"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name}={value!r}: expected an integer from {least} to {most}")


@functools.cache
def known_regions() -> tuple[str, ...]:
    """Return the regions that botocore knows SageMaker in."""
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    return tuple(region for name in partitions for region in session.get_available_regions("sagemaker", name))


def check_region(region: Any) -> None:
    """Check a region; None stands for that of the profile."""
    if region is None or region in known_regions():
        return
    close = difflib.get_close_matches(str(region), known_regions(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "expected one such as 'us-east-1'"
    raise ConfigError(f"region={region!r}: {hint} (a region that is new needs a newer boto3)")


@functools.cache
def _instance_types() -> frozenset[str]:
    training = input_shape("sagemaker", "CreateTrainingJob", "ResourceConfig.InstanceType")
    serving = input_shape("sagemaker", "CreateEndpointConfig", "ProductionVariants.[].InstanceType")
    return frozenset([*training.enum, *serving.enum])


def check_instance_type(name: str, value: Any) -> None:
    """Check an instance type of training or serving."""
    if value is None and name.startswith("endpoint"):
        return
    if not isinstance(value, str) or value not in _instance_types():
        close = difflib.get_close_matches(str(value), _instance_types(), n=3)
        raise ConfigError(
            f"{name}={value!r}: expected an instance type, such as {', '.join(close or ['ml.m5.xlarge'])}"
        )


def checked_tags(tags: Any) -> dict[str, str]:
    """Return tags, checked against the service model."""
    if not isinstance(tags, Mapping):
        raise ConfigError(f"tags={tags!r}: expected a mapping of names to values")
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    shape = input_shape("sagemaker", "CreateTrainingJob", "Tags")
    faults = list(violations(shape, listed, "tags"))
    if faults:
        raise ConfigError(faults[0])
    for key in tags:
        if key.lower().startswith(("aws:", _OWN_TAG)):
            raise ConfigError(f"tags[{key!r}]: names that begin with aws: or {_OWN_TAG} are taken")
    return dict(tags)


def checked_secrets(secrets: Any) -> dict[str, str]:
    """Return ARNs by URL, checked; what is none is not shown."""
    if not isinstance(secrets, Mapping):
        raise ConfigError("secrets: expected a mapping of the hosts' URLs, or '', to ARNs of Secrets Manager")
    for name, arn in secrets.items():
        if name and "://" not in name:
            raise ConfigError(f"secrets[{name!r}]: expected the URL of a host, or '' for all others")
        if not isinstance(arn, str) or _SECRET_ARN.fullmatch(arn) is None:
            # What is not an ARN may be the token itself: it is not shown.
            raise ConfigError(
                f"secrets[{name!r}] is not an ARN such as arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME (it is not "
                "shown, for it may be a token): store the token with `agentgpt cloud secret NAME`"
            )
    return dict(secrets)
