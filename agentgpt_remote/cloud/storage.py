"""Folders and archives in S3."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentgpt_remote.cloud.aws import Aws, error_code, explained
from agentgpt_remote.errors import AuthError, CloudError, ConfigError

_GONE = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
_ELSEWHERE = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "400")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` address.

    >>> split_uri("s3://runs/cartpole/model.tar.gz")
    ('runs', 'cartpole/model.tar.gz')
    """
    parts = urlsplit(uri)
    return parts.netloc, parts.path.strip("/")


def check_bucket(aws: Aws, uri: str, field: str) -> None:
    """Check that a bucket is there, is reachable and lies in the region.

    Raises:
        ConfigError: it does not exist, or lies in another region.
        AuthError: it may not be used.
    """
    bucket, _ = split_uri(uri)
    client = aws.client("s3")
    from botocore.exceptions import ClientError

    with explained(f"look at the bucket {bucket}"):
        try:
            answer = client.head_bucket(Bucket=bucket)
        except ClientError as error:
            code, headers = error_code(error), error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            where = headers.get("x-amz-bucket-region", "")
            if code in _GONE:
                raise ConfigError(
                    f"{field}={uri!r}: there is no bucket {bucket!r}; make it with `aws s3 mb s3://{bucket} "
                    f"--region {aws.region}`"
                ) from error
            if code in _ELSEWHERE or (where and where != aws.region):
                raise _elsewhere(field, uri, bucket, where or "another region", aws.region) from error
            if code == "403":
                raise AuthError(
                    f"{field}={uri!r}: the bucket {bucket!r} belongs to someone else, or these credentials may not use "
                    "it; docs/cloud.md has the policy that is needed"
                ) from error
            raise
        where = answer.get("BucketRegion") or aws.region
    if where != aws.region:
        raise _elsewhere(field, uri, bucket, where, aws.region)


def _elsewhere(field: str, uri: str, bucket: str, where: str, region: str) -> ConfigError:
    return ConfigError(
        f"{field}={uri!r}: the bucket {bucket!r} lies in {where}, the job would run in {region}; set region to the "
        "bucket's, or use a bucket of that region"
    )


def list_keys(client: Any, uri: str) -> Iterator[dict[str, Any]]:
    """Yield the objects in a folder: ``Key``, ``Size`` and more."""
    bucket, prefix = split_uri(uri)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
    for page in pages:
        yield from page.get("Contents", ())


def upload_files(client: Any, folder: Path, uri: str, paths: Iterable[Path]) -> int:
    """Upload files of a folder to the same places below an address; return how many there were."""
    bucket, prefix = split_uri(uri)
    count = 0
    for path in paths:
        key = "/".join(part for part in (prefix, path.relative_to(folder).as_posix()) if part)
        client.upload_file(str(path), bucket, key)
        count += 1
    return count


def download_folder(client: Any, uri: str, folder: Path) -> int:
    """Download what is below an address; return how many files there were."""
    bucket, prefix = split_uri(uri)
    count = 0
    for entry in list_keys(client, uri):
        name = entry["Key"].removeprefix(prefix).lstrip("/")
        target = (folder / name).resolve()
        if not name or name.endswith("/") or not target.is_relative_to(folder.resolve()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, entry["Key"], str(target))
        count += 1
    return count


def fetch_archive(aws: Aws, uri: str, folder: Path) -> None:
    """Download a ``.tar.gz`` and unpack it into a folder.

    Raises:
        CloudError: it is not there, or damaged.
    """
    bucket, key = split_uri(uri)
    client = aws.client("s3")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ".download.tar.gz"
    try:
        with explained(f"download {uri}"):
            client.download_file(bucket, key, str(archive))
        unpack_archive(archive, folder, uri)
    finally:
        archive.unlink(missing_ok=True)


def unpack_archive(archive: Path, folder: Path, uri: str) -> None:
    """Unpack a ``.tar.gz`` into a folder; nothing in it may lead out of there.

    Args:
        archive: the file.
        folder: made if it is missing.
        uri: how the archive is called in errors.

    Raises:
        CloudError: it is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                _unpack_member(packed, member, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CloudError(f"{uri} can't be unpacked: {error}") from error


def _unpack_member(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one file or folder of an archive (``extractall(filter="data")`` is not in every Python 3.11)."""
    target = (folder / member.name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise tarfile.ExtractError(f"{member.name} would be written outside of {folder}")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = packed.extractfile(member) if member.isfile() else None
    if content is None:
        raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as written:
        shutil.copyfileobj(content, written)


def pack_archive(folder: Path, path: Path) -> None:
    """Pack what a folder holds into a ``.tar.gz``."""
    with tarfile.open(path, "w:gz") as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, arcname=entry.name)
