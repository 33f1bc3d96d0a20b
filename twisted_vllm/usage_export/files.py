"""Writes tables to Parquet files, in bounded memory. It imports PyArrow."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from twisted_vllm.usage_export.columns import DICTIONARY_ENCODED, SCHEMA, SCHEMA_VERSION

#: the most rows of a row group, and about the most bytes of one in memory
GROUP_ROWS, GROUP_BYTES = 50_000, 32 * 2**20
#: a file that has as many bytes is the last of its size: S3 takes 5 GB in one piece
FILE_BYTES = 2**30


def file_name(number: int) -> str:
    """Return the name of a file of a day."""
    return f"usage-{number:04}.parquet"


class DayFiles:
    """The files of a day, which are being written.

    Attributes:
        rows: how many rows they have.
        names: the names of the files that are complete.
        bytes: how many bytes these have.
    """

    def __init__(self, directory: Path, day: str, compression: str, rows_per_file: int) -> None:
        """Begin without a file.

        Args:
            directory: where they are made.
            day: the date, for the files' metadata.
            compression: as in the settings.
            rows_per_file: the most rows of a file.
        """
        self.rows = self.bytes = 0
        self.names: list[str] = []
        self._directory = directory
        self._rows_per_file = rows_per_file
        self._compression = compression
        self._schema = SCHEMA.with_metadata(
            {"vllm_passthrough.schema_version": str(SCHEMA_VERSION), "vllm_passthrough.day": day}
        )
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._path = directory
        self._rows_of_file = 0

    def add(self, page: pa.Table) -> None:
        """Add rows.

        Raises:
            OSError: the disk is full, or fails.
        """
        while page.num_rows:
            room = min(GROUP_ROWS - self._waiting_rows, self._rows_per_file - self._rows_of_file - self._waiting_rows)
            some, page = page.slice(0, room), page.slice(room)
            self._waiting.append(some)
            self._waiting_rows += some.num_rows
            self._waiting_bytes += some.nbytes
            is_full = self._rows_of_file + self._waiting_rows >= self._rows_per_file
            if is_full or self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
                self._write_group()
            if is_full or (self._writer is not None and self._path.stat().st_size >= FILE_BYTES):
                self._end_file()

    def close(self) -> None:
        """Write what is left, and end the last file.

        Raises:
            OSError: the disk is full, or fails.
        """
        if self._waiting:
            self._write_group()
        if self._writer is not None:
            self._end_file()

    def abandon(self) -> None:
        """End a file that failed, whatever becomes of it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            # it may have nowhere to write its end to
            try:
                writer.close()
            except (OSError, pa.ArrowException):
                return

    def _write_group(self) -> None:
        group = pa.concat_tables(self._waiting).replace_schema_metadata(self._schema.metadata)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        if self._writer is None:
            self._path = self._directory / file_name(len(self.names))
            self._writer = pq.ParquetWriter(
                str(self._path),
                self._schema,
                compression="NONE" if self._compression == "none" else self._compression,
                use_dictionary=list(DICTIONARY_ENCODED),
                version="2.6",
            )
        self._writer.write_table(group, row_group_size=GROUP_ROWS)
        self._rows_of_file += group.num_rows
        self.rows += group.num_rows

    def _end_file(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.close()
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(self._path, 0o640)
        self.bytes += self._path.stat().st_size
        self.names.append(self._path.name)
        self._rows_of_file = 0
