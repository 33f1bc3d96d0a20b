"""A gateway that is killed under load: each answer that a client got whole is in the ledger once, and in all sums."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.many_callers import ANSWER, PRICED, SIZE, Callers, make_keys, serve
from tests.end_to_end.process_harness import FULL, MeasuredGateway, served
from tests.end_to_end.twistd_harness import MASTER_KEY
from tests.whole_ledger import check_ledger

#: how often the gateway is killed, and how long it lives, in seconds
KILLS = 20 if FULL else 2
LIVES = (0.2, 3.5) if FULL else (0.2, 1.2)
CLIENTS = 4
BODY = b'{"model":"m","messages":[]}'
REQUEST = (
    b"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + MASTER_KEY.encode() + b"\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY


def ask_on(port: int, seen: list[str], pause: float = 0.0) -> None:
    """Send one request after another, and keep the id of each whose answer came whole, until the gateway is killed.

    Args:
        port: the gateway's.
        seen: takes the ids.
        pause: seconds between two requests.
    """
    with suppress(OSError), closing(socket.create_connection((HOST, port), 10.0)) as connection:
        while True:
            connection.sendall(REQUEST)
            received = b""
            while not received.endswith(ANSWER):
                data = connection.recv(65_536)
                if not data:
                    return
                received += data
            head = received.partition(b"\r\n\r\n")[0]
            ids = [line[14:] for line in head.split(b"\r\n") if line.lower().startswith(b"x-request-id: ")]
            seen.append(ids[0].decode())
            if pause:
                time.sleep(pause)


def files_of(directory: Path) -> tuple[Path, Path, Path]:
    """Return a gateway's main file, the directory of its rows, and its spool."""
    file = directory / "twisted_vllm.sqlite3"
    return file, directory / f"{file.name}-usage", directory / f"{file.name}.spool"


def test_a_kill_under_load_loses_no_answer_that_a_client_saw_and_doubles_none(tmp_path: Path) -> None:
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    chance = random.Random(11)
    callers = Callers()
    with served(serve) as server:
        for _ in range(KILLS):
            with (
                MeasuredGateway(tmp_path, server.port, passthrough=PRICED) as gateway,
                callers.calling([gateway.port], CLIENTS),
            ):
                time.sleep(chance.uniform(*LIVES))
                gateway.signal(signal.SIGKILL)
                gateway.wait()
        assert len(callers.seen) > KILLS * 20
        with MeasuredGateway(tmp_path, server.port, passthrough=PRICED) as gateway:
            assert gateway.terminate() == 0
    assert callers.refused == []
    ids = [row.id for row in check_ledger(url)]
    assert len(ids) == len(set(ids))
    assert set(callers.seen) <= set(ids)
    assert list(files_of(tmp_path)[2].iterdir()) == []
    print(f"{KILLS} kills, {len(callers.seen)} answers seen whole, {len(ids)} rows of {SIZE.keys} keys")


def back_up(directory: Path, copy: Path) -> None:
    """Copy a ledger in use as docs/operations.md says: rows, the spool, the main file."""
    file, rows, spool = files_of(directory)
    (copy / rows.name).mkdir(parents=True)
    for each in rows.glob("*.db"):
        copy_database(each, copy / rows.name / each.name)
    shutil.copytree(spool, copy / spool.name, copy_function=shutil.copy)
    copy_database(file, copy / file.name)


def copy_database(source: Path, target: Path) -> None:
    """Copy as ``.backup`` of the sqlite3 shell does."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def put_back(copy: Path, directory: Path) -> None:
    """Restore a copy as docs/operations.md says."""
    file, rows, spool = files_of(directory)
    for each in (*directory.glob(f"{file.name}-*"), file, *rows.iterdir()):
        if not each.is_dir():
            each.unlink(missing_ok=True)
    copy_database(copy / file.name, file)
    for each in (copy / rows.name).iterdir():
        shutil.copy(each, rows / each.name)
    for each in (copy / spool.name).glob("*.spool"):
        if not (spool / each.name).exists():
            shutil.copy(each, spool / each.name)


def test_a_copy_of_a_ledger_in_use_lacks_no_sum_of_its_rows_once_it_is_put_back(tmp_path: Path) -> None:
    url = f"sqlite:///{files_of(tmp_path)[0]}"
    make_keys(url)
    callers = Callers()
    with served(serve) as server:
        with MeasuredGateway(tmp_path, server.port, passthrough=PRICED) as gateway:
            with callers.calling([gateway.port], CLIENTS):
                time.sleep(1.5)
                copied = len(callers.seen)
                back_up(tmp_path, tmp_path / "copy")
                time.sleep(0.5)
                callers.stop.set()
            # this empties the spool
            assert gateway.terminate() == 0
        put_back(tmp_path / "copy", tmp_path)
        with MeasuredGateway(tmp_path, server.port, passthrough=PRICED) as gateway:
            assert gateway.terminate() == 0
    ids = {row.id for row in check_ledger(url)}
    assert set(callers.seen[: copied - CLIENTS]) <= ids
