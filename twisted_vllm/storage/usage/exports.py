"""Which days of the ledger are exported, which is next, and who does it. Several gateways share a database.

A gateway claims a day for a time, and renews the claim while it works. A claim that is not renewed, because its process
died, lapses. All times are microseconds since 1970, and days are days since 1970 (UTC).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, text, update

from twisted_vllm.errors import Conflict
from twisted_vllm.storage.usage.export_rows import first_day, requests_of_days
from twisted_vllm.storage.usage.tables import usage_exports
from twisted_vllm.usage.days import DAY_US, date_of

#: the values of ``state``
WAITING, EXPORTED = "waiting", "exported"

#: how long a claim holds without being renewed
CLAIM_US = 600 * 1_000_000

#: days without a row that one transaction notes at a time, and how often
MAX_EMPTY_DAYS, MAX_EMPTY_RANGES = 1_000, 10
#: the longest text of an error
MAX_ERROR = 500
#: the shortest and the longest time between two attempts
FIRST_RETRY_US, LAST_RETRY_US = 60 * 1_000_000, 3_600 * 1_000_000

#: PostgreSQL's advisory lock of the transactions that claim; SQLite has one writer at a time anyway
_CLAIM_LOCK = int.from_bytes(b"vllmexpo", "big")

_exports = usage_exports.c


class Schedule(msgspec.Struct, frozen=True, gc=False):
    """When days are exported.

    Attributes:
        begin: the first day; None for all that the ledger keeps.
        delay: the time after midnight.
        recheck_days: for how many days rows may come late.
    """

    begin: int | None = None
    delay: int = 0
    recheck_days: int = 7

    def last_closed(self, now: int) -> int:
        """Return the last day whose export is due."""
        return (now - self.delay) // DAY_US - 1

    def due(self, day: int) -> int:
        """Return when a day's export is due."""
        return (day + 1) * DAY_US + self.delay


class Work(msgspec.Struct, frozen=True, gc=False):
    """A day to export.

    Attributes:
        day: the day.
        owner: who claimed it.
        requests: what the sums count of it now.
        former_rows: how many rows the files have that are there; None without any.
    """

    day: int
    owner: str
    requests: int
    former_rows: int | None = None


class Written(msgspec.Struct, frozen=True, gc=False):
    """The files of a day."""

    files: int
    rows: int
    bytes: int


class ExportState(msgspec.Struct, frozen=True, gc=False):
    """How far the export is.

    Attributes:
        exported_until: all days up to this one are exported; None if the first that is kept is not.
        next: the next day to export, as far as it is known; None if the ledger has no row.
        due: when its export is due; None likewise.
        error: why the last attempt at the day that fails failed.
        error_day: that day.
    """

    exported_until: int | None = None
    next: int | None = None
    due: int | None = None
    error: str | None = None
    error_day: int | None = None


def find_work(connection: Connection, now: int, schedule: Schedule) -> int | None:
    """Return the day to export now: one that was asked for, the first that is missing, or one with late rows."""
    kept = first_day(connection, max(schedule.begin or 0, 0))
    if kept is None:
        return None
    last = schedule.last_closed(now)
    known: dict[int, Row[Any]] = {
        row.day: row for row in connection.execute(select(usage_exports).where(_exports.day >= kept))
    }
    for day in sorted(known):
        row = known[day]
        if row.state == WAITING and row.times_written and day <= last and _is_free(row, now):
            return day
    for day in range(kept, last + 1):
        found = known.get(day)
        if found is None or (found.state == WAITING and _is_free(found, now)):
            return day
    recent = max(last - schedule.recheck_days + 1, kept)
    counted = requests_of_days(connection, recent, last) if recent <= last else {}
    for day in sorted(counted):
        found = known.get(day)
        if found is not None and found.state == EXPORTED and counted[day] > found.requests and _is_free(found, now):
            return day
    return None


