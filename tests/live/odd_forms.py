"""Odd forms for vLLM's audio routes, as `odd_bodies`."""

from __future__ import annotations

import json
from random import Random

import attrs

from tests.live.odd_bodies import without
from tests.live.odd_values import BOOLEANS, INTEGERS

AUDIO = ("/v1/audio/transcriptions", "/v1/audio/translations")


@attrs.define
class FormDraft:
    """A form in pieces.

    Attributes:
        parts: the head and the content of each part.
        content_type: the request's.
        boundary: the boundary that the parts have.
        newline: the line break.
        before: the bytes before the first boundary.
        after: the bytes after the last one.
    """

    parts: list[tuple[str, bytes]]
    content_type: str
    boundary: bytes = b"b0undary"
    newline: bytes = b"\r\n"
    before: bytes = b""
    after: bytes = b"\r\n"

    def smaller(self) -> list[FormDraft]:
        """Return the form without each of its parts."""
        return [attrs.evolve(self, parts=without(self.parts, at)) for at in range(len(self.parts))]

    def encode(self) -> bytes:
        """Return the body."""
        body = self.before
        for head, content in self.parts:
            lines = head.encode("utf-8", "surrogatepass").replace(b"\n", self.newline)
            body += b"--" + self.boundary + self.newline + lines + self.newline * 2 + content + self.newline
        return body + b"--" + self.boundary + b"--" + self.after


_FORM_FIELDS = (
    *(
        "model",
        "model",
        "model",
        "stream",
        "stream",
        "n",
        "use_beam_search",
        "max_completion_tokens",
        "max_completion_tokens",
    ),
    *(
        "max_tokens",
        "stream_include_usage",
        "response_format",
        "language",
        "user",
        "temperature",
        "timestamp_granularities[]",
    ),
)
_FORM_VALUES: dict[str, tuple[str, ...]] = {
    "model": ("m", "other", "", " m", "m\r\n", "m\0", "\u00e9", "null", '"m"', "m" * 300),
    "response_format": ("json", "text", "verbose_json", "srt"),
    "timestamp_granularities[]": ("word", "segment"),
}


def _written(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a form says where JSON says `values`."""
    found = []
    for text in values:
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found.append(value if isinstance(value, str) else text)
    return tuple(found)


_FORM_INTEGERS, _FORM_BOOLEANS = _written(INTEGERS), _written(BOOLEANS)


def odd_form(random: Random) -> FormDraft:
    """Make an odd form of an audio route."""
    draft = FormDraft(
        [
            ('Content-Disposition: form-data; name="file"; filename="a.wav"\nContent-Type: audio/wav', b"RIFF"),
            ('Content-Disposition: form-data; name="model"', b"m"),
        ],
        "multipart/form-data; boundary=b0undary",
    )
    for _ in range(random.choice((0, 1, 1, 2, 2, 3))):
        field = random.choice(_FORM_FIELDS)
        integer = field in ("n", "max_completion_tokens", "max_tokens")
        values = _FORM_VALUES.get(field, _FORM_INTEGERS if integer else _FORM_BOOLEANS)
        part = (_head(field, random), random.choice(values).encode("utf-8", "surrogatepass"))
        draft.parts.insert(random.randrange(len(draft.parts) + 1), part)
    if random.random() < 0.1:
        draft.parts.pop(random.randrange(len(draft.parts)))
    if random.random() < 0.25:
        random.choice(_FORM_CHANGES)(draft, random)
    return draft


def _head(field: str, random: Random) -> str:
    if random.random() < 0.75:
        return f'Content-Disposition: form-data; name="{field}"'
    return random.choice(
        (
            f"Content-Disposition: form-data; name={field}",
            f'content-disposition: FORM-DATA; NAME="{field}"',
            f'Content-Disposition: form-data;name="{field}";',
            f'Content-Disposition: form-data; name="{field}"; filename="f"',
            f'Content-Disposition: form-data; name="{field}"; filename=""',
            f"Content-Disposition: form-data; name*=utf-8''{field}",
            f"Content-Disposition: form-data; name=\"x\"; name*=utf-8''{field}",
            f'Content-Disposition: form-data; name="x"; name="{field}"',
            f'Content-Disposition: form-data; name="{field}"; name="x"',
            f"Content-Disposition: form-data; name=\"{field}\"; filename*=utf-8''f",
            f'Content-Disposition: form-data; name="\\{field}"',
            f'Content-Disposition: form-data; name="{field} "',
            f'Content-Disposition: form-data; name="{field}"\nContent-Type: text/plain; charset=utf-16',
            f'Content-Disposition: form-data; name="{field}"\nContent-Transfer-Encoding: base64',
            f'Content-Disposition: form-data; name="{field}"\nContent-Disposition: form-data; name="x"',
            f'Content-Disposition: form-data; name="x"\nContent-Disposition: form-data; name="{field}"',
            f'X-A: b\nContent-Disposition: form-data;\n name="{field}"',
            f'Content-Disposition : form-data; name="{field}"',
            f'Content-Disposition: attachment; name="{field}"',
            f'Content-Disposition: form-data; x="; name=y; "; name="{field}"',
            f'Content-Disposition: form-data; name="{field}%22"',
            f'Content-Disposition: form-data; name="{field}"; x="\u00e9"',
        )
    )


def _retype(draft: FormDraft, random: Random) -> None:
    draft.content_type = random.choice(
        (
            'multipart/form-data; boundary="b0undary"',
            "Multipart/Form-Data; Boundary=b0undary",
            "multipart/form-data;boundary=b0undary;charset=utf-8",
            "multipart/form-data; charset=latin-1; boundary=b0undary",
            "multipart/form-data; boundary=other; boundary=b0undary",
            "multipart/form-data; boundary=b0undary; boundary=other",
            "multipart/form-data; boundary*=utf-8''b0undary",
            "multipart/form-data; boundary=b0undary ",
            "multipart/form-data; boundary= b0undary",
            "multipart/form-data",
            "multipart/mixed; boundary=b0undary",
            "application/x-www-form-urlencoded",
            "application/json",
        )
    )


def _rebreak(draft: FormDraft, random: Random) -> None:
    draft.newline = random.choice((b"\n", b"\r", b"\r\n\r\n"))


def _preface(draft: FormDraft, random: Random) -> None:
    draft.before = random.choice((b"\r\n", b"\n", b"junk\r\n", b"--\r\n", b"--b0undar\r\n", b" "))


def _append(draft: FormDraft, random: Random) -> None:
    other = FormDraft([('Content-Disposition: form-data; name="model"', b"other")], "").encode()
    draft.after = random.choice((b"", b"\n", b"junk", b"\r\n" + other, other, b"\r\n--b0undary\r\n", b"-"))


def _rebound(draft: FormDraft, random: Random) -> None:
    draft.boundary = random.choice((b"b0undary ", b"b0undary\t", b"B0undary", b"b0undary-", b"b0undar"))


def _break_content(draft: FormDraft, random: Random) -> None:
    at = random.randrange(len(draft.parts))
    head, content = draft.parts[at]
    piece = random.choice(
        (b"\r\n--b0undar", b"--b0undary", b"\r\n--b0undary-", b"\r\n", b"\n--b0undary--", b"\r\n--b0undaryx")
    )
    draft.parts[at] = (head, content + piece)


_FORM_CHANGES = (_retype, _rebreak, _preface, _append, _rebound, _break_content)
