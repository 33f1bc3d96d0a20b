"""A form is read the same in pieces as whole, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bodies.test_multipart import END, FILE, MODEL, TYPE, UNDETERMINED
from twisted_vllm.bodies.multipart import MAX_NAME, FormScan, find_model_in_form, rename_in_form
from twisted_vllm.errors import ModelUndetermined


def scanned(segments: list[bytes], name: str = "") -> tuple[str | None, bytes]:
    """Return the model that a scan finds, and all that it lets go, with `name` for the model's content."""
    scan = FormScan(TYPE)
    passed = b""
    for segment in segments:
        before = scan.model
        passed += scan.feed(segment)
        if scan.model != before:
            passed += name.encode() + scan.feed(b"")
    scan.finish()
    assert scan.unscanned == b""
    return scan.model, passed


def cut(data: bytes, places: list[int]) -> list[bytes]:
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(cuts)]


def field(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name, more, value)


CONTENTS = st.binary(max_size=30) | st.sampled_from(
    [b"\r\n", b"\r\n--X", b"--XX", b"\r\n\r\n", b"\r", b"\r\n--XX--", b"\r\n--XX\r\n", b"-" * 40]
)
PARTS = st.sampled_from([MODEL, FILE, field(b"model", b"other"), field(b"_charset_", b"x")]) | st.builds(
    field, st.sampled_from([b"file", b"prompt", b"mode", b"model"]), CONTENTS, st.sampled_from([b"", b'; filename="a"'])
)
NOISE = st.sampled_from([b"", b"", b"", b"", b"\r\n", b"--XX\r\n", b"--XX--", b"\n", b"--XX "])
FORMS = st.builds(
    lambda parts, end: b"".join(part + noise for part, noise in parts) + end,
    st.lists(st.tuples(PARTS, NOISE), max_size=5),
    st.sampled_from([END, b"--XX--", b"--XX--\r", b"--XX-", b"", b"--XX--\r\n\r\n"]),
)


@settings(deadline=None, max_examples=500)
@given(FORMS, st.lists(st.integers(0, 1_000), max_size=8), st.sampled_from(["other", "é", ""]))
def test_a_form_is_read_the_same_in_pieces_as_whole(form: bytes, places: list[int], name: str) -> None:
    try:
        found = find_model_in_form(form, TYPE)
    except ModelUndetermined:
        with pytest.raises(ModelUndetermined):
            scanned(cut(form, places))
        return
    model, passed = scanned(cut(form, places), name)
    if found is None:
        assert (model, passed) == (None, form)
    else:
        assert (model, passed) == (found.name, rename_in_form(form, found, name))


@settings(deadline=None)
@given(st.permutations([MODEL, FILE, field(b"prompt", b"a\r\n--X"), field(b"language", b"en")]))
def test_the_order_of_the_fields_does_not_matter(parts: list[bytes]) -> None:
    form = b"".join(parts) + END
    for step in (1, 2, 7, len(form)):
        segments = [form[at : at + step] for at in range(0, len(form), step)]
        assert scanned(segments, "whisper") == ("whisper", form)


@pytest.mark.parametrize("form", UNDETERMINED.values(), ids=UNDETERMINED.keys())
def test_a_form_with_more_than_one_reading_is_refused_however_it_is_cut(form: bytes) -> None:
    for step in (1, 3, len(form) + 1):
        with pytest.raises(ModelUndetermined, match="RFC 7578"):
            scanned([form[at : at + step] for at in range(0, len(form), step)])


def test_nothing_of_a_second_model_is_let_go() -> None:
    scan = FormScan(TYPE)
    assert scan.feed(MODEL + FILE).endswith(b'name="model"\r\n\r\n')
    passed = scan.feed(b"")
    second = field(b"model", b"other")
    for at in range(len(second)):
        try:
            passed += scan.feed(second[at : at + 1])
        except ModelUndetermined:
            break
    else:
        raise AssertionError("it was taken")
    assert passed == b"\r\n" + FILE + b"--XX\r\n"


def test_what_was_not_let_go_when_the_model_turned_out_to_be_unclear_is_still_there() -> None:
    scan = FormScan(TYPE)
    passed = scan.feed(FILE)
    with pytest.raises(ModelUndetermined):
        scan.feed(b"--XX\r\nnonsense\r\n\r\nabc")
    assert passed + scan.unscanned == FILE + b"--XX\r\nnonsense\r\n\r\nabc"


def test_a_name_without_an_end_is_no_name() -> None:
    scan = FormScan(TYPE)
    scan.feed(MODEL[: MODEL.index(b"whisper")])
    with pytest.raises(ModelUndetermined, match="too long"):
        for _ in range(MAX_NAME):
            scan.feed(b"a" * 10)


def test_little_is_kept_back_of_a_long_file() -> None:
    scan = FormScan(TYPE)
    scan.feed(FILE[:-2])
    for _ in range(10):
        scan.feed(b"\r\n--X" * 10_000)
        assert len(scan.unscanned) < 10
