"""What holds of the ledger in every database: each row once, and sums that are those of the rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, Table, delete, select
from twisted_vllm.storage.usage.daily_tags import MAX_TAGS_OF_KEY, OTHER, DailyTags
from twisted_vllm.storage.usage.writes import AlsoPay, nobody_else

from tests.builders import NOON, usage_row, usage_rows
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage import batch as batch_module
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.tables import (
    usage,
    usage_daily,
    usage_monthly,
    usage_payer_tags,
    usage_payers,
    usage_request_tags,
    usage_targets,
    usage_totals,
)
from twisted_vllm.usage.interfaces import RowsRejected, SpendUpdate
from twisted_vllm.usage.records import Payer, Target, UsageRow, payer_of, refer, target_of

DAY = 86_400
SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens", "audio_ms", "cost")

#: a row with every field
EVERYTHING = usage_row(
    0,
    id="ab" * 16,
    time=NOON * 1_000_000 + 123_456,
    kind="key",
    key_id="k1",
    key_hash="0123abcd",
    key_name="ada's",
    user_id="ada",
    team_id="red",
    tags=("a", 'b,"c"', "a"),
    organization_id="acme",
    model="qwen",
    server="gpu:8000",
    route="/v1/chat/completions",
    method="POST",
    prices=(("name", "qwen"), ("input", "0.000001")),
    request_id="r-1",
    end_user="Grace Hopper; DROP TABLE 'ü' \u2028",
    headers={"x-project": "p'1"},
    status=499,
    outcome="client_disconnected",
    error="draining",
    stream=True,
    prompt_tokens=1,
    cached_tokens=2,
    completion_tokens=3,
    reasoning_tokens=4,
    total_tokens=5,
    audio_ms=6,
    estimated=True,
    cost=7 * 10**12,
    first_byte_us=8,
    total_us=9,
    bytes_in=2**40,
    bytes_out=11,
    requests=12,
    attempts="gpu-2:8000 status_503",
    request_tags=("b", "a", "über,alles"),
    spend_metadata='{"ticket":"T-1"}',
    response_id="resp_1",
)


class Ledger:
    """The ledger in one database, with budgets whose periods a test sets."""

    def __init__(self, url: str) -> None:
        self.also_pay: AlsoPay = nobody_else
        self.periods: Callable[[str, str, float], int] = lambda kind, name, time: 0
        self.now = float(NOON)
        self.url = url
        self.engine: Engine = make_engine(parse_url(Secret(url)))
        migrate(self.engine)
        self.database = self.another()

    def another(self) -> UsageDatabase:
        """Return a connection of another process."""
        return UsageDatabase(
            Secret(self.url),
            lambda *asked: self.periods(*asked),
            lambda: self.now,
            lambda payers, model: self.also_pay(payers, model),
        )

    def write(self, *rows: UsageRow, own: bool = True) -> list[SpendUpdate]:
        return self.database.write(rows, own)

    def read(self, table: Table) -> list[dict[str, Any]]:
        with self.engine.begin() as connection:
            return [dict(row._mapping) for row in connection.execute(select(table))]

    def run(self, work: Callable[[Connection], Any]) -> Any:
        with self.engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        self.database.close()
        self.engine.dispose()


def expected_sums(rows: Iterable[UsageRow]) -> dict[str, int]:
    rows = list(rows)
    requests = sum(row.requests for row in rows)
    successful = sum(row.requests for row in rows if row.outcome == "completed" and row.status < 400)
    sums = {name: sum(getattr(row, name) for row in rows) for name in (*SUMS, "total_us")}
    return {"requests": requests, "successful": successful, "failed": requests - successful, **sums}


def day_of(row: UsageRow) -> datetime:
    return datetime.fromtimestamp(row.time / 1e6, UTC)


def some_rows(count: int, seed: int) -> list[UsageRow]:
    """Rows of a few months, keys, users, teams, end users, tags and models."""
    chance = random.Random(seed)
    return [
        usage_row(
            seed * 1_000_000 + number,
            time=(NOON + chance.randrange(90 * DAY)) * 1_000_000,
            key_id=chance.choice(["", "k1", "k2"]),
            user_id=chance.choice([None, "ada", "bob"]),
            team_id=chance.choice([None, "red"]),
            end_user=chance.choice([None, "e1", "e2"]),
            tags=chance.choice([(), ("x",), ("x", "y", "x")]),
            model=chance.choice(["", "qwen"]),
            status=chance.choice([200, 500]),
            outcome=chance.choice(["completed", "failed"]),
            cost=chance.randrange(3) * 10**9,
            audio_ms=chance.randrange(3),
            reasoning_tokens=chance.randrange(9),
            cached_tokens=chance.randrange(9),
            requests=chance.choice([1, 1, 590]),
        )
        for number in range(count)
    ]


def check_sums(ledger: Ledger, rows: list[UsageRow]) -> None:
    """Compare every sum with what the rows say."""
    assert {(row["time"], row["id"]) for row in ledger.read(usage)} == {(row.time, row.id) for row in rows}
    groups: dict[tuple[Any, ...], list[UsageRow]] = {}
    for row in rows:
        day, payer, model = day_of(row).date(), payer_of(row.payer), target_of(row.target).model
        whole = (payer.key_id, payer.user_id or "", payer.team_id or "", model)
        groups.setdefault(("daily", day, *whole), []).append(row)
        groups.setdefault(("monthly", day.replace(day=1), *whole), []).append(row)
        values = [("all", ""), ("user", payer.user_id), ("team", payer.team_id)]
        values += [("end_user", row.end_user), *(("tag", tag) for tag in sorted(set(payer.tags)))]
        for dimension, value in values:
            for period, start in (("day", day), ("month", day.replace(day=1))):
                groups.setdefault((dimension, period, start, value or "", model), []).append(row)
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for name, table in (("daily", usage_daily), ("monthly", usage_monthly), ("", usage_totals)):
        keys = [column.name for column in table.primary_key.columns]
        for record in ledger.read(table):
            key = tuple(record.pop(each) for each in keys)
            found[(name, *key) if name else key] = record
    assert found == {key: expected_sums(members) for key, members in groups.items()}
    spent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        payer = payer_of(row.payer)
        named = {"key": payer.key_id, "user": payer.user_id, "team": payer.team_id, "end_user": row.end_user}
        spent.update({(kind, name): row.cost for kind, name in named.items() if name and row.cost})
    assert {(row["kind"], row["id"]): row["total_spend"] for row in ledger.read(spend)} == dict(spent)


def _is_daily_tag(row: dict[str, Any]) -> bool:
    return bool((row["dimension"], row["period"]) == ("tag", "day"))


class UsageContract:
    """What every IUsageStore on a database promises; a subclass gives its `Ledger` as the fixture `ledger`."""

    def test_every_field_of_a_row_is_kept(self, ledger: Ledger) -> None:
        assert tuple(usage.columns.keys()) == UsageRow.__struct_fields__
        least = UsageRow(id="cd" * 16, time=0, payer=refer(Payer()), target=refer(Target()))
        ledger.write(EVERYTHING, least)
        found = {row["id"]: row for row in ledger.read(usage)}
        payers = {row.pop("id"): row for row in ledger.read(usage_payers)}
        targets = {row.pop("id"): row for row in ledger.read(usage_targets)}
        for row in (EVERYTHING, least):
            kept = found[row.id]
            payer, target = payers[kept.pop("payer")], targets[kept.pop("target")]
            assert kept == {name: getattr(row, name) for name in kept} | {
                "request_id": row.request_id or None,
                "error": row.error or None,
                "requests": None if row.requests == 1 else row.requests,
                "attempts": row.attempts or None,
                "request_tags": list(row.request_tags) or None,
                "spend_metadata": row.spend_metadata or None,
                "response_id": row.response_id or None,
            }
            assert payer == msgspec.structs.asdict(payer_of(row.payer)) | {"tags": list(payer_of(row.payer).tags)}
            assert target == msgspec.structs.asdict(target_of(row.target)) | {
                "prices": dict(target_of(row.target).prices)
            }
        assert sorted(row["tag"] for row in ledger.read(usage_payer_tags)) == ["a", 'b,"c"']

    def test_rows_refer_to_each_payer_and_target_once_whoever_writes_them(self, ledger: Ledger) -> None:
        other = ledger.another()
        for start in range(0, 40, 4):
            rows = [usage_row(number, key_id=f"k{number % 3}", tags=("t",)) for number in range(start, start + 4)]
            (other.write(rows, True) if start % 8 else ledger.write(*rows))
        other.close()
        assert sorted(row["key_id"] for row in ledger.read(usage_payers)) == ["k0", "k1", "k2"]
        assert len(ledger.read(usage_targets)) == 1
        assert len(ledger.read(usage_payer_tags)) == 3

    def test_references_that_a_restore_took_away_are_written_again(self, ledger: Ledger) -> None:
        ledger.write(usage_row(1, key_id="k1", tags=("t",)))
        with ledger.engine.begin() as connection:
            for table in (usage_payer_tags, usage_payers, usage_targets):
                connection.execute(delete(table))
        ledger.database.forget_references()
        ledger.write(usage_row(2, key_id="k1", tags=("t",)))
        assert [row["key_id"] for row in ledger.read(usage_payers)] == ["k1"]
        assert (len(ledger.read(usage_targets)), len(ledger.read(usage_payer_tags))) == (1, 1)

    @pytest.mark.parametrize("bound", [("MAX_REMEMBERED", 5), ("MAX_REMEMBERED_BYTES", 300)])
    def test_more_payers_than_are_remembered_are_kept_as_well(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, bound: tuple[str, int]
    ) -> None:
        monkeypatch.setattr(batch_module, *bound)
        rows = [usage_row(number, key_id=f"k{number % 20}", model=f"m{number % 9}") for number in range(100)]
        for start in range(0, 100, 7):
            ledger.write(*rows[start : start + 7])
        assert len(ledger.read(usage_payers)) == 20
        assert len(ledger.read(usage_targets)) == 9
        check_sums(ledger, rows)

    def test_what_was_rolled_back_is_written_again(self, ledger: Ledger) -> None:
        with pytest.raises(RowsRejected):
            ledger.write(usage_row(1), usage_row(2, prompt_tokens=10**30))
        assert ledger.read(usage_payers) == []
        ledger.write(usage_row(1))
        assert [row["key_id"] for row in ledger.read(usage_payers)] == ["k1"]
        # no row is new, but what it refers to may be
        with ledger.engine.begin() as connection:
            connection.execute(delete(usage_payers))
        ledger.database.close()
        ledger.write(usage_row(1))
        assert [row["key_id"] for row in ledger.read(usage_payers)] == ["k1"]

    def test_the_sums_are_those_of_the_rows(self, ledger: Ledger) -> None:
        rows = some_rows(700, 1)
        for start in range(0, 700, 300):
            ledger.write(*rows[start : start + 300])
        check_sums(ledger, rows)

    def test_a_row_counts_once_however_often_it_is_written(self, ledger: Ledger) -> None:
        rows = some_rows(400, 2)
        ledger.write(*rows[:300])
        ledger.write(*rows[:300])
        ledger.write(*rows[200:], *rows[350:])
        ledger.write(*reversed(rows))
        check_sums(ledger, rows)

    def test_nothing_is_written_of_nothing(self, ledger: Ledger) -> None:
        assert ledger.write() == []
        check_sums(ledger, [])

    @pytest.mark.parametrize("fields", [{"prompt_tokens": 10**30}, {"total_us": -(2**63) - 1}, {"end_user": "\ud800"}])
    def test_a_batch_with_a_row_that_cannot_be_kept_is_refused_whole(
        self, ledger: Ledger, fields: dict[str, Any]
    ) -> None:
        with pytest.raises(RowsRejected):
            ledger.write(*usage_rows(300), usage_row(300, **fields))
        check_sums(ledger, [])
        ledger.write(*usage_rows(3))
        check_sums(ledger, usage_rows(3))

    def test_processes_that_write_at_once_wait_for_each_other_and_lose_nothing(self, ledger: Ledger) -> None:
        batches = [[some_rows(60, 10 * writer + number) for number in range(5)] for writer in range(4)]
        databases = [ledger.another() for _ in batches]

        def work(writer: int) -> None:
            for rows in batches[writer]:
                random.Random(writer).shuffle(rows)
                databases[writer].write(rows, True)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        for database in databases:
            database.close()
        check_sums(ledger, [row for writer in batches for rows in writer for row in rows])

    # spending

    def test_what_was_paid_is_told_for_each_who_pays(self, ledger: Ledger) -> None:
        row = usage_row(1, user_id="ada", team_id="red", end_user="e", cost=5)
        other = usage_row(2, user_id="ada", key_id="k2", cost=3)
        assert sorted(ledger.write(row, other), key=lambda spent: (spent.kind, spent.id)) == [
            SpendUpdate("end_user", "e", 5, 5, 0),
            SpendUpdate("key", "k1", 5, 5, 0),
            SpendUpdate("key", "k2", 3, 3, 0),
            SpendUpdate("team", "red", 5, 5, 0),
            SpendUpdate("user", "ada", 8, 8, 0),
        ]
        assert ledger.write(usage_row(3, cost=0), usage_row(4, key_id="", cost=9)) == []

    def test_an_organization_pays_and_whoever_else_has_a_budget(self, ledger: Ledger) -> None:
        asked = []

        def also_pay(payers: Iterable[tuple[str, str]], model: str) -> list[tuple[str, str]]:
            asked.append((sorted(payers), model))
            return [("proxy", "proxy"), ("member", "red\x1fada")]

        ledger.also_pay = also_pay
        rows = [usage_row(number, user_id="ada", team_id="red", organization_id="acme", cost=5) for number in (1, 2)]
        told = {(spent.kind, spent.id): (spent.amount, spent.total) for spent in ledger.write(*rows)}
        payers = [("key", "k1"), ("organization", "acme"), ("team", "red"), ("user", "ada")]
        assert told == dict.fromkeys([*payers, ("proxy", "proxy"), ("member", "red\x1fada")], (10, 10))
        assert asked == [(payers, "qwen")]
        [payer] = ledger.read(usage_payers)
        assert payer["organization_id"] == "acme"

    def test_the_gateway_pays_once_for_a_request_with_an_end_user(self, ledger: Ledger) -> None:
        ledger.also_pay = lambda payers, model: [("proxy", "proxy")]
        told = {(spent.kind, spent.id): spent.total for spent in ledger.write(usage_row(1, end_user="e", cost=5))}
        assert told == {("key", "k1"): 5, ("end_user", "e"): 5, ("proxy", "proxy"): 5}

    def test_rows_that_are_there_already_are_told_with_their_amount(self, ledger: Ledger) -> None:
        """The first answer may have been lost with the connection; the limiter must hear of it once."""
        ledger.write(*usage_rows(3))
        assert ledger.write(*usage_rows(3)) == [SpendUpdate("key", "k1", 21, 21, 0)]
        assert ledger.write(*usage_rows(4)) == [SpendUpdate("key", "k1", 28, 28, 0)]

    def test_no_amount_is_told_of_what_another_process_left(self, ledger: Ledger) -> None:
        assert ledger.write(*usage_rows(3), own=False) == [SpendUpdate("key", "k1", 0, 21, 0)]
        assert ledger.write(*usage_rows(3), own=False) == []

    def test_a_new_period_begins_anew_and_the_total_goes_on(self, ledger: Ledger) -> None:
        ledger.periods = lambda kind, name, time: int(time) // DAY * DAY
        today = NOON // DAY * DAY
        tomorrow = {"time": (NOON + DAY) * 1_000_000}
        assert ledger.write(usage_row(1)) == [SpendUpdate("key", "k1", 7, 7, today)]
        assert ledger.write(usage_row(2)) == [SpendUpdate("key", "k1", 7, 14, today)]
        ledger.now += DAY
        assert ledger.write(usage_row(3, **tomorrow)) == [SpendUpdate("key", "k1", 7, 7, today + DAY)]
        # one that comes late: the period that it belongs to is over
        assert ledger.write(usage_row(4)) == [SpendUpdate("key", "k1", 7, 7, today + DAY)]
        assert ledger.write(usage_row(5), usage_row(6, **tomorrow)) == [SpendUpdate("key", "k1", 14, 14, today + DAY)]
        [found] = ledger.read(spend)
        assert (found["spend"], found["total_spend"]) == (14, 42)
        assert found["period_start"] == (today + DAY) * 1_000_000

    def test_rows_of_two_periods_in_a_batch_count_each_in_its_own(self, ledger: Ledger) -> None:
        ledger.periods = lambda kind, name, time: int(time) // DAY * DAY
        ledger.now += DAY
        rows = [usage_row(1), usage_row(2, time=(NOON + DAY) * 1_000_000)]
        assert ledger.write(*rows) == [SpendUpdate("key", "k1", 14, 7, NOON // DAY * DAY + DAY)]

    def test_a_longer_period_takes_over_what_the_shorter_one_had(self, ledger: Ledger) -> None:
        today, month = NOON // DAY * DAY, NOON // DAY * DAY - 24 * DAY
        ledger.periods = lambda kind, name, time: today
        ledger.write(usage_row(1))
        ledger.periods = lambda kind, name, time: month
        assert ledger.write(usage_row(2)) == [SpendUpdate("key", "k1", 7, 14, month)]
        assert ledger.write(usage_row(3)) == [SpendUpdate("key", "k1", 7, 21, month)]

    def test_a_process_whose_clock_is_behind_does_not_take_a_period_back(self, ledger: Ledger) -> None:
        ledger.periods = lambda kind, name, time: int(time) // DAY * DAY
        midnight = NOON // DAY * DAY + DAY
        ledger.now = midnight + 1.0
        ledger.write(usage_row(1, time=midnight * 1_000_000))
        ledger.now = midnight - 2.0
        assert ledger.write(usage_row(2)) == [SpendUpdate("key", "k1", 7, 7, midnight)]

    # what clients say

    def test_tags_of_requests_have_sums_and_those_of_their_keys_count_once(self, ledger: Ledger) -> None:
        both = usage_row(0, tags=("own",), request_tags=("own", "job"), cost=3)
        ledger.write(both, usage_row(1, request_tags=("job",), cost=4), usage_row(2, cost=5))
        # written again after a fault
        ledger.write(both)
        sums = {row["value"]: row["cost"] for row in ledger.read(usage_totals) if _is_daily_tag(row)}
        assert sums == {"own": 3, "job": 7}
        tagged = {(row["tag"], row["id"]) for row in ledger.read(usage_request_tags)}
        assert tagged == {("job", both.id), ("job", usage_row(1).id)}

    def test_tags_over_the_limit_are_added_up_together(self, ledger: Ledger) -> None:
        most = MAX_TAGS_OF_KEY + 3
        ledger.write(*[usage_row(number, request_tags=(f"t{number}",), cost=1) for number in range(most)])
        ledger.write(usage_row(most, key_id="k2", request_tags=("of another key",), cost=1))
        sums = {row["value"]: row["cost"] for row in ledger.read(usage_totals) if _is_daily_tag(row)}
        assert len(sums) == MAX_TAGS_OF_KEY + 2
        assert (sums[OTHER], sums["of another key"]) == (3, 1)

    def test_a_new_process_knows_the_tags_of_the_day(self, ledger: Ledger) -> None:
        ledger.write(usage_row(0, request_tags=("a",)))
        with ledger.engine.begin() as connection:
            tags, day = DailyTags(most=2), datetime.fromtimestamp(usage_row(0).time / 1e6, UTC).date().isoformat()
            assert [tags.name(connection, day, "k1", tag) for tag in ("a", "b", "c", "b")] == ["a", "b", OTHER, "b"]

    def test_the_tags_of_old_rows_go_with_them(self, ledger: Ledger) -> None:
        rows = [usage_row(number, request_tags=("a", f"b{number}")) for number in range(4)]
        ledger.write(*rows)
        assert ledger.database.delete_before(rows[3].time, 10) == 3
        assert {(row["tag"], row["id"]) for row in ledger.read(usage_request_tags)} == {
            ("a", rows[3].id),
            ("b3", rows[3].id),
        }

    # retention

    def test_old_rows_go_and_the_sums_stay(self, ledger: Ledger) -> None:
        rows = [usage_row(number, key_id=f"k{number}", tags=("t",)) for number in range(10)]
        ledger.write(*rows)
        before = ledger.read(usage_totals)
        limit = rows[6].time
        assert [ledger.database.delete_before(limit, 4) for _ in range(3)] == [4, 2, 0]
        assert {row["id"] for row in ledger.read(usage)} == {row.id for row in rows[6:]}
        assert len(ledger.read(usage_payer_tags)) == 10
        assert ledger.read(usage_totals) == before
