"""Ways in which a server ends a request: it answers, it breaks off, it does neither in time, or it is not there."""

from __future__ import annotations

import socket
from contextlib import suppress

from tests.end_to_end.ledger_harness import (
    ANSWER,
    CHAT_BODY,
    DONE,
    EVENT_STREAM,
    EVENTS,
    LAST,
    STREAM_BODY,
    USAGE_EVENT,
    Caller,
    Columns,
    chunk,
    event,
    whole,
)
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.ways_out import COUNTED, UPLOAD, Told, Ways, guessed, then_closes, then_waits

#: bytes that a client announces
LARGE = 3_000_000

SERVERS = Ways()
way = SERVERS.way


def broken(error: str, **more: object) -> Columns:
    return {"outcome": "upstream_failed", "error": error, **more}


@way(whole(ANSWER))
def an_answer_in_json(caller: Caller) -> Told:
    assert caller.answer(caller.request("an_answer_in_json"), 200) == ANSWER
    return {"an_answer_in_json": {**COUNTED, "bytes_out": len(ANSWER)}}


@way(EVENT_STREAM + chunk(EVENTS) + chunk(USAGE_EVENT) + chunk(DONE) + LAST)
def a_stream_of_events(caller: Caller) -> Told:
    body = caller.answer(caller.request("a_stream_of_events", STREAM_BODY), 200)
    assert body == EVENTS + DONE
    return {"a_stream_of_events": {**COUNTED, "bytes_in": len(STREAM_BODY), "bytes_out": len(body), "stream": 1}}


@way(EVENT_STREAM + chunk(EVENTS) + chunk(DONE) + LAST)
def a_stream_that_tells_no_usage(caller: Caller) -> Told:
    body = caller.answer(caller.request("a_stream_that_tells_no_usage", STREAM_BODY), 200)
    return {"a_stream_that_tells_no_usage": {**guessed(STREAM_BODY, 2), "bytes_out": len(body), "stream": 1}}


@way(whole(b""))
def an_empty_answer(caller: Caller) -> Told:
    assert caller.answer(caller.request("an_empty_answer"), 200) == b""
    return {"an_empty_answer": guessed()}


