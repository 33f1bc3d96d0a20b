"""Processes of a gateway with workers are killed under load: each answer seen whole is in the ledger once."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.end_to_end.test_ledger_kill import files_of
from tests.end_to_end.twistd_harness import wait_until
from tests.whole_ledger import check_ledger

#: how often each slot is killed, and how long it is until the next kill, in seconds. A supervisor gives up when one
#: process after the other of a slot ends soon.
ROUNDS = 7 if FULL else 1
PAUSES = (0.3, 2.5)
CLIENTS = 4
WORKERS = "2"
#: the workers and the housekeeper
SLOTS = 3


def processes_of(pid: int) -> dict[int, int]:
    """Return the slots of the living processes of a supervisor, by their process ids."""
    found: dict[int, int] = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found[int(child)] = json.loads(arguments[-2])["slot"]
        except (OSError, IndexError, ValueError, KeyError, TypeError):
            # it is not its program yet, or no more
            continue
    return found


class Calling:
    """Clients that connect again whenever their process was killed, until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.callers = Callers(pause=0.002)
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


def kill(gateway: MeasuredGateway, slot: int) -> None:
    """Kill the process of a slot, and wait until there is another."""
    [killed] = [pid for pid, found in processes_of(gateway.pid).items() if found == slot]
    os.kill(killed, signal.SIGKILL)

    def is_replaced() -> bool:
        now = processes_of(gateway.pid)
        return killed not in now and len(now) == SLOTS

    wait_until(is_replaced)


def kill_and_check(directory: Path, url: str, spool: Path, **variables: str) -> None:
    """Kill each process of a gateway, several times in a random order; compare what the clients saw with the ledger."""
    make_keys(url)
    chance = random.Random(11)

    def start() -> MeasuredGateway:
        return MeasuredGateway(directory, server.port, "--workers", WORKERS, passthrough=PRICED, **variables)

    with served(serve) as server:
        with start() as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == SLOTS)
            calling = Calling(gateway.port)
            calling.start()
            slots = [slot for _ in range(ROUNDS) for slot in range(SLOTS)]
            chance.shuffle(slots)
            for slot in slots:
                time.sleep(chance.uniform(*PAUSES))
                kill(gateway, slot)
            calling.stop()
            assert gateway.terminate() == 0
        with start() as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == SLOTS)
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
        with MeasuredGateway(tmp_path, server.port, "--workers", WORKERS, passthrough=PRICED) as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == SLOTS)
            running = processes_of(gateway.pid)
            calling = Calling(gateway.port)
            calling.start()
            time.sleep(2.0)
            calling.callers.stop.set()
            gateway.signal(signal.SIGKILL)
            gateway.wait()
            calling.stop()
            # They drain and end by themselves.
            wait_until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in running))
        with MeasuredGateway(tmp_path, server.port, "--workers", WORKERS, passthrough=PRICED) as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == SLOTS)
            assert gateway.terminate() == 0
    ids = [row.id for row in check_ledger(url)]
    assert len(calling.callers.seen) > 20
    assert len(ids) == len(set(ids))
    assert set(calling.callers.seen) <= set(ids)
    assert list(files_of(tmp_path)[2].iterdir()) == []
