"""What uploads of audio used stands in the ledger: by the server's word, or for WAV files as the gateway measures them.

Whichever way the form takes: held, passed on as it comes, or passed on behind the field that names its model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.process_harness import Connection, ThreadedServer, connected
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, Foreground, ask, wait_until

CONFIG = """
passthrough:
  default_prices: {input_cost_per_second: 0.001, input_cost_per_token: 0.1, output_cost_per_token: 0.1}
"""
#: seconds of audio, and the file's bytes for each
SECONDS, RATE = 2, 32_000
ANSWERS = Path(__file__).parents[1] / "usage" / "answers"


def length_in(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


class Recorded:
    """Reads whole forms, and answers with what a vLLM answered.

    Attributes:
        answer: the name of the recorded answer.
        forms: how many came whole.
    """

    def __init__(self) -> None:
        self.answer = ""
        self.forms = 0
        self.server = ThreadedServer(self._serve)

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            if b"chunked" in head.lower():
                connection.read_until(b"\r\n0\r\n\r\n")
            else:
                connection.read(length_in(head))
            self.forms += 1
            if not self.answer:
                # it is at it until the client goes
                connection.read(1)
            body = (ANSWERS / self.answer).read_bytes()
            kind = b"text/event-stream" if self.answer.endswith(".sse") else b"application/json"
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)))
            connection.send(body)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def gateway(upstream: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    directory = tmp_path_factory.mktemp("audio")
    with Configured(directory, upstream.server.port, CONFIG) as made:
        yield made


def make_key(gateway: Foreground, **fields: object) -> str:
    status, text = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", json.dumps(fields))
    assert status == 200, text
    return str(json.loads(text)["key"])


def wav(repeat: int = 1) -> bytes:
    content = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE // 2, RATE, 2, 16)
    samples = bytes(SECONDS * RATE * repeat)
    content += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(content)) + content


def form_of(file: bytes) -> bytes:
    named = b'--XX\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    return named % (b"file", b'; filename="a"', file) + named % (b"model", b"", b"whisper") + b"--XX--\r\n"


def head_of(key: str, length: str, route: str) -> bytes:
    return (
        f"POST /vllm{route} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {key}\r\n{length}\r\n"
        "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
    ).encode()


def upload(gateway: Foreground, key: str, form: bytes, route: str, chunked: bool) -> None:
    with connected(gateway.port) as client:
        if chunked:
            client.send(head_of(key, "Transfer-Encoding: chunked", route))
            for at in range(0, len(form), 10_000):
                piece = form[at : at + 10_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        else:
            client.send(head_of(key, f"Content-Length: {len(form)}", route) + form)
        head = client.read_head()
        assert b" 200 OK" in head
        client.read(length_in(head))


def row_of(gateway: Foreground, key: str) -> dict[str, Any]:
    def rows() -> list[dict[str, Any]]:
        status, text = ask(gateway.port, "/spend/logs", key)
        assert status == 200, text
        found: list[dict[str, Any]] = json.loads(text)
        return found

    wait_until(rows)
    [row] = rows()
    return row


def figures(row: dict[str, Any]) -> tuple[int, int, float, bool]:
    """Return the tokens of prompt and answer, the seconds of audio, and whether they are the gateway's own."""
    told = row["metadata"]
    return row["prompt_tokens"], row["completion_tokens"], told["audio_seconds"], told["estimated"]


#: what the key is limited to, how often the two seconds are in the file, and whether the form comes in chunks
WAYS = {
    "in hand": ({}, 1, False),
    "streaming": ({}, 40, False),
    "streaming in chunks": ({}, 3, True),
    "held whole": ({"tpm_limit": 10_000}, 3, False),
    "held up to its model": ({"tpm_limit": 10_000}, 40, False),
    "held up to its model, in chunks": ({"models": ["whisper"]}, 3, True),
}


@pytest.mark.parametrize(("limits", "repeat", "chunked"), WAYS.values(), ids=WAYS.keys())
def test_a_stream_without_usage_is_counted_by_its_chunks_and_the_length_of_its_wav_file(
    gateway: Foreground, upstream: Recorded, limits: dict[str, object], repeat: int, chunked: bool
) -> None:
    upstream.answer = "transcription.sse"
    key = make_key(gateway, **limits)
    upload(gateway, key, form_of(wav(repeat)), "/v1/audio/transcriptions", chunked)
    row = row_of(gateway, key)
    assert figures(row) == (0, 4, SECONDS * repeat, True)
    assert row["spend"] == pytest.approx(0.001 * SECONDS * repeat + 0.1 * 4)


@pytest.mark.parametrize(
    ("route", "answer", "wanted"),
    [
        # the server says it, rounded up
        ("/v1/audio/transcriptions", "transcription.json", (0, 0, 4, False)),
        ("/v1/audio/transcriptions", "transcription_verbose.json", (0, 0, 3.25, False)),
        # a translation says nothing
        ("/v1/audio/translations", "translation.json", (0, 0, SECONDS, True)),
        # a stream's usage tells tokens, and no seconds
        ("/v1/audio/transcriptions", "transcription_usage.sse", (329, 4, SECONDS, True)),
    ],
)
def test_the_server_s_word_comes_first(
    gateway: Foreground, upstream: Recorded, route: str, answer: str, wanted: tuple[int, int, float, bool]
) -> None:
    upstream.answer = answer
    key = make_key(gateway)
    upload(gateway, key, form_of(wav()), route, False)
    assert figures(row_of(gateway, key)) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("transcription.sse", (0, 4, 0, True)),
        ("transcription_usage.sse", (329, 4, 0, False)),
        ("translation.json", (0, 0, 0, True)),
    ],
)
def test_of_other_files_no_length_is_guessed_and_no_tokens_by_their_size(
    gateway: Foreground, upstream: Recorded, answer: str, wanted: tuple[int, int, float, bool]
) -> None:
    upstream.answer = answer
    key = make_key(gateway)
    upload(gateway, key, form_of(b"ID3" + bytes(100_000)), "/v1/audio/transcriptions", False)
    assert figures(row_of(gateway, key)) == wanted


def test_an_upload_of_any_size_fits_into_a_limit_of_tokens(gateway: Foreground, upstream: Recorded) -> None:
    """It would not if its size in bytes were taken for text."""
    upstream.answer = "transcription.json"
    key = make_key(gateway, tpm_limit=3_000)
    for _ in range(3):
        upload(gateway, key, form_of(wav(20)), "/v1/audio/transcriptions", False)


def test_a_client_that_goes_before_the_answer_is_charged_for_what_it_uploaded(
    gateway: Foreground, upstream: Recorded
) -> None:
    upstream.answer = ""
    key = make_key(gateway)
    form, before = form_of(wav()), upstream.forms
    with connected(gateway.port) as client:
        client.send(head_of(key, f"Content-Length: {len(form)}", "/v1/audio/transcriptions") + form)
        wait_until(lambda: upstream.forms > before)
    assert figures(row_of(gateway, key)) == (0, 0, SECONDS, True)
