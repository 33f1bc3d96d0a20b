"""The audio in a form is measured if its header gives a certain length, however the form is split."""

from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_vllm.api_routes import classify
from twisted_vllm.usage.pricing import FREE, RoutePricing
from twisted_vllm.usage.readers.uploaded_audio import MAX_WAV_HEAD, MAX_WAV_TAIL, UploadedAudio, measure_audio

TYPE = b"multipart/form-data; boundary=XX"
END = b"--XX--\r\n"
MODEL = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'


def part(name: bytes, content: bytes) -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\n%b\r\n' % (name, content)


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    declared = len(content) if size is None else size
    return name + struct.pack("<I", declared) + content + b"\0" * (len(content) % 2)


def form_chunk(kind: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, frame: int = 0) -> bytes:
    frame = frame or channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits))


def extensible(kind: int, bits: int) -> bytes:
    plain = struct.pack("<HHIIHH", 0xFFFE, 1, 16_000, 16_000 * bits // 8, bits // 8, bits)
    return chunk(b"fmt ", plain + struct.pack("<HHIH", 22, bits, 4, kind) + bytes(14))


def wav(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


SECOND = bytes(32_000)
GOOD = wav(form_chunk(), chunk(b"data", SECOND))


def measured(form: bytes, size: int = 1_000_000, content_type: bytes = TYPE) -> int | None:
    audio = UploadedAudio(content_type)
    for at in range(0, len(form), size):
        audio.feed(form[at : at + size])
    return audio.milliseconds()


def length_of(file: bytes) -> int | None:
    return measured(part(b"file", file) + END)


@settings(deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    channels=st.integers(1, 2),
    width=st.integers(1, 4),
    frames=st.integers(0, 3_000),
    size=st.integers(1, 700),
    order=st.permutations(range(3)),
)
def test_a_wav_file_is_measured_as_the_standard_library_does_however_it_is_cut(
    rate: int, channels: int, width: int, frames: int, size: int, order: list[int]
) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(width)
        written.setframerate(rate)
        # the boundary without its line break
        written.writeframes((b"--XX\r\r\n--X" * (1 + frames))[: frames * channels * width])
    parts = [MODEL, part(b"file", file.getvalue()), part(b"language", b"en")]
    form = b"".join(parts[number] for number in order) + END
    assert measured(form) == measured(form, size) == frames * 1000 // rate


@pytest.mark.parametrize(
    "file",
    [
        wav(chunk(b"LIST", b"x" * 27), form_chunk(), chunk(b"fact", b"abcd"), chunk(b"data", SECOND)),
        wav(form_chunk(), chunk(b"data", SECOND), chunk(b"LIST", bytes(MAX_WAV_TAIL - 8))),
        wav(form_chunk(kind=3, bits=32), chunk(b"data", SECOND * 2)),
        wav(form_chunk(kind=7, bits=8), chunk(b"data", SECOND[:16_000])),
        wav(extensible(1, 24), chunk(b"data", bytes(48_000))),
        # a recorder that writes to a pipe does not know the length
        wav(form_chunk(), chunk(b"data", SECOND, 0xFFFFFFFF)),
        wav(form_chunk(), chunk(b"data", SECOND, 0x7FFFF000)),
    ],
    ids=["chunks before", "a chunk behind", "float", "mu-law", "extensible", "without length", "of any length"],
)
def test_files_of_every_kind_that_is_clear_are_measured(file: bytes) -> None:
    assert length_of(file) == 1000


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"RIFF",
        b"fLaC" + bytes(100),
        b"ID3" + bytes(100),
        wav(form_chunk()),
        wav(chunk(b"data", SECOND)),
        wav(chunk(b"data", SECOND), form_chunk()),
        wav(form_chunk(), form_chunk(rate=1), chunk(b"data", SECOND)),
        wav(chunk(b"fmt ", b"short"), chunk(b"data", SECOND)),
        wav(form_chunk(kind=0x11, bits=4, frame=256), chunk(b"data", SECOND)),
        wav(extensible(0x11, 16), chunk(b"data", SECOND)),
        wav(form_chunk(rate=0), chunk(b"data", SECOND)),
        wav(form_chunk(channels=0, frame=2), chunk(b"data", SECOND)),
        wav(form_chunk(bits=0, frame=0), chunk(b"data", SECOND)),
        wav(form_chunk(bits=12, frame=2), chunk(b"data", SECOND)),
        wav(chunk(b"JUNK", bytes(MAX_WAV_HEAD)), form_chunk(), chunk(b"data", SECOND)),
        wav(form_chunk(), chunk(b"JUNK", b"", 0xFFFFFFF0)),
        # libsndfile takes nothing, FFmpeg everything
        wav(form_chunk(), chunk(b"data", SECOND, 0)),
        # another reader may find more samples behind
        wav(form_chunk(), chunk(b"data", b"", 0), chunk(b"data", SECOND)),
        wav(form_chunk(), chunk(b"data", b"ab"), chunk(b"data", SECOND * 3)),
    ],
)
def test_an_uncertain_length_is_not_reported(file: bytes) -> None:
    form = part(b"file", file) + END
    assert measured(form) is None
    assert measured(form, 100) is None


@pytest.mark.parametrize(
    "form",
    [
        b"",
        END,
        part(b"audio", GOOD) + END,
        part(b"file", GOOD),
        part(b"file", GOOD) + b"--XX",
        part(b"file", GOOD) + part(b"file", GOOD) + END,
        part(b"file", GOOD) + part(b"file", b"text") + part(b"file", GOOD) + END,
        MODEL + part(b"file", GOOD) + MODEL + END,
        b"\r\n" + part(b"file", GOOD) + END,
        part(b"fi%6ce", GOOD) + END,
        part(b"file", GOOD) + END + b"more",
    ],
)
def test_an_incomplete_or_ambiguous_form_is_not_measured(form: bytes) -> None:
    assert measured(form) is None
    assert measured(form, 9) is None


def test_a_form_without_a_boundary_is_not_measured() -> None:
    assert measured(part(b"file", GOOD) + END, content_type=b"multipart/form-data") is None


def test_only_forms_are_measured() -> None:
    paths = (b"/v1/audio/transcriptions", b"/v1/audio/translations", b"/v1/chat/completions")
    assert [RoutePricing(classify(b"POST", path), FREE).audio_uploads for path in paths] == [True, True, False]
    assert measure_audio({b"content-type": TYPE}) is not None
    assert measure_audio({b"content-type": b"application/json"}) is None
    assert measure_audio({}) is None


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_do_harm(noise: bytes, size: int) -> None:
    for form in (noise, part(b"file", noise) + END, part(b"file", GOOD[:20] + noise) + END):
        measured(form, size)


def test_a_long_file_uses_little_memory() -> None:
    audio = UploadedAudio(TYPE)
    audio.feed(part(b"file", wav(form_chunk(), chunk(b"data", SECOND, 0xFFFFFFFF)))[:-2])
    for _ in range(100):
        audio.feed(SECOND)
        assert audio.held_bytes < 10
    audio.feed(b"\r\n" + END)
    assert audio.milliseconds() == 101_000
