"""Thousands of requests with clients and servers of every kind leak no sockets and no memory."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import EVENT_STREAM, OK
from tests.end_to_end.process_harness import (
    FULL,
    MEBIBYTE,
    Connection,
    MeasuredGateway,
    connect,
    request_head,
    served,
    settled,
)

REQUESTS = 100_000 if FULL else 12_000
CLIENTS = 4
#: the share of requests that comes before the measurement, for what is allocated once
WARMING = 0.25
#: bytes by which the process may grow
GROWTH = 10 * MEBIBYTE

EVENT = b"6\r\nevent\n\r\n"
PIECE = bytes(20_000)


class Upstream:
    """A server that does what the path says."""

    def serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            name = head.split(b" ")[1].rpartition(b"/")[2].decode()
            if b"ontent-Length: " in head and name != "upload":
                connection.read(int(head.partition(b"ontent-Length: ")[2].split(b"\r\n")[0]))
            act = getattr(self, name, None)
            if act is None:
                connection.send(OK)
            else:
                act(connection)

    def stream(self, connection: Connection) -> None:
        connection.send(EVENT_STREAM + EVENT)
        for _ in range(4):
            connection.send(EVENT)
        connection.send(b"0\r\n\r\n")

    def hang(self, connection: Connection) -> None:
        assert connection.read_to_end() == b""

    def half(self, connection: Connection) -> None:
        connection.send(EVENT_STREAM + EVENT)
        connection.read_to_end()

    def upload(self, connection: Connection) -> None:
        connection.read_to_end()

    def reset(self, connection: Connection) -> None:
        connection.send(EVENT_STREAM + EVENT)
        connection.reset()

    def short(self, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        connection.close()

    def nonsense(self, connection: Connection) -> None:
        connection.send(b"SSH-2.0-OpenSSH_9.7\r\n")

    def silent(self, connection: Connection) -> None:
        connection.close()

    def idle_close(self, connection: Connection) -> None:
        connection.send(OK)
        connection.close()

    def early(self, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")


class Client:
    """Sends one request after the other, each of a random kind.

    Attributes:
        done: how many requests of each kind were made.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._port = port
        self._chance = random.Random(seed)
        self._kept = connect(port)
        self._kinds: list[tuple[str, Callable[[], None]]] = [
            *[("answered", self._answered)] * 6,
            *[("stream", self._stream)] * 4,
            *[("model", self._model)] * 2,
            ("posted", self._posted),
            ("leaves before the head", self._leaves_before_the_head),
            ("leaves in mid-stream", self._leaves_in_mid_stream),
            ("leaves in mid-upload", self._leaves_in_mid_upload),
            ("malformed", self._malformed),
            ("malformed body", self._malformed_body),
            ("no key", self._no_key),
            ("refused", self._refused),
            ("reset", self._cut("reset")),
            ("short", self._cut("short")),
            ("nonsense", self._failed("nonsense", 502)),
            ("silent", self._failed("silent", 502)),
            ("idle close", self._failed("idle_close", 200)),
            ("early", self._early),
        ]

    def run(self, count: int) -> None:
        for _ in range(count):
            name, act = self._chance.choice(self._kinds)
            act()
            self.done[name] += 1

    def close(self) -> None:
        self._kept.close()

    # on the kept connection

    def _ask(self, raw: bytes, status: int, end: bytes) -> None:
        self._kept.send(raw)
        head = self._kept.read_head()
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        assert self._kept.read_until(end)

    def _answered(self) -> None:
        self._ask(request_head("GET", "/vllm/v1/models"), 200, b"ok")

    def _stream(self) -> None:
        self._ask(request_head("GET", "/vllm/v1/stream"), 200, b"\r\n0\r\n\r\n")

    def _posted(self) -> None:
        raw = request_head("POST", "/vllm/v1/audio/speech", "Content-Length: 20000")
        self._ask(raw + PIECE, 200, b"ok")

    def _model(self) -> None:
        self._ask(self._json(b'{"model": "here", "prompt": "x"}'), 200, b"ok")

    def _refused(self) -> None:
        self._ask(self._json(b'{"model": "nowhere"}'), 502, b"}}")

    def _no_key(self) -> None:
        self._ask(b"GET /vllm/v1/models HTTP/1.1\r\nHost: h\r\n\r\n", 401, b"}}")

    def _failed(self, path: str, status: int) -> Callable[[], None]:
        end = b"ok" if status == 200 else b"}}"
        return lambda: self._ask(request_head("GET", f"/vllm/v1/{path}"), status, end)

    @staticmethod
    def _json(body: bytes) -> bytes:
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        return request_head("POST", "/vllm/v1/completions", *lines) + body

    # on connections of their own

    def _send(self, raw: bytes) -> Connection:
        client = connect(self._port)
        client.send(raw)
        return client

    def _leave(self, client: Connection) -> None:
        if self._chance.random() < 0.5:
            client.reset()
        else:
            client.close()

    def _leaves_before_the_head(self) -> None:
        self._leave(self._send(request_head("GET", "/vllm/v1/hang")))

    def _leaves_in_mid_stream(self) -> None:
        client = self._send(request_head("GET", "/vllm/v1/half"))
        assert client.read_until(b"event\n")
        self._leave(client)

    def _leaves_in_mid_upload(self) -> None:
        client = self._send(request_head("POST", "/vllm/v1/upload", "Content-Length: 100000"))
        client.send(PIECE)
        self._leave(client)

    def _malformed(self) -> None:
        client = self._send(b"GET /vllm/v1/models HTTP/1.1\r\nHost : h\r\n\r\n")
        assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
        client.close()

    def _malformed_body(self) -> None:
        client = self._send(request_head("POST", "/vllm/v1/upload", "Transfer-Encoding: chunked") + b"1\r\nxx\r\n")
        assert client.read_to_end().startswith(b"HTTP/1.1 400 ")
        client.close()

    def _early(self) -> None:
        client = self._send(request_head("POST", "/vllm/v1/audio/early", "Content-Length: 2") + b"ab")
        assert client.read_until(b"big").startswith(b"HTTP/1.1 413 ")
        client.close()

    def _cut(self, path: str) -> Callable[[], None]:
        def ask() -> None:
            client = self._send(request_head("GET", f"/vllm/v1/{path}"))
            came = client.read_to_end()
            # the reset may overtake what was sent before it
            assert came == b"" or came.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 502 "))
            assert not came.endswith(b"\r\n0\r\n\r\n")
            client.close()

        return ask


