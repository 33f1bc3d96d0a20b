"""``database_url``: PostgreSQL and SQLite in SQLAlchemy's spelling; no password in a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.config_harness import somewhere
from twisted_vllm.config.problems import Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import database_url, describe_database


def parse(text: str) -> Secret:
    return database_url(text, somewhere())


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("postgresql://u:p%40@h:5432/d?sslmode=require", "postgresql+psycopg://u:p%40@h:5432/d?sslmode=require"),
        ("postgres://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("postgresql:///d?host=/run/postgresql", "postgresql+psycopg:///d?host=/run/postgresql"),
        ("sqlite:///keys.sqlite3", "sqlite:///keys.sqlite3"),
        ("sqlite:////var/lib/keys.sqlite3", "sqlite:////var/lib/keys.sqlite3"),
    ],
)
def test_a_url_is_brought_to_sqlalchemys_spelling_and_else_kept(written: str, used: str) -> None:
    assert parse(written) == Secret(used)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("mysql://u:hush@h/d", "mysql is not supported"),
        ("postgresql+asyncpg://u:hush@h/d", "postgresql+asyncpg is not supported"),
        ("hush", "must be a URL"),
        ("u:hush@h/d", "must be a URL"),
        ("hush hush://x", "must be a URL"),
        ("postgresql://u:hush@h:hush/d", "not a valid URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://hush/file", "names no file"),
        ("postgresql://u:hush@h/d?schema=public&connection_limit=5", "connection_limit, schema (remove them)"),
    ],
)
def test_another_url_is_refused_without_repeating_it(written: str, reason: str) -> None:
    with pytest.raises(Rejected) as refusal:
        parse(written)
    assert reason in str(refusal.value)
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("sqlite:///keys.sqlite3", "SQLite, file keys.sqlite3"),
        ("postgresql://user:hush@db.example:5433/keys", "PostgreSQL, db.example:5433, database keys"),
        ("postgresql://db.example", "PostgreSQL, db.example, database (default)"),
        ("postgresql:///keys?password=hush", "PostgreSQL, the local socket, database keys"),
    ],
)
def test_a_description_names_the_place_and_no_password(written: str, line: str) -> None:
    assert describe_database(parse(written)) == line


@given(st.one_of(st.text(), st.text().map("postgresql://".__add__), st.text().map("sqlite:///".__add__)))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        describe_database(parse(text))
    except Rejected as refusal:
        assert refusal.message
