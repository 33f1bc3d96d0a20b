"""The model of a form is found where every parser finds it, or the form is refused."""

from __future__ import annotations

import multipart
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.bodies.multipart import MAX_PARTS, find_model_in_form, insert_in_form, rename_in_form
from twisted_vllm.errors import ModelUndetermined

TYPE = b"multipart/form-data; boundary=XX"
FILE = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n'
)
END = b"--XX--\r\n"


def _field(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--XX\r\nContent-Disposition: form-data; name="' + name + b'"\r\n' + more + b"\r\n" + value + b"\r\n"


MODEL = _field(b"model", b"whisper")


@pytest.mark.parametrize(
    "body",
    [
        MODEL + FILE + END,
        FILE + MODEL + END,
        FILE + MODEL + b"--XX--",
        _field(b"prompt", b'name="model"\r\n\r\nother') + MODEL + END,
        _field(b"prompt", b"\r\n--X\r\n--\r\n-XX") + MODEL + END,
        b"--XX\r\ncontent-disposition:form-data;NAME=model\r\n\r\nwhisper\r\n" + FILE + END,
        _field(b"model", b"whisper", b"Content-Type: text/plain; charset=UTF-8\r\nContent-Length: 7\r\n") + END,
        _field("né".encode(), b"x") + MODEL + END,
    ],
)
def test_the_model_of_a_form_is_found_with_its_place(body: bytes) -> None:
    field = find_model_in_form(body, TYPE)
    assert field is not None
    assert field.name == "whisper"
    assert body[field.start : field.end] == b"whisper"


@pytest.mark.parametrize(
    "content_type",
    [
        b'multipart/form-data; boundary="XX"',
        b"Multipart/Form-Data;Boundary=XX",
        b"multipart/form-data; charset=utf-8; boundary=XX",
        b"multipart/form-data ; boundary=XX ",
    ],
)
def test_the_content_type_may_be_written_in_the_usual_ways(content_type: bytes) -> None:
    assert find_model_in_form(MODEL + END, content_type) is not None


@pytest.mark.parametrize("body", [FILE + END, END, _field(b"Model", b"x") + END, _field(b"model ", b"x") + END])
def test_a_form_without_a_model_has_none(body: bytes) -> None:
    assert find_model_in_form(body, TYPE) is None


UNDETERMINED = {
    "empty": b"",
    "the model twice": MODEL + MODEL + END,
    "a file for a model": b'--XX\r\nContent-Disposition: form-data; name="model"; filename="x"\r\n\r\nwhisper\r\n'
    + END,
    "perhaps a file": b"--XX\r\nContent-Disposition: form-data; name=\"model\"; filename*=UTF-8''x\r\n\r\na\r\n" + END,
    "the name twice": b'--XX\r\nContent-Disposition: form-data; name="a"; name="model"\r\n\r\na\r\n' + END,
    "an extended name": b"--XX\r\nContent-Disposition: form-data; name=\"a\"; name*=utf-8''model\r\n\r\na\r\n" + END,
    "a continued name": b'--XX\r\nContent-Disposition: form-data; name="a"; name*0="model"\r\n\r\na\r\n' + END,
    "an escaped name": b'--XX\r\nContent-Disposition: form-data; name="mo\\del"\r\n\r\na\r\n' + END,
    "a percent-encoded name": _field(b"mode%6c", b"a") + END,
    "a name that is not closed": b'--XX\r\nContent-Disposition: form-data; name="model\r\n\r\na\r\n' + END,
    "no disposition": b"--XX\r\nContent-Type: text/plain\r\n\r\na\r\n" + END,
    "two dispositions": _field(b"a", b"a", b'Content-Disposition: form-data; name="model"\r\n') + END,
    "another disposition": b'--XX\r\nContent-Disposition: attachment; name="model"\r\n\r\na\r\n' + END,
    "no name": b"--XX\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END,
    "a folded header": b'--XX\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\na\r\n' + END,
    "a header without a colon": _field(b"model", b"a", b"x\r\n") + END,
    "a space before the colon": b'--XX\r\nContent-Disposition : form-data; name="model"\r\n\r\na\r\n' + END,
    "no headers": b"--XX\r\n\r\na\r\n" + MODEL + END,
    "bare line feeds": (MODEL + END).replace(b"\r\n", b"\n"),
    "a bare line feed in a header": _field(b"a", b"a", b"x: y\nz: a\r\n") + END,
    "no end": MODEL + FILE,
    "a cut end": MODEL + b"--XX-",
    "a preamble": b"\r\n" + MODEL + END,
    "a hidden preamble": b"\r\nx" + MODEL + END,
    "an epilogue": MODEL + END + MODEL + END,
    "a padded boundary": MODEL.replace(b"--XX\r\n", b"--XX \r\n") + END,
    "a longer boundary": _field(b"a", b"a\r\n--XXY\r\n") + MODEL + END,
    "another charset": _field(b"model", b"a", b"Content-Type: text/plain; charset=utf-16\r\n") + END,
    "another type": _field(b"model", b"a", b"Content-Type: application/json\r\n") + END,
    "a transfer encoding": _field(b"model", b"YQ==", b"Content-Transfer-Encoding: base64\r\n") + END,
    "another length": _field(b"model", b"ab", b"Content-Length: 1\r\n") + END,
    "a charset field": _field(b"_charset_", b"utf-16") + MODEL + END,
    "invalid UTF-8": _field(b"model", b"\xff") + END,
    "too long a head": _field(b"model", b"a", b"X: " + b"x" * 10_000 + b"\r\n") + END,
    "too many parts": _field(b"a", b"") * (MAX_PARTS + 1) + END,
}


@pytest.mark.parametrize("body", UNDETERMINED.values(), ids=UNDETERMINED.keys())
def test_a_form_with_more_than_one_reading_is_refused(body: bytes) -> None:
    with pytest.raises(ModelUndetermined, match="RFC 7578"):
        find_model_in_form(body, TYPE)


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"multipart/form-data",
        b"multipart/mixed; boundary=XX",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=YY; boundary=XX",
        b"multipart/form-data; boundary=XX; boundary*=utf-8''YY",
        b'multipart/form-data; boundary="X\\X"',
        b'multipart/form-data; boundary="XX',
        b"multipart/form-data; boundary=XX; charset=utf-16",
        b"multipart/form-data; boundary=XX;",
        b"multipart/form-data, multipart/form-data; boundary=XX",
        b"multipart/form-data; boundary=" + b"X" * 71,
    ],
)
def test_a_content_type_with_more_than_one_reading_is_refused(content_type: bytes) -> None:
    with pytest.raises(ModelUndetermined):
        find_model_in_form(MODEL + END, content_type)


