"""A gateway that is killed under load: each answer that a client got whole is in the ledger once."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import whole
from tests.end_to_end.process_harness import FULL, Connection, MeasuredGateway, served
from tests.end_to_end.twistd_harness import MASTER_KEY, wait_until
from tests.ledger_file import SUMS_OF_DAYS, open_ledger

#: how often the gateway is killed
KILLS = 20 if FULL else 2
CLIENTS = 4
ANSWER = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}).encode()
BODY = b'{"model":"m","messages":[]}'
REQUEST = (
    b"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer " + MASTER_KEY.encode() + b"\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
RESPONSE = whole(ANSWER)


def serve(connection: Connection) -> None:
    """Answer request after request of one connection."""
    while connection.read_head():
        connection.read(len(BODY))
        connection.send(RESPONSE)


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


def ledger(directory: Path) -> Counter[str]:
    """Return how often each request stands in the ledger."""
    with closing(open_ledger(directory / "twisted_vllm.sqlite3")) as connection:
        return Counter(
            name for (name,) in connection.execute("SELECT COALESCE(request_id, id) FROM vllm_passthrough_usage")
        )


def test_a_kill_under_load_loses_no_answer_that_a_client_saw_and_doubles_none(tmp_path: Path) -> None:
    seen: list[str] = []
    chance = random.Random(11)
    with served(serve) as server:
        for _ in range(KILLS):
            with MeasuredGateway(tmp_path, server.port) as gateway:
                clients = [threading.Thread(target=ask_on, args=(gateway.port, seen)) for _ in range(CLIENTS)]
                for client in clients:
                    client.start()
                time.sleep(chance.uniform(0.2, 1.2))
                gateway.signal(signal.SIGKILL)
                gateway.wait()
                for client in clients:
                    client.join()
        assert len(seen) > KILLS * 20
        with MeasuredGateway(tmp_path, server.port):
            wait_until(lambda: set(seen) <= set(ledger(tmp_path)))
    found = ledger(tmp_path)
    assert set(found.values()) == {1}
    with closing(open_ledger(tmp_path / "twisted_vllm.sqlite3")) as connection:
        [rows] = connection.execute("SELECT count(*), sum(total_tokens) FROM vllm_passthrough_usage")
        [(requests, tokens, _)] = connection.execute(SUMS_OF_DAYS)
    sums = (requests, tokens)
    assert rows == sums == (len(found), 7 * len(found))
    print(f"{KILLS} kills, {len(seen)} answers seen whole, {len(found)} rows")
