"""Looks whether the database can be used, without changing anything."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.schema import is_usable, unknown_revision

#: seconds to wait for an answer
SECONDS = 10.0


def look_at_database(url: Secret) -> str:
    """Return what was found. It blocks, and makes no file and no table.

    Raises:
        StoreError: it cannot be used; the message says why and names no password.
    """
    return "will be made" if _look(url) is None else "reachable"


def has_tables(url: Secret) -> bool:
    """Return whether the database has tables that this version works with. It blocks, and makes no file and no table.

    Raises:
        StoreError: it cannot be used; the message says why and names no password.
    """
    return _look(url) is True


def _look(url: Secret) -> bool | None:
    """Return whether this version works with the tables; None for a file that does not exist."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        file = Path(str(parsed.database))
        if not file.exists():
            if not os.access(file.parent, os.W_OK | os.X_OK):
                raise StoreError(f"the directory {file.parent} does not exist, or may not be written to")
            return None
    try:
        engine = make_engine(parsed, connections=1, read_only=True, lock_seconds=SECONDS)
        try:
            with begin(engine, Deadline(SECONDS), writes=False) as connection:
                unknown, current = unknown_revision(connection), is_usable(connection)
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        raise StoreError(reason_of(error, url)) from None
    if unknown is not None:
        raise StoreError(f"it has the schema {unknown!r}, which this version cannot use: it is a newer one's")
    return current