def test_renaming_changes_the_model_and_no_other_byte() -> None:
    body = FILE + MODEL + _field(b"prompt", b"whisper") + END
    field = find_model_in_form(body, TYPE)
    assert field is not None
    assert (
        rename_in_form(body, field, "é/large")
        == FILE + _field(b"model", "é/large".encode()) + _field(b"prompt", b"whisper") + END
    )


@given(
    st.text(st.characters(exclude_categories=["C"]), max_size=40),
    st.sampled_from([FILE + END, END, FILE + FILE + END]),
)
def test_a_form_without_a_model_can_be_given_one(name: str, body: bytes) -> None:
    changed, field = insert_in_form(body, TYPE, name)
    assert changed.endswith(body)
    assert find_model_in_form(changed, TYPE) == field
    assert (field.name, changed[field.start : field.end]) == (name, name.encode())
    assert rename_in_form(changed, field, "other") == insert_in_form(body, TYPE, "other")[0]


@pytest.mark.parametrize("name", ["a\r\nb", "a\nb"])
def test_a_name_that_could_end_the_field_is_not_inserted(name: str) -> None:
    with pytest.raises(ModelUndetermined):
        insert_in_form(FILE + END, TYPE, name)


def test_a_new_name_cannot_end_the_field() -> None:
    field = find_model_in_form(MODEL + END, TYPE)
    assert field is not None
    with pytest.raises(ModelUndetermined, match="line break"):
        rename_in_form(MODEL + END, field, 'x\r\n--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\ny')


def _by_the_library(body: bytes) -> list[tuple[str | None, str | None, bytes]]:
    """Read a form with another parser."""
    found = []
    with multipart.PushMultipartParser(b"XX") as parser:
        content = b""
        segment = None
        for event in parser.parse(body):
            if isinstance(event, multipart.MultipartSegment):
                segment, content = event, b""
            elif event is None:
                assert segment is not None
                found.append((segment.name, segment.filename, content))
            else:
                content += bytes(event)
    return found


_CONTENT = st.binary(max_size=20) | st.sampled_from(
    [b"\r\n", b"\r\n--X", b"--XX", b"\r\n\r\n", b"whisper", b"\r\n--XX--"]
)
_NAMES = st.sampled_from([b"model", b"file", b"prompt", b"mode", b"model]", b"temperature"])
_PARTS = st.tuples(_NAMES, _CONTENT, st.sampled_from([b"", b'; filename="x"'])).map(
    lambda part: b'--XX\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (part[0], part[2], part[1])
)
_NOISE = st.sampled_from([b"", b"", b"", b"\r\n", b"--XX\r\n", b"--XX--", b'name="model"', b"\n", b"--XX "])


@given(
    st.lists(st.tuples(_PARTS, _NOISE).map(b"".join), max_size=5).map(b"".join), st.sampled_from([END, b"--XX--", b""])
)
def test_no_form_is_read_in_another_way_than_a_second_parser_reads_it(parts: bytes, end: bytes) -> None:
    body = parts + end
    try:
        field = find_model_in_form(body, TYPE)
    except ModelUndetermined:
        return
    models = [(filename, content) for name, filename, content in _by_the_library(body) if name == "model"]
    assert models == ([] if field is None else [(None, field.name.encode())])
    if field is not None:
        renamed = rename_in_form(body, field, "other")
        assert ("model", None, b"other") in _by_the_library(renamed)
        assert len(_by_the_library(renamed)) == len(_by_the_library(body))
