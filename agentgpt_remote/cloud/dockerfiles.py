"""Dockerfiles, and the folders that images are built from, with this package and its libraries as installed here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import agentgpt_remote
from agentgpt_remote._version import __version__
from agentgpt_remote.errors import ConfigError

Kind = Literal["cpu", "cuda", "env"]
# As pyproject.toml has them, which is not there where the package is installed.
_BASE = (
    *("gymnasium", "numpy", "msgspec", "websockets", "starlette", "uvicorn", "uvloop", "httpx", "cloudpickle"),
    *("typer", "rich"),
)
_TRAIN, _CLOUD, _ONNX = ("torch", "safetensors", "tensorboard", "matplotlib"), ("boto3",), ("onnxruntime",)
LIBRARIES: dict[Kind, tuple[str, ...]] = {
    "env": _BASE,
    "cpu": (*_BASE, *_TRAIN, *_CLOUD, *_ONNX),
    "cuda": (*_BASE, *_TRAIN, *_CLOUD),
}
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_USER, _UID = "agentgpt", 10001
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?")


def dockerfile(kind: Kind, words: Sequence[str] = ()) -> str:
    """Return a Dockerfile.

    Args:
        kind: ``"cpu"`` and ``"cuda"`` train and serve in SageMaker, ``"env"`` hosts environments.
        words: of an env image: what it runs, such as ``["serve", "CartPole-v1"]``.

    Raises:
        ConfigError: a word can't be put into a Dockerfile.
    """
    base = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm"
    index = f"--extra-index-url {_CPU_INDEX} " if kind == "cpu" else ""
    lines = [
        f"# agentgpt-remote {__version__}, {kind}; made by agentgpt",
        f"FROM {base}",
        f"RUN useradd --create-home --uid {_UID} {_USER}",
        "WORKDIR /opt/agentgpt",
        "COPY requirements.txt .",
        f"RUN pip install --no-cache-dir {index}-r requirements.txt",
        "COPY source/ .",
        "ENV PYTHONPATH=/opt/agentgpt PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1",
    ]
    if kind == "env":
        return "\n".join([*lines, *_env_lines(words)]) + "\n"
    if kind == "cuda":
        # torch's wheels bring CUDA; the machine brings the driver.
        lines.append("ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility")
    lines += [
        "# SageMaker mounts /opt/ml for root: training stays root, serving becomes this user before it listens.",
        f"ENV AGENTGPT_CONTAINER_USER={_USER}",
        "EXPOSE 8080",
        'ENTRYPOINT ["python", "-m", "agentgpt_remote", "container"]',
    ]
    return "\n".join(lines) + "\n"


def _env_lines(words: Sequence[str]) -> list[str]:
    for word in words:
        if not word or any(letter in word for letter in '"\\\n$'):
            raise ConfigError(f"{word!r} can't be put into a Dockerfile: expected a word without quotes, \\ and $")
    check = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"
    command = ", ".join(f'"{word}"' for word in words)
    return [
        f"USER {_UID}",
        "EXPOSE 8000",
        f'HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-c", "{check}"]',
        'ENTRYPOINT ["python", "-m", "agentgpt_remote"]',
        f"CMD [{command}]",
    ]


def pinned_requirements(kind: Kind, more: Iterable[str] = ()) -> list[str]:
    """Return what an image installs: this package's libraries in the versions that are installed here, and ``more``.

    Args:
        kind: of the image.
        more: further requirements, such as ``"pygame==2.6.1"``; those without a version are pinned where they are
            installed here.

    Raises:
        ConfigError: a library of this package is not installed here.
    """
    pinned = {name.lower(): _pin(name) for name in LIBRARIES[kind]}
    for requirement in more:
        found = _REQUIREMENT.match(requirement.strip())
        if found is None:
            raise ConfigError(f"requirement {requirement!r}: expected a name with or without a version")
        given = requirement.strip()
        known = found[0] == given and _version(found[1]) is not None
        pinned[found[1].lower()] = _pin(found[1], found[2] or "") if known else given
    return sorted(pinned.values(), key=str.lower)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _pin(name: str, extras: str = "") -> str:
    version = _version(name)
    if version is None:
        raise ConfigError(
            f"{name} is not installed here, so its version for the image is not known: run `pip install "
            '"agentgpt-remote[train,onnx,cloud]"`'
        )
    return f"{name}{extras}=={version}"


def write_context(
    folder: Path,
    kind: Kind,
    *,
    words: Sequence[str] = (),
    requirements: Iterable[str] = (),
    include: Iterable[str | Path] = (),
) -> Path:
    """Fill a folder with what an image is built from, and return it.

    Args:
        folder: made if it is missing.
        kind: of the image.
        words: of an env image, what it runs.
        requirements: further libraries.
        include: modules and packages of one's own: each is importable by its name in the image.

    Raises:
        ConfigError: something to include is missing.
    """
    source = folder / "source"
    source.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".venv", "runs", "*.token")
    package = Path(agentgpt_remote.__file__).parent
    shutil.copytree(package, source / "agentgpt_remote", ignore=ignored, dirs_exist_ok=True)
    for item in include:
        path = Path(item)
        if path.is_dir():
            shutil.copytree(path, source / path.resolve().name, ignore=ignored, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy2(path, source / path.name)
        else:
            raise ConfigError(f"{path} is not there: expected a module or a package to put into the image")
    pinned = pinned_requirements(kind, requirements)
    (folder / "requirements.txt").write_text("\n".join(pinned) + "\n", encoding="utf-8")
    (folder / "Dockerfile").write_text(dockerfile(kind, words), encoding="utf-8")
    (folder / ".dockerignore").write_text("**/__pycache__\n**/*.pyc\n", encoding="utf-8")
    return folder
