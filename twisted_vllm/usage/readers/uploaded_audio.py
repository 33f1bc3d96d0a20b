"""Measures the audio in a form as it is relayed, for responses that do not report it.

It measures only what is certain: a form that `FormScan` accepts, with one field "file", which contains a WAV file with
its bytes per second in the header. vLLM reads it with libsndfile or FFmpeg, which both use the length in the header, or
the bytes that are present if there are fewer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from twisted_vllm.bodies.multipart import FormScan
from twisted_vllm.errors import ModelUndetermined
from twisted_vllm.http.headers import is_form

#: bytes of a WAV file before its samples
MAX_WAV_HEAD = 65_536
#: bytes after the samples, such as labels; more may be samples that another reader accepts
MAX_WAV_TAIL = 65_536

_FORMAT = struct.Struct("<HHIIHH")
_CHUNK = struct.Struct("<4sI")
# formats with samples of one size: PCM, IEEE float, A-law, mu-law; and the format that names one of these later
_PLAIN = frozenset((1, 3, 6, 7))
_EXTENSIBLE = 0xFFFE
_SUBFORMAT_OFFSET = 24


class WavLength:
    """Measures a WAV file that arrives in pieces; keeps only its header."""

    __slots__ = ("_declared", "_frame", "_head", "_offset", "_rate", "_size", "_start", "_unclear")

    def __init__(self) -> None:
        self._head = bytearray()
        self._offset = 12
        self._size = 0
        self._frame = self._rate = 0
        # the offset of the samples, and their size according to the header, in bytes
        self._start = self._declared = 0
        self._unclear = False

    @property
    def held_bytes(self) -> int:
        """The bytes of the file in memory."""
        return len(self._head)

    def feed(self, data: bytes, start: int, end: int) -> None:
        """Take the next piece: `data` from `start` to `end`."""
        self._size += end - start
        if self._start or self._unclear:
            return
        self._head += data[start : min(end, start + MAX_WAV_HEAD)]
        try:
            self._read_head()
        except ValueError:
            self._unclear = True
        if self._start or self._unclear:
            self._head.clear()

    def milliseconds(self) -> int | None:
        """Return the length of the file once it is complete; None if that is not certain."""
        if not self._start:
            return None
        there = self._size - self._start
        # a recorder that writes to a pipe declares too large a length; a length of 0 means empty to libsndfile and
        # everything to FFmpeg
        samples = min(self._declared, there)
        if there - samples > MAX_WAV_TAIL or (there and not samples):
            return None
        return samples // self._frame * 1000 // self._rate

    def _read_head(self) -> None:
        """Read the chunks that have arrived.

        Raises:
            ValueError: it is not a WAV file, or its length is not certain.
        """
        head = self._head
        if len(head) >= 12 and (head[:4] != b"RIFF" or head[8:12] != b"WAVE"):
            raise ValueError
        while len(head) >= self._offset + _CHUNK.size:
            name, size = _CHUNK.unpack_from(head, self._offset)
            content = self._offset + _CHUNK.size
            if name == b"data":
                if not self._frame:
                    raise ValueError
                self._start, self._declared = content, size
                return
            if name == b"fmt ":
                if len(head) < content + size:
                    break
                self._read_format(bytes(head[content : content + size]))
            self._offset = content + size + size % 2
        if max(len(head), self._offset) > MAX_WAV_HEAD:
            raise ValueError

    def _read_format(self, chunk: bytes) -> None:
        if len(chunk) < _FORMAT.size or self._frame:
            raise ValueError
        kind, channels, rate, _, frame, bits = _FORMAT.unpack_from(chunk)
        if kind == _EXTENSIBLE:
            kind = int.from_bytes(chunk[_SUBFORMAT_OFFSET : _SUBFORMAT_OFFSET + 2], "little")
        if kind not in _PLAIN or not rate or not frame or frame * 8 != channels * bits:
            raise ValueError
        self._frame, self._rate = frame, rate


class _FileField:
    """Observes the field "file" of a form.

    Attributes:
        file: its file, once it has begun.
        twice: whether the form has more than one such field, of which another reader may choose the other.
    """

    __slots__ = ("_inside", "file", "twice")

    def __init__(self) -> None:
        self.file: WavLength | None = None
        self.twice = False
        self._inside = False

    def part(self, name: bytes) -> None:
        """A part begins."""
        self._inside = name == b"file"
        if self._inside:
            self.twice = self.twice or self.file is not None
            self.file = WavLength()

    def content(self, data: bytes, start: int, end: int) -> None:
        """A piece of its content arrived."""
        if self._inside and self.file is not None:
            self.file.feed(data, start, end)


class UploadedAudio:
    """Observes a form, and measures the audio in its field "file"."""

    __slots__ = ("_field", "_scan")

    def __init__(self, content_type: bytes) -> None:
        """Start to read a form.

        Args:
            content_type: the request's ``Content-Type``.
        """
        self._field = _FileField()
        self._scan: FormScan | None
        try:
            self._scan = FormScan(content_type, self._field)
        except ModelUndetermined:
            self._scan = None

    @property
    def held_bytes(self) -> int:
        """The bytes of the form in memory."""
        file = self._field.file
        return (0 if file is None else file.held_bytes) + (0 if self._scan is None else len(self._scan.unscanned))

    def feed(self, data: bytes) -> None:
        """Take the next piece of the form."""
        scan = self._scan
        if scan is None:
            return
        try:
            model = scan.model
            scan.feed(data)
            if scan.model is not model:
                # the scan stops at the model; continue
                scan.feed(b"")
        except ModelUndetermined:
            self._scan = None

    def milliseconds(self) -> int | None:
        """Return the length of the audio once the form is complete; None if that is not certain."""
        file = self._field.file
        if self._scan is None or file is None or self._field.twice:
            return None
        try:
            self._scan.finish()
        except ModelUndetermined:
            return None
        return file.milliseconds()


def measure_audio(headers: Mapping[bytes, bytes]) -> UploadedAudio | None:
    """Return a meter for the audio in a request's body, or None if the body is not a form.

    Args:
        headers: the first value of each header, by lower-case name.
    """
    return UploadedAudio(headers[b"content-type"]) if is_form(headers) else None