def take_work(connection: Connection, now: int, schedule: Schedule, owner: str) -> Work | None:
    """Claim the day to export now, and note the days before it that have no row as exported.

    Args:
        connection: it is in a transaction that writes.
        now: the time.
        schedule: when days are exported.
        owner: a name that nobody else has.
    """
    _one_at_a_time(connection)
    last = schedule.last_closed(now)
    # once more for what is without rows now, and then for the day that comes after
    for _ in range(MAX_EMPTY_RANGES):
        day = find_work(connection, now, schedule)
        if day is None:
            return None
        filled = first_day(connection, day)
        if filled == day:
            row = _row(connection, day)
            _set(connection, day, row, state=WAITING, claimed_by=owner, claimed_until=now + CLAIM_US)
            requests = requests_of_days(connection, day, day).get(day, 0)
            return Work(day, owner, requests, row.rows if row is not None and row.times_written else None)
        end = last + 1 if filled is None else min(filled, last + 1)
        _note_empty(connection, day, min(end, day + MAX_EMPTY_DAYS), now)
    return None


def renew(connection: Connection, work: Work, now: int) -> bool:
    """Hold a claim for longer; return whether it is still one's own."""
    own = update(usage_exports).where(_exports.day == work.day, _exports.claimed_by == work.owner)
    return connection.execute(own.values(claimed_until=now + CLAIM_US)).rowcount == 1


def finish(connection: Connection, work: Work, now: int, written: Written | None) -> bool:
    """Note that a day is exported; return whether the claim was still one's own.

    Args:
        connection: it is in a transaction that writes.
        work: the day.
        now: the time.
        written: its files; None if those that were there stay, because rows were deleted since.
    """
    values: dict[str, Any] = {
        "state": EXPORTED,
        "requests": work.requests,
        "finished_at": now,
        "claimed_by": None,
        "claimed_until": None,
        "failures": 0,
        "retry_at": None,
        "error": None,
    }
    if written is not None:
        values |= msgspec.structs.asdict(written)
        values["times_written"] = _exports.times_written + 1
    own = update(usage_exports).where(_exports.day == work.day, _exports.claimed_by == work.owner)
    return connection.execute(own.values(values)).rowcount == 1


def fail(connection: Connection, work: Work, now: int, error: str) -> None:
    """Note that an attempt failed, and give the claim back. The next one comes after a while that grows."""
    row = _row(connection, work.day)
    if row is None or row.claimed_by != work.owner:
        return
    wait = min(FIRST_RETRY_US << min(row.failures, 20), LAST_RETRY_US)
    failed = {"failures": row.failures + 1, "retry_at": now + wait, "error": error[:MAX_ERROR]}
    _set(connection, work.day, row, claimed_by=None, claimed_until=None, **failed)


def release(connection: Connection, work: Work) -> None:
    """Give a claim back."""
    own = update(usage_exports).where(_exports.day == work.day, _exports.claimed_by == work.owner)
    connection.execute(own.values(claimed_by=None, claimed_until=None))


def ask(connection: Connection, day: int, now: int, schedule: Schedule) -> None:
    """Have a day exported again, or at once.

    Raises:
        Conflict: it has not ended, or the ledger has no row of it.
    """
    if day > schedule.last_closed(now):
        raise Conflict(
            "This day has not ended, or not for as long as passthrough.ledger.usage_export.delay says.", param="day"
        )
    if first_day(connection, day) != day:
        raise Conflict("The ledger has no row of this day, or not any more. Files that are there stay.", param="day")
    if schedule.begin is not None and day < schedule.begin:
        raise Conflict("This day is before passthrough.ledger.usage_export.begin.", param="day")
    _one_at_a_time(connection)
    _set(connection, day, _row(connection, day), state=WAITING, retry_at=None, failures=0)


def state_of(connection: Connection, schedule: Schedule) -> ExportState:
    """Return how far the export is."""
    kept = first_day(connection, max(schedule.begin or 0, 0))
    failing = select(usage_exports).where(_exports.error.is_not(None)).order_by(_exports.day).limit(1)
    if kept is not None:
        # a day before it has no rows any more that could be exported
        failing = failing.where(_exports.day >= kept)
    failed = connection.execute(failing).first()
    until = _exported_until(connection, kept)
    # without a row there is nothing to wait for
    missing = None if kept is None else kept if until is None else until + 1
    return ExportState(
        exported_until=until,
        next=missing,
        due=None if missing is None else schedule.due(missing),
        error=None if failed is None else failed.error,
        error_day=None if failed is None else failed.day,
    )


