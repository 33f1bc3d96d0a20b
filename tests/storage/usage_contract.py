"""What holds of the ledger in every database: each row once, and sums that are those of the rows."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, Table, delete, select

from tests.builders import NOON, usage_row, usage_rows
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage import references as references_module
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.gathered import AlsoPay, nobody_else
from twisted_vllm.storage.usage.partitions import detach_all, partitions_of, rows_in
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY_US,
    END_USER,
    KINDS,
    OF_END_USER,
    OF_FAILURE,
    OF_REQUEST,
    OF_RESPONSE,
    OF_TAG,
    ORGANIZATION,
    OTHER,
    PAYER,
    ROWS,
    STORED_SUMS,
    TAG,
    TEAM,
    USER,
    hash_id,
    lookup_id,
    name_id,
    usage,
    usage_lookups,
    usage_marks,
    usage_names,
    usage_payer_tags,
    usage_payers,
    usage_sums,
    usage_targets,
)
from twisted_vllm.usage.interfaces import BEGINNING, ISpoolAccounts, Position, RowsRejected, SpendUpdate
from twisted_vllm.usage.records import Payer, Target, UsageRow, payer_of, refer, target_of

DAY = 86_400
EPOCH = date(1970, 1, 1).toordinal()

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
    details='{"queued_us":1500}',
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
        self.others: list[UsageDatabase] = []
        self.database = self.another()
        self.end = BEGINNING
        self._accounts: dict[bool, ISpoolAccounts] = {}

    def another(self, **options: Any) -> UsageDatabase:
        """Return a connection of another process."""
        other = UsageDatabase(
            Secret(self.url),
            lambda *asked: self.periods(*asked),
            lambda: self.now,
            lambda payers, model: self.also_pay(payers, model),
            **options,
        )
        self.others.append(other)
        return other

    def accounts(self, own: bool = True) -> ISpoolAccounts:
        """Return the accounts of this process's spool, or of another's."""
        if own not in self._accounts:
            self._accounts[own] = self.database.open_accounts("mine" if own else "theirs", own=own)
        return self._accounts[own]

    def write(self, *rows: UsageRow, own: bool = True) -> list[SpendUpdate]:
        """Store rows that were not written before, and at once what they add up to."""
        if not rows:
            return []
        written = self.database.write(rows)
        self.end = Position(1, self.end.offset + 100)
        self.accounts(own).add([written], self.end)
        return flush_all(self.accounts(own))

    def read(self, table: Table) -> list[dict[str, Any]]:
        """Return all rows of a table, of all partitions."""
        with self.engine.connect() as connection:
            if table.schema != ROWS:
                return [dict(row._mapping) for row in connection.execute(select(table))]
            found = [
                dict(row._mapping)
                for partition in partitions_of(connection)
                for row in rows_in(connection, partition).execute(select(table))
            ]
            connection.rollback()
            if connection.dialect.name == "sqlite":
                detach_all(connection.connection.driver_connection, connection.info)
            return found

    def run(self, work: Callable[[Connection], Any]) -> Any:
        with self.engine.begin() as connection:
            return work(connection)

    def close(self) -> None:
        for database in self.others:
            database.close()
        self.engine.dispose()


def flush_all(accounts: ISpoolAccounts) -> list[SpendUpdate]:
    """Write all that was gathered, and return what was spent."""
    found: list[SpendUpdate] = []
    while (flushed := accounts.flush(force=True))[0]:
        found += flushed[1]
    return found


def expected_sums(rows: Iterable[UsageRow]) -> tuple[int, ...]:
    """Return the sums of rows in the order of `STORED_SUMS`."""
    rows = list(rows)
    sums = {name: sum(getattr(row, name) for row in rows) for name in STORED_SUMS if name != "successful"}
    sums["successful"] = sum(row.requests for row in rows if row.outcome == "completed" and row.status < 400)
    return tuple(sums[name] for name in STORED_SUMS)


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


def month_of(day: int) -> int:
    """Return the first day of a month; days since 1970."""
    found = datetime.fromtimestamp(day * DAY, UTC).date().replace(day=1)
    return found.toordinal() - EPOCH


def grouped(rows: Iterable[UsageRow]) -> dict[tuple[int, ...], list[UsageRow]]:
    """Return the rows of each row of `usage_sums`, by its key."""
    groups: defaultdict[tuple[int, ...], list[UsageRow]] = defaultdict(list)
    for row in rows:
        payer, model = payer_of(row.payer), name_id(target_of(row.target).model)
        values = [(ALL, 0), (PAYER, hash_id(bytes(row.payer)))]
        values += [(USER, name_id(payer.user_id or "")), (TEAM, name_id(payer.team_id or ""))]
        values += [(ORGANIZATION, name_id(payer.organization_id))] if payer.organization_id else []
        values += [(END_USER, name_id(row.end_user or ""))]
        values += [(TAG, name_id(tag)) for tag in {*payer.tags, *row.request_tags}]
        day = row.time // DAY_US
        for dimension, value in values:
            for period, start in (("day", day), ("month", month_of(day))):
                if (kind := KINDS.get((dimension, period))) is not None:
                    groups[kind, start, value, model].append(row)
    return groups


def stored_sums(ledger: Ledger) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return all sums by their keys."""
    return {
        (row["kind"], row["start"], row["value"], row["model"]): tuple(row[name] for name in STORED_SUMS)
        for row in ledger.read(usage_sums)
    }


