"""Processes of a gateway with workers are killed under load: each answer seen whole is in the ledger once."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, served
from tests.end_to_end.test_ledger_kill import files_of
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.end_to_end.workers_harness import Workers, started
from tests.whole_ledger import check_ledger
from twisted_vllm.usage.records import payer_of

#: how often each slot is killed, and how long it is until the next kill, in seconds. A supervisor gives up when one
#: process after the other of a slot ends soon.
ROUNDS = 7 if FULL else 1
PAUSES = (0.3, 2.5)
CLIENTS = 4
#: of a request, in microdollars, and what is reserved for one at most
COST, ESTIMATE = 7, 100
REFUSED = b"HTTP/1.1 4"
#: the workers and the housekeeper
SLOTS = 3


class Calling:
    """Clients that connect again whenever their process was killed, until they are told to stop."""

    def __init__(self, port: int, callers: Callers | None = None) -> None:
        self.callers = callers or Callers(pause=0.002)
        self._port = port
        self._threads = [threading.Thread(target=self._call) for _ in range(CLIENTS)]

    def _call(self) -> None:
        while not self.callers.stop.is_set():
            self.callers._call(self._port)
            time.sleep(0.02)

    def start(self) -> None:
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        self.callers.stop.set()
        for each in self._threads:
            each.join()


def kill_and_check(directory: Path, url: str, spool: Path, **variables: Any) -> None:
    """Kill each process of a gateway, several times in a random order; compare what the clients saw with the ledger."""
    make_keys(url)
    chance = random.Random(11)

    with served(serve) as server:
        with started(Workers(directory, server.port, passthrough=PRICED, **variables)) as gateway:
            calling = Calling(gateway.port)
            calling.start()
            slots = [slot for _ in range(ROUNDS) for slot in range(SLOTS)]
            chance.shuffle(slots)
            for slot in slots:
                time.sleep(chance.uniform(*PAUSES))
                gateway.wait_until_replaced(gateway.kill(slot))
            calling.stop()
            assert gateway.terminate() == 0
        with started(Workers(directory, server.port, passthrough=PRICED, **variables)) as gateway:
            assert gateway.terminate() == 0
    ids = [row.id for row in check_ledger(url)]
    assert len(calling.callers.seen) > 100 * len(slots)
    assert len(ids) == len(set(ids))
    assert set(calling.callers.seen) <= set(ids)
    assert [path.name for path in spool.iterdir() if path.name != "background"] == []
    print(f"{ROUNDS} kills of each process: {len(calling.callers.seen)} answers seen whole, {len(ids)} rows")


def test_kills_of_any_process_lose_no_answer_that_a_client_saw_and_double_none(tmp_path: Path) -> None:
    file, _, spool = files_of(tmp_path)
    kill_and_check(tmp_path, f"sqlite:///{file}", spool)


def test_a_supervisor_that_is_killed_leaves_rows_to_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    with served(serve) as server:
        with started(Workers(tmp_path, server.port, passthrough=PRICED)) as gateway:
            running = gateway.processes()
            calling = Calling(gateway.port)
            calling.start()
            time.sleep(2.0)
            calling.callers.stop.set()
            gateway.signal(signal.SIGKILL)
            gateway.wait()
            calling.stop()
            # They drain and end by themselves.
            wait_until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in running))
        with started(Workers(tmp_path, server.port, passthrough=PRICED)) as gateway:
            assert gateway.terminate() == 0
    ids = [row.id for row in check_ledger(url)]
    assert len(calling.callers.seen) > 20
    assert len(ids) == len(set(ids))
    assert set(calling.callers.seen) <= set(ids)
    assert list(files_of(tmp_path)[2].iterdir()) == []


class OneKey(Callers):
    """Callers who share a key."""

    def __init__(self, key: str) -> None:
        super().__init__(pause=0.001)
        self._key = key

    def request(self, number: int) -> bytes:
        body = b'{"model":"m","messages":[],"max_tokens":4}'
        return (
            b"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (self._key.encode(), len(body))
        ) + body


def test_a_budget_is_used_up_exactly_while_processes_are_killed(tmp_path: Path) -> None:
    """What a process did not tell before it died is neither forgotten nor counted twice."""
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    requests = 60_000 if FULL else 6_000
    with (
        served(serve) as server,
        started(Workers(tmp_path, server.port, passthrough=PRICED)) as gateway,
    ):
        budget = json.dumps({"max_budget": requests * COST / 1e6})
        status, answer = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", budget)
        assert status == 200
        callers = OneKey(json.loads(answer)["key"])
        calling = Calling(gateway.port, callers)
        calling.start()
        for slot in (0, 1, 0, 2) * (3 if FULL else 1):
            time.sleep(0.4)
            gateway.wait_until_replaced(gateway.kill(slot))
        seen = len(callers.seen)
        wait_until(lambda: bool(callers.refused))
        # Those that a killed worker had reserved for are free again, and each fits in once more.
        time.sleep(2.0)
        calling.stop()
        assert gateway.terminate() == 0
    assert seen < len(callers.seen), "the budget was used up before the last kill"
    assert all(each.startswith(REFUSED) for each in callers.refused)
    key_id = {payer_of(row.payer).key_id for row in check_ledger(url)}
    assert len(key_id) == 1
    spent = sum(row.cost for row in check_ledger(url)) // 10**6
    print(f"{spent} of {requests * COST} microdollars spent, {len(callers.seen)} answers seen whole")
    assert requests * COST - ESTIMATE < spent <= requests * COST
