"""The ledger's settings: what is taken, what is refused, and where the spool is."""

from __future__ import annotations

from pathlib import Path

import pytest

from twisted_vllm.config.describe import describe
from twisted_vllm.config.ledger import spool_directory
from twisted_vllm.config.problems import ConfigError

BASE = {"HOSTED_VLLM_API_BASE": "http://gpu:8000"}


def ledger(load_text, written, environ=BASE):
    return load_text(f"passthrough: {{ledger: {{{written}}}}}", environ)


def test_by_default_every_row_is_kept_and_requests_go_on_when_the_spool_fails(load_text):
    found = load_text("", BASE).ledger
    assert (found.enabled, found.usage_retention, found.on_spool_failure) == (True, None, "continue")


@pytest.mark.parametrize(
    ("database", "directory"),
    [
        ("sqlite:///keys.sqlite", "keys.sqlite.spool"),
        ("sqlite:////var/lib/x/keys.sqlite", "/var/lib/x/keys.sqlite.spool"),
        ("postgresql://u:p@db/name", "vllm_passthrough.spool"),
    ],
)
def test_the_spool_is_beside_the_database_or_in_the_run_directory(load_text, database, directory):
    environ = BASE | {"DATABASE_URL": database}
    assert spool_directory(load_text("", environ)) == Path(directory)
    assert spool_directory(ledger(load_text, "spool_directory: /srv/s", environ)) == Path("/srv/s")


@pytest.mark.parametrize(("written", "seconds"), [("90d", 90 * 86_400), ("24h", 86_400), ("2w", 1_209_600)])
def test_a_retention_is_a_number_and_a_unit(load_text, written, seconds):
    assert ledger(load_text, f"usage_retention: {written}").ledger.usage_retention == seconds


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("usage_retention: 90", "usage_retention: must be a whole number and a unit"),
        ("usage_retention: 1mo", "usage_retention: must be a whole number and a unit"),
        ("usage_retention: 23h", "usage_retention: must be 1d or more"),
        ("on_spool_failure: ignore", "on_spool_failure: must be one of continue, refuse"),
        ("enabled: maybe", "enabled: must be true or false"),
        ("spool_directroy: x", "did you mean 'spool_directory'"),
    ],
)
def test_what_means_nothing_is_refused(load_text, written, fault):
    with pytest.raises(ConfigError) as refused:
        ledger(load_text, written)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("enabled: false", "off: nothing is noted of what requests use"),
        (
            "usage_retention: 90d, on_spool_failure: refuse, spool_directory: s",
            "spool in s, rows kept for 90 days, requests refused while the spool cannot be written",
        ),
    ],
)
def test_the_check_says_what_becomes_of_rows(load_text, written, said):
    assert f"ledger:         {said}" in describe(ledger(load_text, written))
