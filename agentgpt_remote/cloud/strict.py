"""Requests checked against AWS's own service models, beyond what botocore checks.

botocore refuses wrong types, missing and unknown members and numbers below a minimum. The service models declare more:
enumerations, patterns, maxima and the lengths of texts, lists and maps. :func:`check_request` enforces all of it
without a network call, and :func:`guard` does so for every call of a client.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import botocore.session
from botocore.model import ServiceModel, Shape

from agentgpt_remote.errors import ConfigError

# Java's character classes, which Python lacks, as the smallest classes of Python that hold them.
_JAVA_CLASSES = (
    (r"\p{L}", r"\w"),
    (r"\p{N}", r"\d"),
    (r"\p{Z}", r"\s"),
    (r"\p{ASCII}", r"[\x00-\x7f]"),
    (r"\p{Print}", r"\x20-\x7e"),
    (r"\p{Graph}", r"\x21-\x7e"),
    (r"\z", r"\Z"),
)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "character": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "list": (list, tuple),
    "map": (dict,),
    "structure": (dict,),
}
_SHOWN = 80


@functools.cache
def service_model(service: str) -> ServiceModel:
    """Return botocore's model of a service, such as ``"sagemaker"``."""
    return botocore.session.get_session().get_service_model(service)


def input_shape(service: str, operation: str, path: str = "") -> Shape:
    """Return the shape of a request, or of a member of it.

    Args:
        service: such as ``"sagemaker"``.
        operation: such as ``"CreateTrainingJob"``.
        path: names of members with dots between them, ``[]`` for the items of a list.
    """
    shape: Any = service_model(service).operation_model(operation).input_shape
    for name in filter(None, path.split(".")):
        shape = shape.member if name == "[]" else shape.members[name]
    return shape


def violations(shape: Shape, value: Any, path: str = "") -> Iterator[str]:
    """Yield what of a value the model does not allow, each as ``path=value: expected ...``.

    Args:
        shape: what the value must be.
        value: a request or a part of one.
        path: how the value is called.
    """
    kind = shape.type_name
    wanted = _TYPES.get(kind)
    wrong_bool = isinstance(value, bool) and kind != "boolean"
    if wanted is not None and (not isinstance(value, wanted) or wrong_bool):
        yield f"{path}={_show(value)}: expected {_article(kind)}, got {type(value).__name__}"
    elif kind == "structure":
        yield from _structure_violations(shape, value, path)
    elif kind == "list":
        yield from _size_violations(shape, len(value), path, "items")
        for index, item in enumerate(value):
            yield from violations(shape.member, item, f"{path}[{index}]")
    elif kind == "map":
        yield from _size_violations(shape, len(value), path, "entries")
        for key, item in value.items():
            yield from violations(shape.key, key, f"name {key!r} in {path}")
            yield from violations(shape.value, item, f"{path}[{key!r}]")
    elif kind in ("string", "character"):
        yield from _text_violations(shape, value, path)
    elif kind in ("integer", "long", "float", "double"):
        yield from _size_violations(shape, value, path, "")
    elif kind == "blob" and isinstance(value, bytes | bytearray):
        yield from _size_violations(shape, len(value), path, "bytes")


def _structure_violations(shape: Any, value: Mapping[str, Any], path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if name not in value:
            yield f"{prefix}{name} is missing"
    for name, item in value.items():
        if name in shape.members:
            yield from violations(shape.members[name], item, f"{prefix}{name}")
        else:
            close = difflib.get_close_matches(name, shape.members, n=1)
            yield f"{prefix}{name} is unknown{f': did you mean {close[0]}?' if close else ''}"


def _text_violations(shape: Any, value: str, path: str) -> Iterator[str]:
    if shape.enum:
        if value not in shape.enum:
            close = difflib.get_close_matches(value, shape.enum, n=3, cutoff=0.5)
            hint = ", ".join(close or list(shape.enum)[:6])
            yield f"{path}={_show(value)}: expected one of {len(shape.enum)} values, such as {hint}"
        return
    yield from _size_violations(shape, len(value), path, "characters")
    pattern = shape.metadata.get("pattern")
    if pattern is not None and _compiled(pattern).fullmatch(value) is None:
        yield f"{path}={_show(value)}: expected the form {pattern}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    for java, python in _JAVA_CLASSES:
        pattern = pattern.replace(java, python)
    return re.compile(pattern)


def _size_violations(shape: Shape, size: float, path: str, unit: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    what = f" {unit}" if unit else ""
    if low is not None and size < low:
        yield f"{path} has {size}{what}: expected at least {low}"
    if high is not None and size > high:
        yield f"{path} has {size}{what}: expected at most {high}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}"


def check_request(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Check a request without sending it.

    Raises:
        ConfigError: the service model does not allow it; names every fault.
    """
    shape = service_model(service).operation_model(operation).input_shape
    faults = list(violations(shape, request)) if shape is not None else []
    if faults:
        raise ConfigError(f"{operation} is not a request that AWS takes: {'; '.join(faults)}")


def guard(client: Any) -> None:
    """Have every request of a boto3 client checked before it is sent.

    Raises:
        ConfigError: from the client's methods: the service model does not allow the request.
    """
    model = client.meta.service_model
    event = f"before-parameter-build.{model.service_id.hyphenize()}.*"
    client.meta.events.register(event, _check(model.service_name))


def _check(service: str) -> Callable[..., None]:
    def check(params: dict[str, Any], model: Any, **_: Any) -> None:
        check_request(service, model.name, params)

    return check
