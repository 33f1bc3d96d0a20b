"""``python -m twisted_vllm.storage.room``: prints what takes room in the database. It only reads.

It works while the gateway runs, and while it does not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import describe_database
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.schema import is_usable
from twisted_vllm.storage.usage.room import Room, measure

#: seconds that it may take
_SECONDS = 30.0


def main(arguments: Sequence[str]) -> int:
    """Print what takes room.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m twisted_vllm.storage.room", description="Prints what takes room in the gateway's database."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="the gateway's configuration file")
    source.add_argument("--database-url", metavar="URL", help="the database, as in DATABASE_URL")
    parser.add_argument("--json", action="store_true", help="print JSON, and not a table")
    options = parser.parse_args(arguments)
    try:
        if options.database_url:
            url, retention, spool = Secret(options.database_url), None, None
        else:
            settings = load(file=options.config, environ=os.environ)
            url, retention = settings.database_url, settings.ledger.usage_retention
            spool = settings.spool_directory if settings.ledger.enabled else None
        room = _measure(url, retention, spool)
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(room)).decode())
    else:
        print(describe_database(url))
        print("\n".join(describe(room)))
    return 0


def _measure(url: Secret, retention: float | None, spool: Path | None) -> Room:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not os.path.exists(parsed.database or ""):
        raise StoreError(f"There is no file {parsed.database}.")
    engine = make_engine(parsed, connections=1, read_only=True, must_exist=True)
    try:
        with begin(engine, Deadline(_SECONDS), writes=False) as connection:
            if not is_usable(connection):
                raise StoreError("The database has another version's tables: start the gateway once to migrate it.")
            return measure(connection, retention, spool)
    except SQLAlchemyError as error:
        problem = StoreError(f"The database cannot be read: {reason_of(error, url)}")
    finally:
        engine.dispose()
    # Outside the except block, so that the driver's error, which may show secrets, is not the context.
    raise problem


def describe(room: Room) -> Iterator[str]:
    """Yield the lines that say what takes room."""
    yield ""
    yield from _table(
        ("", "bytes"),
        [
            ("the database, with partitions and logs", _bytes(room.bytes)),
            ("free in the main file", _bytes(room.free_bytes)),
            ("write-ahead log of the main file", _bytes(room.log_bytes)),
            ("the spool", _bytes(room.spool_bytes)),
        ],
    )
    yield ""
    yield from _table(
        ("table", "rows", "bytes", "indexes"),
        [
            (
                each.name,
                "?" if each.rows is None else f"{'~' if each.estimated else ''}{each.rows:,}",
                f"{'~' if each.estimated else ''}{_bytes(each.bytes)}",
                _bytes(each.index_bytes),
            )
            for each in room.tables
        ],
    )
    yield ""
    yield from _table(
        ("partition", "from", "to", "requests", "bytes"),
        [
            (
                each.name,
                _date(each.start),
                _date(each.end),
                f"{each.requests:,}",
                "missing" if each.missing else _bytes(each.bytes),
            )
            for each in room.partitions
        ],
    )
    yield ""
    if room.bytes_per_request is not None:
        yield f"{room.bytes_per_request:g} bytes of rows and look-ups for each of {room.requests:,} requests"
    if room.sum_bytes_per_request is not None:
        yield f"{room.sum_bytes_per_request:g} bytes of sums for each request that there ever was"
    if room.next_drop is None:
        yield "nothing is dropped: passthrough.ledger.usage_retention is not set, or there are no rows"
    else:
        coming = room.next_drop
        yield f"usage_retention drops {coming.partition} on {_date(coming.at)}, which gives {_bytes(coming.bytes)} back"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[column]) for line in (titles, *rows)) for column in range(len(titles))]
    for line in (titles, *rows):
        first, *others = (
            cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in _cells(line, widths)
        )
        yield "  ".join((first, *others)).rstrip()


def _cells(line: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[int, tuple[str, int]]]:
    return enumerate(zip(line, widths, strict=True))


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
