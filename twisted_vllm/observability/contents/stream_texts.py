"""The data of the events of a stream, in batches: many events are decoded by one call."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")

#: the most bytes that wait for the end of an event; a larger event is passed over
LONGEST_EVENT = 262_144

# ``data:`` and its line; a blank after the colon is no part of it
_DATA = re.compile(rb"^data: ?(.*)$", re.MULTILINE)


class EventData(Generic[T]):
    """Decodes the events of one stream.

    Attributes:
        lost: whether an event was passed over, because it is too large or no JSON.
    """

    __slots__ = ("_all", "_one", "_rest", "_skipping", "lost")

    def __init__(self, kind: type[T]) -> None:
        """Start; events are decoded as `kind`."""
        kind_of_event: Any = kind
        self._one, self._all = _decoders(kind_of_event)
        self._rest = b""
        self._skipping = False
        self.lost = False

    def feed(self, data: bytes) -> list[T]:
        """Take the next bytes; return the events that they end, without ``[DONE]``."""
        data = self._rest + data
        held = b""
        if b"\r" in data:
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._skipping:
            found = data.find(b"\n\n")
            if found < 0:
                self._rest = data[-1:] + held
                return []
            data, self._skipping = data[found + 2 :], False
        end = data.rfind(b"\n\n")
        self._rest = data[end + 2 if end >= 0 else 0 :] + held
        if len(self._rest) > LONGEST_EVENT:
            self._rest, self._skipping, self.lost = b"", True, True
        return self._decode(data[: end + 2]) if end >= 0 else []

    def finish(self) -> list[T]:
        """Return the event whose end is missing, if it is complete."""
        rest, self._rest = self._rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), b""
        return [] if self._skipping else self._decode(rest)

    def _decode(self, blocks: bytes) -> list[T]:
        datas = _DATA.findall(blocks)
        if datas and datas[-1] == b"[DONE]":
            datas.pop()
        if not datas:
            return []
        try:
            return self._all(b"[%b]" % b",".join(datas))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._decode_each(blocks)

    def _decode_each(self, blocks: bytes) -> list[T]:
        found = []
        for block in blocks.split(b"\n\n"):
            data = b"\n".join(_DATA.findall(block))
            if not data or data == b"[DONE]":
                continue
            try:
                found.append(self._one(data))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self.lost = True
        return found


@lru_cache(maxsize=4)
def _decoders(kind: Any) -> tuple[Callable[[bytes], Any], Callable[[bytes], list[Any]]]:
    """Return what decodes one event, and a list of them. There are two kinds."""
    return msgspec.json.Decoder(kind).decode, msgspec.json.Decoder(list[kind]).decode
