"""The process that exports one day: ``python -m twisted_vllm.usage_export.process``.

The gateway starts it, writes a `Job` to its standard input, and reads a `Report` from its standard output. When
standard input ends, the gateway is gone, and the process ends at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import IO, Any

import msgspec
import pyarrow as pa
from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.config.s3 import Bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.usage.export_rows import payers_of, rows_of_day, targets_of
from twisted_vllm.storage.usage.exports import CLAIM_US, Work, Written, finish, renew
from twisted_vllm.storage.usage.tables import RowKey
from twisted_vllm.usage.days import date_of
from twisted_vllm.usage_export.columns import page_of
from twisted_vllm.usage_export.files import DayFiles
from twisted_vllm.usage_export.job import DONE, FAILED, KEPT, LOST, BucketAccess, Job, Report, encode, job_of
from twisted_vllm.usage_export.places import BucketPlace, DirectoryPlace, ExportFailed, Place, make_staging

#: rows of one page, which is one transaction: the largest rows have some 60 kB
PAGE_ROWS = 1_000
#: those who pay, and targets, that are remembered; with more, all are forgotten
MAX_REMEMBERED = 20_000
#: seconds that a page, and a change of the claim, may take
DATABASE_SECONDS = 30.0
#: seconds between two renewals of the claim
RENEW_SECONDS = 60.0
#: attempts to note the end, and seconds between them
ATTEMPTS, PAUSE = 6, 5.0

NICENESS = 19


class ClaimLost(Exception):
    """The claim lapsed: another gateway has the day."""


class Pages:
    """The pages of a day, each read in a transaction of its own."""

    def __init__(self, engine: Engine, day: int) -> None:
        """Read by a connection of an engine."""
        self._engine = engine
        self._day = day
        self._payers: dict[int, Any] = {}
        self._targets: dict[int, Any] = {}

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield tables.

        Raises:
            SQLAlchemyError, WorkStopped: the database failed.
        """
        after: RowKey | None = None
        while True:
            with begin(self._engine, Deadline(DATABASE_SECONDS), writes=False) as connection:
                rows = rows_of_day(connection, self._day, after, PAGE_ROWS)
                _look_up(connection, self._payers, {row.payer for row in rows}, payers_of)
                _look_up(connection, self._targets, {row.target for row in rows}, targets_of)
            count = len(rows)
            if rows:
                after = (rows[-1].time, rows[-1].id)
                page = page_of(rows, self._payers, self._targets)
                # not beside what is made of it
                del rows
                yield page
            if count < PAGE_ROWS:
                return


def _look_up(
    connection: Connection, known: dict[int, Any], ids: set[int], read: Callable[[Connection, set[int]], dict[int, Any]]
) -> None:
    missing = ids - known.keys()
    if len(known) + len(missing) > MAX_REMEMBERED:
        known.clear()
        missing = ids
    known.update(read(connection, missing))


