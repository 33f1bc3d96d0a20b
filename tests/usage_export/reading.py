"""Reads exported files with programs that others wrote: DuckDB and PyArrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq


def files_of(directory: Path) -> list[str]:
    """Return the files below a directory, without those that are being made."""
    return sorted(
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and not str(path.relative_to(directory)).startswith(".usage-staging")
    )


def ask_duckdb(directory: Path, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
    """Return the rows of a query of all files of a directory."""
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        source = f"read_parquet('{directory}/usage/*/*.parquet', hive_partitioning = true)"
        found: list[tuple[Any, ...]] = connection.execute(f"SELECT {columns} FROM {source} {rest}").fetchall()
        return found
    finally:
        connection.close()


def rows_by_pyarrow(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one file."""
    found: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return found
