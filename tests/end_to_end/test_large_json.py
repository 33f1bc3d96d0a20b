"""Large and hostile JSON bodies: nobody else waits for them, and they take little more memory than themselves."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import length_of, whole
from tests.end_to_end.process_harness import FULL, MEBIBYTE, Connection, MeasuredGateway, ThreadedServer, connected
from tests.end_to_end.twistd_harness import MASTER_KEY, ask

#: bytes of a hostile body
HOSTILE = 64 * MEBIBYTE - 1_024 if FULL else 20_000_000
#: seconds that others may wait beside one: 20 ms, and what a machine takes longer whose cores are shared
LONGEST_WAIT = 0.06
#: the least of so many tries counts, because other work of the machine delays some
TRIES = 4

#: bytes of a vision request, and of each of several at once
VISION = 60_000_000
AT_ONCE = 60_000_000 if FULL else 20_000_000
#: what a body may cost, as a multiple of its size
COST = 1.3

ANSWER = whole(b'{"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}')
BEGIN = b'{"model":"m",'


class Upstream:
    """A server that hashes the bodies that it is sent.

    Attributes:
        digests: their hashes.
    """

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.server = ThreadedServer(self._serve)

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            self.digests.append(connection.digest(length_of(head)))
            connection.send(ANSWER)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuredGateway]:
    port = upstream.server.port
    model = f'{{model_name: m, litellm_params: {{model: hosted_vllm/renamed, api_base: "http://{HOST}:{port}"}}}}'
    directory = tmp_path_factory.mktemp("large")
    with MeasuredGateway(directory, port, settings=f"model_list: [{model}]\n") as made:
        yield made


@pytest.fixture(scope="module")
def key(gateway: MeasuredGateway) -> str:
    status, text = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
    assert status == 200, text
    return str(json.loads(text)["key"])


def post(gateway: MeasuredGateway, key: str, body: bytes, route: str = "chat/completions") -> bytes:
    """Send a body; return the head of the answer."""
    with connected(gateway.port) as client:
        # a body that is refused is not read to its end
        with suppress(ConnectionError):
            client.send(
                b"POST /vllm/v1/%b HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                % (route.encode(), key.encode(), len(body))
            )
            view = memoryview(body)
            for start in range(0, len(view), MEBIBYTE):
                client.socket.sendall(view[start : start + MEBIBYTE])
        with suppress(ConnectionError):
            return client.read_head()
        return b""


def busy_seconds(gateway: MeasuredGateway) -> float:
    """Return the time that the gateway's reactor has run, in seconds: proc(5), ``schedstat``."""
    return int(Path(f"/proc/{gateway.pid}/task/{gateway.pid}/schedstat").read_text().split()[0]) / 1e9


def longest_wait(gateway: MeasuredGateway, attack: Callable[[], object]) -> float:
    """Return how long another client waits at most for the gateway while `attack` runs, in seconds.

    Only the time counts in which the gateway works: on a busy machine both also wait for the machine.
    """
    over = threading.Event()
    longest = 0.0

    def run() -> None:
        try:
            attack()
        finally:
            over.set()

    attacking = threading.Thread(target=run)
    attacking.start()
    with connected(gateway.port) as client:
        while not over.wait(0.002):
            began = busy_seconds(gateway)
            client.send(b"GET /health/liveliness HTTP/1.1\r\nHost: gateway\r\n\r\n")
            head = client.read_head()
            client.read(length_of(head))
            longest = max(longest, busy_seconds(gateway) - began)
    attacking.join()
    return longest


