"""One request to a server and the reading of its response: llhttp's callbacks, collected for each segment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.web.iweb import IBodyProducer

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.headers import BODILESS, NO_HEAD, HeaderList, ResponseHead, listed
from twisted_vllm.http.start_line import StatusLines

#: bytes of a response's head, interim responses included, from which on it is no answer
HEAD_LIMIT = 262_144

NO_PROTOCOLS: frozenset[bytes] = frozenset()

Informational = Callable[[int, bytes, HeaderList], None]


class ResponseHandler(Protocol):
    """Who sends a request, and is told of the answer: of a response or of a failure, once.

    Attributes:
        protocols: the protocols, in lower case, to one of which the server may switch, with a `SwitchedResponse`.
    """

    protocols: frozenset[bytes]

    def responded(self, response: UpstreamResponse) -> None:
        """The head of the response has come. What came of its body is delivered when this returns."""

    def failed(self, error: BaseException) -> None:
        """There will be no response: a `GatewayError`, or why the body could not be had."""

    def informational(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """An interim response has come."""


class UpstreamExchange:
    """One request and the response to it.

    Attributes:
        server: where it goes.
        method: the request's method.
        head: the request's head, written out.
        body: the body: bytes, a producer that streams it, or None.
        asker: who is told.
        retried: whether it was sent before, on a connection that turned out to be dead.
        at: the connection that it is on, or the attempt to connect that it waits for.
        response: the response, once its head arrived.
        over: whether the asker was told, or has given up.
    """

    __slots__ = ("asker", "at", "body", "head", "method", "over", "response", "retried", "server")

    def __init__(
        self, server: Server, method: bytes, head: bytes, body: bytes | IBodyProducer | None, asker: ResponseHandler
    ) -> None:
        self.server = server
        self.method = method
        self.head = head
        self.body = body
        self.asker = asker
        self.retried = False
        self.at: Any = None
        self.response: UpstreamResponse | None = None
        self.over = False

    @property
    def can_be_resent(self) -> bool:
        """Whether the body is still in hand."""
        return not self.retried and (self.body is None or isinstance(self.body, bytes))

    def cancel(self) -> None:
        """Give up: nothing more is told, and the connection is closed."""
        self.over = True
        if self.at is not None:
            self.at.give_up(self)

    def fail(self, error: BaseException) -> None:
        """Tell of a failure, unless the asker knows more already."""
        if not self.over:
            self.over = True
            self.asker.failed(error)

    def asked_for(self, head: ResponseHead) -> bool:
        """Tell whether all that the server's 101 switches to was asked for (RFC 9110 §7.8)."""
        agreed = listed(head.headers, b"upgrade")
        return bool(agreed) and self.asker.protocols.issuperset(agreed)


class ResponseParser:
    """Reads the responses of one connection, one after another.

    Attributes:
        any_bytes: whether anything came since the last request.
        head_arrived: whether the head of the final response came.
        head: what it says.
        bodyless: whether no body can follow: HEAD, 204, 304.
        until_eof: whether its body ends with the connection (RFC 9112 §6.3).
        complete: whether its end came.
        keep_alive: whether the server keeps the connection.
        spoiled: whether more came than the response; the connection must not be used again.
        pieces: the body's pieces that came since they were last taken.
        trailers: the trailers, as they came.
        switched: whether the head is that of a 101, after which nothing is HTTP any more.
        surplus: what came after it.
    """

    __slots__ = (
        "_head_bytes",
        "_informational",
        "_is_head",
        "_known",
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

    def __init__(self, known: ResponseHeaderCache) -> None:
        """Make a reader; `known` are the heads that were read before."""
        self._known = known
        self.spoiled = False
        self.switched = False
        self.surplus = b""
        self._parser = HttpResponseParser(self)
        self.expect(b"", None)

    def expect(self, method: bytes, informational: Informational | None) -> None:
        """Begin with the response to a request of this method, on a connection that kept to HTTP so far."""
        self._is_head = method == b"HEAD"
        self._informational = informational
        self.any_bytes = self.head_arrived = self.bodyless = self.until_eof = False
        self.complete = self.keep_alive = self._refused = False
        self._head_bytes = 0
        self._lines: StatusLines | None = None
        self._reason = b""
        self._pairs: HeaderList = []
        self.head = NO_HEAD
        self.pieces: list[bytes] = []
        self.trailers: HeaderList = []

    def feed(self, data: bytes) -> bool:
        """Read a segment; return whether it was well-formed as far as the response goes."""
        begins = False
        if not self.any_bytes:
            self.any_bytes = True
            begins = not self._is_head
            if begins and (recalled := self._known.recall(data)) is not None:
                self.head, body = recalled
                self.head_arrived = self.complete = self.keep_alive = True
                self._informational = None
                if body:
                    self.pieces.append(body)
                return True
            # a final response of HTTP/1's, as they nearly all are, need not be looked at again
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
            # what follows the end is not the client's
            self.spoiled = True
            return self.complete
        if not self.head_arrived:
            self._head_bytes += len(data)
            return not self._refused and self._head_bytes <= HEAD_LIMIT
        if begins and self.complete and self.keep_alive and not self.spoiled:
            self._known.learn(data, self.head)
        elif not self.pieces and not self.complete:
            # chunk extensions or trailers, which llhttp keeps until they end
            self._head_bytes += len(data)
            return self._head_bytes <= HEAD_LIMIT
        return True

    def take(self) -> bytes:
        """Return the body's bytes that came since the last call."""
        pieces = self.pieces
        if not pieces:
            return b""
        self.pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """Notice a second response, of which no more than this may have come."""
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
            self.trailers.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head: an interim response, one without a body, or one that ends with the connection."""
        if self.head_arrived:
            # a second response
            self.spoiled = True
            return
        parser = self._parser
        status = parser.get_status_code()
        if 100 <= status < 200:
            if status == 101 and parser.should_upgrade():
                self.switched = True
                self.head = ResponseHead(status, self._reason, self._pairs)
            return
        head = ResponseHead(status, self._reason, self._pairs)
        if status < 100 or head.coding not in (b"", b"chunked"):
            # no status of HTTP's, or a coding that nobody would undo
            self._refused = True
            return
        self.head_arrived = True
        self.head = head
        # it belongs to a request that need not outlive its response
        self._informational = None
        if self._is_head:
            # llhttp goes on to wait for the body that Content-Length announces
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
                self._informational(status, self._reason, self._pairs)
            self._reason = b""
            self._pairs = []
        elif not self.complete and not self.until_eof:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()
