"""The usage of audio uploads in the ledger: as the server reports it, or, for WAV files, as the gateway measures it.

Whether the form is held, passed on as it comes, or passed on behind the field that names its model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import length_of, whole
from tests.end_to_end.process_harness import Connection, ThreadedServer, connected
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, Foreground, ask, wait_until

CONFIG = """
passthrough:
  default_prices: {input_cost_per_second: 0.001, input_cost_per_token: 0.1, output_cost_per_token: 0.1}
"""
#: seconds of audio, and the file's bytes for each
SECONDS, RATE = 2, 32_000
ANSWERS = Path(__file__).parents[1] / "usage" / "answers"


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
                connection.read(length_of(head))
            self.forms += 1
            if not self.answer:
                # no answer: wait for the client to leave
                connection.read(1)
            body = (ANSWERS / self.answer).read_bytes()
            kind = "text/event-stream" if self.answer.endswith(".sse") else "application/json"
            connection.send(whole(body, kind=kind))


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
        client.read(length_of(head))


def rows_of(gateway: Foreground, key: str) -> list[dict[str, Any]]:
    status, text = ask(gateway.port, "/spend/logs", key)
    assert status == 200, text
    found: list[dict[str, Any]] = json.loads(text)
    return found


def figures(row: dict[str, Any]) -> tuple[int, int, float, bool]:
    """Return the tokens of prompt and answer, the seconds of audio, and whether the gateway estimated them."""
    metadata = row["metadata"]
    return row["prompt_tokens"], row["completion_tokens"], metadata["audio_seconds"], metadata["estimated"]


@attrs.frozen
class Upload:
    """One upload by a key of its own.

    Attributes:
        answer: the recorded answer of the server; none where the client leaves first.
        expected: tokens of prompt and answer, seconds of audio, and whether the gateway estimated them.
        file: the uploaded file.
        route: where it goes.
        chunked: whether the form comes in chunks.
        limits: what the key is limited to.
    """

    answer: str
    expected: tuple[int, int, float, bool]
    file: bytes = wav()
    route: str = "/v1/audio/transcriptions"
    chunked: bool = False
    limits: dict[str, object] = attrs.Factory(dict)


def unmeasured_stream(repeat: int, chunked: bool, **limits: object) -> Upload:
    """Return an upload of a WAV file whose streamed answer tells no usage."""
    expected = (0, 4, SECONDS * repeat, True)
    return Upload("transcription.sse", expected, wav(repeat), chunked=chunked, limits=limits)


#: whether the form is short, passes as it comes, is held whole, or is held up to the field that names its model
STREAMS_WITHOUT_USAGE = {
    "in hand": unmeasured_stream(1, False),
    "streaming": unmeasured_stream(40, False),
    "streaming in chunks": unmeasured_stream(3, True),
    "held whole": unmeasured_stream(3, False, tpm_limit=10_000),
    "held up to its model": unmeasured_stream(40, False, tpm_limit=10_000),
    "held up to its model, in chunks": unmeasured_stream(3, True, models=["whisper"]),
}
REPORTED = {
    # the server rounds up
    "transcription": Upload("transcription.json", (0, 0, 4, False)),
    "verbose transcription": Upload("transcription_verbose.json", (0, 0, 3.25, False)),
    # a translation reports nothing
    "translation": Upload("translation.json", (0, 0, SECONDS, True), route="/v1/audio/translations"),
    # a stream's usage has tokens and no seconds
    "stream": Upload("transcription_usage.sse", (329, 4, SECONDS, True)),
}
MP3 = b"ID3" + bytes(100_000)
OTHER_FILES = {
    "MP3, stream": Upload("transcription.sse", (0, 4, 0, True), MP3),
    "MP3, stream with usage": Upload("transcription_usage.sse", (329, 4, 0, False), MP3),
    "MP3, translation": Upload("translation.json", (0, 0, 0, True), MP3),
}
LEAVES = Upload("", (0, 0, SECONDS, True))
UPLOADS = {**STREAMS_WITHOUT_USAGE, **REPORTED, **OTHER_FILES, "client leaves": LEAVES}


@pytest.fixture(scope="module")
def rows(gateway: Foreground, upstream: Recorded) -> dict[str, dict[str, Any]]:
    """The ledger's row of each of `UPLOADS`; rows are written twice a second, so all are made before any is awaited."""
    keys = {}
    for name, each in UPLOADS.items():
        upstream.answer = each.answer
        key = keys[name] = make_key(gateway, **each.limits)
        if each is LEAVES:
            leave_before_the_answer(gateway, upstream, key, form_of(each.file), each.route)
        else:
            upload(gateway, key, form_of(each.file), each.route, each.chunked)
    wait_until(lambda: all(rows_of(gateway, key) for key in keys.values()))
    found = {}
    for name, key in keys.items():
        [found[name]] = rows_of(gateway, key)
    return found


def leave_before_the_answer(gateway: Foreground, upstream: Recorded, key: str, form: bytes, route: str) -> None:
    before = upstream.forms
    with connected(gateway.port) as client:
        client.send(head_of(key, f"Content-Length: {len(form)}", route) + form)
        wait_until(lambda: upstream.forms > before)


@pytest.mark.parametrize("name", STREAMS_WITHOUT_USAGE)
def test_a_stream_without_usage_is_counted_by_its_chunks_and_the_length_of_its_wav_file(
    rows: dict[str, dict[str, Any]], name: str
) -> None:
    expected = UPLOADS[name].expected
    assert figures(rows[name]) == expected
    assert rows[name]["spend"] == pytest.approx(0.001 * expected[2] + 0.1 * 4)


@pytest.mark.parametrize("name", REPORTED)
def test_what_the_server_reports_comes_before_an_estimate(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert figures(rows[name]) == UPLOADS[name].expected


@pytest.mark.parametrize("name", OTHER_FILES)
def test_of_other_files_no_length_is_guessed_and_no_tokens_by_their_size(
    rows: dict[str, dict[str, Any]], name: str
) -> None:
    assert figures(rows[name]) == UPLOADS[name].expected


def test_a_client_that_leaves_before_the_answer_is_charged_for_what_it_uploaded(
    rows: dict[str, dict[str, Any]],
) -> None:
    assert figures(rows["client leaves"]) == LEAVES.expected


def test_an_upload_of_any_size_fits_into_a_limit_of_tokens(gateway: Foreground, upstream: Recorded) -> None:
    """It would not if its size in bytes were taken for text."""
    upstream.answer = "transcription.json"
    key = make_key(gateway, tpm_limit=3_000)
    for _ in range(3):
        upload(gateway, key, form_of(wav(20)), "/v1/audio/transcriptions", False)
