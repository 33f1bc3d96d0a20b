"""Heads that were parsed before, so that the next request or response with the same head is not parsed again.

A client library sends one head over and over: the same target, key and headers. Only a few values change with each
request: the length of the body, and the ids of a traced client. A server's responses differ as little. A head that is
equal to an accepted one in all other bytes has the same meaning. Only whole messages in one segment are looked up;
everything else goes through llhttp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.headers import BODILESS, PER_REQUEST_HEADERS, RequestHead, ResponseHead

#: heads that are kept, for all connections together, the longest of them in bytes, and their most headers: as objects
#: they take eight times the memory of their bytes
MOST_HEADS = 256
LONGEST_HEAD = 2_048
MOST_HEADERS = 64

#: a length as the cache would write it anew
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,8})\r\n")

#: a header of `PER_REQUEST_HEADERS`: group 1 is a length, group 2 the value of another. A value of visible ASCII means
#: the same to every parser, with nothing to trim around it.
_PER_REQUEST = re.compile(
    rb"\r\n(?:content-length: (0|[1-9][0-9]{0,8})|(?:traceparent|tracestate|x-request-id): ([\x21-\x7e]{1,256}))"
    rb"(?=\r\n)",
    re.IGNORECASE,
)

#: headers of which no head is kept: what they announce is not in the same segment
_NEVER_KEPT = frozenset((b"expect", b"transfer-encoding"))

_NO_VALUES: tuple[bytes, ...] = ()

Head = TypeVar("Head")


class _HeaderCache(Generic[Head]):
    """Heads by their bytes without the values that may differ. The oldest makes room for a new one."""

    def __init__(self, longest: int) -> None:
        self._heads: BoundedCache[tuple[bytes, ...], Head] = BoundedCache(MOST_HEADS, LONGEST_HEAD)
        self._longest = longest

    def __len__(self) -> int:
        return len(self._heads)

    def _keep(self, key: tuple[bytes, ...], head: Head) -> None:
        self._heads.keep(key, head, sum(map(len, key)))


class RequestTemplate:
    """What the heads of one cache entry have in common.

    Attributes:
        head: the first of them, without the value of ``Content-Length``.
    """

    __slots__ = ("_traced_at", "head")

    def __init__(self, head: RequestHead) -> None:
        """Take `head`, in which each of `PER_REQUEST_HEADERS` stands at most once."""
        self.head = RequestHead(
            head.method,
            head.target,
            head.version,
            [
                (pair[0], b"") if name == b"content-length" else pair
                for name, pair in zip(head.names, head.headers, strict=True)
            ],
        )
        # indexes of the varying headers in the header list, in order; `RequestHead.length` holds the length
        self._traced_at = tuple(
            at for at, name in enumerate(head.names) if name in PER_REQUEST_HEADERS and name != b"content-length"
        )

    def with_values(self, length: int, values: Sequence[bytes]) -> RequestHead:
        """Return the head of another request.

        Args:
            length: the size of its body in bytes.
            values: its values of `PER_REQUEST_HEADERS` without ``Content-Length``, in their order.
        """
        like = self.head
        head: RequestHead = RequestHead.__new__(RequestHead)
        head.method = like.method
        head.target = like.target
        head.version = like.version
        head.names = like.names
        head.length = length
        head.keep_alive = True
        head.protocols = like.protocols
        head.template = self
        head.headers = like.headers
        head.first = like.first
        if values:
            head.headers = headers = like.headers.copy()
            head.first = first = like.first.copy()
            for at, value in zip(self._traced_at, values, strict=True):
                headers[at] = (headers[at][0], value)
                first[like.names[at]] = value
        return head


class RequestHeaderCache(_HeaderCache[RequestTemplate]):
    """The heads of requests, shared by all connections of a site."""

    def __init__(self, limits: Limits) -> None:
        """Make an empty cache; `limits` are those that every learnt head was checked against."""
        super().__init__(LONGEST_HEAD)
        self.reconfigure(limits)

    def reconfigure(self, limits: Limits) -> None:
        """Forget all heads: other limits hold from now on."""
        self._heads.clear()
        # a recalled length may have more digits than the learnt one
        self._longest = min(LONGEST_HEAD, limits.max_head_bytes - 32)
        self._most_bytes = limits.max_body_bytes

    def recall(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Return head and body of the request that `data` is, if it is one whole request whose head is known.

        Args:
            data: what arrived where a request may begin.
        """
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        start = end + 4
        values: Sequence[bytes] = _NO_VALUES
        # most clients are not traced: look up the head with the length cut out alone
        found = _LENGTH.search(data, 0, end + 2)
        if found is None:
            length = 0
            template = self._heads.get((data[:start],))
        else:
            first, last = found.span(1)
            length = int(found[1])
            template = self._heads.get((data[:first], data[last:start]))
        if template is None:
            key, length, values = _split(data, end)
            template = self._heads.get(key)
        if template is None or len(data) - start != length or length > self._most_bytes:
            return None
        return template.with_values(length, values), data[start:]

    def learn(self, data: bytes, head: RequestHead) -> None:
        """Keep `head`, which llhttp accepted, if `data` is the whole request and a similar head may follow."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if (
            end < 0
            or len(data) - end - 4 != head.length
            or not head.keep_alive
            or head.protocols
            or len(head.headers) > MOST_HEADERS
            or head.version != b"HTTP/1.1"
            or not _NEVER_KEPT.isdisjoint(head.first)
        ):
            return
        key, length, _ = _split(data, end)
        present = [name for name in head.names if name in PER_REQUEST_HEADERS]
        # each of them must be cut out of the key, so it has the usual spelling and is not repeated
        if length == head.length and len(key) - 1 == len(present) == len(set(present)):
            self._keep(key, RequestTemplate(head))


class ResponseHeaderCache(_HeaderCache[ResponseHead]):
    """The heads of responses, shared by all connections of an agent."""

    def __init__(self) -> None:
        super().__init__(LONGEST_HEAD)

    def recall(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Return head and body of the response that `data` is, if it is one whole response whose head is known."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        found = _LENGTH.search(data, 0, end + 2)
        if found is None:
            return None
        first, last = found.span(1)
        known = self._heads.get((data[:first], data[last : end + 4]))
        length = int(found[1])
        if known is None or len(data) - end - 4 != length:
            return None
        return known.of_length(length), data[end + 4 :]

    def learn(self, data: bytes, head: ResponseHead) -> None:
        """Keep the head of the response that `data` is, if it is complete and a similar head may follow."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0 or head.has_request_id or head.relayed is not head.headers or head.status in BODILESS:
            return
        if len(head.headers) > MOST_HEADERS:
            return
        found = _LENGTH.search(data, 0, end + 2)
        # heads without a length, or with one in another spelling, are not cached
        if found is not None and int(found[1]) == head.length == len(data) - end - 4:
            first, last = found.span(1)
            self._keep((data[:first], data[last : end + 4]), head.as_template())


def _split(data: bytes, end: int) -> tuple[tuple[bytes, ...], int, list[bytes]]:
    """Return the key of a request's head, its body's length, and its other values that may differ, in their order.

    The key is what stands around all those values. Each piece of it but the last ends with the name of the header whose
    value follows, so equal keys have the same headers in the same places.
    """
    pieces: list[bytes] = []
    values: list[bytes] = []
    length = at = 0
    for found in _PER_REQUEST.finditer(data, 0, end + 2):
        group = found.lastindex or 0
        first, last = found.span(group)
        if group == 1:
            length = int(data[first:last])
        else:
            values.append(data[first:last])
        pieces.append(data[at:first])
        at = last
    pieces.append(data[at : end + 4])
    return tuple(pieces), length, values