def expected_lookups(rows: Iterable[UsageRow]) -> set[tuple[int, int]]:
    """Return the look-ups of rows."""
    found: set[tuple[int, int]] = set()
    for row in rows:
        values = {hash_id(bytes(row.payer))}
        named = ((OF_END_USER, row.end_user), (OF_REQUEST, row.request_id), (OF_RESPONSE, row.response_id))
        values |= {lookup_id(what, text) for what, text in named if text}
        values |= {lookup_id(OF_TAG, tag) for tag in row.request_tags}
        if row.outcome != "completed" or row.status >= 400:
            texts = ["", *([str(row.status)] if row.status >= 400 else []), *([row.error] if row.error else [])]
            values |= {lookup_id(OF_FAILURE, text) for text in texts}
        found |= {(value, row.time) for value in values}
    return found


def check_sums(ledger: Ledger, rows: list[UsageRow]) -> None:
    """Compare every sum, name, look-up and spend with what the rows say."""
    stored = [(row["time"], row["id"]) for row in ledger.read(usage)]
    assert len(stored) == len(set(stored))
    assert set(stored) == {(row.time, row.id) for row in rows}
    groups = grouped(rows)
    assert stored_sums(ledger) == {key: expected_sums(members) for key, members in groups.items()}
    payer_kinds = {KINDS[PAYER, "day"], KINDS[PAYER, "month"]}
    ids = {key[2] for key in groups if key[0] not in payer_kinds} | {key[3] for key in groups}
    names = {row["id"]: row["name"] for row in ledger.read(usage_names)}
    assert ids - {0} == names.keys() - {name_id(OTHER)}
    assert all(name_id(name) == id for id, name in names.items())
    lookups = [(row["value"], row["time"]) for row in ledger.read(usage_lookups)]
    assert len(lookups) == len(set(lookups))
    assert set(lookups) == expected_lookups(rows)
    check_spend(ledger, rows)


def check_spend(ledger: Ledger, rows: Iterable[UsageRow]) -> None:
    """Compare what everybody spent with what the rows say."""
    spent: Counter[tuple[str, str]] = Counter()
    for row in rows:
        payer = payer_of(row.payer)
        named = {"key": payer.key_id, "user": payer.user_id, "team": payer.team_id, "end_user": row.end_user}
        named["organization"] = payer.organization_id
        spent.update({(kind, name): row.cost for kind, name in named.items() if name and row.cost})
    assert {(row["kind"], row["id"]): row["total_spend"] for row in ledger.read(spend)} == dict(spent)


