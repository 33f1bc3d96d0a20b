"""Uploads of large files whose model decides: they pass through and are not held, wherever the model stands."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import unchunked
from tests.end_to_end.messages import OK, length_of
from tests.end_to_end.process_harness import (
    BLOCKED,
    MEBIBYTE,
    Connection,
    MeasuredGateway,
    ThreadedServer,
    blocks,
    connected,
    request_head,
    served,
)
from tests.end_to_end.twistd_harness import wait_until

#: bytes of a large upload
LARGE = 100_000_000
#: bytes by which the process may grow for one, what Python and the kernel's buffers make of it included
GROWTH = 4 * MEBIBYTE
#: the cap on what is held before the model; more than `LARGE` here
MOST_HELD = 150_000_000

SETTINGS = """
model_list:
  - {{model_name: whisper, litellm_params: {{model: hosted_vllm/openai/whisper-large-v3, api_base: "http://127.0.0.1:{0}"}}}}
  - {{model_name: plain, litellm_params: {{model: hosted_vllm/plain, api_base: "http://127.0.0.1:{0}"}}}}
  - {{model_name: gone, litellm_params: {{model: hosted_vllm/gone, api_base: "http://127.0.0.1:{1}"}}}}
"""

TYPE = "Content-Type: multipart/form-data; boundary=frontier"
FILE = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--frontier--\r\n"


def field(name: str, value: str) -> bytes:
    return f'--frontier\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


class Upstream:
    """A server that reads forms.

    Attributes:
        heads: the heads that came.
        digests: the hash of each whole body that came.
        received: bytes of the last body that came so far.
        closed: when the last connection was closed before its body was whole.
    """

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.digests: list[str] = []
        self.received = 0
        self.tail = b""
        self.closed = 0.0
        self.server = ThreadedServer(self._serve)

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            self.heads.append(head)
            self.received = 0
            self.tail = b""
            if b"chunked" in head:
                body = unchunked(connection.read_until(b"\r\n0\r\n\r\n"))
                self.digests.append(hashlib.sha256(body).hexdigest())
            else:
                size = length_of(head)
                try:
                    self._read(connection, size)
                except (AssertionError, OSError):
                    self.closed = time.monotonic()
                    return
            connection.send(OK)

    def _read(self, connection: Connection, size: int) -> None:
        seen = hashlib.sha256()
        for piece in connection.pieces(size):
            seen.update(piece)
            self.received += len(piece)
            self.tail = (self.tail + piece)[-1_000:]
        self.digests.append(seen.hexdigest())


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuredGateway]:
    settings = SETTINGS.format(upstream.server.port, free_port())
    directory = tmp_path_factory.mktemp("forms")
    limits = (
        f"passthrough: {{log: {{file: gateway.log, format: json}}, limits: {{max_held_body_bytes: {MOST_HELD}}}}}\n"
    )
    with Formed(directory, upstream.server.port, limits + settings) as made:
        # the first of each kind loads code and widens buffers that stay
        for _ in range(2):
            send_form(made, field("model", "whisper"), 16 * MEBIBYTE, b"")
            send_form(made, b"", 16 * MEBIBYTE, b"\r\n" + field("model", "whisper")[:-2])
        yield made


class Formed(MeasuredGateway):
    """A gateway whose settings are all a test's own."""

    def __init__(self, directory: Path, server: int, settings: str) -> None:
        (directory / "forms.yaml").write_text(settings)
        self.directory = directory
        super().__init__(directory, server, f"--config={directory / 'forms.yaml'}")

    @property
    def held_files(self) -> int:
        """How many files without a name are open."""
        return sum(name.endswith("(deleted)") for name in self.open_files)


def send_form(gateway: MeasuredGateway, before: bytes, size: int, after: bytes) -> None:
    """Send a form with a file of `size` bytes between other fields."""
    length = len(before) + len(FILE) + size + len(after) + len(END)
    with connected(gateway.port) as client:
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, f"Content-Length: {length}"))
        client.send(before + FILE)
        for block in blocks(size):
            client.send(block)
        client.send(after + END)
        assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")


def digest(before: bytes, size: int, after: bytes) -> str:
    found = hashlib.sha256(before + FILE)
    for block in blocks(size):
        found.update(block)
    found.update(after + END)
    return found.hexdigest()


Place = Callable[[str], tuple[bytes, bytes]]


@pytest.mark.parametrize(
    "place",
    [
        lambda model: (field("language", "en") + field("model", model), b""),
        lambda model: (field("language", "en"), b"\r\n" + field("model", model)[:-2]),
    ],
    ids=["first", "last"],
)
@pytest.mark.parametrize(("model", "at_server"), [("whisper", "openai/whisper-large-v3"), ("plain", "plain")])
def test_a_large_form_passes_in_bounded_memory_wherever_its_model_stands(
    gateway: Formed, upstream: Upstream, place: Place, model: str, at_server: str
) -> None:
    before = gateway.forget_peak()
    send_form(gateway, place(model)[0], LARGE, place(model)[1])
    print(f"form of {LARGE:,} bytes: peak +{(gateway.peak - before) / MEBIBYTE:.1f} MiB")
    assert gateway.peak - before < GROWTH
    expected, wanted = place(at_server), upstream.digests[-1]
    assert wanted == digest(expected[0], LARGE, expected[1])
    wait_until(lambda: gateway.held_files == 0)


