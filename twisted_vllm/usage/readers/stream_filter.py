"""Hides from the client that the gateway requested the usage of a stream.

If ``include_usage`` is set, vLLM 0.32 sends one more event, with ``"choices":[]``, and moves ``system_fingerprint``
into it from the events that end a choice (openai/chat_completion/serving.py, openai/completion/serving.py). The filter
removes that event and puts the fingerprint back. A server started with ``--enable-force-include-usage`` sends usage in
every event to every client: then the filter removes nothing.

The event goes with its whole block: its comments, its other fields and its blank line. Line ends may be any of those
that the standard allows. An event with content or with an error is never removed.

Whole events pass at once, except those that end a choice: they wait for the next event, which vLLM sends right after
them unless another choice continues. A part of an event waits for its rest, up to `MAX_HELD` bytes; the client could
not use it alone.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.readers.stream_events import Carries
from twisted_vllm.usage.readers.streams import ChunkStream

#: the maximum part of an event to hold back, in bytes; vLLM's usage event has about 300
MAX_HELD = 8192
#: a longer fingerprint is not remembered, in bytes; vLLM's have about 40
MAX_FINGERPRINT = 256
#: the maximum bytes of held-back events that end choices; beyond it, they pass unchanged
MAX_HELD_ENDS = 65_536

# after the comma this is a key: in a string, the quote would have a backslash before it
_ENDS = b',"finish_reason":"'
_FINGERPRINT = b'"system_fingerprint"'
# bytes at the end of an overlong event to hold back, because the fingerprint may belong there
_OVERLAP = 256


class Fingerprint:
    """The ``system_fingerprint`` that a server last sent, for a choice that ends while others of its request continue.

    Attributes:
        value: the fingerprint as JSON; empty if it is unknown.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = b""


class StreamFilter:
    """Removes from a stream what the request for its usage added."""

    # whether the last piece ended with a CR that ends a block; an LF after it still belongs to that block
    _after_cr = False
    # whether the beginning of the block passed, because it is too long; then whether the block ends a choice, whether
    # it has a fingerprint, and whether what passed is the beginning of one line of data
    _long = False
    _long_ends = False
    _long_is_marked = False
    _long_is_line = False

    def __init__(self, reader: ChunkStream, fingerprint: Fingerprint | None = None) -> None:
        """Start to filter a stream.

        Args:
            reader: reads the stream's usage; the filter feeds it.
            fingerprint: the server's last fingerprint, which the filter updates.
        """
        self._reader = reader
        self._fingerprint = fingerprint if fingerprint is not None else Fingerprint()
        # the part of a block that came
        self._tail = b""
        self._ends: list[bytes] = []
        self._ends_size = 0
        # whether everything passes from now on
        self._passing = False

    def feed(self, data: bytes) -> bytes:
        """Take the next piece from the server; return the bytes to send to the client, which may be empty."""
        blocks = self._reader.take(data)
        if blocks is None:
            # no part of a block is held
            if not self._ends and data.rfind(_ENDS) < 0:
                return data
            blocks = ((len(data), Carries.OTHER),)
        if self._passing:
            return self._after_removed(data) if self._after_cr else data
        if self._reader.gave_up:
            return self.finish() + data
        out: list[bytes] = []
        start = 0
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                start = 1
                self._add_lf(out)
        for end, carries in blocks:
            block = self._tail + data[start:end] if self._tail else data[start:end]
            self._tail = b""
            start = end
            if carries is Carries.OTHER or (carries is Carries.USAGE and (self._long or len(block) > MAX_HELD)):
                self._pass(block, out)
                continue
            self._passing = True
            rest = data[start:]
            if carries is Carries.USAGE:
                self._release(out, self._learn())
                if block[-1] == 13:
                    self._after_cr = True
                    rest = self._after_removed(rest)
            else:
                # the server sends usage to every client
                self._release(out, b"")
                out.append(block)
            out.append(rest)
            return b"".join(out)
        if start < len(data):
            self._hold(self._tail + data[start:], out)
        elif start and data[-1] == 13:
            self._after_cr = True
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the bytes still held back at the end of the stream."""
        self._passing = True
        out: list[bytes] = []
        self._release(out, self._fingerprint.value)
        out.append(self._tail)
        self._tail = b""
        return b"".join(out)

    def _add_lf(self, out: list[bytes]) -> None:
        """Add the LF that belongs to the last block."""
        if self._ends:
            self._ends[-1] += b"\n"
        else:
            out.append(b"\n")

    def _after_removed(self, data: bytes) -> bytes:
        """Return the data after a removed block that ended with CR, less the LF that belongs to it."""
        if data:
            self._after_cr = False
        return data[1:] if data[:1] == b"\n" else data

    def _hold(self, part: bytes, out: list[bytes]) -> None:
        """Hold a part of a block until its rest arrives, or only its last bytes if it is too long."""
        if not self._long:
            if len(part) <= MAX_HELD:
                self._tail = part
                return
            self._long = True
            self._release(out, self._fingerprint.value)
            self._long_is_line = part.startswith(b"data:")
        self._long_ends = self._long_ends or _ENDS in part
        self._long_is_marked = self._long_is_marked or _FINGERPRINT in part
        passed = part[:-_OVERLAP]
        self._long_is_line = self._long_is_line and b"\n" not in passed and b"\r" not in passed
        out.append(passed)
        self._tail = part[-_OVERLAP:]

    def _pass(self, block: bytes, out: list[bytes]) -> None:
        """Pass a block, or the rest of a long one; hold it if it ends a choice."""
        is_line = False
        if self._long or len(block) > MAX_HELD:
            self._hold(block, out)
            block, self._tail = self._tail, b""
            ends, is_line = self._long_ends and not self._long_is_marked, self._long_is_line
            self._long = self._long_ends = self._long_is_marked = False
        else:
            ends = _ENDS in block and _FINGERPRINT not in block
        if ends and _ends_with_object(block, is_line):
            self._ends.append(block)
            self._ends_size += len(block)
            if self._ends_size <= MAX_HELD_ENDS:
                return
            block = b""
        self._release(out, self._fingerprint.value)
        out.append(block)

    def _learn(self) -> bytes:
        """Return the fingerprint beside the usage as JSON, and remember it; empty if there is none."""
        fingerprint = self._reader.fingerprint
        value = b"" if fingerprint is None else msgspec.json.encode(fingerprint)
        self._fingerprint.value = value if len(value) <= MAX_FINGERPRINT else b""
        return value

    def _release(self, out: list[bytes], fingerprint: bytes) -> None:
        if not self._ends:
            return
        if fingerprint:
            for end in self._ends:
                brace = len(end.rstrip(b"\r\n")) - 1
                out += (end[:brace], b',"system_fingerprint":', fingerprint, end[brace:])
        else:
            out.extend(self._ends)
        self._ends = []
        self._ends_size = 0


def _ends_with_object(block: bytes, is_line: bool) -> bool:
    """Return whether the last line of a block is data that ends with an object.

    Args:
        block: the block, or its end.
        is_line: whether `block` is the end of a block, and what was before it the beginning of one line of data.
    """
    lines = block.rstrip(b"\r\n")
    last = max(lines.rfind(b"\n"), lines.rfind(b"\r")) + 1
    return lines.endswith(b"}") and (lines.startswith(b"data:", last) or (is_line and not last))