@way(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
def a_head_alone(caller: Caller) -> Told:
    raw = caller.request("a_head_alone", b"", method="HEAD", path="/v1/models")
    assert caller.answer(raw, 200) == b""
    return {"a_head_alone": {"method": "HEAD", "route": "/v1/models", "model": "", "bytes_in": 0}}


@way(b"HTTP/1.1 204 No Content\r\n\r\n")
def no_content(caller: Caller) -> Told:
    caller.answer(caller.request("no_content"), 204)
    return {"no_content": {"status": 204}}


@way(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n")
def nothing_new(caller: Caller) -> Told:
    caller.answer(caller.request("nothing_new", b"", method="GET", path="/v1/models"), 304)
    return {"nothing_new": {"status": 304, "method": "GET", "route": "/v1/models", "model": "", "bytes_in": 0}}


@way(whole(b'{"error":"no"}', "400 Bad Request"))
def an_error_of_the_clients(caller: Caller) -> Told:
    caller.answer(caller.request("an_error_of_the_clients"), 400)
    return {"an_error_of_the_clients": {"status": 400, "bytes_out": 14}}


@way(whole(b'{"error":"no"}', "500 Internal Server Error"))
def an_error_of_the_servers(caller: Caller) -> Told:
    caller.answer(caller.request("an_error_of_the_servers"), 500)
    return {"an_error_of_the_servers": {"status": 500, "bytes_out": 14}}


@way(then_closes(b"HTTP/1.1 200 OK" + b"\r\nContent-Type: application/json\r\n\r\n" + ANSWER))
def an_answer_that_ends_with_its_connection(caller: Caller) -> Told:
    name = "an_answer_that_ends_with_its_connection"
    assert caller.answer(caller.request(name), 200) == ANSWER
    return {name: {**COUNTED, "bytes_out": len(ANSWER)}}


@way(whole(ANSWER))
def an_answer_to_http_1_0(caller: Caller) -> Told:
    assert caller.answer(caller.request("an_answer_to_http_1_0", version="1.0"), 200) == ANSWER
    return {"an_answer_to_http_1_0": {**COUNTED, "bytes_out": len(ANSWER)}}


@way(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + whole(ANSWER))
def interim_answers(caller: Caller) -> Told:
    with caller.sent(caller.request("interim_answers")) as client:
        assert [client.read_head()[9:12] for _ in range(3)] == [b"103", b"102", b"200"]
        client.read(len(ANSWER))
    return {"interim_answers": {**COUNTED, "bytes_out": len(ANSWER)}}


@way(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
def an_upload_that_the_server_refuses_early(caller: Caller) -> Told:
    name = "an_upload_that_the_server_refuses_early"
    raw = caller.request(name, bytes(65_536), "X-Unread: 1", path=UPLOAD, length=LARGE)
    with caller.sent(raw) as client:
        assert client.read_until(b"big").startswith(b"HTTP/1.1 413 ")
        with suppress(OSError):
            client.send(bytes(65_536))
    return {name: {"status": 413, "route": UPLOAD, "model": "", "bytes_in": range(LARGE), "bytes_out": 3}}


@way(whole(ANSWER))
def requests_in_line(caller: Caller) -> Told:
    names = [f"requests_in_line_{number}" for number in range(3)]
    raw = b"".join(caller.request(name, act="requests_in_line") for name in names)
    with caller.sent(raw) as client:
        for name in names:
            assert f"x-request-id: {name}\r\n".encode() in client.read_head()
            client.read(len(ANSWER))
    return {name: {**COUNTED, "bytes_out": len(ANSWER)} for name in names}


# a connection that was kept, and is dead


def _dies_once(connection: Connection, times: int) -> None:
    if times:
        connection.send(whole(ANSWER))
    else:
        connection.socket.shutdown(socket.SHUT_RDWR)


@way(_dies_once, kept=whole(b"{}"))
def a_kept_connection_that_is_dead(caller: Caller) -> Told:
    name = "a_kept_connection_that_is_dead"
    body = CHAT_BODY.replace(b'"m"', b'"kept"')
    caller.answer(caller.request("kept", body), 200)
    assert caller.answer(caller.request(name, body), 200) == ANSWER
    # it reached the server twice, and was one request
    assert caller.server.came[name] == 2
    usual = {"model": "kept", "bytes_in": len(body)}
    return {"kept": {**guessed(body), **usual, "bytes_out": 2}, name: {**COUNTED, **usual, "bytes_out": len(ANSWER)}}


# what the server breaks off


@way(then_closes(b""))
def the_server_goes_before_the_head(caller: Caller) -> Told:
    body = caller.answer(caller.request("the_server_goes_before_the_head"), 502)
    expected = broken("upstream_unreachable", status=502, bytes_out=len(body))
    return {"the_server_goes_before_the_head": expected}


@way(then_closes(whole(ANSWER)[:-5]))
def the_server_goes_amid_the_body(caller: Caller) -> Told:
    with caller.sent(caller.request("the_server_goes_amid_the_body")) as client:
        client.read_to_end()
    expected = broken("upstream_protocol_error", **guessed(), bytes_out=len(ANSWER) - 5)
    return {"the_server_goes_amid_the_body": expected}


@way(then_closes(EVENT_STREAM + chunk(EVENTS)))
def the_server_goes_amid_a_stream(caller: Caller) -> Told:
    with caller.sent(caller.request("the_server_goes_amid_a_stream", STREAM_BODY)) as client:
        client.read_to_end()
    expected = broken("upstream_protocol_error", **guessed(STREAM_BODY, 2), bytes_out=len(EVENTS), stream=1)
    return {"the_server_goes_amid_a_stream": expected}


@way(b"SSH-2.0-OpenSSH_9.7\r\n")
def nonsense(caller: Caller) -> Told:
    body = caller.answer(caller.request("nonsense"), 502)
    return {"nonsense": broken("upstream_protocol_error", status=502, bytes_out=len(body))}


@way(EVENT_STREAM + chunk(EVENTS) + b"no size\r\n")
def nonsense_amid_a_stream(caller: Caller) -> Told:
    with caller.sent(caller.request("nonsense_amid_a_stream", STREAM_BODY)) as client:
        client.read_to_end()
    expected = broken("upstream_protocol_error", **guessed(STREAM_BODY, 2), bytes_out=len(EVENTS), stream=1)
    return {"nonsense_amid_a_stream": expected}


@way(then_waits(b""))
def no_head_in_time(caller: Caller) -> Told:
    raw = CHAT_BODY.replace(b'"m"', b'"hasty"')
    body = caller.answer(caller.request("no_head_in_time", raw), 504)
    expected = broken("upstream_timeout", status=504, bytes_in=len(raw), bytes_out=len(body), model="hasty")
    return {"no_head_in_time": expected}


@way(then_waits(EVENT_STREAM + chunk(event(role="assistant"))))
def no_piece_in_time(caller: Caller) -> Told:
    raw = STREAM_BODY.replace(b'"m"', b'"hasty"')
    with caller.sent(caller.request("no_piece_in_time", raw)) as client:
        client.read_to_end()
    expected = broken(
        "upstream_timeout", **guessed(raw), bytes_out=len(event(role="assistant")), stream=1, model="hasty"
    )
    return {"no_piece_in_time": expected}


@way()
def no_server(caller: Caller) -> Told:
    # it had been sent, as far as anybody knows who only finds that no answer came
    raw = CHAT_BODY.replace(b'"m"', b'"gone"')
    body = caller.answer(caller.request("no_server", raw), 502)
    expected = broken("upstream_unreachable", status=502, bytes_in=len(raw), bytes_out=len(body), model="gone")
    return {"no_server": expected}