def exported_until(connection: Connection, begin: date | None = None) -> date | None:
    """Return the day up to which all days are exported that are kept.

    Args:
        connection: it is in a transaction.
        begin: the first day that is exported at all; None for all that are kept.

    Returns:
        The day; None if the first one is not exported. Rows from the next day on must be kept.
    """
    since = 0 if begin is None else max((begin - date_of(0)).days, 0)
    found = _exported_until(connection, first_day(connection, since))
    return None if found is None else date_of(found)


def keeps_from(connection: Connection, begin: date | None = None) -> int | None:
    """Return the time from which on rows must be kept until they are exported; None if none has to be.

    The arguments are those of `exported_until`.
    """
    since = 0 if begin is None else max((begin - date_of(0)).days, 0)
    kept = first_day(connection, since)
    if kept is None:
        return None
    until = _exported_until(connection, kept)
    return (kept if until is None else until + 1) * DAY_US


def days_before(connection: Connection, day: int | None, limit: int) -> Sequence[Row[Any]]:
    """Return rows of `usage_exports`, the latest days first, of days before `day` if it is given."""
    found = select(usage_exports).order_by(_exports.day.desc()).limit(limit)
    return connection.execute(found if day is None else found.where(_exports.day < day)).all()


def is_claimed(row: Row[Any], now: int) -> bool:
    """Return whether somebody exports a day at present."""
    return row.claimed_until is not None and row.claimed_until > now


def _exported_until(connection: Connection, kept: int | None) -> int | None:
    """Return the last day of those that are exported without a gap from the first that is kept on."""
    if kept is None:
        # nothing is left to wait for
        return connection.execute(select(func.max(_exports.day)).where(_exports.state == EXPORTED)).scalar()
    done = select(_exports.day).where(_exports.day >= kept, _exports.state == EXPORTED).order_by(_exports.day)
    until = kept - 1
    for day in connection.execute(done).scalars():
        if day != until + 1:
            break
        until = day
    if until >= kept:
        return until
    before = select(_exports.day).where(_exports.day == kept - 1, _exports.state == EXPORTED)
    return connection.execute(before).scalar()


def _note_empty(connection: Connection, first: int, end: int, now: int) -> None:
    """Note days without a row as exported. There is nothing to write, and what was written stays."""
    counted = requests_of_days(connection, first, end - 1)
    known = set(connection.execute(select(_exports.day).where(_exports.day >= first, _exports.day < end)).scalars())
    if first in known:
        noted = {"state": EXPORTED, "requests": counted.get(first, 0), "finished_at": now}
        _set(connection, first, _row(connection, first), **noted, error=None, retry_at=None)
    nothing = dict.fromkeys(("files", "rows", "bytes", "times_written", "failures"), 0)
    rows = [
        {"day": day, "state": EXPORTED, **nothing, "requests": counted.get(day, 0), "finished_at": now}
        for day in range(first, end)
        if day not in known
    ]
    if rows:
        connection.execute(insert(usage_exports), rows)


def _one_at_a_time(connection: Connection) -> None:
    """Wait until no other transaction makes rows of days."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})


def _is_free(row: Row[Any], now: int) -> bool:
    return not is_claimed(row, now) and (row.retry_at is None or row.retry_at <= now)


def _row(connection: Connection, day: int) -> Row[Any] | None:
    return connection.execute(select(usage_exports).where(_exports.day == day)).first()


def _set(connection: Connection, day: int, row: Row[Any] | None, **values: Any) -> None:
    """Change the row of a day, or make it."""
    if row is not None:
        connection.execute(update(usage_exports).where(_exports.day == day).values(values))
        return
    nothing = dict.fromkeys(("files", "rows", "bytes", "requests", "times_written", "failures"), 0)
    connection.execute(insert(usage_exports).values({"day": day, "state": WAITING, **nothing, **values}))
