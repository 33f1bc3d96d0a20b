"""The ledger's settings: what is taken, what is refused, and where the spool is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.config.config_harness import BASE, Loader
from twisted_vllm.config.describe import describe
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings


def ledger(load_text: Loader, written: str, environ: Mapping[str, str] = BASE) -> Settings:
    return load_text(f"passthrough: {{ledger: {{{written}}}}}", environ)


def test_by_default_every_row_is_kept_and_requests_go_on_when_the_spool_fails(load_text: Loader) -> None:
    found = load_text("", BASE).ledger
    assert (found.enabled, found.usage_retention, found.on_spool_failure) == (True, None, "continue")
    assert (found.top_end_users, found.top_tags) == (10_000, 10_000)


@pytest.mark.parametrize(
    ("database", "directory"),
    [
        ("sqlite:///keys.sqlite", "keys.sqlite.spool"),
        ("sqlite:////var/lib/x/keys.sqlite", "/var/lib/x/keys.sqlite.spool"),
        ("postgresql://u:p@db/name", "vllm_passthrough.spool"),
    ],
)
def test_the_spool_is_beside_the_database_or_in_the_run_directory(
    load_text: Loader, database: str, directory: str
) -> None:
    environ = BASE | {"DATABASE_URL": database}
    assert load_text("", environ).spool_directory == Path(directory)
    assert ledger(load_text, "spool_directory: /srv/s", environ).spool_directory == Path("/srv/s")


@pytest.mark.parametrize(("written", "seconds"), [("90d", 90 * 86_400), ("24h", 86_400), ("2w", 1_209_600)])
def test_a_retention_is_a_number_and_a_unit(load_text: Loader, written: str, seconds: int) -> None:
    assert ledger(load_text, f"usage_retention: {written}").ledger.usage_retention == seconds


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("usage_retention: 90", "usage_retention: must be a whole number and a unit"),
        ("usage_retention: 1mo", "usage_retention: must be a whole number and a unit"),
        ("usage_retention: 23h", "usage_retention: must be 1d or more"),
        ("on_spool_failure: ignore", "on_spool_failure: must be one of continue, refuse"),
        ("top_end_users: -1", "top_end_users: must be 0 to 100,000"),
        ("top_tags: 100001", "top_tags: must be 0 to 100,000"),
        ("top_tags: many", "top_tags: must be a whole number, 0 to 100,000"),
        ("enabled: maybe", "enabled: must be true or false"),
        ("spool_directroy: x", "did you mean 'spool_directory'"),
    ],
)
def test_what_means_nothing_is_refused(load_text: Loader, written: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ledger(load_text, written)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("enabled: false", "off: usage is not recorded"),
        (
            "usage_retention: 90d, on_spool_failure: refuse, spool_directory: s",
            "spool in s, rows kept for 90 days, requests refused while the spool cannot be written",
        ),
    ],
)
def test_the_check_says_what_becomes_of_rows(load_text: Loader, written: str, said: str) -> None:
    assert f"ledger:         {said}" in describe(ledger(load_text, written))
