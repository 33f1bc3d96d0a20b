"""Transcriptions and translations: the ledger has what vLLM reports of them, and the rest as the gateway measures it.

vLLM 0.32 counts as the prompt of a stream the decoder's prompt and the frames of the audio (Whisper: 100 to a second);
its own counter of prompt tokens has the decoder's prompt alone, once for each piece of the audio, and that of generated
tokens one more where the language is to be found out.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from functools import partial

import pytest

from tests.live.live_gateway import Answer, Headers, LiveGateway, ask, new_secret
from tests.live.live_ledger import Row, used
from tests.live.live_servers import StartGateway, served_model, server_from

TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
BOTH = [TRANSCRIPTIONS, TRANSLATIONS]
PRICED = """
passthrough:
  default_prices: {input_cost_per_second: 0.001}
"""
#: tokens of an answer
MOST = 12
#: frames to a second
FRAMES = 100

Fields = dict[str, str]
USAGE = {"stream": "true", "stream_include_usage": "true"}
CONTINUOUS = {**USAGE, "stream_continuous_usage_stats": "true"}


@pytest.fixture(scope="module")
def audio_url() -> str:
    """The server."""
    return server_from(
        "VLLM_AUDIO_URL", "this test needs a vLLM with a speech model (tests/live/make_speech_model.py makes one)"
    )


@pytest.fixture(scope="module")
def model(audio_url: str) -> str:
    """What the server calls its model."""
    return served_model(audio_url)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, audio_url: str) -> LiveGateway:
    return start_gateway(PRICED, HOSTED_VLLM_API_BASE=audio_url, LITELLM_MASTER_KEY=new_secret())


def recording(seconds: float, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """Return a WAV file with a tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(width)
        written.setframerate(rate)
        top = 2 ** (8 * width - 2)
        samples = (int(top * math.sin(at / 9)) for at in range(int(seconds * rate)))
        written.writeframes(b"".join(sample.to_bytes(width, "little", signed=True) * channels for sample in samples))
    return file.getvalue()


