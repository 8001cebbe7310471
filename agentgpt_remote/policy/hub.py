"""Bundles on a model hub: ``hf://OWNER/NAME`` is fetched, a folder is pushed, by huggingface_hub and its login."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from agentgpt_remote.endpoints import HUB_SCHEME
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

TRANSFER_TIMEOUT_S = 1800.0
_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_T = TypeVar("_T")


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
    repository, at, revision = str(source).removeprefix(HUB_SCHEME).partition("@")
    if at and not revision.strip():
        raise ConfigError(f"{source!r}: expected a revision after the @, such as @main")
    hub = _Repository(repository, revision or None)
    commit = None if hub.is_offline else hub.run(timeout_s, lambda: hub.find(timeout_s))
    return hub.run(TRANSFER_TIMEOUT_S, lambda: hub.fetch(commit, timeout_s))


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
    if revision is not None and not revision.strip():
        raise ConfigError(f"revision={revision!r}: expected the name of a branch, such as main")
    hub, files = _Repository(repository.removeprefix(HUB_SCHEME), revision), read_bundle(path)
    files.weights()  # damage is found here rather than by those who fetch it
    fields = {**files.fields, "provenance": public_provenance(files.provenance)}
    contents: dict[str, bytes | Path] = {
        CONFIG_FILE: config_text(fields),
        WEIGHTS_FILE: files.path / WEIGHTS_FILE,
        CARD_FILE: model_card(hub.source, fields).encode(),
    }
    return hub.run(timeout_s, lambda: hub.push(contents, private=private))


class _Repository:
    """A model repository, through huggingface_hub, with this package's errors and with deadlines.

    Raises:
        ConfigError: there can't be one of this name.
        DependencyNotInstalled: huggingface_hub is not installed.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        try:
            import huggingface_hub
        except ModuleNotFoundError as error:
            raise missing_dependency(error) from error
        from huggingface_hub import constants, errors, utils

        self.source = f"{HUB_SCHEME}{name}" + (f"@{revision}" if revision else "")
        checks: Any = utils
        try:
            checks.validate_repo_id(name)
        except ValueError as error:
            raise self._wrong_name() from error
        if "/" not in name:
            raise self._wrong_name()
        self._name, self._revision = name, revision
        self._lib: Any = huggingface_hub
        self._errors: Any = errors
        self._api: Any = huggingface_hub.HfApi(library_name="agentgpt-remote")
        self._where = f"at {self._api.endpoint}"
        self.is_offline = bool(constants.HF_HUB_OFFLINE)

    def _wrong_name(self) -> ConfigError:
        return ConfigError(f"{self.source!r}: expected OWNER/NAME of a model repository, such as hf://alice/cartpole")

    def run(self, timeout_s: float, call: Callable[[], _T]) -> _T:
        """Return what a call returns, which may not take longer than this: the library knows no overall deadline.

        Raises:
            RemoteTimeout: it took longer; the thread that does it ends with the process.
        """
        future: Future[_T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
                future.set_exception(error)

        threading.Thread(target=work, name="agentgpt-hub", daemon=True).start()
        wait([future], timeout_s)
        if not future.done():
            raise RemoteTimeout(
                f"the hub {self._where} did not answer within {timeout_s:g} s for {self.source}: try again"
            )
        error = future.exception()
        if error is not None:
            raise self._translated(error) from error
        return future.result()

    def find(self, timeout_s: float) -> str:
        """Return the commit that the revision stands for, once it is known to hold a bundle."""
        info = self._api.model_info(self._name, revision=self._revision, files_metadata=True, timeout=timeout_s)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        for file, limit in SIZE_LIMITS.items():
            if file not in sizes:
                raise BundleError(
                    f"{self.source} holds no policy bundle ({file} is missing): `agentgpt push BUNDLE OWNER/NAME` "
                    "writes one"
                )
            if sizes[file] > limit:
                raise BundleError(f"{file} of {self.source} has {sizes[file]:,} bytes: expected at most {limit:,}")
        return str(info.sha)

    def fetch(self, commit: str | None, timeout_s: float) -> Path:
        """Return the folder of the cache that holds the files; None takes the commit that was fetched last."""
        options = {"revision": self._revision, "etag_timeout": timeout_s, "local_files_only": self.is_offline}
        folders = {Path(self._api.hf_hub_download(self._name, file, **options)).parent for file in SIZE_LIMITS}
        if len(folders) > 1 or commit not in (None, *(folder.name for folder in folders)):
            raise ConnectionLost(f"{self.source} has changed while it was fetched: try again")
        return folders.pop()

    def push(self, contents: dict[str, bytes | Path], *, private: bool) -> dict[str, str]:
        """Make the repository and the branch where they are missing, and commit the files."""
        url = f"{self._api.endpoint}/{self._name}"
        self._api.create_repo(self._name, private=private or None, exist_ok=True)
        if private and not self._api.model_info(self._name, timeout=30.0).private:
            raise ConfigError(
                f"{self._name} is there and is public, so that nothing was pushed: leave --private out, or make it "
                f"private at {url}/settings"
            )
        if self._revision:
            self._api.create_branch(self._name, branch=self._revision, exist_ok=True)
        added = [self._lib.CommitOperationAdd(file, data) for file, data in contents.items()]
        done = self._api.create_commit(
            self._name, added, commit_message="Push a policy with agentgpt-remote", revision=self._revision
        )
        return {"url": url, "commit": str(done.oid), "source": self.source}

    def _translated(self, error: BaseException) -> BaseException:
        """Return this package's error for one of the library's."""
        lib, where = self._errors, self._where
        if isinstance(error, RuntimeError | lib.LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # the library wraps what ended a transfer
        if isinstance(error, AgentGPTError):
            return error
        if isinstance(error, lib.GatedRepoError):
            return AuthError(f"{self.source} {where} is for those whom its owner lets in: ask there, then {_LOGIN}")
        if isinstance(error, lib.RevisionNotFoundError):
            return BundleError(f"{self._name} {where} has no revision {self._revision!r}: expected a branch or tag")
        if isinstance(error, lib.RepositoryNotFoundError):
            return BundleError(
                f"there is no model repository {self._name} {where}, or it is private: check the name; for one that "
                f"is private, {_LOGIN}"
            )
        if isinstance(error, lib.HfHubHTTPError):
            status, reason = error.response.status_code, error.server_message
            if status in (401, 403):
                return AuthError(f"the hub {where} refuses {self.source} ({status}): {_LOGIN}, with the rights for it")
            told = f"{status}: {reason}" if reason else status
            return ConnectionLost(f"the hub {where} answered {told} when asked for {self.source}: try again later")
        if isinstance(error, lib.OfflineModeIsEnabled):
            return ConfigError(f"HF_HUB_OFFLINE is set, so that {self.source} can't be reached: unset it")
        if isinstance(error, lib.LocalEntryNotFoundError):
            return BundleError(f"{self.source} was not fetched before and HF_HUB_OFFLINE is set: unset it once")
        if "Timeout" in type(error).__name__:
            return RemoteTimeout(f"the hub {where} did not answer in time for {self.source}: try again")
        # The library's client is httpx or a successor of it, whose errors share no other base.
        if isinstance(error, ConnectionError) or type(error).__module__.startswith("httpx"):
            return HostUnreachable(f"the hub {where} could not be reached for {self.source}: {error}")
        if isinstance(error, lib.FileMetadataError | ValueError | KeyError | TypeError):
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            return ProtocolMismatch(
                f"what answers {where} for {self.source} is no model hub ({told}): check HF_ENDPOINT"
            )
        return error
