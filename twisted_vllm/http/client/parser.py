"""Parses responses: collects llhttp's callbacks for each TCP segment."""

from __future__ import annotations

import re

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from twisted_vllm.http.client.interfaces import Informational
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.headers import BODILESS, NO_HEAD, HeaderList, ResponseHead
from twisted_vllm.http.start_line import StatusLines

#: a larger response head in bytes, interim responses included, is refused
MAX_HEAD_BYTES = 262_144
#: more headers, or more trailers, are refused: as objects they take thirty times the memory of their bytes
MAX_HEADERS = 1_000
#: more interim responses to one request are refused: each is written to the client
MAX_INTERIM = 100

#: a control byte, which no reason phrase may have (RFC 9112 §4) and llhttp lets through
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class ResponseParser:
    """Parses the responses of one connection, one after another.

    Attributes:
        any_bytes: whether anything was received since the last request.
        head_arrived: whether the head of the final response was received.
        head: that head, or a 101's.
        bodyless: whether the response cannot have a body: HEAD, 204, 304.
        until_eof: whether the body ends with the connection (RFC 9112 §6.3).
        complete: whether the response has ended.
        keep_alive: whether the server keeps the connection.
        spoiled: whether more than the response was received, so that the connection must not be reused.
        pieces: the pieces of the body that were received since the last `take`.
        trailers: the trailers, as received.
        switched: whether the server sent a 101; what follows is not HTTP.
        surplus: the bytes after the 101.
    """

    __slots__ = (
        "_head_bytes",
        "_header_cache",
        "_informational",
        "_interim",
        "_is_head",
        "_lines",
        "_pairs",
        "_parser",
        "_reason",
        "_refused",
        "any_bytes",
        "bodyless",
        "complete",
        "head",
        "head_arrived",
        "keep_alive",
        "pieces",
        "spoiled",
        "surplus",
        "switched",
        "trailers",
        "until_eof",
    )

    def __init__(self, header_cache: ResponseHeaderCache) -> None:
        self._header_cache = header_cache
        self.spoiled = False
        self.switched = False
        self.surplus = b""
        self._parser = HttpResponseParser(self)
        self.expect(b"", None)

    def expect(self, method: bytes, informational: Informational | None) -> None:
        """Prepare for the response to a request of this method; `informational` gets the interim responses."""
        self._is_head = method == b"HEAD"
        self._informational = informational
        self.any_bytes = self.head_arrived = self.bodyless = self.until_eof = False
        self.complete = self.keep_alive = self._refused = False
        self._head_bytes = self._interim = 0
        self._lines: StatusLines | None = None
        self._reason = b""
        self._pairs: HeaderList = []
        self.head = NO_HEAD
        self.pieces: list[bytes] = []
        self.trailers: HeaderList = []

    def feed(self, data: bytes) -> bool:
        """Parse a segment; return whether the response is well-formed so far."""
        begins = False
        if not self.any_bytes:
            self.any_bytes = True
            begins = not self._is_head
            if begins and (recalled := self._header_cache.recall(data)) is not None:
                self.head, body = recalled
                self.head_arrived = self.complete = self.keep_alive = True
                self._informational = None
                if body:
                    self.pieces.append(body)
                return True
            # `StatusLines` checks what llhttp does not; a final response of HTTP/1.x needs no check
            self._lines = None if data[:7] == b"HTTP/1." and data[9:10] > b"1" else StatusLines()
        if self._lines is not None and not self._lines.allow(data):
            return False
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except HttpParserUpgrade as upgrade:
            self.spoiled = True
            self.surplus = data[upgrade.args[0] :]
            return self.complete
        except HttpParserError:
            # an error after the end does not concern the response
            self.spoiled = True
            return self.complete
        if not self.head_arrived:
            self._head_bytes += len(data)
            return not self._refused and self._head_bytes <= MAX_HEAD_BYTES and len(self._pairs) <= MAX_HEADERS
        if begins and self.complete and self.keep_alive and not self.spoiled:
            self._header_cache.learn(data, self.head)
        elif not self.pieces and not self.complete:
            # chunk extensions or trailers, which llhttp buffers until they end
            self._head_bytes += len(data)
            return self._head_bytes <= MAX_HEAD_BYTES and not self._refused
        return not self._refused

    def forget(self) -> None:
        """Drop the head and the trailers of a response that is over: an idle connection must not hold them."""
        self.head = NO_HEAD
        if self.trailers:
            self.trailers = []

    def take(self) -> bytes:
        """Return what was received of the body since the last call."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """Notice the beginning of a second response."""
        if self.complete:
            self.spoiled = True

    def on_status(self, piece: bytes) -> None:
        """Take a piece of the reason phrase."""
        if not self.head_arrived:
            self._reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        if not self.head_arrived:
            self._pairs.append((name, value))
        elif not self.complete:
            if len(self.trailers) < MAX_HEADERS:
                self.trailers.append((name, value))
            else:
                self._refused = True

    def on_headers_complete(self) -> None:
        """Classify the head: interim, without a body, or with a body that ends with the connection."""
        if self.head_arrived:
            # a second response
            self.spoiled = True
            return
        parser = self._parser
        status = parser.get_status_code()
        if len(self._pairs) > MAX_HEADERS or _CONTROL.search(self._reason):
            self._refused = True
            return
        if 100 <= status < 200:
            if status == 101 and parser.should_upgrade():
                self.switched = True
                self.head = ResponseHead(status, self._reason, self._pairs)
            return
        head = ResponseHead(status, self._reason, self._pairs)
        self._pairs = []
        if status < 100 or head.coding not in (b"", b"chunked"):
            # an invalid status, or a transfer coding that would remain undecoded
            self._refused = True
            return
        self.head_arrived = True
        self.head = head
        # release the client's request
        self._informational = None
        if self._is_head:
            # llhttp would wait for the body that Content-Length announces
            self.bodyless = self.complete = True
            self.keep_alive = parser.get_http_version() == "1.1" and b"close" not in head.connection.lower()
            self._parser = HttpResponseParser(self)
        elif status in BODILESS:
            self.bodyless = True
        elif head.length is None:
            self.until_eof = not head.coding

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.complete:
            self.spoiled = True
        elif data:
            self.pieces.append(data)

    def on_message_complete(self) -> None:
        """End the response, or the interim response."""
        if not self.head_arrived:
            status = self._parser.get_status_code()
            if self._informational is not None and 100 <= status < 200 and status != 101:
                self._interim += 1
                self._refused = self._refused or self._interim > MAX_INTERIM
                if not self._refused:
                    self._informational(status, self._reason, self._pairs)
            self._reason = b""
            self._pairs = []
        elif not self.complete and not self.until_eof and not self._refused:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()
