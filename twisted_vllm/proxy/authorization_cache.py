"""What was decided of a request by its head alone, kept for the next one with the same head.

A client library sends the same head over and over (`twisted_vllm.http.header_cache`): the same key for the same route,
with the same headers, to be sent on in the same words. As long as nobody has changed a key, a user or a team since, the
decisions are the same too.
"""

from __future__ import annotations

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.headers import HeaderList, write_header_lines
from twisted_vllm.http.server.connection import Peer
from twisted_vllm.proxy.admission import Entry

_LENGTH = b"\r\nContent-Length: \r\n"


class CachedAuthorization:
    """The decisions on one head.

    Attributes:
        entry: the admitted head.
        heads: for each server that was picked since, the URL and the headers without the length and the request's id:
            the lines before and after the length, or all of them and None where there is no body.
    """

    __slots__ = ("_changes", "_host", "_secure", "_until", "entry", "heads")

    def __init__(self, entry: Entry, changes: int, peer: Peer) -> None:
        """Keep decisions.

        Args:
            entry: the admitted head.
            changes: how often keys, users and teams had been changed when it was admitted.
            peer: where it came from.
        """
        self.entry = entry
        self.heads: dict[Server, tuple[bytes, bytes, bytes | None]] = {}
        self._changes = changes
        self._until = entry.principal.expires
        self._host = peer.host
        self._secure = peer.secure

    def holds(self, changes: int, now: float, peer: Peer) -> bool:
        """Tell whether the decisions are still what they would be.

        Args:
            changes: how often keys, users and teams have been changed.
            now: the time in Unix seconds.
            peer: where the request comes from; its address stands in ``X-Forwarded-For``.
        """
        return (
            self._changes == changes and now < self._until and self._host == peer.host and self._secure == peer.secure
        )

    def keep(self, server: Server, url: bytes, headers: HeaderList) -> None:
        """Keep what goes to `server`.

        Args:
            server: the server.
            url: what it is asked for.
            headers: its headers, with an empty ``Content-Length``, if any, and an empty id at the end.
        """
        lines = write_header_lines(headers).removesuffix(b"\r\n")
        # a client's own length has been left out, and no other line can look like this one
        before, length, after = lines.partition(_LENGTH)
        self.heads[server] = (url, before, b"\r\n" + after) if length else (url, lines, None)

    def write(self, server: Server, length: int, request_id: bytes) -> tuple[bytes, RawHeaders]:
        """Return the URL and the headers for `server`, which must be kept."""
        url, before, after = self.heads[server]
        if after is None:
            return url, RawHeaders(b"%b%b\r\n" % (before, request_id))
        return url, RawHeaders(b"%b\r\nContent-Length: %d%b%b\r\n" % (before, length, after, request_id))
