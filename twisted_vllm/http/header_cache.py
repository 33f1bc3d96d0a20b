"""Heads that were read before, so that the next request or response with the same head is not read again.

A client library sends one head over and over: the same target, key and headers, and a ``Content-Length`` that changes;
and a server's answers to it differ as little. A head whose every other byte was accepted before is accepted with the
same meaning, without a parser. Only whole messages in one segment come this way; whatever is not known goes through
llhttp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted_vllm.config.settings import Limits
from twisted_vllm.http.headers import BODILESS, HeaderList, ResponseHead

if TYPE_CHECKING:
    from twisted_vllm.http.server.request import GatewayRequest

#: heads that are kept, for all connections together, and the longest of them in bytes
MOST_HEADS = 256
LONGEST_HEAD = 2_048

#: the one header that may differ; its digits, as they would be written anew, are left out of what is compared
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,8})\r\n")

#: what changes with every request, so that the head would never come again
_NEVER_AGAIN = frozenset((b"x-request-id", b"traceparent", b"expect", b"transfer-encoding"))

_Key = bytes | tuple[bytes, bytes]
Head = TypeVar("Head")


class _HeaderCache(Generic[Head]):
    """Heads by their bytes, but for the digits of the length; the oldest makes room for a new one."""

    def __init__(self, longest: int) -> None:
        self._heads: dict[_Key, Head] = {}
        self._longest = longest

    def __len__(self) -> int:
        return len(self._heads)

    def _keep(self, key: _Key, head: Head) -> None:
        if len(self._heads) >= MOST_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[key] = head


class CachedRequestHead:
    """What a request's head says.

    Attributes:
        method: the method.
        uri: the request target in origin form.
        headers: the headers as they came, but for the value of ``Content-Length``, which is empty.
        names: their names in lower case.
        first: the first value of each, by lower-case name, likewise.
        note: what the resource wants to know again of the next request with this head.
    """

    __slots__ = ("first", "headers", "method", "names", "note", "uri")

    def __init__(self, request: GatewayRequest) -> None:
        self.method = request.method
        self.uri = request.uri
        self.headers: HeaderList = request.raw_headers
        self.names = request.header_names
        self.first = request.head
        if b"content-length" in self.first:
            self.headers = self.headers.copy()
            at = self.names.index(b"content-length")
            self.headers[at] = (self.headers[at][0], b"")
            self.first = {**self.first, b"content-length": b""}
        self.note: Any = None


class RequestHeaderCache(_HeaderCache[CachedRequestHead]):
    """The heads of requests that all connections of a site have read."""

    def __init__(self, limits: Limits) -> None:
        """Make it; `limits` are the caps that every head that is learnt has kept to."""
        super().__init__(min(LONGEST_HEAD, limits.max_head_bytes - 32))
        self._most_bytes = limits.max_body_bytes

    def recall(self, data: bytes, begin: Callable[[], GatewayRequest]) -> bool:
        """Read `data`, the first bytes of a request, if it is all of one whose head is known.

        Args:
            data: what came.
            begin: makes the request.

        Returns:
            Whether it was read.
        """
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return False
        key, length = _split(data, end)
        known = self._heads.get(key)
        start = end + 4
        if known is None or len(data) - start != length or length > self._most_bytes:
            return False
        request = begin()
        request.known = known
        request.method = known.method
        request.uri = known.uri
        request.clientproto = b"HTTP/1.1"
        request.header_names = known.names
        request.raw_headers = known.headers
        request.head = known.first
        request.body_length = request.body_received = length
        if length:
            request.body_pieces.append(data[start:])
        request.head_complete = request.body_complete = True
        return True

    def learn(self, data: bytes, request: GatewayRequest) -> None:
        """Keep the head of `request`, which `data` holds whole, if the like of it may come again."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if (
            end < 0
            or len(data) - end - 4 != request.body_length
            or request.fault is not None
            or not request.persistent
            or request.protocols
            or request.clientproto != b"HTTP/1.1"
            or not _NEVER_AGAIN.isdisjoint(request.head)
        ):
            return
        key, length = _split(data, end)
        if length != request.body_length or (b"content-length" in request.head) is isinstance(key, bytes):
            # a length that is written in another way
            return
        self._keep(key, CachedRequestHead(request))


class ResponseHeaderCache(_HeaderCache[ResponseHead]):
    """The heads of responses that all connections of an agent have read."""

    def __init__(self) -> None:
        super().__init__(LONGEST_HEAD)

    def recall(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Return the head and the body of `data`, the first bytes of a response, if it is whole and its head known."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        key, length = _split(data, end)
        known = self._heads.get(key)
        if known is None or len(data) - end - 4 != length:
            return None
        return known.of_length(length), data[end + 4 :]

    def learn(self, data: bytes, head: ResponseHead) -> None:
        """Keep the head of a response that `data` was, whole, if the like of it may come again."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0 or head.has_request_id or head.relayed is not head.headers or head.status in BODILESS:
            return
        key, length = _split(data, end)
        # a head without a length, or with one that is written in another way, is none that can be told by its bytes
        if isinstance(key, tuple) and length == head.length == len(data) - end - 4:
            self._keep(key, head.as_template())


def _split(data: bytes, end: int) -> tuple[_Key, int]:
    """Return what a head is known by, and its body's length.

    A head with a length is known by what stands before and after the digits. A pair is never equal to the bytes by
    which a head without one is known, so that nothing in place of the digits passes for a length.
    """
    found = _LENGTH.search(data, 0, end + 2)
    if found is None:
        return data[: end + 4], 0
    first, last = found.span(1)
    return (data[:first], data[last : end + 4]), int(found[1])
