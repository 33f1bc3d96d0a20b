"""``twistd vllm-passthrough --import-litellm``: reads LiteLLM's database, writes ours, and says what it did."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import attrs
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.secret import Secret, hash_of
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.urls import describe_database
from twisted_vllm.litellm_import.conversion import convert, importer
from twisted_vllm.litellm_import.notes import Notes, Outcome
from twisted_vllm.litellm_import.source import read_litellm
from twisted_vllm.litellm_import.writing import Count, write
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.reachability import has_tables
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.store import change_in
from twisted_vllm.storage.transacting import FAULT_MESSAGES, Failed, transact
from twisted_vllm.storage.transaction import Transaction

#: seconds that the whole transaction may take, and one of its statements
WRITE_SECONDS = 1800.0
STATEMENT_SECONDS = 60.0

_ADVICE = {
    Outcome.SKIPPED: "Not copied:",
    Outcome.BLOCKED: (
        "Copied, but blocked, because what restricts them does not exist here. Look at each, then POST /key/unblock, "
        "/team/unblock or /customer/unblock:"
    ),
    Outcome.LESS: "Copied without these fields, which restrict nobody:",
}


class _OnlyChecked(Exception):
    """Rolls a transaction back."""


@attrs.frozen
class Imported:
    """What an import did, or would do.

    Attributes:
        counts: how many objects of each kind.
        notes: what was not kept.
    """

    counts: Mapping[str, Count]
    notes: Notes


def import_litellm(settings: Settings, url: Secret, *, only_check: bool, now: datetime | None = None) -> Imported:
    """Copy what LiteLLM's database holds into the configured one, in one transaction. It blocks.

    Args:
        settings: the gateway's settings.
        url: LiteLLM's database, which is only read.
        only_check: whether to change nothing, and say what would be done.
        now: the current time; None for the clock's.

    Raises:
        StoreError: nothing was changed; the message says why and names no password.
    """
    rows = read_litellm(url)
    notes = Notes()
    audit = importer(now or datetime.now(UTC), os.urandom)
    found = convert(rows, notes, audit, _token_of(settings.master_key))
    counts: dict[str, Count] = {}

    def work(transaction: Transaction) -> None:
        counts.update(write(transaction, audit, found, notes))
        if only_check:
            raise _OnlyChecked

    with _target(settings.database_url, only_check=only_check) as engine:
        try:
            outcome = transact(
                engine,
                settings.database_url,
                lambda connection: change_in(connection, work),
                Deadline(WRITE_SECONDS, STATEMENT_SECONDS),
                writes=True,
            )
        except _OnlyChecked:
            return Imported(counts, notes)
    if isinstance(outcome, Failed):
        raise StoreError(f"{FAULT_MESSAGES[outcome.fault]} ({outcome.reason})")
    return Imported(counts, notes)


def _token_of(master_key: Secret | None) -> str | None:
    return None if master_key is None else hash_of(master_key) or hash_key(master_key.reveal())


@contextmanager
def _target(url: Secret, *, only_check: bool) -> Iterator[Engine]:
    """Open our database. A check makes no file and no table: it uses an empty database if ours has no such tables."""
    parsed = parse_url(url)
    with tempfile.TemporaryDirectory(prefix="vllm-passthrough-") as directory:
        try:
            if only_check and not has_tables(url):
                parsed = parse_url(Secret(f"sqlite:///{Path(directory) / 'empty.sqlite'}"))
            engine = make_engine(parsed, connections=1)
            try:
                migrate(engine)
                yield engine
            finally:
                engine.dispose()
        except SQLAlchemyError as error:
            raise StoreError(f"The gateway's database cannot be used: {reason_of(error, url)}") from None


def describe(imported: Imported, settings: Settings, url: Secret, *, only_check: bool) -> Iterator[str]:
    """Return the lines of the report; they hold no secret."""
    yield f"from:  {describe_database(url)}"
    yield f"into:  {describe_database(settings.database_url)}"
    yield ""
    words = ("to make", "to update") if only_check else ("made", "updated")
    for kind, count in imported.counts.items():
        line = f"{kind + ':':26}{count.new} {words[0]}, {count.updated} {words[1]}, {count.unchanged} unchanged"
        yield line + (f", {count.kept} left as they are here" if count.kept else "")
    for outcome, advice in _ADVICE.items():
        notes = imported.notes.of(outcome)
        if notes:
            yield ""
            yield advice
            yield from (f"  {note.subject}: {note.text}" for note in notes)
    yield ""
    yield "Nothing was changed: this was a check." if only_check else "Done. It can be run again at any time."


def run(settings: Settings, url: Secret, *, only_check: bool) -> int:
    """Import, print the report, and return the exit status."""
    try:
        imported = import_litellm(settings, url, only_check=only_check)
    except StoreError as error:
        print(f"Nothing was imported: {error}")
        return 1
    print("\n".join(describe(imported, settings, url, only_check=only_check)))
    return 0
