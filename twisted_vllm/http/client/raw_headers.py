"""Request headers that are already serialized."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted.web.http_headers import Headers

from twisted_vllm.http.headers import HeaderList, write_header_lines


class RawHeaders(Headers):
    """Serialized header lines, which keep their order, case and repetitions.

    `UpstreamAgent` sends the lines unchanged, so they include ``Host`` and the body's framing. For other code they are
    ordinary `Headers`, parsed on first use; only a `copy` can be changed.

    Attributes:
        lines: the header lines, each with its CRLF, without the empty line that ends the head.
    """

    __slots__ = ("lines",)

    def __init__(self, lines: bytes) -> None:
        # without super().__init__(): `__getattr__` makes the base class's one attribute when it is first read
        self.lines = lines

    @classmethod
    def from_pairs(cls, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """Serialize a header list."""
        return cls(write_header_lines(headers))

    def replacing(self, name: bytes, value: bytes) -> RawHeaders:
        """Return these headers with another value of the last header of this name, spelled as it stands here."""
        lines = b"\r\n" + self.lines
        start = lines.rindex(b"\r\n%b: " % name)
        end = lines.index(b"\r\n", start + 2)
        return RawHeaders(b"%b%b: %b%b" % (lines[2 : start + 2], name, value, lines[end:]))

    @property
    def pairs(self) -> HeaderList:
        """The header list."""
        pairs = []
        for line in self.lines.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            pairs.append((name, value))
        return pairs

    def __getattr__(self, name: str) -> dict[bytes, list[bytes]]:
        if name != "_rawHeaders":
            raise AttributeError(name)
        parsed = Headers()
        for key, value in self.pairs:
            parsed.addRawHeader(key, value)
        self._rawHeaders = parsed._rawHeaders
        return self._rawHeaders

    def copy(self) -> Headers:
        """Return ordinary headers, which can be changed."""
        return Headers(self._rawHeaders)

    def setRawHeaders(self, name: str | bytes, values: Sequence[str | bytes]) -> None:
        """Raise TypeError: `lines` would not change too."""
        raise TypeError("raw headers do not change: change a copy()")

    def addRawHeader(self, name: str | bytes, value: str | bytes) -> None:
        """Raise TypeError, likewise."""
        self.setRawHeaders(name, [value])

    def removeHeader(self, name: str | bytes) -> None:
        """Raise TypeError, likewise."""
        self.setRawHeaders(name, [])
