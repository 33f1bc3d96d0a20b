"""Parses requests: turns llhttp's callbacks into request heads, with checks that llhttp lacks, and bodies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import ReferenceType

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import BodyTooLarge, GatewayError, HeadTooLarge, MalformedHttp
from twisted_vllm.http.header_cache import RequestHeaderCache, RequestTemplate
from twisted_vllm.http.headers import FRAMING, HeaderList, RequestHead
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.server.request_line import asked_protocols, closes, origin_form
from twisted_vllm.http.start_line import KEPT, OTHER_PROTOCOL, unfinished_request_line

#: the method in the log of a request whose head was not read
UNREAD_METHOD = b"(no method yet)"


class Limited(Protocol):
    """Has the limits of requests, which may change: the site."""

    limits: Limits


class RequestParser:
    """Parses the requests of one connection.

    Attributes:
        current: the request that is being parsed, or None between requests.
        in_head: whether its head is being parsed.
        final: whether no further request is parsed.
        surplus: the bytes after a request for an upgrade, in the TCP segment that ended its head.
        pieces: of bodies, since the connection began. Each chunk has at least one, and costs time whatever its size.
    """

    def __init__(self, begin: Callable[[], GatewayRequest], limited: Limited, header_cache: RequestHeaderCache) -> None:
        """Make a parser.

        Args:
            begin: creates a request and puts it in line.
            limited: has the limits of heads and bodies; a request keeps those that it began with.
            header_cache: the parsed heads of earlier requests.
        """
        self.current: GatewayRequest | None = None
        self.in_head = False
        self.final = False
        self.surplus = b""
        self.pieces = 0
        self._begin = begin
        self._limited = limited
        self._limits = limited.limits
        self._header_cache = header_cache
        # the template of the last head that was recalled; the connection does not keep it
        self._like: ReferenceType[RequestTemplate] | None = None
        # the request that ended in the segment that is being parsed
        self._last: GatewayRequest | None = None
        self._parser = HttpRequestParser(self)
        # the part of the current head that has arrived
        self._target = b""
        self._headers: HeaderList = []
        self._ignoring_upgrade = False
        self._priming = False
        # the last bytes of an unfinished request line
        self._line = b""
        # sizes in bytes: of the current segment, of the segment in which the head began, of all that may belong to the
        # head, and of chunk framing that arrived without content
        self._segment = 0
        self._head_segment = 0
        self._head_bound = 0
        self._empty_bytes = 0

    def feed(self, data: bytes) -> GatewayError | None:
        """Parse `data`; return the error that ends parsing, or None."""
        begins = self.current is None and not self.final
        if begins:
            like = self._like
            recalled = self._header_cache.recall(data, None if like is None else like())
            if recalled is not None:
                self._take_recalled(*recalled)
                return None
        if self._line or OTHER_PROTOCOL in data:
            return self._parse_lines(data)
        error = self._parse(data)
        ended, self._last = self._last, None
        if begins and ended is not None and self.current is None and error is None:
            if ended.fault is None:
                self._header_cache.learn(data, ended.head)
        elif self.in_head:
            self._line = unfinished_request_line(data, self._target, bool(self._headers))
        return error

    def _take_recalled(self, head: RequestHead, body: bytes) -> None:
        if isinstance(head.template, RequestTemplate):
            self._like = head.template.reference
        request = self._begin()
        request.begin(head)
        if body:
            request.body_pieces.append(body)
            request.body_received = len(body)
        request.body_complete = True

    def _parse_lines(self, data: bytes) -> GatewayError | None:
        """Parse line by line, and refuse request lines of another protocol."""
        at = 0
        while at < len(data):
            request = self.current
            end = data.find(b"\n", at) + 1 or len(data)
            if request is None or self._line:
                line = self._line + data[at:end]
                if OTHER_PROTOCOL in line:
                    return MalformedHttp("Speak HTTP/1.1 or HTTP/1.0.")
                self._line = b"" if line.endswith(b"\n") else line[-KEPT:]
            elif not self.in_head and request.body_length is not None:
                rest = request.body_length - request.body_received
                end = at + rest if rest > 0 else len(data)
            error = self._parse(data[at:end])
            if error is not None:
                return error
            at = end
            if self.final and self.current is None:
                self._line = b""
                self.surplus += data[at:]
                break
        self._last = None
        return None

    def _parse(self, data: bytes) -> GatewayError | None:
        self._segment = len(data)
        if self.in_head:
            self._head_bound += len(data)
        before = self.current
        received = 0 if before is None else before.body_received
        while data:
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                if not self._prime_without_upgrade():
                    self.surplus = data[upgrade.args[0] :]
                    return None
                data = data[upgrade.args[0] :]
            except HttpParserCallbackError as error:
                raise error.__context__ or error from None
            except HttpParserError:
                return None if self.final else MalformedHttp("The request is not well-formed HTTP/1.1.")
        request = self.current
        if self.in_head:
            # whole segments since the head began; they contain nothing else
            if self._head_bound - self._head_segment > self._limits.max_head_bytes:
                return self._head_too_large()
            if len(self._headers) > self._limits.max_header_count:
                return self._too_many_headers()
        elif request is not None and request is before and request.body_length is None:
            return self._judge_chunks(request.body_received - received)
        return None

    def give_up(self) -> GatewayRequest:
        """Stop parsing; return the request that cannot be parsed, or a new one for bytes that are not a request."""
        request, self.current = self.current or self._begin(), None
        if not request.head_complete:
            request.begin(RequestHead(UNREAD_METHOD, self._target if self.in_head else b"", b"HTTP/1.1", self._headers))
        self.in_head = False
        self.final = True
        return request

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"The request line and the headers of this request have more than {self._limits.max_head_bytes} bytes: "
            "send fewer or shorter headers, or ask the operator to raise passthrough.limits.max_head_bytes."
        )

    def _too_many_headers(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"This request has more than {self._limits.max_header_count} headers: send fewer, or ask the operator to "
            "raise passthrough.limits.max_header_count."
        )

    def _judge_chunks(self, gained: int) -> GatewayError | None:
        """Refuse endless chunk extensions and trailers: llhttp has no limit and buffers a trailer until it ends."""
        if gained:
            self._empty_bytes = 0
            return None
        self._empty_bytes += self._segment
        if self._empty_bytes > self._limits.max_head_bytes:
            return MalformedHttp("The chunked body has over-long chunk extensions or trailers.")
        return None

    def _prime_without_upgrade(self) -> bool:
        """Continue as if no upgrade had been requested: RFC 9110 §7.8 lets a server ignore it.

        llhttp considers the request complete and skips its body, so a new parser gets a head with the same framing.

        Returns:
            Whether to parse what follows.
        """
        request = self.current
        if request is None or request.fault is not None:
            return False
        head = request.head.first
        framing = [b"POST / HTTP/1.1\r\nHost: h\r\n"]
        framing += [b"%b: %b\r\n" % (name, head[name]) for name in FRAMING if name in head]
        self._parser = HttpRequestParser(self)
        self._priming = True
        self._parser.feed_data(b"".join(framing) + b"\r\n")
        self._priming = False
        return True

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        if not self._priming:
            self.current = self._begin()
            self._limits = self._limited.limits
            self.in_head = True
            self._target = b""
            self._headers = []
            self._head_bound = self._head_segment = self._segment
            self._empty_bytes = 0

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the request target."""
        if self.in_head:
            self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        if self.in_head:
            self._headers.append((name, value.rstrip(b" \t")))
        elif self.current is not None:
            if len(self.current.trailers) < self._limits.max_header_count:
                self.current.trailers.append((name, value.rstrip(b" \t")))
            else:
                self.current.fault = self.current.fault or self._too_many_headers()

    def on_headers_complete(self) -> None:
        """Check the head, and pass it to the request."""
        request = self.current
        if self._priming or request is None:
            return
        self.in_head = False
        parser = self._parser
        version = parser.get_http_version()
        head = RequestHead(
            parser.get_method(),
            self._target,
            b"HTTP/1.1" if version == "1.1" else b"HTTP/" + version.encode("ascii"),
            self._headers,
        )
        # an idle connection must not hold them
        self._headers, self._target = [], b""
        try:
            self._check(head, version)
        except GatewayError as fault:
            request.fault = fault
        self._ignoring_upgrade = parser.should_upgrade()
        if self._ignoring_upgrade and request.fault is None and head.length == 0:
            head.protocols = asked_protocols(head.method, version, head.headers)
            if head.protocols:
                self._ignoring_upgrade = False
                # whatever the response is: what follows may belong to the other protocol, and must not be parsed as a
                # request
                head.keep_alive = False
        request.begin(head)

    def _check(self, head: RequestHead, version: str) -> None:
        """Check what llhttp does not, and set the attributes that depend on the headers.

        Raises:
            GatewayError: the request is refused.
        """
        first = head.first
        limits = self._limits
        if len(head.headers) > limits.max_header_count:
            raise self._too_many_headers()
        # the fed bytes are an upper bound of the head's size that costs nothing to know
        if self._head_bound > limits.max_head_bytes and _size(head) > limits.max_head_bytes:
            raise self._head_too_large()
        head.target = origin_form(head.method, head.target, version, head.headers, first)
        length = first.get(b"content-length")
        if length is not None:
            head.length = int(length)
            if head.length > limits.max_body_bytes:
                raise self._body_too_large(head.length)
        elif b"transfer-encoding" in first:
            if version == "1.0" or first[b"transfer-encoding"].lower() != b"chunked":
                # a coding that other servers on the path may or may not understand: RFC 9112 §6.1
                raise MalformedHttp("The only transfer coding is chunked, in HTTP/1.1.")
            head.length = None
        head.keep_alive = not closes(version, first)

    def _body_too_large(self, size: int | None) -> BodyTooLarge:
        return BodyTooLarge.over("max_body_bytes", self._limits.max_body_bytes, size)

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        request = self.current
        if request is None:
            return
        self.pieces += 1
        request.body_received += len(data)
        if request.finished:
            return
        if request.body_received > self._limits.max_body_bytes:
            request.fault = request.fault or self._body_too_large(None)
        else:
            request.body_pieces.append(data)

    def on_message_complete(self) -> None:
        """End the request, unless it requested an upgrade and its body is still to come."""
        request = self.current
        if request is None:
            return
        if self._ignoring_upgrade:
            self._ignoring_upgrade = False
            return
        request.body_complete = True
        self._last = request
        self.current = None
        if not request.persistent:
            self.final = True


def _size(head: RequestHead) -> int:
    return len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