def run_clients(port: int, count: int, seed: int) -> Counter[str]:
    """Let the clients make this many requests between them; return how many of each kind."""
    clients = [Client(port, seed + number) for number in range(CLIENTS)]
    failures: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            client.run(count // CLIENTS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert not failures, failures
    return sum((client.done for client in clients), Counter())


def test_a_long_life_leaves_no_socket_and_no_memory_behind(tmp_path: Path) -> None:
    models = "".join(
        f"- {{model_name: {name}, litellm_params: {{model: hosted_vllm/{name}, api_base: 'http://{HOST}:{port}'}}}}\n"
        for name, port in (("nowhere", free_port()),)
    )
    with (
        served(Upstream().serve) as server,
        MeasuredGateway(tmp_path, server.port, settings=f"model_list:\n{models}") as gateway,
    ):
        idle = gateway.sockets
        run_clients(gateway.port, int(REQUESTS * WARMING), 1)
        assert settled(lambda: gateway.sockets, idle) <= idle
        before = gateway.memory
        done = run_clients(gateway.port, REQUESTS, 2)
        sockets = settled(lambda: gateway.sockets, idle)
        growth = gateway.memory - before
        print(f"{sum(done.values()):,} requests: {dict(done)}")
        print(f"sockets {idle} -> {sockets}, memory {before / MEBIBYTE:.1f} MiB -> +{growth / MEBIBYTE:.2f} MiB")
        assert sockets <= idle
        assert growth <= GROWTH
