"""What was decided of a request by its head alone, kept for the next request with the same head.

A client library sends the same head over and over (`twisted_vllm.http.header_cache`): the same key for the same route,
with the same headers for the server. The decisions hold until a key, a user or a team changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted_vllm.config.settings import Server
from twisted_vllm.context import Authorization, Peer
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.header_cache import MOST_HEADS
from twisted_vllm.http.headers import PER_REQUEST_HEADERS, HeaderList


class HeaderFormat:
    """A request's headers for one server, written out but for the values that differ from request to request.

    Attributes:
        url: what the server is asked for.
    """

    __slots__ = ("_format", "_has_length", "_traced", "url")

    def __init__(self, url: bytes, headers: HeaderList) -> None:
        """Take the headers of one request.

        Args:
            url: what the server is asked for.
            headers: the headers for the server. The trace's come before ``Content-Length``, if there is one, and
                ``X-Request-Id`` comes last; the values of these do not count.
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
            first: the first value of each header of the client's request, by lower-case name.
        """
        values: tuple[bytes | int, ...] = (length, request_id) if self._has_length else (request_id,)
        if self._traced:
            values = (*(first[name] for name in self._traced), *values)
        return RawHeaders(self._format % values)


class CachedAuthorization:
    """The decisions on one head.

    Attributes:
        authorization: what it was authorized for.
        formats: the headers for each server that was chosen since.
    """

    __slots__ = ("_changes", "_host", "_secure", "_until", "authorization", "formats")

    def __init__(self, authorization: Authorization, changes: int, peer: Peer) -> None:
        """Keep decisions.

        Args:
            authorization: what the head was authorized for.
            changes: how often keys, users and teams had been changed by then.
            peer: where it came from.
        """
        self.authorization = authorization
        self.formats: dict[Server, HeaderFormat] = {}
        self._changes = changes
        self._until = authorization.principal.expires
        self._host = peer.host
        self._secure = peer.secure

    def holds(self, changes: int, now: float, peer: Peer) -> bool:
        """Tell whether the decisions would be the same now.

        Args:
            changes: how often keys, users and teams have been changed.
            now: the time in Unix seconds.
            peer: where the request comes from; ``X-Forwarded-For`` names its address.
        """
        return (
            self._changes == changes and now < self._until and self._host == peer.host and self._secure == peer.secure
        )


class AuthorizationCache:
    """Decisions by the template of the head, which is equal for heads that are alike. The oldest makes room."""

    def __init__(self) -> None:
        self._kept: dict[object, CachedAuthorization] = {}
        self.get = self._kept.get

    def keep(self, template: object, cached: CachedAuthorization) -> None:
        """Keep decisions on heads of this template in place of earlier ones."""
        if len(self._kept) >= MOST_HEADS and template not in self._kept:
            del self._kept[next(iter(self._kept))]
        self._kept[template] = cached


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
