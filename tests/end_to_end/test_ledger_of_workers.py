"""Processes of a gateway with workers are killed under load: each answer seen whole is in the ledger once."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.end_to_end.test_ledger_kill import files_of
from tests.end_to_end.twistd_harness import wait_until
from tests.whole_ledger import check_ledger

#: how long processes are killed, in seconds, and how long it is until the next kill
SECONDS = 60.0 if FULL else 6.0
PAUSES = (0.4, 1.6)
CLIENTS = 4
WORKERS = "2"


def processes_of(pid: int) -> dict[int, int]:
    """Return the slots of the living processes of a supervisor, by their process ids."""
    found: dict[int, int] = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found[int(child)] = json.loads(arguments[-2])["slot"]
        except (OSError, IndexError, ValueError, KeyError):
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


def kill_one(gateway: MeasuredGateway, chance: random.Random, *, housekeeper: bool) -> str:
    """Kill the housekeeper or a worker at random, wait until there is another, and return what it was."""
    running = processes_of(gateway.pid)
    pid = chance.choice(sorted(pid for pid, slot in running.items() if (slot == 0) is housekeeper))
    os.kill(pid, signal.SIGKILL)

    def is_replaced() -> bool:
        now = processes_of(gateway.pid)
        return pid not in now and len(now) == 3

    wait_until(is_replaced)
    return "worker" if running[pid] else "housekeeper"


def test_kills_of_any_process_lose_no_answer_that_a_client_saw_and_double_none(tmp_path: Path) -> None:
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    chance = random.Random(11)
    killed: Counter[str] = Counter()
    with served(serve) as server:
        with MeasuredGateway(tmp_path, server.port, "--workers", WORKERS, passthrough=PRICED) as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == 3)
            calling = Calling(gateway.port)
            calling.start()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                time.sleep(chance.uniform(*PAUSES))
                killed[kill_one(gateway, chance, housekeeper=killed.total() % 3 == 1)] += 1
            calling.stop()
            assert gateway.terminate() == 0
        with MeasuredGateway(tmp_path, server.port, "--workers", WORKERS, passthrough=PRICED) as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == 3)
            assert gateway.terminate() == 0
    ids = [row.id for row in check_ledger(url)]
    assert len(calling.callers.seen) > SECONDS * 20
    assert len(ids) == len(set(ids))
    assert set(calling.callers.seen) <= set(ids)
    assert list(files_of(tmp_path)[2].iterdir()) == []
    print(f"killed {dict(killed)}: {len(calling.callers.seen)} answers seen whole, {len(ids)} rows")


def test_a_supervisor_that_is_killed_leaves_rows_to_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    with served(serve) as server:
        with MeasuredGateway(tmp_path, server.port, "--workers", WORKERS, passthrough=PRICED) as gateway:
            wait_until(lambda: len(processes_of(gateway.pid)) == 3)
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
            wait_until(lambda: len(processes_of(gateway.pid)) == 3)
            assert gateway.terminate() == 0
    ids = [row.id for row in check_ledger(url)]
    assert len(calling.callers.seen) > 20
    assert len(ids) == len(set(ids))
    assert set(calling.callers.seen) <= set(ids)
    assert list(files_of(tmp_path)[2].iterdir()) == []
