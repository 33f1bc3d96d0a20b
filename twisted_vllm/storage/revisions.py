"""The last change that the database has."""

from __future__ import annotations

from sqlalchemy import Connection, select

from twisted_vllm.auth.grants import NO_REVISION, Revision
from twisted_vllm.storage.tables import changes

_LAST_REVISION = select(changes.c.revision, changes.c.stamp).order_by(changes.c.revision.desc()).limit(1)


def last_revision(connection: Connection) -> Revision:
    """Return the last change."""
    found = connection.execute(_LAST_REVISION).one_or_none()
    return NO_REVISION if found is None else Revision(*found)
