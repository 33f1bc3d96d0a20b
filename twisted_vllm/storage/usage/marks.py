"""How far the rows of a spool were added up, in the database itself.

Rows are stored idempotently, and sums are not: to add a row twice would count it twice. So each transaction that adds
to the sums or to the spend also moves a mark, which says up to which position of the spool all rows are included. After
a crash, or where it is unknown whether a transaction was committed, the mark tells what is missing.

A large amount is added in several transactions, each of some steps of a fixed order. Meanwhile the mark also says where
the amount ends and which step was done last; whoever continues makes the other steps from the same rows.
"""

from __future__ import annotations

import time

import attrs
from sqlalchemy import Connection, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from twisted_vllm.storage.usage.tables import usage_marks
from twisted_vllm.usage.interfaces import BEGINNING, Position

#: how long a mark is kept whose spool nobody finds: its directory may be lost
FORGOTTEN_SECONDS = 366 * 86_400

#: what has a mark of its own
SPEND, SUMS = "spend", "sums"


@attrs.frozen
class Mark:
    """How far rows were added up.

    Attributes:
        serial: how many transactions moved it; 0 before the first.
        at: all rows before this position are included.
        to: where the rows end that are being added; `at` if none are.
        done: the name of the last step of these that is done; empty before the first.
    """

    serial: int = 0
    at: Position = BEGINNING
    to: Position = BEGINNING
    done: str = ""

    @property
    def is_between(self) -> bool:
        """Whether some rows are included in part."""
        return self.to > self.at


class MarkMoved(Exception):
    """The mark in the database is not the expected one: it is another database, or an older state of it."""


def read_mark(connection: Connection, name: str, what: str) -> Mark:
    """Return a mark of a spool; one with the serial 0 if there is none."""
    marks = usage_marks.c
    columns = (marks.serial, marks.segment, marks.offset, marks.to_segment, marks.to_offset, marks.done)
    found = connection.execute(select(*columns).where(marks.name == name, marks.what == what)).one_or_none()
    if found is None:
        return Mark()
    serial, segment, offset, to_segment, to_offset, done = found
    return Mark(serial, Position(segment, offset), Position(to_segment, to_offset), done)


def move_mark(connection: Connection, name: str, what: str, old: Mark, new: Mark) -> None:
    """Replace a mark.

    Raises:
        MarkMoved: it is not the old one.
    """
    values = {
        "serial": new.serial,
        "segment": new.at.segment,
        "offset": new.at.offset,
        "to_segment": new.to.segment,
        "to_offset": new.to.offset,
        "done": new.done,
        "moved_at": int(time.time() * 1e6),
    }
    marks = usage_marks.c
    if old.serial:
        mine = (marks.name == name, marks.what == what, marks.serial == old.serial)
        if connection.execute(update(usage_marks).where(*mine).values(values)).rowcount != 1:
            raise MarkMoved
        return
    try:
        connection.execute(insert(usage_marks).values(name=name, what=what, **values))
    except IntegrityError:
        raise MarkMoved from None


def delete_marks(connection: Connection, name: str) -> None:
    """Delete the marks of a spool of which nothing is left, and those that no process moved for a year."""
    marks = usage_marks.c
    forgotten = int((time.time() - FORGOTTEN_SECONDS) * 1e6)
    connection.execute(delete(usage_marks).where(or_(marks.name == name, marks.moved_at < forgotten)))
