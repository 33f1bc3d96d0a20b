"""Requests of every kind leave nothing behind in the gateway: no timers, connections or objects."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import LoopingCall, deferLater

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, Wire, eventually, request_bytes, server_at
from tests.end_to_end.messages import CHUNKED_HEAD, OK, chunk
from twisted_vllm.app.traffic import Traffic
from twisted_vllm.config.settings import ModelEntry
from twisted_vllm.observability.metrics.event_loop import EventLoopLag

EVENTS = CHUNKED_HEAD + chunk(b"event")
KEY = f"Authorization: Bearer {MASTER_KEY}".encode()

#: by the path's last segment: what the server sends, and how it then ends the connection, if it does
ACTS: dict[bytes, tuple[bytes, str]] = {
    b"ok": (OK, ""),
    b"stream": (EVENTS + b"0\r\n\r\n", ""),
    b"hang": (b"", ""),
    b"half": (EVENTS, ""),
    b"reset": (EVENTS, "cut"),
    b"short": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "close"),
    b"nonsense": (b"SSH-2.0-OpenSSH_9.7\r\n", ""),
    b"silent": (b"", "close"),
    b"idle": (OK, "close"),
    b"early": (b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", ""),
}

#: what a client sends, and what it waits for before it leaves; empty: it leaves at once; None: the gateway cuts it
KINDS: dict[str, tuple[bytes, bytes | None]] = {
    "answered": (request_bytes("GET", "/vllm/ok"), b"\r\n\r\nok"),
    "pipelined": (request_bytes("GET", "/vllm/stream") + request_bytes("GET", "/vllm/ok"), b"\r\n\r\nok"),
    "posted": (request_bytes("POST", "/vllm/ok", body=bytes(5_000)), b"\r\n\r\nok"),
    "looked into": (request_bytes("POST", "/vllm/v1/completions", body={"model": "here"}), b"\r\n\r\nok"),
    "leaves before the head": (request_bytes("GET", "/vllm/hang"), b""),
    "leaves in mid-stream": (request_bytes("GET", "/vllm/half"), b"event\r\n"),
    "leaves in mid-upload": (request_bytes("POST", "/vllm/hang", body=bytes(5_000))[:-1_000], b""),
    "leaves in mid-head": (request_bytes("GET", "/vllm/ok")[:-2], b""),
    "leaves while its body is collected": (
        request_bytes("POST", "/vllm/v1/completions", body={"model": "here"})[:-2],
        b"",
    ),
    "malformed": (b"GET /vllm/ok HTTP/1.1\r\nHost : h\r\n\r\n", b"malformed_http"),
    "malformed body": (
        request_bytes("POST", "/vllm/hang", headers={"Transfer-Encoding": "chunked"}) + b"1\r\nxx\r\n",
        b"malformed_http",
    ),
    "malformed body in an answer": (
        request_bytes("POST", "/vllm/half", headers={"Transfer-Encoding": "chunked"}) + b"1\r\nx\r\n",
        b"event\r\n",
    ),
    "no key": (request_bytes("GET", "/vllm/ok", None), b"missing_api_key"),
    "no key for an upload": (request_bytes("POST", "/vllm/ok", None, body=bytes(5_000))[:-1_000], b"missing_api_key"),
    "unreachable": (request_bytes("POST", "/vllm/v1/completions", body={"model": "nowhere"}), b"upstream_unreachable"),
    "nonsense": (request_bytes("GET", "/vllm/nonsense"), b"upstream_protocol_error"),
    "silent": (request_bytes("GET", "/vllm/silent"), b"upstream_unreachable"),
    "idle close": (request_bytes("GET", "/vllm/idle"), b"\r\n\r\nok"),
    "early": (request_bytes("POST", "/vllm/early", body=bytes(5_000))[:-1_000], b"\r\n\r\nbig"),
    "reset": (request_bytes("GET", "/vllm/reset"), None),
    "short": (request_bytes("GET", "/vllm/short"), None),
    "admin": (request_bytes("GET", "/key/list"), b'"keys"'),
    "upgrade": (request_bytes("GET", "/vllm/ok", headers={"Connection": "upgrade", "Upgrade": "h2c"}), b"\r\n\r\nok"),
}


def act(connection: Wire) -> None:
    """Do what the path of each request says."""
    while b"\r\n\r\n" in connection.received:
        head, _, connection.received = connection.received.partition(b"\r\n\r\n")
        if b" HTTP/1.1" not in head:
            continue
        data, ending = ACTS.get(head.split(b" ")[1].rpartition(b"/")[2], ACTS[b"ok"])
        connection.send(data)
        if ending:
            ensureDeferred(end(connection, ending))


async def end(connection: Wire, how: str) -> None:
    # a reset overtakes what was not yet read
    for _ in range(5):
        await connection.next_turn()
    if connection.lost is None:
        getattr(connection, how)()


async def play(gateway: Gateway, kind: str) -> None:
    """Make one request of this kind."""
    raw, awaited = KINDS[kind]
    client = await gateway.send(raw)
    if awaited is None:
        await client.until_lost()
        return
    await client.until_received(awaited)
    if not awaited:
        for _ in range(3):
            await client.next_turn()
    client.cut()
    await client.until_lost()


async def settle(reactor: Any, gateway: Gateway, kind: str) -> None:
    """Make one request of this kind, and let everything that follows from it come to its end."""
    await play(gateway, kind)
    for _ in range(200):
        if not gateway.service.site.connections:
            break
        await deferLater(reactor, 0, lambda: None)
    assert not gateway.service.site.connections
    # idle connections to the server reach their age
    gateway.pass_time(10)
    for _ in range(10):
        await deferLater(reactor, 0, lambda: None)


async def ledger_is_written(reactor: Any, gateway: Gateway) -> None:
    """Wait until the ledger's thread has done all its work: its first row opens files, and its first sum has a mark."""
    writer = gateway.service.wiring.accounting.writer
    assert writer is not None
    await eventually(reactor, lambda: not (writer.pending().rows or writer.pending().gathered))


