"""Bundles on a model hub: ``hf://OWNER/NAME`` is fetched, a folder is pushed, by huggingface_hub and its login."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from agentgpt_remote.errors import (
    AgentGPTError,
    AuthError,
    BundleError,
    ConfigError,
    ConnectionLost,
    HostUnreachable,
    ProtocolMismatch,
    RemoteTimeout,
    check_seconds,
    missing_dependency,
)
from agentgpt_remote.policy.bundle_files import CARD_FILE, CONFIG_FILE, SIZE_LIMITS, WEIGHTS_FILE, read_bundle
from agentgpt_remote.policy.card import model_card
from agentgpt_remote.policy.provenance import config_text, public_provenance

HUB_SCHEME = "hf://"
TRANSFER_TIMEOUT_S = 1800.0
_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository of a model hub.

    Attributes:
        repository: ``OWNER/NAME``.
        revision: a branch, tag or commit; None stands for the main branch.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def of(cls, url: str) -> Self:
        """Read ``hf://OWNER/NAME[@REVISION]``.

        Raises:
            ConfigError: it is something else.
        """
        repository, at, revision = url.removeprefix(HUB_SCHEME).partition("@")
        if at and not revision.strip():
            raise ConfigError(f"{url!r}: expected a revision after the @, such as @main")
        check_repository(repository, url)
        return cls(repository=repository, revision=revision or None)

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def check_repository(repository: str, given: str) -> None:
    """Refuse what can't be a repository's name.

    Raises:
        ConfigError: it is not ``OWNER/NAME``.
    """
    odd = "--" in repository or ".." in repository or repository.endswith((".git", ".", "-"))
    if odd or not _NAME.fullmatch(repository):
        raise ConfigError(f"{given!r}: expected OWNER/NAME of a model repository, such as hf://alice/cartpole")


def local_bundle(source: str | Path, *, timeout_s: float = 30.0) -> Path:
    """Return the folder of a bundle, after it was fetched where the source is ``hf://OWNER/NAME[@REVISION]``.

    Only a bundle's configuration and weights are fetched, of one commit, into the cache of huggingface_hub. With
    ``HF_HUB_OFFLINE=1`` they come from there.

    Args:
        source: a folder, or what the hub knows it by.
        timeout_s: deadline of the hub's answer, in seconds; the files then have half an hour.

    Raises:
        ConfigError: the name makes no sense.
        BundleError: there is no such repository or revision, or it holds no bundle, or one that is too large.
        AuthError: the repository is for others.
        HostUnreachable, RemoteTimeout, ConnectionLost: the hub does not answer, or not in time.
        DependencyNotInstalled: huggingface_hub is not installed.
    """
    if not str(source).startswith(HUB_SCHEME):
        return Path(source)
    name, hub = HubName.of(str(source)), _Hub()
    if hub.is_offline:
        return hub.cached(name)
    commit = hub.run(timeout_s, f"{name} was looked up", name, lambda: hub.find(name, timeout_s))
    folder = hub.run(TRANSFER_TIMEOUT_S, f"{name} was fetched", name, lambda: hub.fetch(name, commit, timeout_s))
    for file, limit in SIZE_LIMITS.items():
        _check_size(name, file, (folder / file).stat().st_size, limit)
    return folder


def push_bundle(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    timeout_s: float = TRANSFER_TIMEOUT_S,
) -> dict[str, str]:
    """Push a bundle to a model repository, which is made if it is missing, in one commit.

    The configuration goes without secrets, and the model card is written anew, with the code to load it from there.

    Args:
        path: the bundle's folder.
        repository: ``OWNER/NAME``.
        private: make a repository that only its owner sees.
        revision: a branch, made if it is missing; the main one by default.
        timeout_s: deadline, in seconds.

    Returns:
        ``url`` of the repository, ``commit``, and ``source`` for :class:`~agentgpt_remote.GPTPolicy`.

    Raises:
        ConfigError: the name or the revision makes no sense, or a private repository was wanted and there is a public
            one.
        BundleError: there is no bundle, or it is damaged.
        AuthError: nobody is logged in, or the token may not write there.
        HostUnreachable, RemoteTimeout, ConnectionLost: the hub does not answer, or not in time.
        DependencyNotInstalled: huggingface_hub is not installed.
    """
    check_seconds("timeout_s", timeout_s)
    repository = repository.removeprefix(HUB_SCHEME)
    check_repository(repository, repository)
    if revision is not None and not revision.strip():
        raise ConfigError(f"revision={revision!r}: expected the name of a branch, such as main")
    name, files, hub = HubName(repository=repository, revision=revision), read_bundle(path), _Hub()
    files.weights()  # damage is found here rather than by those who fetch it
    if not hub.has_login():
        raise AuthError(f"nobody is logged in at {hub.endpoint}, so that {name} can't be written: {_LOGIN}")
    fields = {**files.fields, "provenance": public_provenance(files.provenance)}
    contents: dict[str, bytes | Path] = {
        CONFIG_FILE: config_text(fields),
        WEIGHTS_FILE: files.path / WEIGHTS_FILE,
        CARD_FILE: model_card(str(name), fields).encode(),
    }
    return hub.run(timeout_s, f"{name} was written", name, lambda: hub.push(name, contents, private=private))


class _Hub:
    """huggingface_hub, with this package's errors and with deadlines.

    Raises:
        DependencyNotInstalled: it is not installed.
    """

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        from huggingface_hub import constants, errors

        self._lib: Any = huggingface_hub
        self._errors: Any = errors
        self._api: Any = huggingface_hub.HfApi(library_name="agentgpt-remote")
        self.endpoint: str = self._api.endpoint
        self.is_offline = bool(constants.HF_HUB_OFFLINE)

    def has_login(self) -> bool:
        """Return whether there is a token, from the hub's own login or environment."""
        return bool(self._lib.get_token())

    def run(self, timeout_s: float, what: str, name: HubName, call: Callable[[], _T]) -> _T:
        """Return what a call returns, which may not take longer than this: the hub's library knows no deadlines.

        Raises:
            RemoteTimeout: it took longer; the thread that does it ends with the process.
        """
        outcome: list[_T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                with self._translated(name):
                    outcome.append(call())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                failure.append(error)

        began = time.monotonic()
        worker = threading.Thread(target=work, name="agentgpt-hub", daemon=True)
        worker.start()
        worker.join(timeout_s)
        if failure:
            raise failure[0]
        if not outcome:
            waited = time.monotonic() - began
            raise RemoteTimeout(f"{waited:.0f} s have passed before {what} at {self.endpoint}: try again")
        return outcome[0]

    def find(self, name: HubName, timeout_s: float) -> str:
        """Return the commit that a name stands for, once it is known to hold a bundle."""
        info = self._api.model_info(name.repository, revision=name.revision, files_metadata=True, timeout=timeout_s)
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        for file, limit in SIZE_LIMITS.items():
            if file not in sizes:
                raise BundleError(
                    f"{name} holds no policy bundle ({file} is missing): `agentgpt push BUNDLE OWNER/NAME` writes one"
                )
            _check_size(name, file, sizes[file] or 0, limit)
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise ValueError(f"commit {info.sha!r}")
        return info.sha

    def fetch(self, name: HubName, commit: str, timeout_s: float) -> Path:
        """Return the folder of the cache that holds the files of a commit."""
        return Path(self._files(name, revision=commit, etag_timeout=timeout_s)[0]).parent

    def cached(self, name: HubName) -> Path:
        """Return the folder of the cache, without asking the hub.

        Raises:
            BundleError: it is not there.
        """
        try:
            return Path(self._files(name, revision=name.revision, local_files_only=True)[0]).parent
        except (self._errors.LocalEntryNotFoundError, FileNotFoundError) as error:
            raise BundleError(f"{name} was not fetched before and HF_HUB_OFFLINE is set: unset it once") from error

    def _files(self, name: HubName, **options: Any) -> list[str]:
        return [self._lib.hf_hub_download(name.repository, file, **options) for file in SIZE_LIMITS]

    def push(self, name: HubName, contents: dict[str, bytes | Path], *, private: bool) -> dict[str, str]:
        """Make the repository and the branch where they are missing, and commit the files."""
        self._api.create_repo(name.repository, private=private or None, exist_ok=True)
        if private and not self._api.model_info(name.repository, timeout=30.0).private:
            raise ConfigError(
                f"{name.repository} is there and is public, so that nothing was pushed: leave --private out, or make "
                f"it private at {self.endpoint}/{name.repository}/settings"
            )
        if name.revision:
            self._api.create_branch(name.repository, branch=name.revision, exist_ok=True)
        added = [self._lib.CommitOperationAdd(file, data) for file, data in contents.items()]
        done = self._api.create_commit(
            name.repository, added, commit_message="Push a policy with agentgpt-remote", revision=name.revision
        )
        return {"url": f"{self.endpoint}/{name.repository}", "commit": str(done.oid), "source": str(name)}

    @contextlib.contextmanager
    def _translated(self, name: HubName) -> Iterator[None]:
        """Turn the library's errors into this package's."""
        try:
            yield
        except AgentGPTError:
            raise
        except RuntimeError as error:  # what an upload of a large file raises, around the reason
            raise self._translation(name, error.__cause__ or error) from error
        except Exception as error:
            raise self._translation(name, error) from error

    def _translation(self, name: HubName, error: BaseException) -> BaseException:
        lib, where = self._errors, f"at {self.endpoint}"
        if isinstance(error, lib.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, lib.GatedRepoError):
            return AuthError(f"{name} {where} is for those whom its owner lets in: ask there, then {_LOGIN}")
        if isinstance(error, lib.RevisionNotFoundError):
            return BundleError(f"{name.repository} {where} has no revision {name.revision!r}: expected a branch or tag")
        if isinstance(error, lib.RepositoryNotFoundError):
            return BundleError(
                f"there is no model repository {name.repository} {where}, or it is private: check the name; for one "
                f"that is private, {_LOGIN}"
            )
        if status in (401, 403):
            return AuthError(f"the hub {where} refuses {name} ({status}): {_LOGIN}, with a token that may do this")
        if status is not None:
            reason = str(getattr(error, "server_message", None) or "").strip()
            told = f"{status}: {reason}" if reason else status
            return ConnectionLost(f"the hub {where} answered {told} when asked for {name}: try again later")
        if isinstance(error, lib.EntryNotFoundError):
            return HostUnreachable(f"the hub {where} could not be reached for {name}: {_first_line(error)}")
        if isinstance(error, lib.FileMetadataError | ValueError | KeyError | TypeError):
            return ProtocolMismatch(
                f"what answers {where} for {name} is no model hub ({_first_line(error)}): check HF_ENDPOINT"
            )
        if "Timeout" in type(error).__name__:
            return RemoteTimeout(f"the hub {where} did not answer in time for {name}: try again")
        # The library's client is httpx or a successor of it, whose errors share no other base.
        if isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0].startswith("httpx"):
            return HostUnreachable(f"the hub {where} could not be reached for {name}: {_first_line(error)}")
        return error


def _check_size(name: HubName, file: str, size: int, limit: int) -> None:
    if size > limit:
        raise BundleError(f"{file} of {name} has {size:,} bytes: expected at most {limit:,}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