def flac(seconds: float) -> bytes:
    """Return silence as FLAC, 16 kHz, one channel: blocks of a thousand samples that are all 0."""
    total = int(seconds * 16_000)
    rate_to_bits = (16_000 << 44) | (0 << 41) | (15 << 36) | total
    head = b"fLaC\x80\0\0\x22" + struct.pack(">HH", 1000, 1000) + bytes(6) + rate_to_bits.to_bytes(8, "big") + bytes(16)
    return head + b"".join(_flac_frame(number) for number in range(total // 1000))


def _flac_frame(number: int) -> bytes:
    # the frame's number in UTF-8, its size in 16 bits; then a subframe of one constant
    head = b"\xff\xf8\x75\x08" + chr(number).encode() + struct.pack(">H", 999)
    frame = head + bytes((_crc(head, 8, 0x07),)) + b"\0\0\0"
    return frame + _crc(frame, 16, 0x8005).to_bytes(2, "big")


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
    return crc


def form(model: str, file: bytes, fields: Fields) -> tuple[Headers, bytes]:
    """Return the headers and the body of a form with the file between the fields."""
    values = {"language": "en", "max_completion_tokens": str(MOST), **fields, "model": model}
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in values.items()
    ]
    named = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + file + b"\r\n"
    body = "".join(parts[:-1]).encode() + named + parts[-1].encode() + b"--XX--\r\n"
    return [("Content-Type", "multipart/form-data; boundary=XX")], body


def upload(gateway: LiveGateway, route: str, model: str, file: bytes, fields: Fields, key: str) -> Answer:
    headers, body = form(model, file, fields)
    return gateway.ask("POST", f"/vllm{route}", key, headers, body)


def seconds_of(row: Row) -> float:
    return float(row["metadata"]["audio_seconds"])


@pytest.mark.parametrize("fields", [{}, {"response_format": "text"}])
def test_a_transcription_names_its_seconds_rounded_up(
    gateway: LiveGateway, audio_url: str, model: str, fields: Fields
) -> None:
    [row], _ = used(gateway, audio_url, [partial(upload, gateway, TRANSCRIPTIONS, model, recording(3.25), fields)])
    assert (seconds_of(row), row["metadata"]["estimated"]) == (4, False)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (0, 0)
    assert row["spend"] == pytest.approx(0.004)


@pytest.mark.parametrize("route", BOTH)
def test_verbose_json_names_the_duration(gateway: LiveGateway, audio_url: str, model: str, route: str) -> None:
    fields = {"response_format": "verbose_json"}
    [row], _ = used(gateway, audio_url, [partial(upload, gateway, route, model, recording(3.25), fields)])
    assert (seconds_of(row), row["metadata"]["estimated"]) == (3.25, False)


@pytest.mark.parametrize("seconds", [3.25, 25])
@pytest.mark.parametrize("fields", [USAGE, CONTINUOUS], ids=["at the end", "in every event"])
@pytest.mark.parametrize("route", BOTH)
def test_a_stream_s_usage_is_what_vllm_counts_and_the_seconds_are_measured(
    gateway: LiveGateway, audio_url: str, model: str, route: str, fields: Fields, seconds: float
) -> None:
    [row], counted = used(gateway, audio_url, [partial(upload, gateway, route, model, recording(seconds), fields)])
    assert row["completion_tokens"] == counted[1] > 0
    # the clips of a long recording have the same prompt each, and are counted as one
    clips = math.ceil(seconds / 10)
    assert row["prompt_tokens"] == counted[0] / clips + FRAMES * seconds
    assert row["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    assert (seconds_of(row), row["metadata"]["estimated"]) == (seconds, True)
    assert row["spend"] == pytest.approx(0.001 * seconds)


@pytest.mark.parametrize("route", BOTH)
def test_a_stream_without_usage_is_counted_by_its_chunks(
    gateway: LiveGateway, audio_url: str, model: str, route: str
) -> None:
    [row], counted = used(
        gateway, audio_url, [partial(upload, gateway, route, model, recording(5), {"stream": "true"})]
    )
    # now and then two tokens are in one event
    assert 0 < row["completion_tokens"] <= counted[1]
    assert row["prompt_tokens"] == 0
    assert (seconds_of(row), row["metadata"]["estimated"]) == (5, True)


@pytest.mark.parametrize(
    "file",
    [recording(2.5, 8_000), recording(2.5, 44_100, 2), recording(2.5, 16_000, 1, 3), recording(2.5, 48_000, 2, 4)],
    ids=["8 kHz", "44.1 kHz stereo", "24 bits", "48 kHz stereo, 32 bits"],
)
def test_the_gateway_s_measure_is_vllm_s(gateway: LiveGateway, audio_url: str, model: str, file: bytes) -> None:
    [verbose], _ = used(
        gateway,
        audio_url,
        [partial(upload, gateway, TRANSCRIPTIONS, model, file, {"response_format": "verbose_json"})],
    )
    [plain], _ = used(gateway, audio_url, [partial(upload, gateway, TRANSLATIONS, model, file, {})])
    assert (verbose["metadata"]["estimated"], plain["metadata"]["estimated"]) == (False, True)
    assert seconds_of(plain) == 2.5
    # vLLM measures after it has resampled
    assert seconds_of(verbose) == pytest.approx(2.5, abs=0.01)


def test_a_large_recording_that_passes_unread_is_measured(gateway: LiveGateway, audio_url: str, model: str) -> None:
    file = recording(45, 16_000, 2)
    assert len(file) > 2_000_000
    [row], _ = used(gateway, audio_url, [partial(upload, gateway, TRANSLATIONS, model, file, {})])
    assert seconds_of(row) == 45


def test_of_another_kind_of_file_the_ledger_says_what_vllm_says(
    gateway: LiveGateway, audio_url: str, model: str
) -> None:
    file = flac(3)
    asked: list[tuple[str, Fields]] = [(TRANSCRIPTIONS, {}), (TRANSCRIPTIONS, USAGE), (TRANSLATIONS, {})]
    rows, counted = used(
        gateway, audio_url, [partial(upload, gateway, route, model, file, fields) for route, fields in asked]
    )
    told = [(row["prompt_tokens"], seconds_of(row), row["metadata"]["estimated"]) for row in rows]
    assert told == [(0, 3, False), (counted[0] / 3 + 3 * FRAMES, 0, False), (0, 0, True)]


def test_a_file_that_vllm_refuses_uses_nothing(gateway: LiveGateway, model: str) -> None:
    key = gateway.make_key()
    answer = upload(gateway, TRANSCRIPTIONS, model, b"no audio", {}, key)
    assert answer.status == 400
    assert gateway.ask("GET", "/key/info", key).json["info"]["spend"] == 0


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}, USAGE], ids=["whole", "stream", "stream with usage"])
@pytest.mark.parametrize("route", BOTH)
def test_an_answer_through_the_gateway_is_the_server_s(
    gateway: LiveGateway, audio_url: str, model: str, route: str, fields: Fields
) -> None:
    headers, body = form(model, recording(1), fields)
    direct = ask(audio_url, "POST", route, headers, body)
    through = gateway.ask("POST", f"/vllm{route}", gateway.master_key, headers, body)
    assert (through.status, through.header("content-type")) == (200, direct.header("content-type"))
    if not fields:
        assert through.body == direct.body
    assert (b'"usage"' in through.body) == (b'"usage"' in direct.body)
