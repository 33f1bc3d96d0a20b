"""Heads that were parsed before, so that the next request or response with the same head is not parsed again.

A client library sends one head over and over: the same target and headers. Only a few values change with each request:
the length of the body, and the ids of a traced client. The credential changes with the caller, so that all callers with
one library share a head. A server's responses differ as little. A head that is equal to an accepted one in all other
bytes has the same meaning. Only whole messages in one segment are looked up; everything else goes through llhttp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import ReferenceType, ref

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.headers import (
    BODILESS,
    CREDENTIAL_HEADERS,
    PER_REQUEST_HEADERS,
    HeaderList,
    RequestHead,
    ResponseHead,
)

#: heads that are kept, for all connections together, the longest of them in bytes, and their most headers: as objects
#: they take eight times the memory of their bytes
MOST_HEADS = 256
LONGEST_HEAD = 2_048
MOST_HEADERS = 64

#: templates that are tried before a head is taken apart: a proxy sends the requests of several clients on a connection
MOST_RECENT = 4

#: the longest value of `PER_REQUEST_HEADERS`, in bytes
LONGEST_VALUE = 256

#: a length as the cache would write it anew
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,8})\r\n")

#: the bytes that mean the same in a value to every parser, with nothing to trim around them
_VISIBLE = bytes(range(0x21, 0x7F))

#: A header that varies. Group 1 is a length, group 2 the value of another of `PER_REQUEST_HEADERS`, group 3 a
#: credential without its scheme. Each is of `_VISIBLE` alone.
_VARYING = re.compile(
    rb"\r\n(?:content-length: (0|[1-9][0-9]{0,8})"
    rb"|(?:traceparent|tracestate|baggage|sentry-trace|x-request-id): ([\x21-\x7e]{1,256})"
    rb"|(?:authorization|x-litellm-api-key|api-key|x-api-key): (?:bearer )?([\x21-\x7e]{1,2048}))"
    rb"(?=\r\n)",
    re.IGNORECASE,
)
#: these groups
_OF_LENGTH, _OF_VALUE, _OF_CREDENTIAL = 1, 2, 3

#: the headers of which each must be cut out of a head that is kept
_CUT_OUT = PER_REQUEST_HEADERS | CREDENTIAL_HEADERS

#: headers of which no head is kept: what they announce is not in the same segment
_NEVER_KEPT = frozenset((b"expect", b"transfer-encoding"))

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

    It holds no credential but the last one, so that a lone caller's heads share what they say.

    Attributes:
        head: the first of them, without the values that vary.
        reference: a weak reference to it, for whoever must not keep it.
        epoch: the state of the cache for which it holds; see `RequestHeaderCache.reconfigure`.
    """

    __slots__ = (
        "__weakref__",
        "_begin",
        "_last",
        "_last_values",
        "_size",
        "_slots",
        "_varying",
        "epoch",
        "head",
        "reference",
    )

    reference: ReferenceType[RequestTemplate]

    def __init__(self, head: RequestHead, pieces: Sequence[bytes], kinds: Sequence[int], epoch: object = None) -> None:
        """Take a head.

        Args:
            head: a head in which each header that varies stands once.
            pieces: its bytes around the values that vary.
            kinds: what kind of value follows each piece but the last: a group of `_VARYING`.
            epoch: as the attribute.
        """
        self.reference = ref(self)
        self.epoch = epoch
        self._begin = pieces[0]
        self._size = len(pieces[0])
        # each with what follows its value, and how long that is
        self._slots = tuple((kind, piece, len(piece)) for kind, piece in zip(kinds, pieces[1:], strict=True))
        # the index of each varying header but the length, its names, and what stands before the value that varies
        varying = []
        cut = iter(zip(kinds, pieces, strict=False))
        for at, name in enumerate(head.names):
            if name not in _CUT_OUT:
                continue
            kind, piece = next(cut)
            if kind != _OF_LENGTH:
                scheme = piece.rpartition(b"\r\n")[2].partition(b": ")[2]
                varying.append((at, name, head.headers[at][0], scheme, kind == _OF_CREDENTIAL))
        self._varying = tuple(varying)
        self.head = RequestHead(
            head.method,
            head.target,
            head.version,
            [(pair[0], b"") if name in _CUT_OUT else pair for name, pair in zip(head.names, head.headers, strict=True)],
        )
        # the values of the last head, and what `_said` returned for them
        self._last: tuple[Sequence[bytes], HeaderList, dict[bytes, bytes], bytes] = ((), [], {}, b"")

    def recall(self, data: bytes, longest: int, most_bytes: int) -> tuple[RequestHead, bytes] | None:
        """Return head and body of the request that `data` is, if it is one whole request with such a head.

        Args:
            data: what arrived where a request may begin.
            longest: the most bytes of a head.
            most_bytes: the most bytes of a body.
        """
        if not data.startswith(self._begin):
            return None
        at, length = self._size, 0
        values: list[bytes] = []
        for kind, after, size in self._slots:
            end = data.find(b"\r\n", at, longest)
            if end <= at or not data.startswith(after, end):
                return None
            value = data[at:end]
            if kind == _OF_LENGTH:
                # no sign, no space and no leading zero: all digits of ASCII
                if end - at > 9 or not value.isdigit() or (value[0] == 0x30 and end - at > 1):
                    return None
                length = int(value)
            else:
                if value.translate(None, _VISIBLE) or (kind == _OF_VALUE and end - at > LONGEST_VALUE):
                    return None
                values.append(value)
            at = end + size
        if at > longest or len(data) - at != length or length > most_bytes:
            return None
        return self.with_values(length, values), data[at:]

    def with_values(self, length: int, values: Sequence[bytes]) -> RequestHead:
        """Return the head of another request.

        Args:
            length: the size of its body in bytes.
            values: its values that vary without ``Content-Length``, in their order; credentials without the scheme.
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
        if not values:
            head.headers, head.first, head.credential = like.headers, like.first, b""
            return head
        last, headers, first, credential = self._last
        if values != last:
            headers, first, credential = self._said(values)
            self._last = values, headers, first, credential
        head.headers, head.first, head.credential = headers, first, credential
        return head

    def _said(self, values: Sequence[bytes]) -> tuple[HeaderList, dict[bytes, bytes], bytes]:
        """Return the headers of a head with these values, its first values and its credential."""
        headers, first, credential = self.head.headers.copy(), self.head.first.copy(), b""
        for (at, name, written, scheme, is_credential), value in zip(self._varying, values, strict=True):
            if is_credential:
                credential = credential + b"\n" + value if credential else value
                value = scheme + value
            first[name] = value
            headers[at] = (written, value)
        return headers, first, credential


class RequestHeaderCache(_HeaderCache[RequestTemplate]):
    """The heads of requests, shared by all connections of a site."""

    def __init__(self, limits: Limits) -> None:
        """Make an empty cache; `limits` are those that every learnt head was checked against."""
        super().__init__(LONGEST_HEAD)
        self.reconfigure(limits)

    def reconfigure(self, limits: Limits) -> None:
        """Forget all heads: other limits hold from now on."""
        self._heads.clear()
        self._recent: tuple[RequestTemplate, ...] = ()
        # of templates that a connection or a request in flight has still
        self._epoch = object()
        # a recalled length may have more digits than the learnt one
        self._longest = min(LONGEST_HEAD, limits.max_head_bytes - 32)
        self._most_bytes = limits.max_body_bytes

    def recall(self, data: bytes, like: RequestTemplate | None = None) -> tuple[RequestHead, bytes] | None:
        """Return head and body of the request that `data` is, if it is one whole request whose head is known.

        Args:
            data: what arrived where a request may begin.
            like: the template of an earlier request, which is tried first: a client repeats itself. Its values are
                found without looking for them.
        """
        if like is not None and like.epoch is self._epoch:
            recalled = like.recall(data, self._longest, self._most_bytes)
            if recalled is not None:
                return recalled
        for recent in self._recent:
            if recent is not like:
                recalled = recent.recall(data, self._longest, self._most_bytes)
                if recalled is not None:
                    return recalled
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        pieces, _, length, values = _split(data, end)
        template = self._heads.get(pieces)
        start = end + 4
        if template is None or len(data) - start != length or length > self._most_bytes:
            return None
        if template not in self._recent:
            self._recent = (template, *self._recent[: MOST_RECENT - 1])
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
        pieces, kinds, length, values = _split(data, end)
        present = [name for name in head.names if name in _CUT_OUT]
        # each of them must be cut out of the head, so it has the usual spelling and is not repeated
        if length != head.length or not len(kinds) == len(present) == len(set(present)):
            return
        template = RequestTemplate(head, pieces, kinds, self._epoch)
        # llhttp read the same values there
        if template.with_values(length, values).complete_headers() == head.headers:
            self._keep(pieces, template)


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


def _split(data: bytes, end: int) -> tuple[tuple[bytes, ...], list[int], int, list[bytes]]:
    """Return the pieces of a request's head around its values that vary, and these values.

    Each piece but the last ends with the name of the header whose value follows, and the scheme of a credential. So
    heads with equal pieces have the same headers in the same places.

    Returns:
        The pieces; the kind of value that follows each but the last, a group of `_VARYING`; the length of the body; and
        the other values in their order.
    """
    pieces: list[bytes] = []
    kinds: list[int] = []
    values: list[bytes] = []
    length = at = 0
    for found in _VARYING.finditer(data, 0, end + 2):
        group = found.lastindex or 0
        first, last = found.span(group)
        if group == _OF_LENGTH:
            length = int(data[first:last])
        else:
            values.append(data[first:last])
        kinds.append(group)
        pieces.append(data[at:first])
        at = last
    pieces.append(data[at : end + 4])
    return tuple(pieces), kinds, length, values
