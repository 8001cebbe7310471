"""mlagents-envs 0.28 on current Python, protobuf and numpy.

Its generated protobuf modules are older than what protobuf 4 and newer accept, it imports ``distutils``, which Python
3.12 has no more, it uses ``np.bool``, which numpy lacks from 1.24 to 1.26, and it reads compressed images as (height,
width, channels) only, although players send (channels, height, width) too. :func:`load` imports it with these things
set right; nothing else may import it before.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import re
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidObservation

_PACKAGE = "mlagents_envs.communicator_objects."
_PNG = b"\x89PNG\r\n\x1a\n"
_EQUIVARIANT = 2  # a dimension property: the axis is one of an image's height and width
_lock = threading.Lock()
_loaded: list[ModuleType] = []


def load() -> Any:
    """Return the module ``mlagents_envs.environment``.

    Raises:
        DependencyNotInstalled: it is not installed.
    """
    with _lock:
        if not _loaded:
            try:
                _loaded.append(_load())
            except ModuleNotFoundError as error:
                raise DependencyNotInstalled(
                    f'Unity players need mlagents-envs ({error}): run `pip install "agentgpt-remote[unity]"`'
                ) from error
        return _loaded[0]


def unity_exceptions() -> tuple[type[Exception], ...]:
    """Return the classes of what mlagents-envs raises by itself."""
    load()
    exception: Any = importlib.import_module("mlagents_envs.exception")
    return (exception.UnityException,)


def _load() -> ModuleType:
    _alias_np_bool()
    finder = _ProtobufFinder()
    sys.meta_path.insert(0, finder)
    try:
        with _strict_version():
            environment = importlib.import_module("mlagents_envs.environment")
        rpc_utils: Any = importlib.import_module("mlagents_envs.rpc_utils")
        logging_util: Any = importlib.import_module("mlagents_envs.logging_util")
    finally:
        sys.meta_path.remove(finder)
    logging_util.set_log_level(logging_util.WARNING)
    rpc_utils._observation_to_np_array = decode_visual
    rpc_utils._raise_on_nan_and_inf = lambda data, _: data  # whoever learns from it decides
    return environment


def _alias_np_bool() -> None:
    if "bool" not in vars(np):
        np.bool = np.bool_  # type: ignore[misc]


class _ProtobufFinder(importlib.abc.MetaPathFinder):
    """Finds the generated modules, to be built anew from the descriptions that they hold."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not (fullname.startswith(_PACKAGE) and fullname.endswith("_pb2")):
            return None
        for folder in path or ():
            file = Path(folder) / f"{fullname.removeprefix(_PACKAGE)}.py"
            if file.exists():
                return importlib.util.spec_from_loader(fullname, _ProtobufLoader(file), origin=str(file))
        return None


class _ProtobufLoader(importlib.abc.Loader):
    """Builds a generated module by protobuf's own builder."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def exec_module(self, module: ModuleType) -> None:
        builder: Any = importlib.import_module("google.protobuf.internal.builder")
        pool: Any = importlib.import_module("google.protobuf.descriptor_pool")
        tree = ast.parse(self._file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == _PACKAGE.rstrip("."):
                for name in node.names:
                    importlib.import_module(f"{node.module}.{name.name}")
        descriptor = pool.Default().AddSerializedFile(_serialized(tree, self._file))
        names = vars(module)
        names["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, names)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, names)


def _serialized(tree: ast.AST, file: Path) -> bytes:
    """Return the description that a generated module holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb" and isinstance(node.value, ast.Call):
            value = ast.literal_eval(node.value.args[0])
            return value if isinstance(value, bytes) else value.encode("latin-1")
    raise ImportError(f"{file} holds no protobuf description: expected mlagents-envs 0.28.0")


@contextmanager
def _strict_version() -> Iterator[None]:
    """Have ``distutils.version.StrictVersion`` importable for a while: 3.12 lacks distutils, 3.11 warns of it."""
    names = ("distutils", "distutils.version")
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    package, version = map(types.ModuleType, names)
    version.StrictVersion = StrictVersion  # type: ignore[attr-defined]
    sys.modules |= {"distutils": package, "distutils.version": version}
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules |= before


