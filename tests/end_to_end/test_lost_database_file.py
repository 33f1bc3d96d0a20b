"""A whole gateway whose SQLite file is taken away while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import COMPLETION, MASTER_KEY, Gateway, eventually, request_bytes
from tests.end_to_end.messages import OK
from tests.ledger_file import SUMS_OF_DAYS, open_ledger
from twisted_vllm.storage.registry import FOLLOW_INTERVAL

READINESS = "/health/readiness"


async def look(gateway: Gateway, reactor: Any, is_so: Callable[[], object]) -> None:
    """Let the gateway look for changes once, and wait for what it finds."""
    gateway.clock.advance(FOLLOW_INTERVAL)
    await eventually(reactor, is_so)


def segments(gateway: Gateway) -> int:
    """Return the bytes of the ledger's spool."""
    return sum(path.stat().st_size for path in gateway.settings.spool_directory.glob("*") if path.is_file())


def take_away(file: Path) -> None:
    os.rename(file, file.with_name("aside"))


def replace(file: Path) -> None:
    take_away(file)
    file.write_bytes(file.with_name("aside").read_bytes())


@pytest.mark.parametrize("lose", [take_away, replace])
@pytest_twisted.ensureDeferred
async def test_no_key_is_acknowledged_that_is_not_kept_and_readiness_fails_within_a_second(
    lose: Callable[[Path], None], stand_in: Any, gateway_to: Any, reactor: Any, logged_failures: Any
) -> None:
    server = stand_in(OK)
    gateway: Gateway = gateway_to(server.port)
    key = await gateway.make_key()
    lose(gateway.database_file)
    refused = await gateway.ask("POST", "/key/generate", body={})
    assert (refused.status, refused.error["code"]) == (503, "database_unavailable")
    assert "removed or replaced" in refused.error["message"]

    assert FOLLOW_INTERVAL < 1
    await look(gateway, reactor, lambda: gateway.service.wiring.database.file_is_lost)
    ready = await gateway.ask("GET", READINESS, None)
    assert (ready.status, ready.json["db"]) == (503, "disconnected")
    assert (await gateway.ask("GET", "/health/liveliness", None)).status == 200
    assert (await gateway.ask("GET", "/vllm/v1/models", key)).status == 200
    told = [line for line in gateway.log_lines() if line["level"] == "critical"]
    assert len(told) == 1
    assert str(gateway.database_file) in told[0]["message"]
    assert logged_failures.flush() == [None]


def requests_in(file: Path) -> int:
    """Return how many requests were added up."""
    with closing(open_ledger(file)) as connection:
        [(requests, _, _)] = connection.execute(SUMS_OF_DAYS)
    return int(requests)


@pytest_twisted.ensureDeferred
async def test_rows_of_the_ledger_wait_in_the_spool_until_the_file_is_back(
    stand_in: Any, gateway_to: Any, reactor: Any, logged_failures: Any
) -> None:
    server = stand_in(OK)
    gateway: Gateway = gateway_to(server.port)
    writer = gateway.service.wiring.accounting.writer
    assert writer is not None
    assert (await gateway.answer_to(COMPLETION)).status == 200
    await eventually(reactor, lambda: writer.batch_writer.committed == 1)
    aside = gateway.database_file.with_name("aside")
    os.rename(gateway.database_file, aside)
    for _ in range(3):
        assert (await gateway.answer_to(COMPLETION)).status == 200
    await eventually(reactor, lambda: not writer.batch_writer.reachable)
    # The file of the rows is there. What they add up to belongs to the main file: the spool keeps them for it.
    assert writer.batch_writer.committed + writer.pending().rows == 4
    assert segments(gateway) > 0

    os.rename(aside, gateway.database_file)
    await eventually(reactor, lambda: requests_in(gateway.database_file) == 4)
    await look(gateway, reactor, lambda: not gateway.service.wiring.database.file_is_lost)
    assert (await gateway.ask("GET", READINESS, None)).status == 200
    assert (await gateway.answer_to(request_bytes("POST", "/key/generate", MASTER_KEY, body={}))).status == 200
    logged_failures.flush()
