"""What callers and servers name stays in memory only within bounds: a walk over every object shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import ip_network
from itertools import count
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.conftest import MakeGateway, MakeStandIn
from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, Wire, request_bytes
from tests.end_to_end.held_objects import Container, HeldObjects
from tests.end_to_end.messages import LAST, chunk, length_of, whole
from twisted_vllm.config.settings import LedgerSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import Lifecycle, RequestObserver
from twisted_vllm.usage.spool.spool import Spool

#: stands in every text that a caller or a server chooses
MARK = "Zq7mark"
#: requests of each kind with long texts, and the length of these in characters
LONG_REQUESTS, LONG = 3, 30_000
#: the longest text of a caller or a server that may stay: a name that is cut for the log
LONGEST_KEPT = 2_048
#: bytes by which the process may grow through all of them
LONG_GROWTH = 2_000_000
#: requests of each kind with short texts; a container that holds half of them is a cache
SHORT_REQUESTS = 300
#: bytes by which the process may grow through all of them
SHORT_GROWTH = 12_000_000

#: containers that grow with requests and are bounded in another way than by `BoundedCache`, with their most entries.
#: Whoever adds one states its bound here, and tests it where it is.
BOUNDED_OTHERWISE = {
    "_NameEncoder._canonicalHeaderCache": 10_000,
    "References.targets": 25_000,
    "References.payers": 25_000,
    "MinuteCounts._counts": 10_000,
    # what is added up together: 40,000 things, of 200,000 rows at most
    "GatheredSums.payers": 40_000,
    "GatheredSums.lookups": 40_000,
    "GatheredSums.models": 40_000,
    "GatheredSums.payer_texts": 40_000,
    # the cursors of sqlite3, which drops those of old after 200
    "_ConnectionRecord.dbapi_connection": 256,
}

Text = Callable[[], str]


def chat(text: Text, key: str) -> bytes:
    body = {
        "model": text(),
        "user": text(),
        "messages": [{"role": "user", "content": text()}],
        "metadata": {"tags": [text()]},
        "stream": True,
    }
    return request_bytes("POST", f"/vllm/v1/chat/completions?{text()}", key, headers=headers(text), body=body)


def headers(text: Text) -> dict[str, str]:
    # most heads are limited to 64 KiB together
    return {
        f"X-{text()}": "1",
        "Host": f"{text()}.example",
        "X-Request-Id": text()[:128],
        "User-Agent": text()[:4_000],
        "Origin": f"http://{text()[:4_000]}",
        "Traceparent": text()[:4_000],
        "X-Litellm-End-User-Id": text()[:4_000],
        "X-Litellm-Tags": text()[:4_000],
        "Accept": text()[:4_000],
    }


def form(text: Text, key: str) -> bytes:
    boundary = text()[:70]
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{text()}\r\n--{boundary}--\r\n'
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return request_bytes("POST", "/vllm/v1/audio/transcriptions", key, headers=kind, body=body.encode())


def response(text: Text, key: str) -> bytes:
    body = {"model": text(), "input": text(), "request_id": text(), "previous_response_id": text()}
    return request_bytes("POST", "/vllm/v1/responses", key, body=body)


def stored(text: Text, key: str) -> bytes:
    return request_bytes("GET", f"/vllm/v1/responses/{text()}", MASTER_KEY)


def unknown_path(text: Text, key: str) -> bytes:
    return request_bytes("GET", f"/vllm/{text()}?{text()[:4_000]}", MASTER_KEY)


def adapter(text: Text, key: str) -> bytes:
    named = {"X-Vllm-Lora-Adapter": text(), "Content-Type": f"application/json; n={text()[:4_000]}"}
    return request_bytes("POST", "/vllm/invocations", MASTER_KEY, headers=named, body=json.dumps({"model": 1}).encode())


def stranger(text: Text, key: str) -> bytes:
    forged = {"X-Forwarded-For": f"2001:db8:{next(NUMBERS):x}::1", "Cookie": text()[:4_000]}
    return request_bytes("GET", f"/vllm/v1/{text()[:4_000]}", text(), headers=forged)


def nobody(text: Text, key: str) -> bytes:
    return request_bytes("GET", f"/{text()[:9_000]}?{text()[:9_000]}", None, headers=headers(text))


def administration(text: Text, key: str) -> bytes:
    return request_bytes("GET", f"/key/info?key={text()}", key, headers={f"X-{text()[:9_000]}": "1"})


def unauthorized(text: Text, key: str) -> bytes:
    return request_bytes("POST", "/key/generate", text(), body={"key_alias": text(), text(): 1})


def log_in(text: Text, key: str) -> bytes:
    return request_bytes("POST", f"/key/{text()}/regenerate", text()[:9_000], body={})


NUMBERS = count()
KINDS = (
    chat,
    form,
    response,
    stored,
    unknown_path,
    adapter,
    stranger,
    nobody,
    administration,
    unauthorized,
    log_in,
)


class Server:
    """A server whose answers name something new each time."""

    def __init__(self) -> None:
        self.text: Text = lambda: ""

    def respond(self, wire: Wire) -> None:
        head, end, body = wire.received.partition(b"\r\n\r\n")
        if not end or len(body) < length_of(head):
            return
        wire.received = b""
        if head.startswith(b"GET /v1/models"):
            cards = [{"id": self.text()} for _ in range(3)]
            wire.send(whole(json.dumps({"data": cards}).encode(), more=f"X-{self.text()[:9_000]}: 1\r\n"))
        elif b"chat" in head:
            named = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; n={self.text()}\r\nX-{self.text()}: 1\r\n"
            wire.send(named.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + self._stream() + LAST)
        else:
            answer = {"id": self.text(), "model": self.text(), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
            wire.send(whole(json.dumps(answer).encode(), kind=f"application/json; n={self.text()}"))

    def _stream(self) -> bytes:
        name, mark = self.text(), self.text()
        event = {"id": name, "choices": [{"index": 0, "delta": {"content": name}, "finish_reason": "stop"}]}
        usage = {"id": name, "choices": [], "usage": {"prompt_tokens": 1}, "system_fingerprint": mark}
        return b"".join(chunk(b"data: %b\n\n" % json.dumps(each).encode()) for each in (event, usage))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def gateway(gateway_to: MakeGateway, stand_in: MakeStandIn, server: Server) -> Gateway:
    behind = stand_in()
    behind.respond = server.respond
    ledger = LedgerSettings(usage_headers=("x-litellm-tags",))
    return gateway_to(behind.port, trusted_proxies=(ip_network("127.0.0.0/8"),), ledger=ledger)


async def send_all(gateway: Gateway, requests: Iterable[bytes]) -> None:
    """Send requests, each after the answer to the one before, on a connection that stays open."""
    client = await gateway.connect()
    for raw in requests:
        if client.lost is not None:
            client = await gateway.connect()
        await send(client, raw)


async def send(client: Wire, raw: bytes) -> None:
    client.received = b""
    client.send(raw)
    await client.until(lambda: client.lost is not None or ended(client.received))


def ended(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if b"ransfer-encoding: chunked" in head.lower().replace(b"T", b"t"):
        return body.endswith(LAST)
    return bool(end) and len(body) >= length_of(head)


async def feed(gateway: Gateway, server: Server, text: Text, each: int) -> None:
    """Send so many requests of each kind."""
    server.text = text
    key = await gateway.make_key(rpm_limit=10**6, tpm_limit=10**9, max_budget=1_000.0)
    for kind in KINDS:
        await send_all(gateway, (kind(text, key) for _ in range(each)))


def long_texts() -> Iterator[str]:
    return (f"{MARK}{number:08}".ljust(LONG, "m") for number in NUMBERS)


def short_texts() -> Iterator[str]:
    return (f"{MARK}{number:08}" for number in NUMBERS)


async def held(gateway: Gateway) -> HeldObjects:
    """Return what the process keeps once the log is written and the ledger's rows are in the database."""
    gateway.log_text()
    spool = gateway.service.wiring.accounting.spool
    assert isinstance(spool, Spool)
    client = await gateway.connect()
    while spool.backlog().rows:
        await client.next_turn()
    client.close()
    await client.until_lost()
    return HeldObjects(gateway.service, MARK)


