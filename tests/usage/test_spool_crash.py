"""``kill -9`` at any moment: every row whose request was answered is in the ledger, once, and in its sums once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.storage.usage_contract import Ledger, check_sums
from tests.usage.spool_killer import numbered_row
from twisted_vllm.storage.usage.tables import usage, usage_marks
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

FULL_LOAD = os.environ.get("FULL_LOAD") == "1"
KILLS = 20
#: how long two processes live on, in seconds, until the older is killed
LIVES = (0.05, 2.0) if FULL_LOAD else (0.05, 0.3)
#: how long a replay may take, in seconds
PATIENCE = 120.0 if FULL_LOAD else 20.0

HERE = Path(__file__).parent
PATHS = [str(HERE.parents[1])]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/usage.sqlite")
    yield ledger
    ledger.close()


def kill_many(directory: Path, url: str) -> tuple[list[str], int]:
    """Run processes one after the other and kill each.

    Returns:
        The ids that they told, and how many were seen to have written a part of some sums or spend.
    """
    done = subprocess.run(
        [sys.executable, str(HERE / "spool_killer.py"), str(directory), url, str(KILLS), *map(str, LIVES)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)},
        check=True,
    )
    *told, interrupted = done.stdout.decode().split()
    return told, int(interrupted)


async def replay(reactor: Any, directory: Path, ledger: Ledger) -> None:
    """Start once more on what is left, until it is all in the database."""
    spool = Spool(directory)
    spool.open()
    writer = LedgerWriter(reactor, spool, ledger.another(), lambda spent: None, interval=0.01)
    writer.start()
    deadline = time.monotonic() + PATIENCE
    while len(list(directory.glob("*.spool"))) > 1:
        assert time.monotonic() < deadline, "the replay did not end in time"
        await deferLater(reactor, 0.01)
    await writer.stop()


async def kill_and_check(reactor: Any, directory: Path, ledger: Ledger, url: str) -> None:
    told, interrupted = await deferToThread(kill_many, directory, url)
    assert len(told) > KILLS
    # On a busy machine short lives may end before their first sums.
    assert interrupted or not FULL_LOAD, "no kill hit a half-written sum"
    if FULL_LOAD:
        print(f"{KILLS} processes killed, {interrupted} of them between two transactions, {len(told)} rows told")
    await replay(reactor, directory, ledger)
    kept = [row["id"] for row in ledger.read(usage)]
    assert set(told) - set(kept) == set()
    assert len(kept) == len(set(kept))
    # a row that was not told yet may be there as well, but nothing that was never written
    check_sums(ledger, [numbered_row(int(each[8:], 16)) for each in kept])
    assert ledger.read(usage_marks) == []
    assert [path.name for path in directory.iterdir() if path.suffix != ".damaged"] == []


@pytest_twisted.ensureDeferred
async def test_killed_processes_lose_no_row_and_double_none_in_sqlite(
    reactor: Any, tmp_path: Path, ledger: Ledger
) -> None:
    await kill_and_check(reactor, tmp_path / "spool", ledger, ledger.url)
