"""The settings of the export."""

from __future__ import annotations

from datetime import date

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.usage_export import EXPORT_DIRECTORY


def written(ledger: str) -> str:
    return f"passthrough: {{ledger: {{{ledger}}}}}"


def loaded(load_text: Loader, ledger: str) -> Settings:
    found: Settings = load_text(written(ledger), BASE)
    return found


def test_one_word_is_enough(load_text: Loader) -> None:
    export = loaded(load_text, "usage_export: parquet").ledger.export
    assert export.enabled
    assert (export.directory, export.compression, export.delay) == (EXPORT_DIRECTORY, "zstd", 7_200)
    found = loaded(load_text, "usage_export: parquet, usage_export_directory: /srv/usage").ledger.export
    assert found.directory == found.target == "/srv/usage"


def test_a_mapping_says_more(load_text: Loader) -> None:
    text = "usage_export: {format: parquet, directory: out, compression: snappy, begin: 2026-03-01, delay: 60}"
    export = loaded(load_text, text).ledger.export
    assert (export.directory, export.compression, export.begin, export.delay) == (
        *("out", "snappy", date(2026, 3, 1), 60),
    )
    assert loaded(load_text, text.replace("2026-03-01", "'2026-03-01'")).ledger.export == export


def test_nothing_is_exported_by_itself_and_nothing_without_a_ledger(load_text: Loader) -> None:
    assert not loaded(load_text, "").ledger.export.enabled
    assert not loaded(load_text, "usage_export: {directory: out}").ledger.export.enabled
    assert not loaded(load_text, "enabled: false, usage_export: parquet").ledger.export.enabled


def test_a_bucket_takes_the_place_of_the_directory_and_its_key_is_a_secret(load_text: Loader) -> None:
    bucket = "{bucket: usage, prefix: eu/, access_key_id: an-id, secret_access_key: a-secret-key}"
    found = loaded(load_text, f"usage_export: {{format: parquet, s3: {bucket}}}")
    assert found.ledger.export.target == "s3://usage/eu/"
    assert {"an-id", "a-secret-key"} <= set(found.secrets)
    assert "a-secret-key" not in repr(found)


@pytest.mark.parametrize(
    ("ledger", "path", "says"),
    [
        ("usage_export: csv", ".format", "must be one of parquet"),
        ("usage_export: {format: parquet, begin: tomorrow}", ".begin", "must be a date"),
        ("usage_export: {format: parquet, compression: zip}", ".compression", "must be one of zstd"),
        ("usage_export: {format: parquet, rows_per_file: 1}", ".rows_per_file", "1000 or more"),
        ("usage_export: {format: parquet, bucket: usage}", ".bucket", "is not a known setting"),
        ("usage_export: {format: parquet, s3: {prefix: eu/}}", ".s3.bucket", "is missing"),
        ("usage_export: {format: parquet, s3: {bucket: usage, access_key_id: x}}", ".s3", "together"),
        ("usage_export: [parquet]", "", "must be parquet, or a mapping"),
        ("usage_export: true", "", "must be parquet, or a mapping"),
    ],
)
def test_what_cannot_be_used_is_refused(problems_of: Refusal, ledger: str, path: str, says: str) -> None:
    (problem,) = problems_of(written(ledger))
    assert problem.startswith(f"passthrough.ledger.usage_export{path}: ")
    assert says in problem


@pytest.mark.parametrize(
    ("ledger", "warning"),
    [
        ("usage_export_directory: out", "usage_export_directory: nothing is exported: usage_export is not set"),
        ("usage_export: {directory: out}", "usage_export.format: nothing is exported: it is missing (write parquet)"),
        ("enabled: false, usage_export: parquet", "usage_export: nothing is exported: passthrough.ledger.enabled is"),
    ],
)
def test_an_export_that_exports_nothing_is_told(load_text: Loader, ledger: str, warning: str) -> None:
    (told,) = loaded(load_text, ledger).warnings
    assert told.startswith(f"passthrough.ledger.{warning}")


def test_without_an_extra_the_start_is_refused_and_says_which(
    problems_of: Refusal, load_text: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_vllm.config.usage_export.find_spec", lambda name: None)
    (problem,) = problems_of(written("usage_export: parquet"))
    assert problem == "passthrough.ledger.usage_export: needs PyArrow (pip install 'twisted-vllm[parquet]')"
    # who exports nothing needs nothing
    loaded(load_text, "usage_export: {compression: gzip}")
    monkeypatch.undo()
    monkeypatch.setattr("twisted_vllm.config.s3.find_spec", lambda name: None)
    (problem,) = problems_of(written("usage_export: {format: parquet, s3: {bucket: usage}}"))
    assert "needs boto3 (pip install 'twisted-vllm[s3]')" in problem
