"""Runs processes that write a ledger, kills each with ``kill -9``, and prints the ids of the rows that they reported.

``DIRECTORY DATABASE_URL KILLS SHORTEST LONGEST``: two processes at a time live for so many seconds each. They are
forks, which costs nothing. What they do is what a gateway does: rows are appended and flushed, and then told, as
answers are. Every fourth has no database and leaves its spool alone to tell. Sums are written often, and in small
transactions, so that many kills interrupt them; the last line tells how many did.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from sqlalchemy import Engine, select

from tests.builders import usage_row
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.usage import spool_accounts
from twisted_vllm.storage.usage.account import Rhythm
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.storage.usage.tables import usage_marks
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter


def numbered_row(number: int) -> UsageRow:
    """Return a row of one of many keys, and of a few teams, end users, tags and models, as its number determines."""
    return usage_row(
        number,
        key_id=f"k{number % 101}",
        team_id=f"t{number % 7}" if number % 3 else None,
        end_user=f"e{number % 57}" if number % 2 else None,
        tags=("t",) * (number % 2),
        request_tags=("r",) * (number % 5 == 0),
        model=f"m{number % 2}",
    )


class Threads:
    """As much of a reactor as the writer needs."""

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        pass


def live(directory: Path, url: str | None, first: int, choices: int, parent: int) -> NoReturn:
    """Write rows until the end comes."""
    spool = Spool(directory, segment_bytes=20_000)
    spool.open()
    if url is not None:
        spool_accounts._TRANSACTION_ROWS = 20
        spool_accounts.SPEND_RHYTHM = Rhythm(0.03, 0.0001, 1_000, 1_000)
        spool_accounts.SUMS_RHYTHM = Rhythm(0.05, 0.0001, 1_000, 1_000)
        store = UsageDatabase(Secret(url), lambda kind, name, time: 0)
        LedgerWriter(Threads(), spool, store, lambda spent: None, interval=0.02).start()
    number = first
    pause = threading.Event()
    while os.getppid() == parent:
        ids = []
        for _ in range(number % 7 + 1):
            row = numbered_row(number)
            spool.append(row)
            ids.append(row.id)
            number += 1
        spool.flush()
        os.write(choices, "".join(f"{each}\n" for each in ids).encode())
        # about two thousand rows a second
        pause.wait(0.002)
    os._exit(1)


def begin(directory: Path, url: str | None, first: int) -> tuple[int, IO[bytes]]:
    choices: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the fork writes to it, `end` closes it
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        live(directory, url, first, choices.fileno(), parent)
    return child, choices


def end(child: int, choices: IO[bytes]) -> bytes:
    """Kill a process and return what it told, without a last line that is cut."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with choices:
        choices.seek(0)
        told = choices.read()
    return told[: told.rfind(b"\n") + 1]


def half_written(engine: Engine) -> set[str]:
    """Return the names of the spools of which an amount is written in part."""
    with engine.connect() as connection:
        found = set(connection.execute(select(usage_marks.c.name).where(usage_marks.c.done > 0)).scalars())
    engine.dispose()
    return found


def main() -> None:
    directory, url, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    shortest, longest = float(sys.argv[4]), float(sys.argv[5])
    chance = random.Random(1)
    running: list[tuple[int, IO[bytes]]] = []
    engine = make_engine(parse_url(Secret(url)))
    interrupted: set[str] = set()
    for kill in range(kills):
        running.append(begin(directory, None if kill % 4 == 3 else url, kill * 1_000_000))
        time.sleep(chance.uniform(shortest, longest))
        if len(running) == 2:
            sys.stdout.buffer.write(end(*running.pop(0)))
            interrupted |= half_written(engine)
    for each in running:
        sys.stdout.buffer.write(end(*each))
    interrupted |= half_written(engine)
    sys.stdout.buffer.write(b"%d\n" % len(interrupted))


if __name__ == "__main__":
    main()
