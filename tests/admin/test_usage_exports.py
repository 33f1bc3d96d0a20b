"""GET and POST /usage/exports."""

from __future__ import annotations

from typing import Any

import attrs
from twisted_vllm.storage.usage.writes import write

from tests.admin.admin_harness import NOW, Gateway, value_of
from tests.builders import usage_row
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.usage.batch import References
from twisted_vllm.storage.usage.exports import Schedule, Written, fail, finish, take_work
from twisted_vllm.usage.days import DAY_US, date_of

NOW_US = int(NOW.timestamp() * 1e6)
TODAY = NOW_US // DAY_US
SCHEDULE = Schedule(delay=7_200_000_000)


@attrs.define
class FakeExport:
    """An export that counts how often it is told to look."""

    enabled: bool = True
    target: str = "s3://usage/eu/"
    schedule: Schedule = SCHEDULE
    looks: int = 0

    def look_soon(self) -> None:
        self.looks += 1


def gateway(export: FakeExport) -> tuple[Gateway, MemoryDatabase]:
    database = MemoryDatabase()
    return Gateway(Store(database), exports=export), database


def store(database: MemoryDatabase, *days: int) -> None:
    rows = [usage_row(number, id=f"{number:032x}", time=day * DAY_US) for number, day in enumerate(days)]
    database.run_now(lambda connection: write(connection, rows, lambda *_: 0, 0.0, True, References()))


def take(database: MemoryDatabase) -> Any:
    return database.run_now(lambda connection: take_work(connection, NOW_US, SCHEDULE, "me"))


def test_the_list_says_what_is_exported_what_is_next_and_what_went_wrong() -> None:
    found, database = gateway(FakeExport())
    store(database, TODAY - 3, TODAY - 2, TODAY - 1)
    done = take(database)
    database.run_now(lambda connection: finish(connection, done, NOW_US, Written(1, 1, 4_000)))
    failed = take(database)
    database.run_now(lambda connection: fail(connection, failed, NOW_US, "the bucket usage: it answers 403"))
    assert take(database).day == TODAY - 1
    answer = found.get("/usage/exports").json
    days = answer.pop("days")
    assert answer == {
        "enabled": True,
        "target": "s3://usage/eu/",
        "exported_until": "2026-02-26",
        "next_day": "2026-02-27",
        "next_at": "2026-02-28T02:00:00+00:00",
        "last_error": "the bucket usage: it answers 403",
        "last_error_day": "2026-02-27",
    }
    assert [(each["day"], each["state"], each["rows"], each["times_written"]) for each in days] == [
        ("2026-02-28", "exporting", 0, 0),
        ("2026-02-27", "failed", 0, 0),
        ("2026-02-26", "exported", 1, 1),
    ]
    assert days[2]["finished_at"] == "2026-03-01T12:00:00+00:00"
    page = found.get("/usage/exports?before=2026-02-28&limit=1").json["days"]
    assert [each["day"] for each in page] == ["2026-02-27"]
    assert found.get("/usage/exports?before=2026-02-30").status == 400
    assert found.get("/usage/exports?limit=1000").status == 400


def test_a_day_is_done_again_and_the_audit_log_says_who_asked() -> None:
    export = FakeExport()
    found, database = gateway(export)
    store(database, TODAY - 2)
    done = take(database)
    database.run_now(lambda connection: finish(connection, done, NOW_US, Written(1, 1, 4_000)))
    day = str(date_of(TODAY - 2))
    answer = found.post("/usage/exports", {"day": day})
    assert (answer.status, answer.json) == (200, {"status": "success", "day": day})
    assert export.looks == 1
    assert found.get("/usage/exports").json["days"][-1]["state"] == "waiting"
    assert take(database).former_rows == 1
    (entry,) = value_of(found.ask("GET", "/audit/list?action=usage/exports").addCallback(lambda got: got.json()))[
        "audit_logs"
    ]
    assert (entry["object_type"], entry["object_id"], entry["actor"]) == ("usage_export", day, "master")


def test_what_cannot_be_exported_is_refused() -> None:
    found, database = gateway(FakeExport())
    store(database, TODAY - 2)
    for day, status, says in (
        (str(date_of(TODAY)), 409, "not ended"),
        (str(date_of(TODAY - 5)), 409, "no row"),
        ("1960-01-01", 409, "no row"),
        ("2026-02-30", 400, "must be a day"),
        ("yesterday", 400, "must be a day"),
    ):
        answer = found.post("/usage/exports", {"day": day})
        assert answer.status == status
        assert says in answer.error["message"]
        assert answer.error["param"] == "day"
    off, _ = gateway(FakeExport(enabled=False))
    answer = off.post("/usage/exports", {"day": "2026-02-27"})
    assert answer.status == 409
    assert "passthrough.ledger.usage_export" in answer.error["message"]
    assert off.get("/usage/exports").json["enabled"] is False
