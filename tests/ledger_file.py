"""Reads a ledger in SQLite files with plain SQL, as an operator might."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from twisted_vllm.storage.usage.tables import usage, usage_lookups

#: of all end users, users, teams and models, by day, in `usage_sums`
SUMS_OF_DAYS = (
    "SELECT coalesce(sum(requests), 0), coalesce(sum(total_tokens), 0), coalesce(sum(cost), 0)"
    " FROM vllm_passthrough_usage_sums WHERE kind = 0"
)


def open_ledger(file: Path) -> sqlite3.Connection:
    """Open a ledger's main file; the tables of its partitions, up to ten, are views over all that exist now.

    Args:
        file: the main file, whose rows lie in a directory beside it.
    """
    connection = sqlite3.connect(file, timeout=30.0)
    known = connection.execute("SELECT name FROM vllm_passthrough_usage_partitions ORDER BY start")
    names = [name for (name,) in known.fetchall()]
    for name in names:
        connection.execute(f"ATTACH ? AS '{name}'", (f"{file}-usage/{name}.db",))
    for table in (usage, usage_lookups):
        nothing = ", ".join(f"NULL AS {column.name}" for column in table.columns)
        parts = [f"SELECT * FROM '{name}'.{table.name}" for name in names] or [f"SELECT {nothing} WHERE 0"]
        connection.execute(f"CREATE TEMP VIEW {table.name} AS {' UNION ALL '.join(parts)}")
    return connection
