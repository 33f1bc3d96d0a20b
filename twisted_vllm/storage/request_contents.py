"""Prompts and answers that are kept in the database: written in batches, found by the row of a request, and bounded.

They are compressed. What is too old goes, and of more than there is room for, the oldest. Each transaction is short, as
SQLite has one writer at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.engine import Engine

from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import begin
from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import request_contents

#: Of zlib's levels the quickest: 64 KiB of prose take 0.5 ms and become 41 % of it; level 6 takes 2 ms for 34 %.
_LEVEL = 1
#: the most bytes that a body may become: far more than `max_prompt_bytes` and `max_answer_bytes` let through
MAX_BYTES = 256 * 1024 * 1024

#: how many a transaction deletes
_DELETED_AT_ONCE = 1_000

_columns = request_contents.c


class KeptContents(NamedTuple):
    """Prompt and answer of a request.

    Attributes:
        id: the id of its row in the ledger.
        time: when it began, in microseconds since 1970.
        body: JSON.
    """

    id: str
    time: int
    body: bytes


def write_contents(connection: Connection, some: Sequence[KeptContents]) -> None:
    """Store some in a transaction. Idempotent: what is stored is skipped."""
    rows = []
    for each in some:
        body = zlib.compress(each.body, _LEVEL)
        rows.append({"id": each.id, "time": each.time, "bytes": len(body), "body": body})
    if connection.dialect.name == "sqlite":
        connection.execute(insert(request_contents).prefix_with("OR IGNORE"), rows)
        return
    from sqlalchemy.dialects.postgresql import insert as insert_postgresql

    connection.execute(insert_postgresql(request_contents).on_conflict_do_nothing(), rows)


def read_contents(connection: Connection, id: str) -> bytes | None:
    """Return the JSON of a request's prompt and answer, by the id of its row; None if nothing is kept."""
    body = connection.execute(select(_columns.body).where(_columns.id == id)).scalar()
    return None if body is None else zlib.decompressobj().decompress(body, MAX_BYTES)


def have_contents(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return the ids of those rows of whose requests anything is kept."""
    found: set[str] = set()
    for chunk in in_chunks(ids):
        found.update(connection.execute(select(_columns.id).where(_columns.id.in_(chunk))).scalars())
    return found


def size_of_contents(connection: Connection) -> int:
    """Return the bytes of all that is kept, compressed. It reads an index: 30 ms for a million requests."""
    return int(connection.execute(select(func.coalesce(func.sum(_columns.bytes), 0))).scalar_one())


def drop_some(connection: Connection, before: int, excess: int) -> tuple[int, int]:
    """Delete some of the oldest in a transaction: those before a time, and others while there is an excess.

    Args:
        connection: it is in a transaction.
        before: in microseconds since 1970.
        excess: how many bytes there are too many; 0 or less for none.

    Returns:
        How many were deleted, and their bytes.
    """
    oldest = select(_columns.id, _columns.time, _columns.bytes).order_by(_columns.time).limit(_DELETED_AT_ONCE)
    ids: list[str] = []
    size = 0
    for id, time, bytes in connection.execute(oldest):
        if time >= before and size >= excess:
            break
        ids.append(id)
        size += bytes
    for chunk in in_chunks(ids):
        connection.execute(delete(request_contents).where(_columns.id.in_(chunk)))
    return len(ids), size


def trim_contents(engine: Engine, before: int, max_bytes: int | None, seconds: float) -> int:
    """Delete what is too old, and of more than there is room for the oldest; return how many were deleted.

    Args:
        engine: of the main database.
        before: in microseconds since 1970.
        max_bytes: the most bytes of all; None for any.
        seconds: how long a transaction may take on PostgreSQL.

    Raises:
        WorkStopped, SQLAlchemyError: the database failed; some may be left.
    """

    def deadline() -> Deadline | None:
        return None if engine.dialect.name == "sqlite" else Deadline(seconds)

    with begin(engine, deadline(), writes=False) as connection:
        excess = 0 if max_bytes is None else size_of_contents(connection) - max_bytes
        oldest = connection.execute(select(func.min(_columns.time))).scalar()
    deleted = 0
    while oldest is not None and (excess > 0 or oldest < before):
        with begin(engine, deadline(), writes=True) as connection:
            some, size = drop_some(connection, before, excess)
            oldest = connection.execute(select(func.min(_columns.time))).scalar()
        if not some:
            break
        deleted += some
        excess -= size
    return deleted