@pytest.mark.parametrize("first", [True, False])
def test_a_chunked_form_stays_chunked(gateway: Formed, upstream: Upstream, first: bool) -> None:
    parts = [field("model", "whisper"), FILE + b"RIFF" * 1_000 + b"\r\n"]
    form = b"".join(parts if first else parts[::-1]) + END[2:]
    with connected(gateway.port) as client:
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, "Transfer-Encoding: chunked"))
        for at in range(0, len(form), 100):
            piece = form[at : at + 100]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.read_until(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")
    sent = form.replace(b"whisper", b"openai/whisper-large-v3")
    assert upstream.digests[-1] == hashlib.sha256(sent).hexdigest()
    assert b"Transfer-Encoding: chunked\r\n" in upstream.heads[-1]


def test_a_second_model_behind_the_file_is_refused_and_the_server_never_has_the_form(
    gateway: Formed, upstream: Upstream
) -> None:
    whole, closed = len(upstream.digests), upstream.closed
    form = field("model", "whisper") + FILE + bytes(4 * MEBIBYTE) + b"\r\n" + field("model", "other")
    with connected(gateway.port) as client:
        length = len(form) + 10 * MEBIBYTE
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, f"Content-Length: {length}"))
        client.send(form)
        head = client.read_head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"x-vllm-passthrough-error: model_undetermined\r\n" in head
    wait_until(lambda: upstream.closed > closed)
    assert len(upstream.digests) == whole
    assert b'name="model"' not in upstream.tail
    log = gateway.directory / "gateway.log"
    wait_until(lambda: '"error":"model_undetermined"' in log.read_text())
    [line] = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("status") == 400]
    assert (line["outcome"], line["error"]) == ("refused", "model_undetermined")


def test_more_than_may_be_held_before_the_model_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    settings = "passthrough: {limits: {max_held_body_bytes: 3000000}}\n" + SETTINGS.format(upstream.server.port, 1)
    heads = len(upstream.heads)
    with Formed(tmp_path, upstream.server.port, settings) as gateway, connected(gateway.port) as client:
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, "Content-Length: 10000000"))
        client.send(FILE)
        with suppress(ConnectionError):
            for block in blocks(5_000_000):
                client.send(block)
        assert client.read_head().startswith(b"HTTP/1.1 413 ")
        wait_until(lambda: gateway.held_files == 0)
    assert len(upstream.heads) == heads


def test_a_client_that_leaves_takes_what_was_held_with_it(gateway: Formed) -> None:
    with connected(gateway.port) as client:
        client.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, "Content-Length: 100000000"))
        client.send(FILE)
        for block in blocks(4 * MEBIBYTE):
            client.send(block)
        wait_until(lambda: gateway.held_files == 1)
    wait_until(lambda: gateway.held_files == 0)


def test_a_client_that_leaves_a_server_s_queue_takes_what_was_held_with_it(tmp_path: Path) -> None:
    busy = threading.Event()

    def never(connection: Connection) -> None:
        connection.read_head()
        busy.set()
        connection.read_to_end()

    form = FILE + bytes(4 * MEBIBYTE) + b"\r\n" + field("model", "plain")[:-2]
    limits = "passthrough: {limits: {max_concurrent_requests: 1}}\n"
    with (
        served(never) as server,
        Formed(tmp_path, server.port, limits + SETTINGS.format(server.port, 1)) as gateway,
        connected(gateway.port) as first,
    ):
        body = b'{"model":"m","prompt":"x"}'
        head = request_head(
            "POST", "/vllm/v1/completions", "Content-Type: application/json", f"Content-Length: {len(body)}"
        )
        first.send(head + body)
        assert busy.wait(30)
        with connected(gateway.port) as waiting:
            length = f"Content-Length: {len(form) + 10_000_000}"
            waiting.send(request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, length))
            waiting.send(form + END[:-4])
            wait_until(lambda: gateway.held_files == 1)
            waiting.socket.settimeout(BLOCKED)
            with suppress(TimeoutError):
                waiting.read_head()
            assert gateway.held_files == 1
        wait_until(lambda: gateway.held_files == 0)


def test_a_server_that_cannot_be_reached_leaves_nothing_held(gateway: Formed) -> None:
    form = FILE + bytes(4 * MEBIBYTE) + b"\r\n" + field("model", "gone")[:-2]
    with connected(gateway.port) as client:
        client.send(
            request_head("POST", "/vllm/v1/audio/transcriptions", TYPE, f"Content-Length: {len(form) + len(END)}")
        )
        client.send(form + END)
        # 503 if a health check was the first to find out
        assert client.read_head().startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 503 "))
    wait_until(lambda: gateway.held_files == 0)
