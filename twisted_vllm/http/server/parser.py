"""Reading requests: llhttp's callbacks, made into requests whose head was judged."""

from __future__ import annotations

from collections.abc import Callable

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import BodyTooLarge, GatewayError, HeadTooLarge, MalformedHttp
from twisted_vllm.http.header_cache import RequestHeaderCache
from twisted_vllm.http.headers import FRAMING
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.server.request_line import asked_protocols, closes, origin_form
from twisted_vllm.http.start_line import KEPT, OTHER_PROTOCOL, unfinished_request_line


class RequestParser:
    """Reads the requests of one connection.

    Attributes:
        current: the request that is being read, or None between two.
        in_head: whether its head is being read.
        final: whether nothing that follows is a request.
        surplus: what followed a request that asks for an upgrade, in the segment that ended its head.
    """

    def __init__(self, begin: Callable[[], GatewayRequest], limits: Limits, known: RequestHeaderCache) -> None:
        """Make a reader.

        Args:
            begin: makes a request and puts it in line.
            limits: caps on heads and bodies.
            known: the heads that were read before.
        """
        self.current: GatewayRequest | None = None
        self.in_head = False
        self.final = False
        self.surplus = b""
        self._begin = begin
        self._limits = limits
        self._known = known
        self._last: GatewayRequest | None = None
        self._parser = HttpRequestParser(self)
        self._priming = False
        # the end of a request line that has none yet
        self._line = b""
        # sizes in bytes: of the segment that is read, of the one in which the head began, of all that may be the head,
        # and of what came of a chunked body without a byte of content
        self._segment = 0
        self._head_segment = 0
        self._head_bound = 0
        self._empty_bytes = 0

    def feed(self, data: bytes) -> GatewayError | None:
        """Read `data`; return why what comes can be read no further, or None."""
        begins = self.current is None and not self.final
        if begins and self._known.recall(data, self._begin):
            return None
        if self._line or OTHER_PROTOCOL in data:
            return self._parse_lines(data)
        error = self._parse(data)
        ended, self._last = self._last, None
        if begins and ended is not None and self.current is None and error is None:
            self._known.learn(data, ended)
        elif self.in_head and self.current is not None:
            self._line = unfinished_request_line(data, self.current)
        return error

    def _parse_lines(self, data: bytes) -> GatewayError | None:
        """Parse line by line, so that each request begins with one, and refuse request lines of another protocol."""
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
            # what came in whole segments since the head began; nothing else is in them
            if self._head_bound - self._head_segment > self._limits.max_head_bytes:
                return self._head_too_large()
        elif request is not None and request is before and request.body_length is None:
            return self._judge_chunks(request.body_received - received)
        return None

    def give_up(self) -> GatewayRequest:
        """Read no more; return the request that cannot be read, or a new one for bytes that are none."""
        request, self.current = self.current or self._begin(), None
        self.in_head = False
        self.final = True
        return request

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(f"The request's head is over {self._limits.max_head_bytes} bytes.")

    def _judge_chunks(self, gained: int) -> GatewayError | None:
        """Refuse endless chunk extensions and trailers: llhttp has no limit, and keeps a trailer until it ends."""
        if gained:
            self._empty_bytes = 0
            return None
        self._empty_bytes += self._segment
        if self._empty_bytes > self._limits.max_head_bytes:
            return MalformedHttp("The chunked body has over-long chunk extensions or trailers.")
        return None

    def _prime_without_upgrade(self) -> bool:
        """Go on as if no upgrade had been asked for: RFC 9110 §7.8 lets a server ignore it.

        llhttp takes the request for complete and skips its body, so a fresh parser gets a head with the same framing.

        Returns:
            Whether what follows is to be read.
        """
        request = self.current
        if request is None or request.fault is not None:
            return False
        head = request.head
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
            self.in_head = True
            self._head_bound = self._head_segment = self._segment
            self._empty_bytes = 0

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the request target."""
        if self.in_head and self.current is not None:
            self.current.uri += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        request = self.current
        if request is not None:
            (request.raw_headers if self.in_head else request.trailers).append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Judge the head."""
        request = self.current
        if self._priming or request is None:
            return
        self.in_head = False
        request.read_headers()
        parser = self._parser
        version = parser.get_http_version()
        request.method = parser.get_method()
        request.clientproto = b"HTTP/1.1" if version == "1.1" else b"HTTP/" + version.encode("ascii")
        request.head_complete = True
        request.upgrade = parser.should_upgrade()
        try:
            self._judge(request, version)
        except GatewayError as fault:
            request.fault = fault
        if request.upgrade:
            self._judge_upgrade(request, version)

    def _judge_upgrade(self, request: GatewayRequest, version: str) -> None:
        """Let a resource ask its server for the upgrade where there is no body; else it is ignored."""
        if request.fault is None and request.body_length == 0:
            request.protocols = asked_protocols(request.method, version, request.raw_headers)
        if request.protocols:
            request.upgrade = False
            # whatever the answer is: what follows was perhaps written for the other protocol, and must not be read as a
            # request
            request.persistent = False

    def _judge(self, request: GatewayRequest, version: str) -> None:
        headers = request.raw_headers
        head = request.head
        limits = self._limits
        if len(headers) > limits.max_header_count:
            raise HeadTooLarge(f"The request has over {limits.max_header_count} headers.")
        # what was fed bounds the head from above, and is known without counting
        if self._head_bound > limits.max_head_bytes and _size(request) > limits.max_head_bytes:
            raise self._head_too_large()
        request.uri = origin_form(request.method, request.uri, version, headers, head)
        length = head.get(b"content-length")
        if length is not None:
            request.body_length = int(length)
            if request.body_length > limits.max_body_bytes:
                raise self._body_too_large()
        elif b"transfer-encoding" in head:
            if version == "1.0" or head[b"transfer-encoding"].lower() != b"chunked":
                # a coding that another server on the way may read, or not: RFC 9112 §6.1
                raise MalformedHttp("The only transfer coding is chunked, in HTTP/1.1.")
            request.body_length = None
        request.persistent = not closes(version, head)

    def _body_too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body is over {self._limits.max_body_bytes} bytes.")

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        request = self.current
        if request is None:
            return
        request.body_received += len(data)
        if request.finished:
            return
        if request.body_received > self._limits.max_body_bytes:
            request.fault = request.fault or self._body_too_large()
        else:
            request.body_pieces.append(data)

    def on_message_complete(self) -> None:
        """End the request, unless it asked for an upgrade and its body is still to be read."""
        request = self.current
        if request is None:
            return
        if request.upgrade:
            request.upgrade = False
            return
        request.body_complete = True
        self._last = request
        self.current = None
        if not request.persistent:
            self.final = True


def _size(request: GatewayRequest) -> int:
    return len(request.uri) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
