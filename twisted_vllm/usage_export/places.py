"""Where the files of a day go once all of them are written: a directory, or a bucket.

They are made in a directory beside, `STAGING`, so that nothing that is incomplete ever has a final name.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from twisted_vllm.config.s3 import Bucket
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.sinks.object_storage import failure_of, s3_client
from twisted_vllm.usage_export.files import file_name

#: the directory of tables, and the one in which files are made
TABLE, STAGING = "usage", ".usage-staging"
#: seconds after which what another process left in it is removed, whichever day it is of
STALE_SECONDS = 86_400

_OWN_NAME = re.compile(r"usage-[0-9]{4,}\.parquet")


class ExportFailed(Exception):
    """A day cannot be exported. The message says why, without secrets."""


class Place(Protocol):
    """Where files go."""

    def publish(self, made: Path, names: Sequence[str], day: str) -> None:
        """Let the files of a day take the place of those that are there.

        Raises:
            OSError, ExportFailed: it failed.
        """


def make_staging(directory: Path, day: str, owner: str) -> Path:
    """Return an empty directory for the files of a day, and remove what died processes left.

    The caller has the claim of the day: whatever else is there of it is nobody's.

    Raises:
        OSError: it cannot be made.
    """
    staging = directory / STAGING
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = time.time()
    for each in staging.iterdir():
        if each.name.startswith(f"{day}-") or now - each.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(each, ignore_errors=True)
    made = staging / f"{day}-{owner}"
    made.mkdir(mode=0o750)
    return made


class DirectoryPlace:
    """A directory of this machine, or a mounted one."""

    def __init__(self, directory: Path) -> None:
        """Use a directory, which need not exist."""
        self._directory = directory

    def publish(self, made: Path, names: Sequence[str], day: str) -> None:
        """Rename the files.

        A day of one file is replaced in one step. One of several disappears for a moment: a directory can only be moved
        away before another takes its name.
        """
        table = self._directory / TABLE
        table.mkdir(mode=0o750, exist_ok=True)
        target = table / f"date={day}"
        _sync(made)
        if [each.name for each in target.glob("*")] == list(names) == [file_name(0)]:
            os.replace(made / file_name(0), target / file_name(0))
            _sync(target)
            return
        former = made.with_name(f"{made.name}.former")
        if target.exists():
            os.rename(target, former)
        os.rename(made, target)
        _sync(table)
        shutil.rmtree(former, ignore_errors=True)


class BucketPlace:
    """A bucket of an S3 service."""

    def __init__(self, bucket: Bucket) -> None:
        """Use a bucket, which must exist."""
        self._bucket = bucket

    def publish(self, made: Path, names: Sequence[str], day: str) -> None:
        """Put each file, which the service takes whole or not at all, and delete those that are left of a former set.

        Raises:
            ExportFailed: the service failed.
        """
        folder = f"{self._bucket.prefix}{TABLE}/date={day}/"
        try:
            client = s3_client(self._bucket)
            try:
                for name in names:
                    with open(made / name, "rb") as file:
                        client.put_object(Bucket=self._bucket.bucket, Key=f"{folder}{name}", Body=file)
                self._delete_others(client, folder, names)
            finally:
                client.close()
        except OSError:
            raise
        except Exception as error:
            failure: DeliveryFailed = failure_of(error)
            raise ExportFailed(f"the bucket {self._bucket.bucket}: {failure}") from None

    def _delete_others(self, client: object, folder: str, names: Sequence[str]) -> None:
        pages = client.get_paginator("list_objects_v2").paginate(  # type: ignore[attr-defined]  # boto3 has no types
            Bucket=self._bucket.bucket, Prefix=folder
        )
        for page in pages:
            for each in page.get("Contents", []):
                name = each["Key"].removeprefix(folder)
                if _OWN_NAME.fullmatch(name) and name not in names:
                    client.delete_object(Bucket=self._bucket.bucket, Key=each["Key"])  # type: ignore[attr-defined]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
