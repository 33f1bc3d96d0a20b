"""Callers with a thousand keys, who name end users and tags, and count the answers that came whole."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count

from benchmarks.growth.fill import _fill_keys
from benchmarks.growth.population import Population, Size
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import whole
from tests.end_to_end.process_harness import Connection
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate

SIZE = Size(keys=1_000, users=200, teams=20, end_users=300)
TAGS = 40
ANSWER = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}).encode()
RESPONSE = whole(ANSWER)
#: of `passthrough`; with it, each row costs seven microdollars
PRICED = "default_prices: {input_cost_per_token: 0.000001, output_cost_per_token: 0.000001}"


def make_keys(url: str, size: Size = SIZE) -> None:
    """Make the schema, and the keys, users, teams and organizations of a size."""
    engine = make_engine(parse_url(Secret(url)), connections=1)
    try:
        migrate(engine)
        _fill_keys(engine, Population(size), datetime.now(UTC).timestamp() - 3600)
    finally:
        engine.dispose()


def serve(connection: Connection) -> None:
    """Answer request after request of one connection."""
    while head := connection.read_head():
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"x:0")
        connection.read(int(length.partition(b":")[2]))
        connection.send(RESPONSE)


class Callers:
    """Threads that send requests, until each has lost its connection or `stop` is set.

    Attributes:
        seen: the ids of the requests whose answers came whole.
        refused: the statuses of the others.
        stop: ends them.
    """

    def __init__(self, size: Size = SIZE, pause: float = 0.0) -> None:
        """Set up; `pause` is between two requests of a thread, in seconds."""
        self.seen: list[str] = []
        self.refused: list[bytes] = []
        self.stop = threading.Event()
        self._size = size
        self._pause = pause
        self._numbers = count()

    def request(self, number: int) -> bytes:
        """Return a request: of another key each time, half of them for an end user, a third with a tag."""
        body: dict[str, object] = {"model": f"m{number % 3}", "messages": []}
        if number % 2:
            body["user"] = Population.end_user(number * 7 % self._size.end_users)
        lines = [f"Authorization: Bearer {Population.key(number % self._size.keys)}", "Content-Type: application/json"]
        if number % 3 == 0:
            lines.append(f"x-litellm-tags: job-{number % TAGS}, all")
        data = json.dumps(body).encode()
        lines.append(f"Content-Length: {len(data)}")
        return "\r\n".join(["POST /vllm/v1/chat/completions HTTP/1.1", "Host: g", *lines, "", ""]).encode() + data

    @contextmanager
    def calling(self, ports: Sequence[int], threads: int = 4) -> Iterator[None]:
        """Call during a block, in turn on these ports; at its end wait for the threads, without stopping them."""
        made = [threading.Thread(target=self._call, args=(ports[at % len(ports)],)) for at in range(threads)]
        for each in made:
            each.start()
        try:
            yield
        finally:
            for each in made:
                each.join()

    def _call(self, port: int) -> None:
        with suppress(OSError), closing(socket.create_connection((HOST, port), 30.0)) as connection:
            while not self.stop.is_set():
                connection.sendall(self.request(next(self._numbers)))
                received = b""
                while not received.endswith(ANSWER):
                    data = connection.recv(65_536)
                    if not data:
                        return
                    received += data
                    if not received.startswith(b"HTTP/1.1 200"):
                        self.refused.append(received)
                        return
                head = received.partition(b"\r\n\r\n")[0]
                [id] = [line[14:] for line in head.split(b"\r\n") if line.lower().startswith(b"x-request-id: ")]
                self.seen.append(id.decode())
                if self._pause:
                    time.sleep(self._pause)