class Claim:
    """The claim of a day, which a thread renews."""

    def __init__(self, engine: Engine, work: Work, now: Callable[[], float] = time.time) -> None:
        """Begin to renew."""
        self._engine = engine
        self._work = work
        self._now = now
        self._ended = threading.Event()
        self._lost = False
        self._renewed = now()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that the day is still one's own.

        Raises:
            ClaimLost: it is not, or nobody knows.
        """
        if self._lost or self._now() - self._renewed > CLAIM_US / 1e6 / 2:
            raise ClaimLost

    def renew(self) -> None:
        """Renew it.

        Raises:
            ClaimLost: another has it.
            SQLAlchemyError, WorkStopped: the database failed.
        """
        with begin(self._engine, Deadline(DATABASE_SECONDS), writes=True) as connection:
            self._lost = not renew(connection, self._work, int(self._now() * 1e6))
        if self._lost:
            raise ClaimLost
        self._renewed = self._now()

    def finish(self, written: Written | None) -> None:
        """Note the end, after a few attempts if need be.

        Raises:
            ClaimLost: another has it.
            SQLAlchemyError, WorkStopped: the database failed.
        """
        self.end()
        for attempt in range(ATTEMPTS):
            try:
                with begin(self._engine, Deadline(DATABASE_SECONDS), writes=True) as connection:
                    own = finish(connection, self._work, int(self._now() * 1e6), written)
            except (SQLAlchemyError, WorkStopped):
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(PAUSE)
                continue
            if not own:
                raise ClaimLost
            return

    def end(self) -> None:
        """Renew it no longer."""
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            # `check` tells how long it failed
            with suppress(SQLAlchemyError, WorkStopped, ClaimLost):
                self.renew()


def export(job: Job) -> Report:
    """Export a day that is claimed."""
    url = Secret(job.database_url)
    engines: list[Engine] = []
    try:
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite" and not os.path.exists(str(parsed.database)):
            return Report(FAILED, error="the database's file is not there")
        engines += [make_engine(parsed, connections=1, read_only=True), make_engine(parsed, connections=1)]
        return _export(job, *engines)
    except ClaimLost:
        return Report(LOST)
    except (StoreError, ExportFailed) as error:
        return Report(FAILED, error=str(error))
    except SQLAlchemyError as error:
        return Report(FAILED, error=f"the database: {reason_of(error, url)}")
    except WorkStopped:
        return Report(FAILED, error=f"the database took longer than {DATABASE_SECONDS:g} s for a page")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return Report(FAILED, error=f"the directory {job.directory}: {reason}")
    finally:
        for engine in engines:
            engine.dispose()


def _export(job: Job, reader: Engine, writer: Engine) -> Report:
    day = date_of(job.day).isoformat()
    directory = Path(job.directory)
    place: Place = DirectoryPlace(directory) if job.bucket is None else BucketPlace(_bucket(job.bucket))
    claim = Claim(writer, Work(job.day, job.owner, job.requests, job.former_rows))
    try:
        made = make_staging(directory, day, job.owner)
        try:
            files = _write(Pages(reader, job.day), DayFiles(made, day, job.compression, job.rows_per_file), claim)
            if job.former_rows is not None and files.rows < job.former_rows:
                claim.finish(None)
                return Report(KEPT, rows=files.rows)
            # whoever was held up for long finds out here
            claim.renew()
            if files.names:
                place.publish(made, files.names, day)
            claim.finish(Written(len(files.names), files.rows, files.bytes))
            return Report(DONE, len(files.names), files.rows, files.bytes)
        finally:
            rmtree(made, ignore_errors=True)
    finally:
        claim.end()


def _write(pages: Pages, files: DayFiles, claim: Claim) -> DayFiles:
    try:
        for page in pages:
            files.add(page)
            claim.check()
        files.close()
    except BaseException:
        files.abandon()
        raise
    return files


def _bucket(access: BucketAccess) -> Bucket:
    values: dict[str, Any] = msgspec.to_builtins(access)
    for name in ("access_key_id", "secret_access_key", "session_token"):
        values[name] = None if values[name] is None else Secret(values[name])
    return Bucket(**values)


def _end_with(stdin: int) -> None:
    """End the process when the gateway is gone: nothing else would."""
    # not by the buffered file: its lock, held by this thread, would abort the interpreter's end
    while os.read(stdin, 4_096):
        pass
    os._exit(1)


def main(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Export one day; return the exit status."""
    os.nice(NICENESS)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    # it gives memory back, and its bounds are those of the pages
    pa.set_memory_pool(pa.system_memory_pool())
    job = job_of(stdin.readline())
    threading.Thread(target=_end_with, args=(stdin.fileno(),), name="gateway", daemon=True).start()
    report = export(job)
    stdout.write(encode(report) + b"\n")
    stdout.flush()
    return 0 if report.result != FAILED else 1


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