def vision(size: int) -> bytes:
    """A request with 8 images, of `size` bytes together."""
    url = b"data:image/png;base64," + b"iVBORw0KGgoA" * (size // 96)
    images = b",".join([b'{"type":"image_url","image_url":{"url":"%b"}}' % url] * 8)
    return BEGIN + b'"messages":[{"role":"user","content":[{"type":"text","text":"What is it?"},%b]}]}' % images


def filled(begin: bytes, unit: bytes, end: bytes) -> bytes:
    return begin + unit * ((HOSTILE - len(begin) - len(end)) // len(unit)) + end


def numbered(begin: bytes, unit: bytes, end: bytes) -> bytes:
    size = len(unit % 1_000_000) + 1
    return begin + b",".join([unit % (1_000_000 + number) for number in range(HOSTILE // size)]) + end


KINDS: dict[str, Callable[[], bytes]] = {
    "members": lambda: filled(BEGIN + b'"\\u0061":1,', b'"":0,', b'"z":1}'),
    "lists": lambda: filled(BEGIN + b'"\\u0061":[', b"[],", b"[]]}"),
    "objects": lambda: filled(BEGIN + b'"messages":[', b'{"a":1},', b"{}]}"),
    "logit_bias": lambda: numbered(BEGIN + b'"logit_bias":{', b'"%d":1', b"}}"),
    "escaped keys": lambda: numbered(BEGIN + b'"a":{', b'"\\u0061%d":1', b"}}"),
    "long keys": lambda: numbered(BEGIN + b'"a":{', b'"' + b"k" * 900 + b'%d":1', b"}}"),
    "levels": lambda: BEGIN + b'"a":' + b"[" * (HOSTILE // 2) + b"]" * (HOSTILE // 2) + b"}",
    "whitespace": lambda: filled(BEGIN, b" \n\t ", b'"messages":[]}'),
    "short texts": lambda: filled(BEGIN + b'"prompt":[', b'"",', b'""]}'),
    "texts": lambda: filled(BEGIN + b'"prompt":[', b'"' + b"a" * 200 + b'",', b'""]}'),
    "numbers": lambda: filled(BEGIN + b'"prompt":[', b"1,", b"1]}"),
    "floats": lambda: filled(BEGIN + b'"prompt":[', b"-1.5e3,", b"1]}"),
    "a number": lambda: BEGIN + b'"n":' + b"1" * HOSTILE + b"}",
    "Chinese": lambda: filled(BEGIN + b'"prompt":"', "日".encode(), b'"}'),
    "emoji": lambda: filled(BEGIN + b'"prompt":"', "😀".encode(), b'"}'),
    "escapes": lambda: filled(BEGIN + b'"prompt":"', b"\\n", b'"}'),
    "escaped quotes": lambda: filled(BEGIN + b'"prompt":"', b'\\"', b'"}'),
    "codes": lambda: filled(BEGIN + b'"prompt":"', b"\\u65e5", b'"}'),
    "URLs": lambda: filled(BEGIN + b'"messages":[', b'{"image_url":"https://a.example/"},', b"1]}"),
    "no JSON": lambda: b"x" * HOSTILE,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_body_makes_others_wait_20_ms(gateway: MeasuredGateway, key: str, kind: str) -> None:
    """The bound that is asserted has room for the noise of a busy machine; the figure is printed."""
    body = KINDS[kind]()
    waits: list[float] = []
    while not waits or (min(waits) >= LONGEST_WAIT and len(waits) < TRIES):
        waits.append(longest_wait(gateway, lambda: post(gateway, key, body)))
    print(f"{kind}, {len(body) / MEBIBYTE:.0f} MiB: others waited up to {min(waits) * 1000:.1f} ms")
    assert min(waits) < LONGEST_WAIT


def test_the_master_key_s_bodies_are_bounded_too(gateway: MeasuredGateway) -> None:
    body = KINDS["lists"]()
    assert min(longest_wait(gateway, lambda: post(gateway, MASTER_KEY, body)) for _ in range(2)) < LONGEST_WAIT


@pytest.mark.parametrize("kind", ["members", "lists", "levels", "logit_bias"])
def test_what_is_too_complex_is_refused_with_the_bound(gateway: MeasuredGateway, key: str, kind: str) -> None:
    head = post(gateway, key, KINDS[kind]()[:2_000_000] + b"]}")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-vllm-passthrough-error: body_too_complex\r\n" in head


def test_a_60_mb_body_costs_at_most_1_3_times_itself(gateway: MeasuredGateway, upstream: Upstream, key: str) -> None:
    body = vision(VISION)
    post(gateway, key, vision(MEBIBYTE))
    upstream.digests.clear()
    before = gateway.forget_peak()
    assert post(gateway, key, body).startswith(b"HTTP/1.1 200 ")
    cost = (gateway.peak - before) / len(body)
    print(f"a vision request of {len(body) / 1e6:.0f} MB: peak +{cost:.2f} times its size")
    assert cost < COST
    assert upstream.digests == [hashlib.sha256(body.replace(b'"m"', b'"renamed"', 1)).hexdigest()]


def test_eight_large_bodies_at_once_stall_nobody_and_cost_at_most_1_3_times_themselves(
    gateway: MeasuredGateway, upstream: Upstream, key: str
) -> None:
    body = vision(AT_ONCE)
    upstream.digests.clear()
    before = gateway.forget_peak()

    def attack() -> None:
        with ThreadPoolExecutor(8) as pool:
            for head in pool.map(lambda _: post(gateway, key, body), range(8)):
                assert head.startswith(b"HTTP/1.1 200 ")

    waits = [longest_wait(gateway, attack)]
    cost = (gateway.peak - before) / (8 * len(body))
    print(f"8 of {len(body) / 1e6:.0f} MB: peak +{cost:.2f} times, others waited up to {waits[0] * 1000:.1f} ms")
    assert cost < COST
    assert len(upstream.digests) == 8
    assert set(upstream.digests) == {hashlib.sha256(body.replace(b'"m"', b'"renamed"', 1)).hexdigest()}
    while min(waits) >= 2 * LONGEST_WAIT and len(waits) < TRIES:
        waits.append(longest_wait(gateway, attack))
    assert min(waits) < 2 * LONGEST_WAIT


def test_the_memory_of_a_body_is_free_once_its_response_has_begun(gateway: MeasuredGateway, key: str) -> None:
    body = vision(VISION)
    assert post(gateway, key, body).startswith(b"HTTP/1.1 200 ")
    deadline = time.monotonic() + 10
    while (held := gateway.memory) > gateway.peak - len(body) // 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held <= gateway.peak - len(body) // 2
