"""A server that answers as ``X-Script`` says: nonsense, too much, or never to an end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.end_to_end.messages import CHUNKED_HEAD, EVENT_STREAM, LAST, OK, chunk, header_of, length_of, whole
from tests.end_to_end.process_harness import MEBIBYTE, Connection

#: what no client may ever get
POISON = whole(b'{"poison":true}')
ANSWER = whole(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}')
#: what becomes of a background response
FINISHED = whole(b'{"id":"r","status":"completed","usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}')
#: seconds for which a script without an end goes on
ENDLESS = 2.0

Script = Callable[[Connection], bool]
SCRIPTS: dict[str, Script] = {}


def script(act: Callable[[Connection], bool | None]) -> Callable[[Connection], bool | None]:
    """Add a script. It returns True if the connection may serve another request."""
    SCRIPTS[act.__name__] = lambda connection: bool(act(connection))
    return act


def serve(connection: Connection) -> None:
    """Serve a connection."""
    while head := connection.read_head():
        connection.read(length_of(head))
        name = header_of(head, "x-script")
        if head.startswith(b"GET /v1/responses/"):
            connection.send(FINISHED)
        elif not name:
            connection.send(OK if head.startswith(b"GET") else ANSWER)
        elif not SCRIPTS[name](connection):
            return


def _without_end(connection: Connection, data: bytes) -> None:
    end = time.monotonic() + ENDLESS
    while time.monotonic() < end:
        connection.send(data)
        # the gateway's time is what is tested, not this process's
        time.sleep(0.01)


@script
def extra_response(connection: Connection) -> bool:
    connection.send(ANSWER + POISON)
    return True


@script
def framing_nominated(connection: Connection) -> bool:
    connection.send(b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\n{}")
    return True


@script
def endless_headers(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\n")
    _without_end(connection, b"".join(b"x-%d: y\r\n" % number for number in range(200)))


@script
def endless_header(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nx: ")
    _without_end(connection, bytes(16_384).replace(b"\0", b"a"))


@script
def interim_flood(connection: Connection) -> None:
    _without_end(connection, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 20)


@script
def blank_lines(connection: Connection) -> None:
    _without_end(connection, b"\r\n" * 5_000)


@script
def blank_events(connection: Connection) -> None:
    connection.send(EVENT_STREAM)
    _without_end(connection, chunk(b"\n" * 16_384))


@script
def endless_event(connection: Connection) -> None:
    connection.send(EVENT_STREAM + chunk(b"data: "))
    _without_end(connection, chunk(b"a" * 65_536))


@script
def tiny_chunks(connection: Connection) -> None:
    connection.send(EVENT_STREAM)
    _without_end(connection, b"1\r\n\n\r\n" * 500)


@script
def chunk_extension(connection: Connection) -> None:
    connection.send(CHUNKED_HEAD + b"5;")
    _without_end(connection, b"a" * 16_384)


@script
def endless_trailers(connection: Connection) -> None:
    connection.send(CHUNKED_HEAD + chunk(b"a") + b"0\r\n")
    _without_end(connection, b"x: y\r\n" * 500)


@script
def deep_answer(connection: Connection) -> bool:
    connection.send(whole(b'{"usage":' * 500_000))
    return True


@script
def wide_answer(connection: Connection) -> bool:
    members = b",".join(b'"%d":[]' % number for number in range(200_000))
    connection.send(whole(b'{"usage":{%b},"choices":[%b{}]}' % (members, b"{}," * 200_000)))
    return True


@script
def wide_event(connection: Connection) -> bool:
    event = b'data: {"choices":[%b{}]}\n\n' % (b'{"delta":{}},' * 100_000)
    connection.send(EVENT_STREAM + chunk(event) + chunk(b"data: [DONE]\n\n") + LAST)
    return True


@script
def large_answer(connection: Connection) -> bool:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.send(head % (20 * MEBIBYTE))
    for _ in range(20):
        connection.send(b" " * MEBIBYTE)
    return True


@script
def closes_in_the_middle(connection: Connection) -> None:
    connection.send(EVENT_STREAM + b"100\r\nabc")


@script
def resets_in_the_middle(connection: Connection) -> None:
    connection.send(EVENT_STREAM + chunk(b"data: a\n\n"))
    connection.reset()


@script
def too_short(connection: Connection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")


@script
def no_http(connection: Connection) -> None:
    connection.send(b"SSH-2.0-OpenSSH_9.7\r\n")


@script
def closes_when_idle(connection: Connection) -> None:
    connection.send(ANSWER)


@script
def silence(connection: Connection) -> None:
    connection.read_to_end()


@script
def closes_at_once(connection: Connection) -> None:
    """Close without an answer."""


def chat(stream: bool) -> bytes:
    """Return the body of a request to this server."""
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": "broken", "messages": messages, "max_tokens": 4, "stream": stream}).encode()
