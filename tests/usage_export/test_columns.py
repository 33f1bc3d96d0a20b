"""What PyArrow and DuckDB read from the files is what the ledger has, to the picodollar."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow", reason="PyArrow is not installed")
pytest.importorskip("duckdb", reason="DuckDB is not installed")

import pyarrow.parquet as pq

from tests.builders import NOON, usage_row
from tests.usage_export.export_contract import DAY, Exporting, after
from tests.usage_export.reading import ask_duckdb, files_of, rows_by_pyarrow
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.usage.records import MAX_NUMBER, UsageRow, clean_struct, payer_of, target_of
from twisted_vllm.usage_export.columns import DICTIONARY_ENCODED, SCHEMA

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

texts = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: text.replace("\0", ""))
names = st.none() | texts.filter(bool)
numbers = st.integers(0, MAX_NUMBER)
pairs = st.dictionaries(texts, texts, max_size=3)
fields = st.fixed_dictionaries(
    {
        "time": st.integers(DAY * 86_400_000_000, (DAY + 1) * 86_400_000_000 - 1),
        "kind": st.sampled_from(("key", "master")),
        **dict.fromkeys(("key_id", "key_hash", "key_name", "model", "server", "route", "method"), texts),
        **dict.fromkeys(("user_id", "team_id", "organization_id", "end_user"), names),
        "tags": st.lists(texts, max_size=3).map(tuple),
        "prices": pairs.map(lambda found: tuple(found.items())),
        **dict.fromkeys(
            ("request_id", "response_id", "spend_metadata", "error", "attempts", "outcome", "details"), texts
        ),
        "request_tags": st.lists(texts.filter(bool), max_size=3, unique=True).map(tuple),
        "headers": st.none() | pairs.filter(bool),
        "status": st.integers(0, 999),
        **{name: st.booleans() for name in ("stream", "estimated")},
        **dict.fromkeys(
            (
                *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
                *("audio_ms", "cost", "total_us", "bytes_in", "bytes_out"),
            ),
            numbers,
        ),
        "first_byte_us": st.none() | numbers,
        "requests": st.integers(1, 600),
    }
)


def expected(row: UsageRow) -> dict[str, Any]:
    """Return what a reader sees of a row."""
    payer, target = payer_of(row.payer), target_of(row.target)
    found = {name: getattr(row, name) for name in SCHEMA.names if hasattr(row, name)}
    for name in ("request_id", "response_id", "spend_metadata", "error", "attempts", "end_user", "details"):
        found[name] = found[name] or None
    return {
        **found,
        "time": EPOCH + timedelta(microseconds=row.time),
        "payer_kind": payer.kind,
        **{name: getattr(payer, name) or None for name in SCHEMA.names if hasattr(payer, name) and name != "tags"},
        "tags": list(payer.tags),
        **{name: getattr(target, name) or None for name in ("model", "server", "route", "method")},
        "prices": [tuple(pair) for pair in target.prices],
        "request_tags": list(row.request_tags) or None,
        "headers": None if row.headers is None else list(row.headers.items()),
        "cost": Decimal(row.cost) / 10**12,
        "audio_ms": timedelta(milliseconds=row.audio_ms),
        "first_byte_us": None if row.first_byte_us is None else timedelta(microseconds=row.first_byte_us),
        "total_us": timedelta(microseconds=row.total_us),
    }


def exporting_in(directory: Path) -> Exporting:
    url = Secret(f"sqlite:///{directory}/ledger.sqlite3")
    engine = make_engine(parse_url(url))
    migrate(engine)
    return Exporting(url, engine, directory / "exported", UsageDatabase(url, lambda *_: 0))


@settings(max_examples=25)
@given(st.lists(fields, min_size=1, max_size=6))
def test_what_is_read_is_what_the_ledger_has(given_rows: list[dict[str, Any]]) -> None:
    rows = [clean_struct(usage_row(number, id=f"{number:032x}", **each)) for number, each in enumerate(given_rows)]
    with tempfile.TemporaryDirectory() as name:
        exporting = exporting_in(Path(name))
        exporting.store_rows(rows)
        exporting.export_all(after(DAY))
        (path,) = files_of(exporting.directory)
        read = rows_by_pyarrow(exporting.directory / path)
        sums = ask_duckdb(exporting.directory, "count(*), sum(cost), sum(total_tokens), sum(requests)")
        exporting.ledger.close()
        exporting.engine.dispose()
    assert read == [expected(row) for row in sorted(rows, key=lambda row: (row.time, row.id))]
    total = Decimal(sum(row.cost for row in rows)) / 10**12
    assert sums == [(len(rows), total, sum(row.total_tokens for row in rows), sum(row.requests for row in rows))]


def test_the_files_say_which_version_they_have_and_how_they_are_encoded(tmp_path: Path) -> None:
    exporting = exporting_in(tmp_path)
    everything: dict[str, Any] = {
        "user_id": "u",
        "team_id": "t",
        "organization_id": "o",
        "key_hash": "h",
        "key_name": "n",
    }
    lists: dict[str, Any] = {"tags": ("a",), "request_tags": ("b",), "headers": {"x": "y"}, "prices": (("in", "1"),)}
    words: dict[str, Any] = {
        "server": "s",
        "route": "/r",
        "method": "POST",
        "end_user": "e",
        "error": "c",
    }
    exporting.store(DAY, 10, **everything, **lists, **words)
    exporting.export_all(after(DAY))
    file = pq.ParquetFile(exporting.directory / files_of(exporting.directory)[0])
    metadata = file.schema_arrow.metadata
    assert metadata[b"vllm_passthrough.schema_version"] == b"1"
    assert metadata[b"vllm_passthrough.day"] == datetime.fromtimestamp(NOON, UTC).date().isoformat().encode()
    assert file.schema_arrow.names == SCHEMA.names
    columns = [file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)]
    assert {each.compression for each in columns} == {"ZSTD"}
    encoded = {each.path_in_schema for each in columns if "RLE_DICTIONARY" in each.encodings}
    assert encoded == set(DICTIONARY_ENCODED)
    exporting.ledger.close()
    exporting.engine.dispose()
