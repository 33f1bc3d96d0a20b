r"""The format of the spool's files: a header line with the version, then lines ``CHECKSUM JSON\n``.

A line holds the rows of one write as a JSON array. Its checksum (CRC-32 of the JSON, 8 hex digits) reveals a line that
was cut or changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar
from zlib import crc32

import attrs
import msgspec

from twisted_vllm.usage.records import UsageRow, clean_struct, payer_of, refer, target_of

#: The version of the format; fields with defaults may be added at the end of `UsageRow` without a new one. Version 1
#: had the same lines. Its rows were stored and added up in one transaction, so those that are stored are added up.
VERSION = 2
#: the maximum number of rows in a line
LINE_ROWS = 256
#: bytes to read at once
READ_BYTES = 1 << 20
_HEADER = re.compile(rb"vllm-passthrough-spool ([0-9]{1,9})")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[UsageRow]).decode


Row = TypeVar("Row")


class NewerFormat(Exception):
    """The file's format needs a later version of the gateway."""


@attrs.frozen
class Lines(Generic[Row]):
    """A part of a file.

    Attributes:
        rows: the rows of its lines.
        damaged: the lines that cannot be decoded.
        end: where it ends in the file, in bytes.
    """

    rows: Sequence[Row]
    damaged: Sequence[bytes]
    end: int


def header_line() -> bytes:
    """Return the first line of a file."""
    return b"vllm-passthrough-spool %d\n" % VERSION


def version_of(path: Path) -> int:
    """Return the version of a file's format; `VERSION` if its header is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = _HEADER.fullmatch(file.readline(64).rstrip(b"\n"))
    return VERSION if header is None else int(header[1])


def encode_rows(rows: Sequence[UsageRow]) -> bytes:
    """Return rows as lines."""
    if len(rows) > LINE_ROWS:
        return b"".join([encode_rows(rows[start : start + LINE_ROWS]) for start in range(0, len(rows), LINE_ROWS)])
    try:
        text = _encode(rows)
    except UnicodeEncodeError:
        # half of a surrogate pair, from a client's JSON
        text = _encode([clean(row) for row in rows])
    # To search for a single byte first is faster.
    if b"\\" in text and b"\\u0000" in text:
        text = _encode([clean(row) for row in rows])
    return encode_line(text)


def encode_line(text: bytes) -> bytes:
    """Return a text without newlines, such as JSON, as a line."""
    return b"%08x %b\n" % (crc32(text), text)


def text_of(line: bytes) -> bytes | None:
    """Return the text of a line of `encode_line` without its newline; None if the line is damaged."""
    try:
        return line[9:] if line[8:9] == b" " and int(line[:8], 16) == crc32(line[9:]) else None
    except ValueError:
        return None


#: payers and targets that need not be looked at again
Known = tuple[set[bytes], set[bytes]]


def decode_line(line: bytes, known: Known | None = None) -> Sequence[UsageRow] | None:
    """Return the rows of a line without its newline; None for a damaged line.

    Args:
        line: the line.
        known: those of the lines before, to which those of this one are added.
    """
    text = text_of(line)
    if text is None:
        return None
    payers, targets = known or (set(), set())
    try:
        rows = _decode(text)
        # They are not decoded with the rows.
        for payer in {bytes(row.payer) for row in rows} - payers:
            payer_of(payer)
            payers.add(payer)
        for target in {bytes(row.target) for row in rows} - targets:
            target_of(target)
            targets.add(target)
        return rows
    except ValueError:
        return None


def clean(row: UsageRow) -> UsageRow:
    """Return a row that every database accepts: `clean_struct` of the row, its payer and its target."""
    payer, target = refer(clean_struct(payer_of(row.payer))), refer(clean_struct(target_of(row.target)))
    return msgspec.structs.replace(clean_struct(row), payer=payer, target=target)


def read_lines(path: Path, start: int, end: int, max_rows: int, *, is_growing: bool = False) -> Lines[UsageRow]:
    """Read a part of a file of ledger rows; see `read_part`."""
    # of the lines that are read at once
    known: Known = (set(), set())
    return read_part(path, start, end, max_rows, lambda line: decode_line(line, known), is_growing=is_growing)


def read_part(
    path: Path,
    start: int,
    end: int,
    max_rows: int,
    decode: Callable[[bytes], Sequence[Row] | None],
    *,
    is_growing: bool = False,
) -> Lines[Row]:
    """Read a part of a file: at most `READ_BYTES`, or one line that is longer.

    Args:
        path: the file.
        start: where to begin, in bytes: 0, or the end of the part before.
        end: where to end. What follows the last newline before it counts as a line.
        max_rows: stop after the line that reaches this number of rows.
        decode: returns the rows of a line without its newline; None for a damaged line.
        is_growing: whether its process may still write to it: then half a line at the end is left for later.

    Raises:
        OSError: the file cannot be read.
        NewerFormat: its format needs a later version of the gateway.
    """
    data, size, at_end = b"", READ_BYTES, False
    with path.open("rb") as file:
        file.seek(start)
        while b"\n" not in data and not at_end:
            more = file.read(min(size, end - start - len(data)))
            data += more
            size *= 2
            # The file may be shorter than it should be.
            at_end = not more or start + len(data) >= end
    *lines, rest = data.split(b"\n")
    rows: list[Row] = []
    damaged: list[bytes] = []
    position = start
    for line in lines:
        if len(rows) >= max_rows:
            return Lines(rows, damaged, position)
        is_header = position == 0 and _is_header(line)
        position += len(line) + 1
        if not is_header:
            found = decode(line)
            if found is None:
                damaged.append(line)
            else:
                rows += found
    if at_end and not is_growing:
        damaged += [rest] if rest else []
        position = end
    return Lines(rows, damaged, position)


def _is_header(line: bytes) -> bool:
    header = _HEADER.fullmatch(line)
    if header is None:
        return False
    if int(header[1]) > VERSION:
        raise NewerFormat(int(header[1]))
    return True
