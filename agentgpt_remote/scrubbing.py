"""Values without secrets, for whatever leaves this machine: model cards, bundles, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_SECRET_WORDS = ("token", "secret", "password", "passwd", "credential", "api_key", "apikey", "auth", "private")


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nest of values with those hidden whose name tells of a secret, and URLs without user and query.

    >>> without_secrets({"env_kwargs": {"api_key": "x", "level": 3}, "url": "ws://me:pw@sim-7:8000/a?token=x"})
    {'env_kwargs': {'api_key': '(hidden)', 'level': 3}, 'url': 'ws://sim-7:8000/a'}
    """
    return {name: HIDDEN if _is_secret(str(name)) else _cleaned(value) for name, value in values.items()}


def secret_names(values: Mapping[str, Any]) -> list[str]:
    """Return the names in a nest of mappings that tell of a secret.

    >>> secret_names({"level": 3, "server": {"api_key": "x"}})
    ['api_key']
    """
    names = []
    for name, value in values.items():
        if _is_secret(str(name)):
            names.append(str(name))
        elif isinstance(value, Mapping):
            names += secret_names(value)
    return names


def host_only(url: str) -> str:
    """Return a URL's scheme, host and port; a text that is no URL as it is.

    >>> host_only("wss://me:pw@sim-7:8000/tunnel/x?token=y#z"), host_only("CartPole-v1")
    ('wss://sim-7:8000', 'CartPole-v1')
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{_host(rest)}" if separator else url


def _host(rest: str) -> str:
    for end in "/?#":
        rest = rest.partition(end)[0]
    return rest.rpartition("@")[2]


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    if isinstance(value, str) and "://" in value:
        scheme, _, rest = value.partition("://")
        host, slash, path = rest.partition("?")[0].partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return value
