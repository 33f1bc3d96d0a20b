"""Caches the authorization of a request's head for the next request with the same head.

A client library repeats the same head (`twisted_vllm.http.header_cache`): same key, same route, same headers for the
server. An entry is valid until a key, a user or a team changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.context import Authorization, Peer
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.header_cache import LONGEST_HEAD, MOST_HEADS
from twisted_vllm.http.headers import PER_REQUEST_HEADERS, HeaderList

#: header formats of one head, each of one server
MOST_FORMATS = 8


class HeaderFormat:
    """The serialized headers of a request to one server, with placeholders for the values that vary per request.

    Attributes:
        url: the URL of the request.
    """

    __slots__ = ("_format", "_has_length", "_traced", "url")

    def __init__(self, url: bytes, headers: HeaderList) -> None:
        """Build the format from the headers of one request.

        Args:
            url: the URL of the request.
            headers: the headers for the server, in the order trace headers, ``Content-Length`` if present, and
                ``X-Request-Id`` last. The values of these are ignored.
        """
        traced: list[bytes] = []
        self._has_length = False
        self.url = url
        lines = []
        for name, value in headers:
            key = name.lower()
            if key not in PER_REQUEST_HEADERS:
                value = _escaped(value)
            elif key == b"content-length":
                self._has_length = True
                value = b"%d"
            else:
                if key != b"x-request-id":
                    traced.append(key)
                value = b"%b"
            lines.append(_escaped(name) + b": " + value + b"\r\n")
        self._format = b"".join(lines)
        self._traced = tuple(traced)

    def write(self, length: int, request_id: bytes, first: Mapping[bytes, bytes]) -> RawHeaders:
        """Return the headers of a request.

        Args:
            length: the size of the body in bytes.
            request_id: the value of ``X-Request-Id``.
            first: the values of trace headers, and perhaps others, by lower-case name.
        """
        values: tuple[bytes | int, ...] = (length, request_id) if self._has_length else (request_id,)
        if self._traced:
            values = (*(first[name] for name in self._traced), *values)
        return RawHeaders(self._format % values)


class CachedAuthorization:
    """The cached authorization of one head.

    Attributes:
        authorization: the authorization.
        formats: the header formats of servers that were chosen since; by server, or where it is told a trace of the
            gateway's, by server and whether that has a ``tracestate``.
    """

    __slots__ = ("_changes", "_host", "_secure", "_until", "authorization", "formats")

    def __init__(self, authorization: Authorization, changes: int, peer: Peer) -> None:
        """Create an entry.

        Args:
            authorization: the authorization.
            changes: the change counter (`Admission.changes`) at that time.
            peer: the client's address.
        """
        self.authorization = authorization
        self.formats: BoundedCache[object, HeaderFormat] = BoundedCache(MOST_FORMATS, LONGEST_HEAD)
        self._changes = changes
        self._until = authorization.principal.expires
        self._host = peer.host
        self._secure = peer.secure

    def holds(self, changes: int, now: float, peer: Peer) -> bool:
        """Return whether the entry is still valid.

        Args:
            changes: the current change counter.
            now: the time in Unix seconds.
            peer: the client's address, which goes into ``X-Forwarded-For``.
        """
        return (
            self._changes == changes and now < self._until and self._host == peer.host and self._secure == peer.secure
        )


class AuthorizationCache(BoundedCache[object, CachedAuthorization]):
    """Cached authorizations by the head's template, which equal heads share."""

    __slots__ = ()

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(MOST_HEADS, LONGEST_HEAD)


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