def tags_of_day(ledger: Ledger) -> dict[str, int]:
    """Return what each tag cost by day."""
    names = {row["id"]: row["name"] for row in ledger.read(usage_names)}
    kind = KINDS[TAG, "day"]
    return {names[row["value"]]: row["cost"] for row in ledger.read(usage_sums) if row["kind"] == kind}


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
                "details": row.details or None,
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
            (other.write(rows) if start % 8 else ledger.write(*rows))
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
        monkeypatch.setattr(references_module, *bound)
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

    def test_a_partition_that_was_rolled_back_is_made_again(self, ledger: Ledger) -> None:
        ledger.write(usage_row(0))
        later = {"time": (NOON + 400 * DAY) * 1_000_000}
        with pytest.raises(RowsRejected):
            ledger.database.write([usage_row(1, **later), usage_row(2, status=2**70, **later)])
        ledger.write(usage_row(3, **later))
        check_sums(ledger, [usage_row(0), usage_row(3, **later)])

    def test_the_sums_are_those_of_the_rows(self, ledger: Ledger) -> None:
        rows = some_rows(700, 1)
        for start in range(0, 700, 300):
            ledger.write(*rows[start : start + 300])
        check_sums(ledger, rows)

    def test_a_row_is_stored_once_however_often_it_is_written(self, ledger: Ledger) -> None:
        rows = some_rows(400, 2)
        ledger.database.write(rows[:300])
        ledger.database.write([*rows[200:], *rows[350:]])
        ledger.write(*reversed(rows))
        check_sums(ledger, rows)

    def test_rows_that_the_database_lacks_are_told(self, ledger: Ledger) -> None:
        rows = some_rows(50, 3)
        ledger.database.write(rows[:30])
        wrong_clock = usage_row(0, time=2**62)
        assert ledger.database.missing([*rows[20:], *rows[40:], wrong_clock]) == [*rows[30:], wrong_clock]

    def test_rows_whose_sums_the_database_has_are_left_out(self, ledger: Ledger) -> None:
        rows = some_rows(90, 4)
        ledger.write(*rows[:50])
        again = ledger.another()
        accounts = again.open_accounts("mine", own=True)
        assert accounts.kept_from == ledger.end
        accounts.add([again.write(rows[:50])], ledger.end)
        accounts.add([again.write(rows[50:])], Position(2, 7))
        flush_all(accounts)
        check_sums(ledger, rows)
        accounts.close()
        assert ledger.read(usage_marks) == []
        again.close()

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
            accounts = databases[writer].open_accounts(f"spool-{writer}", own=True)
            for number, rows in enumerate(batches[writer]):
                random.Random(writer).shuffle(rows)
                accounts.add([databases[writer].write(rows)], Position(1, number + 1))
                flush_all(accounts)

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

    def test_no_amount_is_told_of_what_another_process_left(self, ledger: Ledger) -> None:
        assert ledger.write(*usage_rows(3), own=False) == [SpendUpdate("key", "k1", 0, 21, 0)]
        assert ledger.write(*usage_rows(3, 3)) == [SpendUpdate("key", "k1", 21, 42, 0)]

    def test_no_amount_is_told_twice_after_a_restore(self, ledger: Ledger) -> None:
        accounts = ledger.database.open_accounts("former", own=True, told_to=Position(1, 20))
        assert accounts.boundaries == [BEGINNING, Position(1, 20)]
        for number, end in ((0, 10), (1, 20), (2, 30)):
            accounts.add([ledger.database.write([usage_row(number)])], Position(1, end))
            if end == 20:
                assert [each.amount for each in accounts.flush()[1]] == [0]
        assert flush_all(accounts) == [SpendUpdate("key", "k1", 7, 21, 0)]
        check_sums(ledger, usage_rows(3))

    def test_a_new_period_begins_anew_and_the_total_goes_on(self, ledger: Ledger) -> None:
        ledger.periods = lambda kind, name, time: int(time) // DAY * DAY
        today = NOON // DAY * DAY
        tomorrow = {"time": (NOON + DAY) * 1_000_000}
        assert ledger.write(usage_row(1)) == [SpendUpdate("key", "k1", 7, 7, today)]
        assert ledger.write(usage_row(2)) == [SpendUpdate("key", "k1", 7, 14, today)]
        ledger.now += DAY
        assert ledger.write(usage_row(3, **tomorrow)) == [SpendUpdate("key", "k1", 7, 7, today + DAY)]
        # one that comes late: the period that it belongs to is over
        assert ledger.write(usage_row(4)) == [SpendUpdate("key", "k1", 0, 7, today + DAY)]
        assert ledger.write(usage_row(5), usage_row(6, **tomorrow)) == [SpendUpdate("key", "k1", 7, 14, today + DAY)]
        [found] = ledger.read(spend)
        assert (found["spend"], found["total_spend"]) == (14, 42)
        assert found["period_start"] == (today + DAY) * 1_000_000

    def test_rows_of_two_periods_in_a_batch_count_each_in_its_own(self, ledger: Ledger) -> None:
        ledger.periods = lambda kind, name, time: int(time) // DAY * DAY
        ledger.now += DAY
        rows = [usage_row(1), usage_row(2, time=(NOON + DAY) * 1_000_000)]
        assert ledger.write(*rows) == [SpendUpdate("key", "k1", 7, 7, NOON // DAY * DAY + DAY)]

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
        assert ledger.write(usage_row(2)) == [SpendUpdate("key", "k1", 0, 7, midnight)]

    # what clients say

    def test_tags_of_requests_have_sums_and_those_of_their_keys_count_once(self, ledger: Ledger) -> None:
        rows = [
            usage_row(0, tags=("own",), request_tags=("own", "job"), cost=3),
            usage_row(1, request_tags=("job",), cost=4),
            usage_row(2, cost=5),
        ]
        ledger.write(*rows)
        assert tags_of_day(ledger) == {"own": 3, "job": 7}
        check_sums(ledger, rows)
