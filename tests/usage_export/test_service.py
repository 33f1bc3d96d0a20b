"""The gateway's side of the export: when it looks, what it starts, and what it does with the outcome."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import attrs
import pytest
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted_vllm.storage.usage.writes import write

from tests.builders import usage_row
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.config.s3 import Bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.usage_export import UsageExportSettings
from twisted_vllm.storage.usage.batch import References
from twisted_vllm.storage.usage.exports import Schedule, Work, Written, ask, days_before, finish
from twisted_vllm.usage.days import DAY_US, date_of
from twisted_vllm.usage_export.job import DONE, FAILED, KEPT, Report, encode, job_of
from twisted_vllm.usage_export.metrics import UsageExportCollector
from twisted_vllm.usage_export.service import FIRST_LOOK_SECONDS, LOOK_SECONDS, UsageExport
from twisted_vllm.usage_export.starting import ExportProcess

DAY = 20_417
SETTINGS = UsageExportSettings(format="parquet", directory="exported", delay=7_200.0)
URL = Secret("sqlite:///ledger.sqlite3")


class Transport:
    """Takes what is sent to a process."""

    def __init__(self) -> None:
        self.sent = b""
        self.signals: list[str] = []

    def write(self, data: bytes) -> None:
        self.sent += data

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)


@attrs.define
class Running:
    """An export on a clock, whose processes are the test's."""

    clock: Clock
    database: MemoryDatabase
    export: UsageExport
    started: list[tuple[ExportProcess, Transport]]

    def store(self, day: int, count: int = 1) -> None:
        rows = [usage_row(number, id=f"{number:032x}", time=day * DAY_US + number) for number in range(count)]
        self.database.run_now(lambda connection: write(connection, rows, lambda *_: 0, 0.0, True, References()))

    def end(self, report: Report | None, *, status: int = 0, killed: int | None = None) -> None:
        """Let the process end that was started last; what it reports is in the database before."""
        process, transport = self.started[-1]
        job = job_of(transport.sent)
        if report is not None:
            if report.result in (DONE, KEPT):
                written = Written(report.files, report.rows, report.bytes) if report.result == DONE else None
                work = Work(job.day, job.owner, job.requests)
                self.database.run_now(lambda connection: finish(connection, work, 0, written))
            process.outReceived(encode(report) + b"\n")
        reason = ProcessTerminated(status, killed) if status or killed else ProcessDone(0)
        process.processEnded(Failure(reason))

    def metrics(self) -> dict[str, float]:
        families = UsageExportCollector(self.export).collect()
        return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def lines(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


def running(settings: UsageExportSettings = SETTINGS, retention: float | None = None) -> Running:
    clock, database = Clock(), MemoryDatabase()
    clock.advance((DAY + 1) * 86_400)
    started: list[tuple[ExportProcess, Transport]] = []

    def spawn(process: ExportProcess) -> None:
        transport: Any = Transport()
        started.append((process, transport))
        process.makeConnection(transport)

    export = UsageExport(
        clock, database, URL, settings, retention, now=clock.seconds, randbytes=lambda count: b"\7" * count, spawn=spawn
    )
    return Running(clock, database, export, started)


def test_days_are_exported_one_after_the_other_once_they_are_due(logged: Sequence[LogEvent]) -> None:
    found = running()
    found.store(DAY - 1, 3)
    found.store(DAY, 2)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    ((_, transport),) = found.started
    job = job_of(transport.sent)
    assert (job.day, job.requests, job.former_rows, job.directory, job.bucket) == (DAY - 1, 3, None, "exported", None)
    # one at a time
    found.clock.advance(LOOK_SECONDS * 5)
    assert len(found.started) == 1
    found.end(Report(DONE, 1, 3, 999))
    found.clock.advance(0)
    # the next day is due two hours after midnight
    assert len(found.started) == 1
    found.clock.pump([LOOK_SECONDS] * 18)
    assert len(found.started) == 1
    found.clock.pump([LOOK_SECONDS] * 2)
    assert job_of(found.started[1][1].sent).day == DAY
    found.end(Report(DONE, 1, 2, 999))
    found.clock.advance(0)
    assert (found.export.rows, found.export.days, found.export.failures) == (5, 2, 0)
    assert found.export.state.exported_until == DAY
    assert any(f"Exported the usage of {date_of(DAY)}: 2 rows in 1 files to exported" in line for line in lines(logged))


def test_what_is_switched_off_does_nothing_until_a_reload_switches_it_on() -> None:
    found = running(UsageExportSettings())
    found.store(DAY - 1)
    found.export.start()
    assert found.clock.getDelayedCalls() == []
    assert found.metrics() == {}
    assert found.database.run_now(found.export.held_from) is None
    found.export.reconfigure(SETTINGS, None)
    found.clock.advance(0)
    assert len(found.started) == 1
    assert found.database.run_now(found.export.held_from) == (DAY - 1) * DAY_US
    found.export.reconfigure(attrs.evolve(SETTINGS, hold_rows=False), None)
    assert found.database.run_now(found.export.held_from) is None


def test_the_metrics_say_how_far_it_is_and_how_late() -> None:
    found = running()
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    found.end(None, status=9, killed=signal.SIGKILL)
    prefix = "vllm_passthrough_usage_export"
    told = found.metrics()
    assert told[f"{prefix}_failures_total"] == 1
    assert told[f"{prefix}_last_day_timestamp_seconds"] == 0
    # a day after midnight, less the two hours
    assert told[f"{prefix}_overdue_seconds"] == 86_400 - 7_200 + FIRST_LOOK_SECONDS
    found.clock.advance(LOOK_SECONDS)
    found.end(Report(DONE, 1, 1, 10))
    told = found.metrics()
    assert told[f"{prefix}_last_day_timestamp_seconds"] == DAY * 86_400
    assert told[f"{prefix}_overdue_seconds"] == 0
    assert (told[f"{prefix}_rows_total"], told[f"{prefix}_days_total"]) == (1, 1)


def test_a_process_that_fails_is_told_of_and_tried_again(logged: Sequence[LogEvent]) -> None:
    found = running()
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    found.end(Report(FAILED, error="the directory exported: No space left on device"), status=1)
    assert any("cannot be exported: the directory exported: No space left" in line for line in lines(logged))
    assert found.export.state.error == "the directory exported: No space left on device"
    found.clock.advance(0)
    assert len(found.started) == 1
    found.clock.advance(LOOK_SECONDS)
    assert len(found.started) == 2
    found.started[1][0].errReceived(b"Traceback\n  ...\nMemoryError: nothing left\n")
    found.end(None, status=1, killed=None)
    assert any("The process of the export said: MemoryError: nothing left" in line for line in lines(logged))
    assert found.export.state.error == "its process ended with status 1"
    found.clock.pump([LOOK_SECONDS] * 2)
    found.end(Report(DONE, 1, 1, 10))
    assert found.export.state.error is None
    assert found.export.failures == 2


def test_what_cannot_be_started_is_a_failure(logged: Sequence[LogEvent]) -> None:
    found = running()
    found.store(DAY - 1)

    def spawn(process: ExportProcess) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    found.export._spawn = spawn
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    assert found.export.state.error == "its process cannot be started: Resource temporarily unavailable"


def test_the_end_kills_the_process_and_gives_the_day_back() -> None:
    found = running()
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    stopped: list[object] = []
    found.export.stop().addBoth(stopped.append)
    assert found.started[0][1].signals == ["KILL"]
    assert stopped == []
    found.end(None, status=9, killed=9)
    assert stopped == [None]
    (row,) = found.database.run_now(lambda connection: days_before(connection, None, 5))
    assert (row.claimed_by, row.state, row.failures) == (None, "waiting", 0)
    assert found.clock.getDelayedCalls() == []


def test_the_end_does_not_wait_for_a_process_that_hangs() -> None:
    found = running()
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    stopped: list[object] = []
    found.export.stop().addBoth(stopped.append)
    found.clock.advance(5.0)
    assert stopped == [None]


def test_what_somebody_asks_for_is_done_at_once() -> None:
    found = running()
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    found.end(Report(DONE, 1, 1, 10))
    found.clock.advance(0)
    now = int(found.clock.seconds() * 1e6)
    found.database.run_now(lambda connection: ask(connection, DAY - 1, now, Schedule()))
    found.export.look_soon()
    found.clock.advance(0)
    assert job_of(found.started[1][1].sent).former_rows == 1


def test_rows_that_are_held_for_longer_than_they_should_are_told_of_once_an_hour(
    logged: Sequence[LogEvent],
) -> None:
    found = running(retention=86_400.0 * 2)
    found.store(DAY - 5)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    found.end(Report(FAILED, error="the bucket b: it answers 403"), status=1)
    held = [line for line in lines(logged) if "Rows are kept for longer than usage_retention says" in line]
    assert len(held) == 1 and str(date_of(DAY - 5)) in held[0]
    found.clock.pump([60.0] * 55)
    assert len([line for line in lines(logged) if "Rows are kept for longer" in line]) == 1


def test_the_secrets_of_a_bucket_go_through_standard_input_alone() -> None:
    bucket = Bucket(bucket="usage", access_key_id=Secret("an-id"), secret_access_key=Secret("a-secret-key"))
    found = running(attrs.evolve(SETTINGS, s3=bucket, begin=date(2020, 1, 1)))
    found.store(DAY - 1)
    found.export.start()
    found.clock.advance(FIRST_LOOK_SECONDS)
    sent = job_of(found.started[0][1].sent).bucket
    assert sent is not None
    assert (sent.bucket, sent.access_key_id, sent.secret_access_key) == ("usage", "an-id", "a-secret-key")
    assert "a-secret-key" not in repr(found.started[0][0].__dict__)
