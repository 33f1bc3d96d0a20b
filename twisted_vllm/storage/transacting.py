"""One transaction with a deadline, in the calling thread, and why it failed."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import attrs
from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, reason_of
from twisted_vllm.storage.sqlite_file import DatabaseFileLost, check_file
from twisted_vllm.storage.usage.partitions import PartitionLost

T = TypeVar("T")


class Fault(Enum):
    """What kept a transaction from its end."""

    #: the database does not answer, or answers with an error
    UNAVAILABLE = "unavailable"
    #: another program or transaction holds a lock
    LOCKED = "locked"
    #: the database's disk is full
    FULL = "full"
    #: SQLite's file was removed or replaced
    FILE_LOST = "file lost"
    #: a file with rows of the ledger was removed, or is damaged
    ROWS_LOST = "rows lost"
    #: it took longer than its deadline
    TOO_SLOW = "too slow"


#: what a client is told of each
NO_ANSWER = "The database does not answer at the moment. Try again in a few seconds."
FAULT_MESSAGES = {
    Fault.UNAVAILABLE: NO_ANSWER,
    Fault.LOCKED: "Another program or transaction holds the lock of the database. Nothing was changed. Try again.",
    Fault.FULL: "The disk of the database is full. Nothing was changed. Free it and try again.",
    Fault.FILE_LOST: (
        "The database's file was removed or replaced while the gateway runs, so nothing is stored. "
        "Its operator finds in the log what to do."
    ),
    Fault.ROWS_LOST: (
        "A file with rows of the ledger is missing or damaged, so rows cannot be shown. Sums can be, and keys work. "
        "Its operator finds in the log what to do."
    ),
    Fault.TOO_SLOW: (
        "The database took longer than passthrough.timeouts.database allows. Nothing was changed. Try again."
    ),
}


@attrs.frozen
class Failed:
    """The outcome of a transaction that failed. A text, as the driver's error may show secrets.

    Attributes:
        fault: what kind of failure.
        reason: why, for the log.
        uncertain: whether the database may have committed it: it was told to, and did not answer.
        moved: whether SQLite's file has lost its name, and is whole.
    """

    fault: Fault
    reason: str
    uncertain: bool = False
    moved: bool = False


#: PostgreSQL's states (its manual, appendix A): disk full, lock not available, canceled by a timeout
_STATES = {"53100": Fault.FULL, "55P03": Fault.LOCKED, "57014": Fault.TOO_SLOW}
#: the beginnings of SQLite's messages for SQLITE_FULL, SQLITE_BUSY, SQLITE_LOCKED and SQLITE_INTERRUPT
_MESSAGES = (
    ("database or disk is full", Fault.FULL),
    ("database is locked", Fault.LOCKED),
    ("database table is locked", Fault.LOCKED),
    ("interrupted", Fault.TOO_SLOW),
)


def transact(
    engine: Engine, url: Secret, work: Callable[[Connection], T], deadline: Deadline, *, writes: bool
) -> T | Failed:
    """Do work in one transaction and commit it; return its result, or why the database failed.

    Args:
        engine: the database.
        url: its URL, which no reason shows.
        work: what to do; its own errors are raised, and change nothing.
        deadline: when it must end. Work whose deadline is over before its commit changes nothing.
        writes: whether it changes anything.
    """
    committing = False
    try:
        deadline.check()
        with begin(engine, deadline, writes=writes) as connection:
            result = work(connection)
            if writes:
                deadline.check()
                committing = True
        if writes:
            check_file(engine)
        return result
    except WorkStopped:
        return Failed(Fault.TOO_SLOW, f"not done within {deadline.seconds:g} s")
    except DatabaseFileLost as error:
        return Failed(Fault.FILE_LOST, str(error), moved=error.moved)
    except PartitionLost as error:
        return Failed(Fault.ROWS_LOST, str(error))
    except SQLAlchemyError as error:
        fault = _fault_of(error)
        return Failed(fault, reason_of(error, url), uncertain=committing and fault is Fault.UNAVAILABLE)


def _fault_of(error: SQLAlchemyError) -> Fault:
    if not isinstance(error, DBAPIError) or error.orig is None:
        return Fault.UNAVAILABLE
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return _STATES.get(state, Fault.UNAVAILABLE)
    text = str(error.orig)
    return next((fault for beginning, fault in _MESSAGES if text.startswith(beginning)), Fault.UNAVAILABLE)
