"""Hides from the client that the gateway requested the usage of a stream.

If ``include_usage`` is set, vLLM 0.32 sends one more event, with ``"choices":[]``, and moves ``system_fingerprint``
into it from the events that end a choice (openai/chat_completion/serving.py, openai/completion/serving.py). The filter
removes that event and puts the fingerprint back. A server started with ``--enable-force-include-usage`` sends usage in
every event to every client: then the filter removes nothing.

Whole events pass at once, except those that end a choice: they wait for the next event, which vLLM sends right after
them unless another choice continues. A part of an event waits for its rest, up to `MAX_HELD` bytes; the client could
not use it alone.
"""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.readers.streams import USAGE, Chunk, ChunkStream, decode_chunk

#: the maximum part of an event to hold back, in bytes; vLLM's usage event has about 300
MAX_HELD = 8192
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

    def __init__(self, reader: ChunkStream, fingerprint: Fingerprint | None = None) -> None:
        """Start to filter a stream.

        Args:
            reader: reads the stream's usage; the filter feeds it.
            fingerprint: the server's last fingerprint, which the filter updates.
        """
        self._reader = reader
        self._fingerprint = fingerprint if fingerprint is not None else Fingerprint()
        self._tail = b""
        self._ends: list[bytes] = []
        self._ends_size = 0
        # whether everything passes from now on
        self._passing = False
        self._long = False
        self._long_ends = False

    def feed(self, data: bytes) -> bytes:
        """Take the next piece from the server; return the bytes to send to the client, which may be empty."""
        plain = self._reader.take(data)
        if self._passing:
            return data
        if plain and not self._tail and not self._ends and data.rfind(_ENDS) < 0:
            return data
        if b"\r" in data:
            # not vLLM's framing: pass the stream unchanged
            return self._give_up(data)
        return self._split(data)

    def finish(self) -> bytes:
        """Return the bytes still held back at the end of the stream."""
        return self._give_up(b"")

    def _give_up(self, data: bytes) -> bytes:
        self._passing = True
        out: list[bytes] = []
        self._release(out, self._fingerprint.value)
        out += (self._tail, data)
        self._tail = b""
        return b"".join(out)

    def _split(self, data: bytes) -> bytes:
        out: list[bytes] = []
        stream = self._tail + data
        self._tail = b""
        start = 0
        while (end := stream.find(b"\n\n", start)) >= 0:
            self._event(stream[start : end + 2], out)
            start = end + 2
            if self._passing:
                out.append(stream[start:])
                return b"".join(out)
        self._hold(stream[start:], out)
        return b"".join(out)

    def _hold(self, part: bytes, out: list[bytes]) -> None:
        """Hold a part of an event until its rest arrives, or only its last bytes if it is too long."""
        if not self._long and len(part) > MAX_HELD:
            self._long = True
            self._release(out, self._fingerprint.value)
        if not self._long:
            self._tail = part
            return
        self._long_ends = self._long_ends or _ENDS in part
        out.append(part[:-_OVERLAP])
        self._tail = part[-_OVERLAP:]

    def _event(self, event: bytes, out: list[bytes]) -> None:
        if self._long:
            ends = self._long_ends or _ENDS in event
            self._long = self._long_ends = False
            if ends and event.endswith(b"}\n\n") and _FINGERPRINT not in event:
                self._hold_end(event, out)
            else:
                out.append(event)
            return
        if USAGE in event and (chunk := _chunk(event)) is not None and chunk.usage is not None:
            self._passing = True
            if chunk.choices == []:
                self._remove(chunk, out)
            else:
                # the server sends usage to every client
                self._release(out, b"")
                out.append(event)
        elif _ENDS in event and event.endswith(b"}\n\n") and _FINGERPRINT not in event:
            self._hold_end(event, out)
        else:
            self._release(out, self._fingerprint.value)
            out.append(event)

    def _hold_end(self, event: bytes, out: list[bytes]) -> None:
        self._ends.append(event)
        self._ends_size += len(event)
        if self._ends_size > MAX_HELD_ENDS:
            self._release(out, self._fingerprint.value)

    def _remove(self, chunk: Chunk, out: list[bytes]) -> None:
        value = b"" if chunk.system_fingerprint is None else msgspec.json.encode(chunk.system_fingerprint)
        self._fingerprint.value = value
        self._release(out, value)

    def _release(self, out: list[bytes], fingerprint: bytes) -> None:
        if not self._ends:
            return
        if fingerprint:
            addition = b',"system_fingerprint":' + fingerprint + b"}\n\n"
            out.extend(end[:-3] + addition for end in self._ends)
        else:
            out.extend(self._ends)
        self._ends = []
        self._ends_size = 0


def _chunk(event: bytes) -> Chunk | None:
    return decode_chunk(event[6:]) if event.startswith(b"data: {") else None
