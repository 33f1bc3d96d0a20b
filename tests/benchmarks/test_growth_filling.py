"""The filled databases of the growth table: what is in them, and that copies and weights are theirs."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.growth.databases import SqliteDatabases
from benchmarks.growth.fill import fill
from benchmarks.growth.ledger import LOOKUPS, NAMES, ROWS, SUMS, purpose_of
from benchmarks.growth.population import Population, Size
from benchmarks.growth.traffic import MONTH_SECONDS, SPREADS, UNIFORM, ZIPF, Chooser, Spread, Traffic
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import begin, make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import UsageQuery, plan
from twisted_vllm.storage.usage.queries.reports import Cursor, read_page
from twisted_vllm.storage.usage.tables import DAY_US
from twisted_vllm.usage.records import payer_of

SIZE = Size(keys=40, users=8, teams=12, end_users=10, rows=300, months=2.0)
NOW = 1_790_000_000.0
ROWS_OF_ALL = Spread(named=1.0)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[SqliteDatabases, str]:
    databases = SqliteDatabases(tmp_path_factory.mktemp("filled"))
    url = databases.make("full")
    fill(url, SIZE, Spread(), now=NOW, progress=lambda text: None)
    return databases, url


def requests_of(url: str, *group_by: str) -> dict[tuple[object, ...], int]:
    """The requests that the report of a database tells of, by group."""
    engine = make_engine(parse_url(Secret(url)), connections=1)
    last_day = int(NOW * 1e6) // DAY_US
    span = ((last_day - 100) * DAY_US, (last_day + 1) * DAY_US)
    found: Counter[tuple[object, ...]] = Counter()
    with begin(engine, None, writes=False) as connection:
        cursor: Cursor | None = Cursor()
        while cursor is not None:
            page = read_page(connection, plan(UsageQuery(group_by, "day", *span, {})), cursor)
            cursor = page.cursor
            for group in page.groups:
                found[group.values] += group.sums[0]
    engine.dispose()
    return found


def indexes_of(url: str) -> set[str]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        found = connection.execute("SELECT name || ': ' || sql FROM sqlite_master WHERE type = 'index' AND sql <> ''")
        return {row[0] for row in found}


def test_everybody_is_there_and_belongs_together(filled: tuple[SqliteDatabases, str]) -> None:
    engine, population = make_engine(parse_url(Secret(filled[1])), connections=1), Population(SIZE)
    with begin(engine, None, writes=False) as connection:
        transaction = Transaction(connection)
        counts = [each.count() for each in (transaction.keys, transaction.users, transaction.teams)]
        assert counts == [SIZE.keys, SIZE.users, SIZE.teams]
        assert transaction.organizations.count() == SIZE.organizations == 2
        key = transaction.keys.get(hash_key("sk-growth-0000000000013"))
        assert key is not None
        assert (key.user_id, key.team_id) == ("user-000005", "team-00001")
        payer = population.payer(13)
        assert (payer.key_id, payer.user_id, payer.team_id) == (key.key_id, key.user_id, key.team_id)
        team = transaction.teams.get("team-00001")
        assert team is not None
        assert payer.organization_id == team.organization_id
    engine.dispose()


def test_every_row_is_in_the_sums(filled: tuple[SqliteDatabases, str]) -> None:
    assert sum(requests_of(filled[1]).values()) == SIZE.rows
    by_team = requests_of(filled[1], "team")
    assert len(by_team) == SIZE.teams
    assert sum(by_team.values()) == SIZE.rows


def test_no_index_is_missing_afterwards(filled: tuple[SqliteDatabases, str], tmp_path: Path) -> None:
    new = f"sqlite:///{tmp_path}/new.sqlite"
    engine = make_engine(parse_url(Secret(new)), connections=1)
    migrate(engine)
    engine.dispose()
    assert indexes_of(filled[1]) == indexes_of(new)


def test_a_copy_has_the_same_and_is_another(filled: tuple[SqliteDatabases, str]) -> None:
    databases, url = filled
    beside = Path(f"{url.removeprefix('sqlite:///')}-usage")
    made = not beside.exists()
    beside.mkdir(exist_ok=True)
    (beside / "note.txt").write_text("what lies beside the file is copied with it")
    copied = databases.copy(url, "copy")
    (beside / "note.txt").unlink()
    if made:
        beside.rmdir()
    assert requests_of(copied) == requests_of(url)
    assert Path(f"{copied.removeprefix('sqlite:///')}-usage/note.txt").exists()
    assert copied != url


def test_the_bytes_of_the_ledger_are_told_by_purpose(filled: tuple[SqliteDatabases, str]) -> None:
    weights = filled[0].weigh(filled[1])
    assert set(weights) == {ROWS, LOOKUPS, SUMS, NAMES}
    assert weights[ROWS] >= SIZE.rows * 80


@pytest.mark.parametrize(
    ("table", "index", "purpose"),
    [
        ("vllm_passthrough_usage", "", ROWS),
        ("vllm_passthrough_usage", "vllm_passthrough_usage_pkey", ROWS),
        ("vllm_passthrough_usage", "vllm_passthrough_usage_request", LOOKUPS),
        ("vllm_passthrough_usage_2026_11", "", ROWS),
        ("vllm_passthrough_usage_2026_11", "vllm_passthrough_usage_2026_11_pkey", ROWS),
        ("vllm_passthrough_usage_lookups", "", LOOKUPS),
        ("vllm_passthrough_usage_lookups_2026_11", "", LOOKUPS),
        ("vllm_passthrough_usage_sums", "", SUMS),
        ("vllm_passthrough_usage_payers", "vllm_passthrough_usage_payers_key", NAMES),
        ("vllm_passthrough_keys", "", None),
    ],
)
def test_each_table_has_a_purpose(table: str, index: str, purpose: str | None) -> None:
    assert purpose_of(table, index) == purpose


def test_rows_come_in_the_order_of_time_and_end_at_the_moment_that_is_named() -> None:
    batches = list(Traffic(Population(SIZE), ROWS_OF_ALL).batches(NOW, 77))
    assert [len(batch) for batch in batches] == [77, 77, 77, 69]
    times = [row.time for batch in batches for row in batch]
    assert times == sorted(times)
    assert NOW - 2 * MONTH_SECONDS <= times[0] / 1e6 < NOW - 1.9 * MONTH_SECONDS
    assert NOW - 0.1 * MONTH_SECONDS < times[-1] / 1e6 <= NOW
    rows = [row for batch in batches for row in batch]
    assert len({row.id for row in rows}) == SIZE.rows
    assert all(int(row.id[:8], 16) == row.time // 1_000_000 for row in rows)
    assert {row.end_user for row in rows} == {Population.end_user(number) for number in range(SIZE.end_users)}
    assert any(row.status == 500 for row in rows)
    assert len({payer_of(row.payer).key_id for row in rows}) == SIZE.keys


def test_rows_name_no_end_user_where_there_is_none() -> None:
    nobody = Population(Size(keys=1, users=0, teams=0, end_users=0, rows=20))
    rows = Traffic(nobody, ROWS_OF_ALL).rows(NOW, NOW + 1, 20)
    assert {row.end_user for row in rows} == {None}
    assert payer_of(rows[0].payer).team_id is None


@pytest.mark.parametrize("spread", SPREADS)
def test_requests_spread_as_they_are_told_to(spread: str) -> None:
    counts = Counter(Chooser(100, spread, random.Random(1)).choose(20_000))
    assert set(counts) <= set(range(100))
    share = counts[0] / 20_000
    assert 0.15 < share < 0.25 if spread == ZIPF else 0.005 < share < 0.015
    assert UNIFORM in SPREADS