def objects() -> Counter[str]:
    """Count the objects of this package's classes, less those that a collection finds unused."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        # rows wait in the spool until the database has them, and the clock of the test starts the database's work
        if kind.__module__.startswith("twisted_vllm.")
        and not kind.__module__.startswith(("twisted_vllm.usage.spool.spool", "twisted_vllm.storage.deadline"))
        # the kinds of lines that were written: a server that fails often enough causes further ones
        and kind.__module__ != "twisted_vllm.observability.logging.repeats"
        # it begins to remember a minute after the start
        and kind.__module__ != "twisted_vllm.observability.problems.memory"
    )


def is_regular(function: Any) -> bool:
    """Return whether a timer calls what is called all the time, whatever is requested."""
    return isinstance(function, LoopingCall) or isinstance(getattr(function, "__self__", None), EventLoopLag | Traffic)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_of_any_kind_leaves_nothing_behind(
    reactor: Any, stand_in: Any, gateway_to: Any, kind: str
) -> None:
    nowhere = free_port()
    server = stand_in()
    server.respond = act
    gateway = gateway_to(server_at(server.port), models=(ModelEntry("nowhere", "nowhere", server_at(nowhere)),))
    for _ in range(2):
        # the first request fills the header cache, the second the authorization cache
        await settle(reactor, gateway, kind)
    await ledger_is_written(reactor, gateway)
    before = objects()
    for _ in range(4):
        await settle(reactor, gateway, kind)
    await ledger_is_written(reactor, gateway)
    assert objects() - before == Counter()
    # only the deadlines' and the database's periodic calls are left
    assert [call for call in gateway.clock.getDelayedCalls() if not is_regular(call.func)] == []
    assert len(gateway.service.site.ids) == 0
