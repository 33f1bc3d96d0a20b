"""HTTP messages as bytes, and what tests read off them."""

from __future__ import annotations

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#: the head of a stream of events, as vLLM sends it
EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
#: the chunk that ends a body
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


#: a response that has begun
STREAM = CHUNKED_HEAD + chunk(b"abc")


def whole(body: bytes, status: str = "200 OK", kind: str = "application/json", more: str = "") -> bytes:
    """Return a response with a ``Content-Length``."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def header_of(head: bytes, name: str) -> str:
    """Return the value of a header, or an empty string; `name` is in lower case."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        found, _, value = line.partition(": ")
        if found.lower() == name:
            return value
    return ""


def length_of(head: bytes) -> int:
    """Return the ``Content-Length``, or 0."""
    return int(header_of(head, "content-length") or 0)
