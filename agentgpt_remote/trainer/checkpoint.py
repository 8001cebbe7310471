"""Checkpoints: whole or absent, the last few and the best."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agentgpt_remote.errors import TrainingFailed
from agentgpt_remote.files import replacing
from agentgpt_remote.trainer.ranks import ALONE, Ranks

FORMAT_VERSION = 2
BEST_NAME = "best.pt"
_NAME = re.compile(r"step-(\d+)\.pt")
_SET_ASIDE = ".damaged"
_ARCHIVE_ERRORS = (zipfile.BadZipFile, pickle.UnpicklingError)
logger = logging.getLogger("agentgpt_remote.trainer")


class Checkpoints:
    """The checkpoints of a run.

    A file is written beside its name, flushed to the disk and then renamed, so that a crash at any moment
    leaves the previous one whole. Files hold tensors, numbers, texts, lists and dicts only and are read
    with ``weights_only=True``: nothing in them is executed.

    Where several ranks learn, the first one's files are here, with what all have in common, and each other's in
    ``rank-N``, with its own part; the disk may be another one. None is dropped before all have written the next,
    so that there is always one that all have.

    Args:
        folder: made if it is missing.
        keep: how many of the last ones are kept.
        ranks: that learn together.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks = ALONE) -> None:
        self.keep, self._ranks = keep, ranks
        self.folder = folder = folder if ranks.leads else folder / f"rank-{ranks.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def save(self, state: dict[str, Any], env_steps: int, *, best: bool = False) -> Path:
        """Write a checkpoint and drop the oldest beyond ``keep``.

        Args:
            state: what :meth:`load_last` returns later.
            env_steps: environment steps so far; names the file.
            best: also keep it as the best, for as long as none better comes.

        Raises:
            TrainingFailed: the disk is full or not writable; earlier checkpoints are untouched.
            RankLost: another rank has ended, or did not answer in time.
        """
        path = self.folder / f"step-{env_steps:012d}.pt"
        payload = {"format_version": FORMAT_VERSION, "env_steps": env_steps, "ranks": self._ranks.size, **state}
        self._write(payload, path)
        if best and self._ranks.leads:
            self._guard(path, lambda: self._link(path, self.folder / BEST_NAME))
        self._ranks.share(None)
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """Return the numbered checkpoints, oldest first."""
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def load_last(self) -> dict[str, Any] | None:
        """Return the newest checkpoint's state, or None where there is none.

        One that is damaged is set aside, with a warning, for the newest before it that is whole. Of several ranks
        each gets its own part of the newest that all have, or, where there is no such, the first one the newest of
        all and the others None.

        Raises:
            TrainingFailed: all are damaged, or one is of another version.
            RankLost: another rank has ended, or did not answer in time.
        """
        damaged: list[str] = []
        partial: str | None = None
        for name in self._ranks.share([path.name for path in reversed(self.paths())])[0]:
            state, words = self._load_together(name)
            damaged += [word["damaged"] for word in words if word["damaged"] is not None]
            made_by = [word["ranks"] for word in words]
            if set(made_by) == {self._ranks.size}:
                return self._taken(name, damaged, state)
            if made_by[0] not in (None, self._ranks.size):
                # Of a run on more or fewer ranks: what all have in common is in the first one's.
                return self._taken(name, damaged, state if self._ranks.leads else None)
            partial = name if partial is None and made_by[0] is not None else partial
        if partial is not None:
            state, _ = self._load_together(partial)
            return self._taken(partial, damaged, state if self._ranks.leads else None)
        if damaged:
            raise TrainingFailed(
                f"no checkpoint in {self.folder} can be read: {'; '.join(damaged)}. "
                "Begin anew with --force, or in another run"
            )
        return None

    def _load_together(self, name: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Return this rank's state of that name, and per rank by how many it was made, or how it is damaged."""
        path, state = self.folder / name, None
        word: dict[str, Any] = {"ranks": None, "damaged": None}
        if path.exists():
            try:
                state = load_checkpoint(path)
                word["ranks"] = state.get("ranks", 1)
            except DamagedCheckpoint as error:
                word["damaged"] = str(error)
        return state, self._ranks.share(word)

    def _taken(self, name: str, damaged: list[str], state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Go on from this one: the newer ones are set aside, so that they are never taken for the newest."""
        if self._ranks.leads:
            for failure in damaged:
                logger.warning("%s; going on from %s, which is whole", failure, name)
        for path in self.paths():
            if path.name > name:
                path.replace(path.with_name(path.name + _SET_ASIDE))
        return state

    def load_best(self) -> dict[str, Any] | None:
        """Return the best checkpoint's state, or None where there is none.

        Raises:
            TrainingFailed: it is damaged or of another version.
        """
        path = self.folder / BEST_NAME
        return load_checkpoint(path) if path.exists() else None

    def _write(self, payload: dict[str, Any], path: Path) -> None:
        def write() -> None:
            with replacing(path) as file:
                torch.save(payload, file)
            self._sync_folder()

        self._guard(path, write)

    @staticmethod
    def _guard(path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch raises its own where a write falls short
            raise TrainingFailed(
                f"could not write the checkpoint {path}: {error}; earlier checkpoints are whole, "
                "free some space and continue with --resume"
            ) from error

    def _link(self, path: Path, name: Path) -> None:
        temporary = name.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            temporary.write_bytes(path.read_bytes())
        temporary.replace(name)

    def _sync_folder(self) -> None:
        if os.name != "posix":
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class DamagedCheckpoint(TrainingFailed):
    """A checkpoint file that is not whole."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state.

    Raises:
        DamagedCheckpoint: the file is not whole.
        TrainingFailed: it is of another version.
    """
    try:
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state.get("format_version")
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, *_ARCHIVE_ERRORS) as error:
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged ({error})") from error
    if version != FORMAT_VERSION:
        raise TrainingFailed(
            f"the checkpoint {path} has format version {version}, this package reads {FORMAT_VERSION}: "
            "continue the run with the version that wrote it, or begin anew with --force"
        )
    return state
