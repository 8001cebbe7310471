"""Archives are unpacked into their folder, and nowhere else."""

import io
import tarfile
from pathlib import Path

import pytest

from agentgpt_remote.cloud.storage import pack_archive, unpack_archive
from agentgpt_remote.errors import CloudError


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "from" / "curves").mkdir(parents=True)
    (tmp_path / "from" / "config.json").write_text("{}")
    (tmp_path / "from" / "curves" / "returns.bin").write_bytes(bytes(range(256)) * 1000)
    pack_archive(tmp_path / "from", tmp_path / "model.tar.gz")
    unpack_archive(tmp_path / "model.tar.gz", tmp_path / "to", "s3://bucket/model.tar.gz")
    assert (tmp_path / "to" / "config.json").read_text() == "{}"
    assert (tmp_path / "to" / "curves" / "returns.bin").read_bytes() == bytes(range(256)) * 1000


def _entry(name: str, **kwargs: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for field, value in kwargs.items():
        setattr(entry, field, value)
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        _entry("../outside", size=1),
        _entry("/tmp/agentgpt-outside", size=1),
        _entry("link", type=tarfile.SYMTYPE, linkname="/etc"),
        _entry("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda entry: entry.name,
)
def test_nothing_is_written_outside(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as packed:
        packed.addfile(entry, io.BytesIO(b"x" * entry.size))
    with pytest.raises(CloudError, match=f"s3://bucket/model.tar.gz can't be unpacked.*{entry.name}"):
        unpack_archive(tmp_path / "model.tar.gz", tmp_path / "folder", "s3://bucket/model.tar.gz")
    assert not list((tmp_path / "folder").iterdir())
    assert not (tmp_path / "outside").exists()


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"no archive")
    with pytest.raises(CloudError, match="can't be unpacked"):
        unpack_archive(tmp_path / "model.tar.gz", tmp_path / "folder", "s3://bucket/model.tar.gz")
