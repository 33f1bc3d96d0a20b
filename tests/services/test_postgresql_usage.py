"""The ledger in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.builders import usage_row, usage_rows
from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.usage_contract import Ledger, UsageContract, check_sums
from twisted_vllm.usage.interfaces import DatabaseUnavailable, RowsRejected
from twisted_vllm.usage.spool.format import clean, decode_line, encode_rows


@pytest.fixture
def ledger(postgresql_url: str) -> Iterator[Ledger]:
    ledger = Ledger(postgresql_url)
    yield ledger
    ledger.close()


class TestUsageInPostgresql(UsageContract):
    @pytest.fixture
    def ledger(self, postgresql_url: str) -> Iterator[Ledger]:
        ledger = Ledger(postgresql_url)
        yield ledger
        ledger.close()


@pytest.mark.parametrize("fields", [{"end_user": "a\0b"}, {"status": 2**40}])
def test_what_postgresql_does_not_take_is_a_refusal_and_no_outage(ledger: Ledger, fields: dict[str, object]) -> None:
    with pytest.raises(RowsRejected):
        ledger.write(*usage_rows(3), usage_row(3, **fields))
    ledger.write(*usage_rows(3))
    check_sums(ledger, usage_rows(3))


@pytest.mark.parametrize("text", ["\U0001f600" * 5000, "\0" * 300, "x\ud800"])
def test_what_a_client_may_write_is_taken_once_it_was_in_the_spool_and_mended(ledger: Ledger, text: str) -> None:
    names = ("request_id", "end_user", "model", "route")
    rows = decode_line(encode_rows([usage_row(1, **dict.fromkeys(names, text), tags=(text,))])[:-1])
    assert rows is not None
    mended = [clean(row) for row in rows]
    ledger.write(*mended)
    check_sums(ledger, mended)


def test_what_is_too_long_is_refused_and_not_cut_without_a_word(ledger: Ledger) -> None:
    with pytest.raises(RowsRejected):
        ledger.write(usage_row(1, end_user="e" * 5000))
    check_sums(ledger, [])


def test_a_server_that_stopped_is_away_and_takes_the_rows_when_it_is_back(
    postgresql: PrivatePostgresql, ledger: Ledger
) -> None:
    ledger.write(usage_row(0))
    postgresql.stop()
    try:
        for _ in range(2):
            for work in (
                lambda: ledger.database.write(usage_rows(2, 1)),
                lambda: ledger.database.open_accounts("a", own=True),
            ):
                with pytest.raises(DatabaseUnavailable) as away:
                    work()
                assert postgresql.password not in str(away.value)
    finally:
        postgresql.start()
    ledger.write(*usage_rows(2, 1))
    check_sums(ledger, usage_rows(3))
