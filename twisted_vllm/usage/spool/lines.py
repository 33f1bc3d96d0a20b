r"""A spool's lines: ``CHECKSUM JSON\n``, below a first line that says in which format.

A line has the rows of one write, as an array. Its checksum (CRC-32 of the JSON, 8 hex digits) tells one that was cut or
changed from one that was written so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import attrs
import msgspec

from twisted_vllm.usage.records import UsageRow, clean_struct, payer_of, refer, target_of
from twisted_vllm.usage.spool.format_1 import row_of_format_1

#: of the format. Fields with defaults may be added at the end of `UsageRow` without a new one.
VERSION = 2
#: rows in one line, at most
LINE_ROWS = 256
#: how much of a file is read at a time, in bytes
READ_BYTES = 1 << 20
_HEAD = re.compile(rb"vllm-passthrough-spool ([0-9]{1,9})")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[UsageRow]).decode


class NewerFormat(Exception):
    """A later version wrote the file, in a format that this one does not know."""


@attrs.frozen
class Lines:
    """A stretch of a file.

    Attributes:
        rows: what it says.
        damaged: the lines that cannot be read.
        end: where it ends in the file, in bytes.
    """

    rows: Sequence[UsageRow]
    damaged: Sequence[bytes]
    end: int


def head_line() -> bytes:
    """Return the first line of a file."""
    return b"vllm-passthrough-spool %d\n" % VERSION


def encode_rows(rows: Sequence[UsageRow]) -> bytes:
    """Return the lines of some rows."""
    if len(rows) > LINE_ROWS:
        return b"".join([encode_rows(rows[at : at + LINE_ROWS]) for at in range(0, len(rows), LINE_ROWS)])
    try:
        text = _encode(rows)
    except UnicodeEncodeError:
        # half of a surrogate pair, out of somebody's JSON
        text = _encode([clean(row) for row in rows])
    # a single byte is sought a good deal faster
    if b"\\" in text and b"\\u0000" in text:
        text = _encode([clean(row) for row in rows])
    return b"%08x %b\n" % (crc32(text), text)


def decode_line(line: bytes) -> Sequence[UsageRow] | None:
    """Return the rows of a line without its newline, or None where it is damaged."""
    try:
        if line[8:9] != b" " or int(line[:8], 16) != crc32(line[9:]):
            return None
        if line[9:10] == b"{":
            return (row_of_format_1(line[9:]),)
        rows = _decode(line[9:])
        # what rows refer to is not read with them
        for payer in {bytes(row.payer) for row in rows}:
            payer_of(payer)
        for target in {bytes(row.target) for row in rows}:
            target_of(target)
        return rows
    except ValueError:
        return None


def clean(row: UsageRow) -> UsageRow:
    """Return a row that every database takes: no NUL, no lone surrogate, no text or number that is too large."""
    payer, target = refer(clean_struct(payer_of(row.payer))), refer(clean_struct(target_of(row.target)))
    return msgspec.structs.replace(clean_struct(row), payer=payer, target=target)


def read_lines(path: Path, start: int, end: int, max_rows: int) -> Lines:
    """Read on in a file.

    Args:
        path: the file.
        start: where to begin, in bytes: 0, or the end of what was read before.
        end: where what may be read ends; what follows the last newline before it counts as a line.
        max_rows: how many rows are enough: no further line is read.

    Raises:
        OSError: the file cannot be read.
        NewerFormat: it is in a format that is not known here.
    """
    data, size, is_over = b"", READ_BYTES, False
    with path.open("rb") as file:
        file.seek(start)
        while b"\n" not in data and not is_over:
            more = file.read(min(size, end - start - len(data)))
            data += more
            size *= 2
            # a file that is shorter than it should be is over as well
            is_over = not more or start + len(data) >= end
    *lines, rest = data.split(b"\n")
    rows: list[UsageRow] = []
    damaged: list[bytes] = []
    position = start
    for line in lines:
        if len(rows) >= max_rows:
            return Lines(rows, damaged, position)
        is_head = position == 0 and _is_head(line)
        position += len(line) + 1
        if not is_head:
            found = decode_line(line)
            if found is None:
                damaged.append(line)
            else:
                rows += found
    if is_over:
        damaged += [rest] if rest else []
        position = end
    return Lines(rows, damaged, position)


def _is_head(line: bytes) -> bool:
    head = _HEAD.fullmatch(line)
    if head is None:
        return False
    if int(head[1]) > VERSION:
        raise NewerFormat(int(head[1]))
    return True
