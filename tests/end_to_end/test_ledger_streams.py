"""How a stream's usage is counted without the client seeing it: what the server gets, the client, and the row.

The server answers with vLLM 0.32's own streams (``tests/usage/answers``), recorded without and with ``include_usage``.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.ledger_harness import ANSWER, CHAT, Columns, LedgerGateway, read_chunks
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, header_of
from tests.end_to_end.process_harness import Connection, connected, served
from tests.end_to_end.twistd_harness import MASTER_KEY, serving, wait_until
from tests.ledger_file import open_ledger

ANSWERS = Path(__file__).parents[1] / "usage" / "answers"
COMPLETIONS = "/v1/completions"
#: where the streams of a route are, and the tokens that vLLM counted
RECORDED = {CHAT: ("chat", (8, 6)), COMPLETIONS: ("completions", (3, 6))}
SPLICE = b'"stream_options":{"include_usage":true}'
#: what differs between any two answers
NAMES = re.compile(rb'"(id":"[a-z]+-[0-9a-f]+"|created":\d+)')

MODES = ("inject", "passive", "off")
SETTINGS = {
    "inject": "ledger: {}",
    "passive": "ledger: {count_stream_usage: passive}",
    "off": "ledger: {enabled: false}",
}

#: with spaces, orders and escapes that a parser and writer would not keep; the second is what goes to the server
BODIES: dict[str, tuple[bytes, bytes]] = {
    "plain": (b'{"model":"m","stream":true}', b'{' + SPLICE + b',"model":"m","stream":true}'),
    "spelt": (
        rb' { "model" : "m",  "prompt":"h\u0069 \/ 1.50", "temperature":1.50e0 , "stream" : true }',
        rb' {' + SPLICE + rb', "model" : "m",  "prompt":"h\u0069 \/ 1.50", "temperature":1.50e0 , "stream" : true }',
    ),
    "refuses": (
        b'{"stream":true,"stream_options":{"include_usage": false, "x":1.50},"model":"m"}',
        b'{"stream":true,"stream_options":{"include_usage": true, "x":1.50},"model":"m"}',
    ),
    "null": (
        '{"é":"日","stream":true,"stream_options":null,"model":"m"}'.encode(),
        '{"é":"日","stream":true,"stream_options":{"include_usage":true},"model":"m"}'.encode(),
    ),
    "asks": (b'{"stream":true,"stream_options":{"include_usage":true},"model":"m"}',) * 2,
    "twice": (
        b'{"stream":false,"stream":true,"model":"m"}',
        b'{' + SPLICE + b',"stream":false,"stream":true,"model":"m"}',
    ),
    "odd": (b'{"stream":"yes","model":"m"}', b'{' + SPLICE + b',"stream":"yes","model":"m"}'),
    "says no": (
        b'{"stream":1,"stream_options":{"include_usage":"no"},"model":"m"}',
        b'{"stream":1,"stream_options":{"include_usage":true},"model":"m"}',
    ),
}  # fmt: skip

#: a stream that asks for its usage, with as many tokens as the gateway learns from, each in an event of its own
LONG_BODY = b'{"stream":true,"stream_options":{"include_usage":true},"model":"m","max_tokens":20}'
LONG_ANSWER = [
    *[b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'] * 20,
    b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":20,"total_tokens":28}}\n\n',
    b"data: [DONE]\n\n",
]


class Recorded:
    """A server that answers as vLLM did, and keeps what it got.

    Attributes:
        bodies: the requests' bodies by their ids, as they came.
    """

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            body = connection.read(int(header_of(head, "content-length") or 0))
            self.bodies[header_of(head, "x-request-id")] = body
            fields = json.loads(body)
            zips = "gzip" in header_of(head, "accept-encoding")
            if not fields.get("stream"):
                answer = gzip.compress(ANSWER, mtime=0) if zips else ANSWER
                kind = b"Content-Type: application/json\r\n" + b"Content-Encoding: gzip\r\n" * zips
                connection.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (kind, len(answer), answer))
                continue
            if body == LONG_BODY:
                connection.send(EVENT_STREAM)
                for event in LONG_ANSWER:
                    time.sleep(0.001)
                    connection.send(chunk(event))
                connection.send(LAST)
                continue
            name = RECORDED[head.decode().split(" ")[1]][0]
            asked = (fields.get("stream_options") or {}).get("include_usage") is True
            stream = NAMES.sub(b'"id":"x"', (ANSWERS / f"{name}{'_usage' * bool(asked)}.sse").read_bytes())
            if zips:
                zipped = EVENT_STREAM.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
                connection.send(zipped + chunk(gzip.compress(stream, mtime=0)) + LAST)
                continue
            connection.send(EVENT_STREAM)
            # vLLM writes an event at a time, which the network may cut
            for at in range(0, len(stream), 150):
                connection.send(chunk(stream[at : at + 150]))
            connection.send(LAST)


def request(target: str, name: str, body: bytes, key: str, *lines: str) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: h", f"Authorization: Bearer {key}", f"X-Request-Id: {name}", *lines]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def answer(port: int, raw: bytes) -> tuple[str, str, bytes]:
    """Return what a client sees: the media type, the encoding, and the body."""
    with connected(port) as client:
        client.send(raw)
        head = client.read_head()
        assert head.startswith(b"HTTP/1.1 200 "), head
        size = header_of(head, "content-length")
        body = client.read(int(size)) if size else read_chunks(client)
        return header_of(head, "content-type"), header_of(head, "content-encoding"), body


class Trial:
    """A server, and a gateway for each way to count.

    Attributes:
        server: the server.
        gateways: the gateways by their modes.
    """

    def __init__(self, server: Recorded, port: int, gateways: dict[str, LedgerGateway]) -> None:
        self.gateways = gateways
        self.server = server
        self._port = port
        self._count = 0

    def play(self, mode: str, path: str, body: bytes, *lines: str) -> tuple[bytes, str]:
        """Ask directly and through the gateway, and hold the two answers to each other, byte for byte.

        Returns:
            The body that the server got through the gateway, and the request's id.
        """
        self._count += 1
        name = f"{mode}-{self._count}"
        through = answer(self.gateways[mode].port, request(f"/vllm{path}", name, body, MASTER_KEY, *lines))
        direct = answer(self._port, request(path, "direct", body, MASTER_KEY, *lines))
        assert self.server.bodies["direct"] == body
        assert through == direct
        return self.server.bodies[name], name

    def row(self, mode: str, name: str) -> Columns:
        gateway = self.gateways[mode]
        wait_until(lambda: name in gateway.rows())
        [row] = gateway.rows()[name]
        return row


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    server = Recorded()
    with served(server.serve) as listening:
        made = {}
        for mode, ledger in SETTINGS.items():
            settings = f"passthrough: {{log: {{file: gateway.log, format: json}}, {ledger}}}"
            made[mode] = LedgerGateway(tmp_path_factory.mktemp(mode), listening.port, settings)
        with serving(*made.values()):
            yield Trial(server, listening.port, made)


def counted(row: Columns) -> tuple[int, int, int]:
    return row["prompt_tokens"], row["completion_tokens"], row["estimated"]


CASES = [(path, name) for path in RECORDED for name in BODIES]


def test_inject_asks_for_usage_and_the_client_does_not_see_it(trial: Trial) -> None:
    asked = {}
    for path, name in CASES:
        body, spliced = BODIES[name]
        got, asked[path, name] = trial.play("inject", path, body)
        assert got == spliced, name
    for (path, name), request_id in asked.items():
        assert counted(trial.row("inject", request_id)) == (*RECORDED[path][1], 0), name


def test_passive_changes_nothing_and_counts_the_chunks(trial: Trial) -> None:
    # from then on the time says nothing: a chunk of this server is known to have one token
    trial.play("passive", CHAT, LONG_BODY)
    asked = {}
    for path, name in CASES:
        body = BODIES[name][0]
        got, asked[path, name] = trial.play("passive", path, body)
        assert got == body, name
    for (path, name), request_id in asked.items():
        row = trial.row("passive", request_id)
        expected = RECORDED[path][1] if name == "asks" else (len(BODIES[name][0]) // 4 + 1, RECORDED[path][1][1])
        assert counted(row) == (*expected, int(name != "asks")), name
        assert row["total_tokens"] == sum(expected)


def test_an_answer_in_gzip_passes_as_it_came_and_is_counted(trial: Trial) -> None:
    zipped = "Accept-Encoding: gzip"
    # who asks for the usage gets the event with it, in whatever encoding
    bodies = [b'{"model":"m"}', BODIES["asks"][0]]
    asked = []
    for mode in MODES:
        for body in bodies:
            got, name = trial.play(mode, CHAT, body, zipped)
            assert got == body
            asked.append((mode, name, (3, 4, 0) if body == bodies[0] else (8, 6, 0)))
    got, name = trial.play("passive", CHAT, BODIES["plain"][0], zipped)
    assert got == BODIES["plain"][0]
    asked.append(("passive", name, (len(got) // 4 + 1, 6, 1)))
    for mode, name, expected in asked:
        if mode != "off":
            assert counted(trial.row(mode, name)) == expected


def test_without_a_ledger_nothing_is_written_or_changed_and_limits_hold(trial: Trial) -> None:
    gateway = trial.gateways["off"]
    for path, name in CASES:
        assert trial.play("off", path, BODIES[name][0])[0] == BODIES[name][0], name
    limited = gateway.administer("/key/generate", rpm_limit=2, tpm_limit=10**6)["key"]
    body = BODIES["plain"][0]
    for _ in range(2):
        answer(gateway.port, request(f"/vllm{CHAT}", "limited", body, limited))
        # a body that is read for its limits is not written into either
        assert trial.server.bodies["limited"] == body
    with connected(gateway.port) as client:
        client.send(request(f"/vllm{CHAT}", "limited", body, limited))
        assert client.read_head().startswith(b"HTTP/1.1 429 ")
    assert not list(gateway.database.parent.glob("*spool*"))
    with closing(open_ledger(gateway.database)) as connection:
        for table in ("usage", "usage_lookups", "usage_sums", "usage_payers", "usage_targets", "usage_marks"):
            assert connection.execute(f"SELECT count(*) FROM vllm_passthrough_{table}").fetchone() == (0,)