@pytest_twisted.ensureDeferred
async def test_no_long_text_of_a_caller_or_a_server_stays(gateway: Gateway, server: Server) -> None:
    await feed(gateway, server, short_texts().__next__, 1)
    before = await held(gateway)
    await feed(gateway, server, long_texts().__next__, LONG_REQUESTS)
    after = await held(gateway)
    print(f"{len(KINDS) * LONG_REQUESTS} requests with texts of {LONG}: +{after.size - before.size} bytes")
    assert [each for each in after.texts if each[0] > LONGEST_KEPT] == []
    assert after.size - before.size < LONG_GROWTH


@pytest_twisted.ensureDeferred
async def test_every_container_that_grows_with_requests_has_a_bound(gateway: Gateway, server: Server) -> None:
    await feed(gateway, server, short_texts().__next__, 1)
    before = await held(gateway)
    await feed(gateway, server, short_texts().__next__, SHORT_REQUESTS)
    after = await held(gateway)
    grown = after.grown_since(before, SHORT_REQUESTS // 2)
    print(f"{len(KINDS) * SHORT_REQUESTS} requests: +{after.size - before.size} bytes", *grown, sep="\n")
    assert unbounded(grown) == []
    assert after.size - before.size < SHORT_GROWTH


def unbounded(containers: Iterable[Container]) -> list[Container]:
    return [each for each in containers if each.length > (each.bound or BOUNDED_OTHERWISE.get(each.name, 0))]


class Passing(RequestObserver):
    """Notifies other observers."""

    def __init__(self, others: Lifecycle) -> None:
        self._others = others

    def finished(self, context: RequestContext) -> None:
        self._others.finished(context)


class Hoarder(RequestObserver):
    """Keeps something of each request for ever, as if it were a part of the gateway."""

    __module__ = "twisted_vllm.tomorrow"

    def __init__(self, what: Callable[[RequestContext], Any]) -> None:
        self.kept: dict[Any, bool] = {}
        self._what = what

    def finished(self, context: RequestContext) -> None:
        self.kept[self._what(context)] = True


HOARDED: tuple[Callable[[RequestContext], Any], ...] = (
    lambda context: context.head.target,
    lambda context: tuple(context.head.headers),
    lambda context: context.end_user,
    lambda context: context.model,
    lambda context: context.request_id,
    cache(lambda context: context.head.target),
)


@pytest_twisted.ensureDeferred
async def test_the_walk_finds_caches_without_a_bound(gateway: Gateway, server: Server) -> None:
    site = gateway.service.site
    site.lifecycle = Lifecycle([Passing(site.lifecycle), *map(Hoarder, HOARDED)])
    before = await held(gateway)
    await feed(gateway, server, short_texts().__next__, 20)
    found = [each.name for each in unbounded((await held(gateway)).grown_since(before, 20))]
    assert found.count("Hoarder.kept") == len(HOARDED)
    assert "Hoarder._what" in found
