"""Sustained load: the ledger's rows reach SQLite as fast as they are made, and the spool does not grow."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import mean

from benchmarks.peers import own_upstream
from tests.end_to_end.ledger_harness import CHAT, CHAT_BODY, LedgerGateway
from tests.end_to_end.process_harness import FULL, request_head
from tests.end_to_end.twistd_harness import environment, wait_until
from tests.ledger_file import SUMS_OF_DAYS, open_ledger

#: requests a second that are sent, and that must at least have been answered
PACE, AT_LEAST = (2_000, 1_990) if FULL else (1_200, 1_000)
SECONDS = 60.0 if FULL else 4.0
BY_CONNECTION = 16
#: seconds between two looks
LOOK = 0.25
#: seconds after the last answer within which every row is in the database
CATCH_UP = 2.0
#: what the server of the benchmarks counts
TOKENS = 29


def spooled(directory: Path) -> int:
    """Return the bytes in the spool."""
    found = 0
    for path in directory.iterdir():
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            # a file goes once its rows are in the database
            continue
    return found


def test_the_spool_does_not_grow_under_a_load_that_goes_on(tmp_path: Path) -> None:
    counter, request = tmp_path / "answers", tmp_path / "request"
    counter.write_bytes(bytes(8))
    lines = ("Content-Type: application/json", f"Content-Length: {len(CHAT_BODY)}")
    request.write_bytes(request_head("POST", f"/vllm{CHAT}", *lines) + CHAT_BODY)
    backlog: list[int] = []
    sizes: list[int] = []
    with (
        own_upstream(tmp_path) as upstream,
        LedgerGateway(tmp_path, upstream.port, "passthrough: {log: {file: gateway.log, format: json}}") as gateway,
        closing(sqlite3.connect(gateway.database, timeout=30.0)) as database,
        request.open("rb") as standard_input,
        ExitStack() as stack,
    ):
        spool = gateway.database.with_name(f"{gateway.database.name}.spool")
        before = gateway.cpu_seconds
        script = Path(__file__).with_name("constant_rate_client.py")
        arguments = [str(each) for each in (gateway.port, PACE, SECONDS, BY_CONNECTION, counter)]
        client = stack.enter_context(
            subprocess.Popen(
                [sys.executable, script, *arguments], stdin=standard_input, stdout=subprocess.PIPE, env=environment()
            )
        )
        stack.callback(client.kill)
        assert client.stdout is not None
        looked = time.monotonic()
        while client.poll() is None:
            written = database.execute(SUMS_OF_DAYS).fetchone()[0]
            backlog.append(int.from_bytes(counter.read_bytes(), "little") - written)
            sizes.append(spooled(spool))
            looked += LOOK
            time.sleep(max(looked - time.monotonic(), 0.0))
        ended = time.monotonic()
        results = json.loads(client.stdout.read())
        total = int(PACE * SECONDS)
        wait_until(lambda: database.execute(SUMS_OF_DAYS).fetchone()[0] == total)
        caught_up = time.monotonic() - ended
        used = gateway.cpu_seconds - before
        with closing(open_ledger(gateway.database)) as ledger:
            [rows] = ledger.execute("SELECT count(*), sum(total_tokens) FROM vllm_passthrough_usage")
            [sums] = ledger.execute(SUMS_OF_DAYS)
    rate = results["answers"] / results["seconds"]
    third = len(backlog) // 3
    thirds = [mean(backlog[at : at + third]) for at in (0, third, len(backlog) - third)]
    print(
        f"{rate:,.0f} answers a second for {results['seconds']:.1f} s, {results['median'] * 1e3:.2f} ms median, "
        f"{results['p99'] * 1e3:.1f} ms p99, {results['p999'] * 1e3:.1f} ms p999, "
        f"{used / total * 1e6:.0f} us of CPU each; "
        f"backlog by thirds {', '.join(f'{each:.0f}' for each in thirds)} rows, at most {max(backlog)}; "
        f"spool at most {max(sizes):,} bytes; caught up in {caught_up:.2f} s"
    )
    assert (results["wrong"], results["answers"]) == ([], total)
    assert rate >= AT_LEAST
    # no more than a second brings
    assert thirds[2] <= thirds[0] + PACE
    assert caught_up <= CATCH_UP
    assert rows == sums[:2] == (total, total * TOKENS)
