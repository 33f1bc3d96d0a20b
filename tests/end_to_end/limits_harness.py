"""Gateways in processes of their own, whose limits are tested by bursts of requests."""

from __future__ import annotations

import json
import select
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.end_to_end.messages import length_of, whole
from tests.end_to_end.process_harness import Connection, connect
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, Configured, ask, wait_until

TARGET = "/vllm/v1/chat/completions"
MODEL = "m"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}).encode()
#: the server counts 7 tokens; one costs a dollar
ANSWER_BODY = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
ANSWER = whole(ANSWER_BODY)
CONFIG = """
passthrough:
  log: {file: gateway.log, format: json}
  default_prices: {input_cost_per_token: 1, output_cost_per_token: 1}
"""


class GatedServer:
    """Takes requests, and answers them while its gate is open.

    Attributes:
        taken: how many came.
        gate: whether it answers.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            if head.startswith(b"POST"):
                connection.read(len(BODY))
            if not head.startswith(b"GET"):
                with self._lock:
                    self.taken += 1
            assert self.gate.wait(PATIENCE)
            connection.send(ANSWER)


class LimitingGateway(Configured):
    """``twistd -n vllm-passthrough`` in front of a server whose every token costs a dollar."""

    def __init__(self, directory: Path, server: int, *, settings: str = "", **variables: str) -> None:
        directory.mkdir(exist_ok=True)
        self.log = directory / "gateway.log"
        super().__init__(directory, server, CONFIG + settings, **variables)

    def make_key(self, **limits: Any) -> str:
        status, text = ask(self.port, "/key/generate", MASTER_KEY, "POST", json.dumps(limits))
        assert status == 200, text
        return str(json.loads(text)["key"])

    def chat(self, key: str) -> tuple[int, str]:
        """Ask once; return the status and the error's code, if it is one."""
        status, text = ask(self.port, TARGET, key, "POST", BODY.decode())
        return status, "" if status == 200 else json.loads(text)["error"]["code"]

    def knows(self, key: str) -> bool:
        return ask(self.port, "/vllm/v1/models", key)[0] == 200

    def messages(self, words: str) -> list[str]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line["message"] for line in lines if words in line.get("message", "")]


def burst(
    ports: list[int], key: str, count: int, server: GatedServer, expected: int, raw: bytes = b""
) -> Counter[tuple[int, str]]:
    """Send `count` requests at once, in turn to each port, while the server answers none.

    Args:
        ports: where.
        key: the caller's key.
        count: how many.
        server: takes those that are admitted.
        expected: how many it takes.
        raw: another request than for a chat of the key.

    Returns:
        How many were answered with which status and code of an error.
    """
    head = f"POST {TARGET} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    raw = raw or f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    connections = {}
    poll = select.poll()
    server.taken = 0
    server.gate.clear()
    try:
        for number in range(count):
            connection = connect(ports[number % len(ports)])
            connections[connection.socket.fileno()] = connection
        for connection in connections.values():
            connection.send(raw)
        for descriptor in connections:
            poll.register(descriptor, select.POLLIN)
        found: Counter[tuple[int, str]] = Counter()

        def read(wanted: int) -> None:
            while found.total() < wanted:
                ready = poll.poll(PATIENCE * 1000)
                assert ready, f"not within {PATIENCE:g} seconds; {dict(found)}"
                for descriptor, _ in ready:
                    poll.unregister(descriptor)
                    found[_answer(connections[descriptor])] += 1

        # while the gate is closed, only refused requests are answered; the others are in flight
        read(count - expected)
        wait_until(lambda: server.taken >= expected)
        assert poll.poll(0) == []
        server.gate.set()
        read(count)
        return found
    finally:
        server.gate.set()
        for connection in connections.values():
            connection.close()


def _answer(connection: Connection) -> tuple[int, str]:
    head = connection.read_head()
    body = connection.read(length_of(head))
    status = int(head.split(b" ")[1])
    return status, "" if status == 200 else json.loads(body)["error"]["code"]
