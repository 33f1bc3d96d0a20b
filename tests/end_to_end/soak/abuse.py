"""What strangers, tenants and servers do at their worst: each kind one small function that checks what it gets."""

from __future__ import annotations

import json
import random
import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

from tests.end_to_end.messages import length_of
from tests.end_to_end.process_harness import MEBIBYTE, Connection, connect
from tests.end_to_end.soak.server import SCRIPTS, chat
from twisted_vllm.simulator.faults import Ending

#: the size of a hostile body
SIZE = 20_000_000
#: seconds of patience of the gateway, from its settings, and how much later it may act
PATIENCE, LATE = 2.0, 3.0
#: bytes of an answer's beginning and end that are looked at
KEPT = 4_096
_INTERIM = re.compile(rb"\A(?:HTTP/1\.1 1\d\d [^\n]*\n(?:[^\r\n]+\r\n)*\r\n)+")
#: the codes of a refusal; 503 is one for which there is no room
REFUSED = frozenset((400, 401, 403, 404, 405, 408, 413, 422, 429, 431, 503))
ANSWERED = REFUSED | {200}

HONEST_BODY = {"model": "good", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
CHAT = "/vllm/v1/chat/completions"
COMPLETIONS = "/vllm/v1/completions"
RESPONSES = "/vllm/v1/responses"
FORM = "/vllm/v1/audio/transcriptions"
HEALTH = b"GET /health/liveliness HTTP/1.1\r\nHost: gateway\r\n\r\n"
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Abuser:
    """Somebody with a key who does what a kind says.

    Attributes:
        key: the tenant's key.
        port: the gateway's port.
        chance: chooses.
    """

    def __init__(self, port: int, key: str, seed: int) -> None:
        self.port = port
        self.key = key
        self.chance = random.Random(seed)
        self._opened: list[Connection] = []

    def let_go(self) -> None:
        """Close what a kind has left open."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()

    def head(self, method: str, target: str, *lines: str, key: str | None = None, length: int | None = None) -> bytes:
        """Return a request's head with the tenant's key, another, or with none if that is empty."""
        key = self.key if key is None else key
        found = [f"{method} {target} HTTP/1.1", "Host: gateway", *lines]
        if key:
            found.append(f"Authorization: Bearer {key}")
        if length is not None:
            found.append(f"Content-Length: {length}")
        return "\r\n".join([*found, "", ""]).encode("latin-1")

    def send(self, raw: bytes, receive_buffer: int = 0) -> Connection:
        """Open a connection and send these bytes; the gateway may answer, and close, before it took them all."""
        connection = connect(self.port, receive_buffer)
        self._opened.append(connection)
        with suppress(ConnectionError):
            connection.send(raw)
        return connection

    def status_of(self, connection: Connection) -> int:
        """Return the status of the next answer, which is read to its end if it has a length; 0 if there is none."""
        try:
            head = connection.read_head()
        except ConnectionError:
            return 0
        with suppress(ConnectionError):
            connection.read(length_of(head))
        return int(head[9:12]) if head else 0

    def ask(self, raw: bytes) -> int:
        """Send a request on a connection of its own; return the status."""
        connection = self.send(raw)
        try:
            return self.status_of(connection)
        finally:
            connection.close()

    def post(self, target: str, body: bytes, *lines: str, key: str | None = None) -> int:
        kind = () if any(line.startswith("Content-Type") for line in lines) else ("Content-Type: application/json",)
        connection = self.send(self.head("POST", target, *kind, *lines, key=key, length=len(body)))
        with suppress(ConnectionError):
            connection.send(body)
        status = self.status_of(connection)
        connection.close()
        return status

    def everything(self, raw: bytes) -> bytes:
        """Send a request; return the beginning and the end of what comes until the gateway closes or falls silent.

        Interim responses are left out.
        """
        connection = self.send(raw)
        connection.socket.settimeout(8.0)
        begin = end = b""
        with suppress(OSError):
            while piece := connection.socket.recv(262_144):
                begin = _INTERIM.sub(b"", begin + piece) if len(begin) < KEPT else begin
                end = (end + piece)[-KEPT:]
        connection.close()
        return begin[:KEPT] + end

    def drips(self, first: bytes, again: bytes) -> None:
        """Send a beginning, and then a little from time to time: that must not keep a connection for long."""
        connection = self.send(first)
        began = time.monotonic()
        try:
            while time.monotonic() - began < PATIENCE + LATE:
                time.sleep(0.25)
                with suppress(ConnectionError):
                    connection.send(again)
                if _has_ended(connection):
                    return
            raise AssertionError(f"{first[-40:]!r} and drops of {again!r} keep a connection")
        finally:
            connection.close()


def status_in(answer: bytes) -> int:
    """Return the status of an answer; 0 if there is none, or only an interim one."""
    status = int(answer[9:12]) if answer[:9] == b"HTTP/1.1 " else 0
    return status if status >= 200 else 0


def _has_ended(connection: Connection) -> bool:
    """Return whether the gateway has closed; what it sent before is read."""
    while select.select([connection.socket], [], [], 0)[0]:
        try:
            if not connection.socket.recv(65_536):
                return True
        except ConnectionError:
            return True
    return False


Kind = Callable[[Abuser], None]
KINDS: dict[str, Kind] = {}


def kind(act: Kind) -> Kind:
    """Add a kind of abuse."""
    KINDS[act.__name__] = act
    return act


def _is(status: int, allowed: Sequence[int] | frozenset[int] = ANSWERED) -> None:
    assert status in allowed, status


# bodies


def _distinct() -> bytes:
    return b",".join(b'"%d":1' % number for number in range(SIZE // 11))


#: how each hostile body is made. The server behind them is not the honest clients' one, whose time they would take.
_BODIES: dict[str, Callable[[], bytes]] = {
    "members": lambda: b'{"model":"broken","\\u0061":1,' + b'"":0,' * (SIZE // 5) + b'"z":1}',
    "lists": lambda: b'{"model":"broken","\\u0061":[' + b"[]," * (SIZE // 3) + b"[]]}",
    "logit bias": lambda: b'{"model":"broken","prompt":"a","logit_bias":{' + _distinct() + b"}}",
    "distinct members": lambda: b'{"model":"broken",' + _distinct() + b"}",
    "deep": lambda: b'{"model":"broken","\\u0061":' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}",
    "escaped keys": lambda: b'{"\\u006dodel":"broken",' + b'"\\u0061":0,' * (SIZE // 11) + b'"prompt":"a"}',
    "messages": lambda: b'{"model":"broken","messages":[' + b"{}," * (SIZE // 3) + b"{}]}",
    "number": lambda: b'{"model":"broken","prompt":"a","max_tokens":' + b"9" * SIZE + b"}",
    "no end": lambda: b'{"model":"broken","messages":' + b"[" * SIZE,
}
_VISION = (
    b'{"model":"broken","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image_url",'
    b'"image_url":{"url":"data:image/png;base64,%b"}}]}]}'
)


@cache
def _body(name: str) -> bytes:
    """Return a body; it is made once."""
    return _VISION % (b"QUJD" * (SIZE // 4)) if name == "vision" else _BODIES[name]()


def _hostile(name: str) -> None:
    def act(abuser: Abuser) -> None:
        _is(abuser.post(COMPLETIONS if name != "messages" else CHAT, _body(name)))

    act.__name__ = f"hostile body: {name}"
    kind(act)


for _name in _BODIES:
    _hostile(_name)


@kind
def vision(abuser: Abuser) -> None:
    _is(abuser.post(CHAT, _body("vision")), (200, 413, 429, 503))


@kind
def long_model_name(abuser: Abuser) -> None:
    name = f"{abuser.chance.random()}" + "m" * 5_000_000
    _is(abuser.post(COMPLETIONS, json.dumps({"model": name, "prompt": "a"}).encode()))


@kind
def hostile_admin_body(abuser: Abuser) -> None:
    _is(abuser.post("/key/generate", b'{"metadata":{"a":[' + b"[]," * 330_000 + b"0]}}"), (400, 403, 413, 429, 503))


@kind
def large_body_of_an_unknown_key(abuser: Abuser) -> None:
    _is(abuser.post(COMPLETIONS, _body("lists"), key="sk-unknown-0000000000000000"), (0, 401, 429))


# strangers


@kind
def unfinished_posts(abuser: Abuser) -> None:
    part = abuser.head("POST", "/nothing-here", "Content-Type: application/json", key="", length=MEBIBYTE)
    held = [abuser.send(part) for _ in range(20)]
    for each in held:
        each.socket.settimeout(0.2)
        with suppress(OSError):
            each.send(bytes(MEBIBYTE - 1))
    deadline = time.monotonic() + 2 * (PATIENCE + LATE)
    while held and time.monotonic() < deadline:
        time.sleep(0.2)
        for each in [each for each in held if _has_ended(each)]:
            each.close()
            held.remove(each)
    for each in held:
        each.close()
    assert not held, f"{len(held)} unfinished requests of strangers are held"


@kind
def slow_head(abuser: Abuser) -> None:
    abuser.drips(b"GET / HTTP/1.1\r\nHost: h\r\nx: ", b"a")


@kind
def slow_lines(abuser: Abuser) -> None:
    abuser.drips(b"GET / HTTP/1.1\r\nHost: h\r\n", b"a: b\r\n")


@kind
def blank_lines(abuser: Abuser) -> None:
    abuser.drips(b"\r\n", b"\r\n")


@kind
def slow_body(abuser: Abuser) -> None:
    connection = abuser.send(abuser.head("POST", COMPLETIONS, "Content-Type: application/json", length=1_000) + b"{")
    time.sleep(PATIENCE)
    _is(abuser.status_of(connection), (408, 503, 429))
    connection.close()


@kind
def chunk_extension(abuser: Abuser) -> None:
    abuser.drips(abuser.head("POST", COMPLETIONS, "Transfer-Encoding: chunked") + b"5;a=", b"b")


@kind
def chunk_zeros(abuser: Abuser) -> None:
    abuser.drips(abuser.head("POST", COMPLETIONS, "Transfer-Encoding: chunked") + b"0", b"0")


@kind
def slow_trailers(abuser: Abuser) -> None:
    abuser.drips(abuser.head("POST", COMPLETIONS, "Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n", b"t: a\r\n")


@kind
def silent_sockets(abuser: Abuser) -> None:
    held = [abuser.send(b"") for _ in range(60)]
    time.sleep(PATIENCE)
    for each in held:
        each.close()


@kind
def pipelines(abuser: Abuser) -> None:
    connection = abuser.send(HEALTH * 200)
    assert [abuser.status_of(connection) for _ in range(200)] == [200] * 200
    connection.close()


@kind
def scrapes(abuser: Abuser) -> None:
    connection = abuser.send(b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n" * 50)
    for _ in range(50):
        _is(abuser.status_of(connection), (200, 429))
    connection.close()


@kind
def pipelined_errors(abuser: Abuser) -> None:
    connection = abuser.send(abuser.head("GET", "/vllm/v1/models", key="") * 200)
    assert [abuser.status_of(connection) for _ in range(200)] == [401] * 200
    connection.close()


@kind
def half_closed(abuser: Abuser) -> None:
    connection = abuser.send(HEALTH)
    connection.socket.shutdown(socket.SHUT_WR)
    _is(abuser.status_of(connection), (0, 200))
    connection.close()
    connection = abuser.send(abuser.head("POST", COMPLETIONS, length=100) + b"{")
    connection.socket.shutdown(socket.SHUT_WR)
    connection.read_to_end()
    connection.close()


@kind
def resets(abuser: Abuser) -> None:
    for number in range(30):
        abuser.send(HEALTH if number % 2 else abuser.head("POST", COMPLETIONS, length=10_000) + b"{").reset()


@kind
def unread_answers(abuser: Abuser) -> None:
    held = [abuser.send(b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n" * 50, receive_buffer=4_096) for _ in range(5)]
    time.sleep(1.0)
    for each in held:
        each.close()


@kind
def key_guessing(abuser: Abuser) -> None:
    for _ in range(50):
        key = f"sk-{abuser.chance.getrandbits(128):032x}"
        _is(abuser.ask(abuser.head("GET", "/vllm/v1/models", key=key)), (401, 429))


@kind
def long_paths(abuser: Abuser) -> None:
    path = f"/{abuser.chance.random()}" + "p" * 60_000
    for prefix, allowed in (("", (404, 414, 431)), ("/vllm", (401, 414, 431))):
        _is(abuser.ask(abuser.head("GET", prefix + path, key="")), allowed)


@kind
def unusual_hosts(abuser: Abuser) -> None:
    for host in ("", " ", "a b", "a,b", "a/b", "u@a", "[::1", "a:b:c", "h" * 10_000, "\xe9"):
        raw = HEALTH.replace(b"Host: gateway", b"Host: " + host.encode("latin-1"))
        _is(abuser.ask(raw))


@kind
def malformed(abuser: Abuser) -> None:
    for raw in (
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        _is(abuser.ask(raw), (400, 408, 505))


@kind
def large_heads(abuser: Abuser) -> None:
    many = [f"x-{abuser.chance.getrandbits(60)}: a" for _ in range(400)]
    for lines in (many, ["x: " + "a" * 100_000]):
        _is(abuser.ask(abuser.head("GET", "/vllm/v1/models", *lines, key="")), (431,))


@kind
def preflights_with_bodies(abuser: Abuser) -> None:
    lines = ("Origin: https://app.example", "Access-Control-Request-Method: POST")
    _is(abuser.ask(abuser.head("OPTIONS", CHAT, *lines, key="", length=100_000) + bytes(100_000)))
    _is(
        abuser.ask(
            abuser.head("OPTIONS", CHAT, *lines, "Transfer-Encoding: chunked", key="") + b"5\r\naaaaa\r\n0\r\n\r\n"
        )
    )
    _is(abuser.ask(abuser.head("OPTIONS", CHAT, *lines, key="")))


# tenants


def _leave(abuser: Abuser, connection: Connection) -> None:
    if abuser.chance.random() < 0.5:
        connection.reset()
    else:
        connection.close()


@kind
def read_only_flood(abuser: Abuser) -> None:
    connection = abuser.send(abuser.head("GET", "/vllm/v1/models") * 200)
    for _ in range(200):
        _is(abuser.status_of(connection), (200, 429))
    connection.close()


@kind
def refused_flood(abuser: Abuser) -> None:
    raw = abuser.head("POST", "/vllm/v1/load_lora_adapter", "Content-Type: application/json", length=2) + b"{}"
    connection = abuser.send(raw * 200)
    for _ in range(200):
        _is(abuser.status_of(connection), (403, 429))
    connection.close()


@kind
def wide_reports(abuser: Abuser) -> None:
    target = "/usage/report?group_by=end_user,model,route&interval=hour"
    held = [abuser.send(abuser.head("GET", target)) for _ in range(4)]
    for each in held:
        _is(abuser.status_of(each), (200, 429, 503))
        each.close()


@kind
def form_without_model(abuser: Abuser) -> None:
    file = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + bytes(3 * MEBIBYTE)
        + b"\r\n--b--\r\n"
    )
    _is(abuser.post(FORM, file, "Content-Type: multipart/form-data; boundary=b"))


@kind
def body_of_no_known_type(abuser: Abuser) -> None:
    _is(abuser.post(COMPLETIONS, bytes(3 * MEBIBYTE), "Content-Type: application/octet-stream"))


@kind
def continue_never_comes(abuser: Abuser) -> None:
    abuser.send(abuser.head("POST", COMPLETIONS, "Expect: 100-continue", length=1_000)).close()


@kind
def abandoned_web_sockets(abuser: Abuser) -> None:
    for number in range(6):
        connection = abuser.send(abuser.head("GET", "/vllm/v1/realtime", *HANDSHAKE))
        if number % 2:
            connection.read_head()
            with suppress(ConnectionError):
                connection.send(b"\x81\xfe\xff\xff" + bytes(100))
        connection.close()


@kind
def cut_streams(abuser: Abuser) -> None:
    body = json.dumps({**HONEST_BODY, "max_tokens": 500, "stream": True, "ignore_eos": True}).encode()
    connection = abuser.send(abuser.head("POST", CHAT, "Content-Type: application/json", length=len(body)) + body)
    connection.read_until(b"data: ")
    _leave(abuser, connection)


@kind
def leaves_before_the_answer(abuser: Abuser) -> None:
    body = chat(stream=False)
    lines = ("X-Script: silence", "Content-Type: application/json")
    connection = abuser.send(abuser.head("POST", CHAT, *lines, length=len(body)) + body)
    time.sleep(0.2)
    _leave(abuser, connection)


@kind
def leaves_in_mid_upload(abuser: Abuser) -> None:
    kind_line = "Content-Type: multipart/form-data; boundary=b"
    connection = abuser.send(abuser.head("POST", FORM, kind_line, length=10 * MEBIBYTE) + bytes(100_000))
    _leave(abuser, connection)


@kind
def unread_streams(abuser: Abuser) -> None:
    body = json.dumps({**HONEST_BODY, "max_tokens": 2_000, "stream": True, "ignore_eos": True}).encode()
    raw = abuser.head("POST", CHAT, "Content-Type: application/json", length=len(body)) + body
    connection = abuser.send(raw, receive_buffer=4_096)
    time.sleep(1.5)
    connection.close()


@kind
def background_never_polled(abuser: Abuser) -> None:
    _is(abuser.post(RESPONSES, json.dumps({"model": "broken", "input": "hi", "background": True}).encode()))


@kind
def more_than_parallel(abuser: Abuser) -> None:
    body = json.dumps({**HONEST_BODY, "max_tokens": 100}).encode()
    raw = abuser.head("POST", CHAT, "Content-Type: application/json", length=len(body)) + body
    held = [abuser.send(raw) for _ in range(12)]
    for each in held:
        _is(abuser.status_of(each), (200, 429))
        each.close()


# servers


def _scripted(name: str) -> None:
    def act(abuser: Abuser) -> None:
        body = chat(stream="event" in name or "chunk" in name)
        lines = (f"X-Script: {name}", "Content-Type: application/json", "Connection: close")
        found = abuser.everything(abuser.head("POST", CHAT, *lines, length=len(body)) + body)
        assert b"poison" not in found
        _is(status_in(found), (0, 200, 429, 502, 503, 504))
        # whoever comes next gets an answer of its own
        body = chat(stream=False)
        raw = abuser.head("POST", CHAT, "Content-Type: application/json", "Connection: close", length=len(body)) + body
        assert b"poison" not in abuser.everything(raw)

    act.__name__ = f"server: {name}"
    kind(act)


for _name in SCRIPTS:
    _scripted(_name)


def _simulated(fault: str) -> None:
    def act(abuser: Abuser) -> None:
        body = json.dumps({**HONEST_BODY, "stream": abuser.chance.random() < 0.5}).encode()
        lines = (f"X-Simulate: {fault}", "Content-Type: application/json", "Connection: close")
        found = abuser.everything(abuser.head("POST", CHAT, *lines, length=len(body)) + body)
        _is(status_in(found), (0, 200, 429, 500, 502, 504))

    act.__name__ = f"vLLM: {fault}"
    kind(act)


for _name in (*Ending, "status=500"):
    _simulated(_name)