class StrictVersion:
    """What of the class of this name in ``distutils`` is used: ``version``, three numbers.

    Raises:
        ValueError: the text is no version.
    """

    def __init__(self, text: str) -> None:
        match = re.match(r"^(\d+)\.(\d+)(?:\.(\d+))?", text)
        if match is None:
            raise ValueError(f"invalid version number {text!r}")
        self.version = int(match[1]), int(match[2]), int(match[3] or 0)


def is_channels_first(shape: Sequence[int], properties: Sequence[int]) -> bool:
    """Tell whether an image is (channels, height, width) rather than (height, width, channels).

    Args:
        shape: of three axes.
        properties: of the axes, as the player tells them; without them, the fewest are taken to be the channels.
    """
    flags = [int(one) & _EQUIVARIANT for one in properties]
    if len(flags) == 3 and bool(flags[0]) != bool(flags[2]):
        return not flags[0]
    return shape[0] < min(shape[1], shape[2])


def decode_visual(obs: Any, expected_shape: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Return an observation of three axes, in the layout in which the player describes it.

    Args:
        obs: an ``ObservationProto``.
        expected_shape: the shape that the behaviour's first agent told.

    Raises:
        InvalidObservation: the image is not of the shape that is told with it.
    """
    shape = tuple(obs.shape)
    name = obs.name or "without a name"
    if expected_shape is not None and shape != tuple(expected_shape):
        raise InvalidObservation(f"visual observation {name!r} has shape {shape}: expected {tuple(expected_shape)}")
    if obs.compression_type == 0:
        numbers = np.array(obs.float_data.data, np.float32)
        if numbers.size != np.prod(shape):
            raise InvalidObservation(f"visual observation {name!r} holds {numbers.size} numbers: expected {shape}")
        return numbers.reshape(shape)
    images = _images(obs.compressed_data)
    size = images[0].shape[:2]
    fits = {"first": shape[1:] == size, "last": shape[:2] == size}
    if not any(fits.values()):
        raise InvalidObservation(
            f"visual observation {name!r} of shape {shape} holds a PNG of {size[0]} x {size[1]}: expected (height, "
            "width, channels) or (channels, height, width). Rebuild the player with a current ML-Agents package"
        )
    first = fits["first"] and (not fits["last"] or is_channels_first(shape, obs.dimension_properties))
    channels = shape[0] if first else shape[2]
    image = _channels(images, channels, list(obs.compressed_channel_mapping), name)
    return np.ascontiguousarray(image.transpose(2, 0, 1) if first else image)


def _images(data: bytes) -> list[NDArray[np.float32]]:
    """Return the images of PNG files that stand one after the other, float32 (height, width, channels) from 0 to 1."""
    from PIL import Image

    starts = [match.start() for match in re.finditer(re.escape(_PNG), data)] or [0]
    images = []
    for start, stop in zip(starts, [*starts[1:], len(data)], strict=True):
        try:
            with Image.open(io.BytesIO(data[start:stop])) as image:
                pixels = np.array(image.convert("RGB"), np.float32)
        except (OSError, ValueError) as error:
            raise InvalidObservation(f"a visual observation holds no PNG: {error}") from error
        images.append(pixels / np.float32(255))
    return images


def _channels(images: list[NDArray[np.float32]], channels: int, mapping: list[int], name: str) -> NDArray[np.float32]:
    """Return one image of so many channels, (height, width, channels)."""
    together = np.concatenate(images, axis=2)
    if mapping:
        if len(mapping) != together.shape[2] or max(mapping) + 1 != channels:
            raise InvalidObservation(
                f"visual observation {name!r} maps channels {mapping}: expected {together.shape[2]} of them, "
                f"onto {channels}"
            )
        parts = [together[..., [at for at, to in enumerate(mapping) if to == wanted]] for wanted in range(channels)]
        return np.stack([part.mean(axis=2) for part in parts], axis=2)
    if channels == 1:
        grey: NDArray[np.float32] = images[0].mean(axis=2, keepdims=True)
        return grey
    if together.shape[2] < channels:
        raise InvalidObservation(f"visual observation {name!r} holds {together.shape[2]} channels: expected {channels}")
    return together[..., :channels]
