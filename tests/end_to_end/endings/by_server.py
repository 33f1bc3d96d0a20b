"""Endings by the server: it answers, it breaks off, it does neither in time, or it is not there."""

from __future__ import annotations

import socket
from contextlib import suppress

from tests.end_to_end.endings.catalog import (
    REPORTED,
    UPLOAD,
    Endings,
    ExpectedRows,
    estimated,
    generated,
    then_closes,
    then_waits,
)
from tests.end_to_end.ledger_harness import (
    ANSWER,
    CHAT_BODY,
    DONE,
    EVENTS,
    STREAM_BODY,
    USAGE_EVENT,
    Caller,
    Columns,
    event,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from tests.end_to_end.process_harness import Connection

#: the `Content-Length` of a large upload
LARGE = 3_000_000

BY_SERVER = Endings()
ending = BY_SERVER.ending


def upstream_failure(error: str, **more: object) -> Columns:
    return {"outcome": "upstream_failed", "error": error, **more}


@ending(whole(ANSWER))
def an_answer_in_json(caller: Caller) -> ExpectedRows:
    assert caller.answer(caller.request("an_answer_in_json"), 200) == ANSWER
    return {"an_answer_in_json": {**REPORTED, "bytes_out": len(ANSWER)}}


@ending(EVENT_STREAM + chunk(EVENTS) + chunk(USAGE_EVENT) + chunk(DONE) + LAST)
def a_stream_of_events(caller: Caller) -> ExpectedRows:
    body = caller.answer(caller.request("a_stream_of_events", STREAM_BODY), 200)
    assert body == EVENTS + DONE
    return {"a_stream_of_events": {**REPORTED, "bytes_in": len(STREAM_BODY), "bytes_out": len(body), "stream": 1}}


@ending(EVENT_STREAM + chunk(EVENTS) + chunk(DONE) + LAST)
def a_stream_without_usage(caller: Caller) -> ExpectedRows:
    body = caller.answer(caller.request("a_stream_without_usage", STREAM_BODY), 200)
    return {"a_stream_without_usage": {**estimated(STREAM_BODY, 2), "bytes_out": len(body), "stream": 1}}


@ending(whole(b""))
def an_empty_answer(caller: Caller) -> ExpectedRows:
    assert caller.answer(caller.request("an_empty_answer"), 200) == b""
    return {"an_empty_answer": estimated()}


@ending(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
def a_head_request(caller: Caller) -> ExpectedRows:
    raw = caller.request("a_head_request", b"", method="HEAD", path="/version")
    assert caller.answer(raw, 200) == b""
    return {"a_head_request": {"method": "HEAD", "route": "/version", "model": "", "bytes_in": 0}}


@ending(b"HTTP/1.1 204 No Content\r\n\r\n")
def no_content(caller: Caller) -> ExpectedRows:
    caller.answer(caller.request("no_content"), 204)
    return {"no_content": {"status": 204}}


@ending(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n")
def not_modified(caller: Caller) -> ExpectedRows:
    caller.answer(caller.request("not_modified", b"", method="GET", path="/version"), 304)
    return {"not_modified": {"status": 304, "method": "GET", "route": "/version", "model": "", "bytes_in": 0}}


@ending(whole(b'{"error":"no"}', "400 Bad Request"))
def an_error_of_the_clients(caller: Caller) -> ExpectedRows:
    caller.answer(caller.request("an_error_of_the_clients"), 400)
    return {"an_error_of_the_clients": {"status": 400, "bytes_out": 14}}


@ending(whole(b'{"error":"no"}', "500 Internal Server Error"))
def an_error_of_the_servers(caller: Caller) -> ExpectedRows:
    caller.answer(caller.request("an_error_of_the_servers"), 500)
    return {"an_error_of_the_servers": {"status": 500, "bytes_out": 14}}


@ending(then_closes(b"HTTP/1.1 200 OK" + b"\r\nContent-Type: application/json\r\n\r\n" + ANSWER))
def an_answer_that_ends_with_its_connection(caller: Caller) -> ExpectedRows:
    name = "an_answer_that_ends_with_its_connection"
    assert caller.answer(caller.request(name), 200) == ANSWER
    return {name: {**REPORTED, "bytes_out": len(ANSWER)}}


@ending(whole(ANSWER))
def an_answer_to_http_1_0(caller: Caller) -> ExpectedRows:
    assert caller.answer(caller.request("an_answer_to_http_1_0", version="1.0"), 200) == ANSWER
    return {"an_answer_to_http_1_0": {**REPORTED, "bytes_out": len(ANSWER)}}


@ending(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + whole(ANSWER))
def interim_answers(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("interim_answers")) as client:
        assert [client.read_head()[9:12] for _ in range(3)] == [b"103", b"102", b"200"]
        client.read(len(ANSWER))
    return {"interim_answers": {**REPORTED, "bytes_out": len(ANSWER)}}


@ending(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
def an_upload_that_the_server_refuses_early(caller: Caller) -> ExpectedRows:
    name = "an_upload_that_the_server_refuses_early"
    raw = caller.request(name, bytes(65_536), "X-Unread: 1", path=UPLOAD, length=LARGE)
    with caller.sent(raw) as client:
        assert client.read_until(b"big").startswith(b"HTTP/1.1 413 ")
        with suppress(OSError):
            client.send(bytes(65_536))
    return {name: {"status": 413, "route": UPLOAD, "model": "", "bytes_in": range(LARGE), "bytes_out": 3}}


@ending(whole(ANSWER))
def pipelined_requests(caller: Caller) -> ExpectedRows:
    names = [f"pipelined_requests_{number}" for number in range(3)]
    raw = b"".join(caller.request(name, script="pipelined_requests") for name in names)
    with caller.sent(raw) as client:
        for name in names:
            assert f"x-request-id: {name}\r\n".encode() in client.read_head()
            client.read(len(ANSWER))
    return {name: {**REPORTED, "bytes_out": len(ANSWER)} for name in names}


# a kept connection that has died


def _dies_once(connection: Connection, times: int) -> None:
    if times:
        connection.send(whole(ANSWER))
    else:
        connection.socket.shutdown(socket.SHUT_RDWR)


@ending(_dies_once, kept=whole(b"{}"))
def a_kept_connection_that_is_dead(caller: Caller) -> ExpectedRows:
    name, path = "a_kept_connection_that_is_dead", "/v1/embeddings"
    body = CHAT_BODY.replace(b'"m"', b'"kept"')
    caller.answer(caller.request("kept", body), 200)
    assert caller.answer(caller.request(name, body, path=path), 200) == ANSWER
    # it was sent twice, and is one request
    assert caller.server.arrivals[name] == 2
    usual = {"model": "kept", "bytes_in": len(body)}
    return {
        "kept": {**estimated(body), **usual, "bytes_out": 2},
        name: {**REPORTED, **usual, "route": path, "bytes_out": len(ANSWER)},
    }


# responses that the server breaks off


@ending(then_closes(b""))
def the_server_closes_before_the_head(caller: Caller) -> ExpectedRows:
    body = caller.answer(caller.request("the_server_closes_before_the_head"), 502)
    expected = upstream_failure("upstream_unreachable", status=502, bytes_out=len(body))
    return {"the_server_closes_before_the_head": expected}


@ending(then_closes(whole(ANSWER)[:-5]))
def the_server_closes_during_the_body(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("the_server_closes_during_the_body")) as client:
        client.read_to_end()
    expected = upstream_failure("upstream_protocol_error", **generated(), bytes_out=len(ANSWER) - 5)
    return {"the_server_closes_during_the_body": expected}


@ending(then_closes(EVENT_STREAM + chunk(EVENTS)))
def the_server_closes_during_a_stream(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("the_server_closes_during_a_stream", STREAM_BODY)) as client:
        client.read_to_end()
    expected = upstream_failure("upstream_protocol_error", **estimated(STREAM_BODY, 2), bytes_out=len(EVENTS), stream=1)
    return {"the_server_closes_during_a_stream": expected}


@ending(b"SSH-2.0-OpenSSH_9.7\r\n")
def nonsense(caller: Caller) -> ExpectedRows:
    body = caller.answer(caller.request("nonsense"), 502)
    return {"nonsense": upstream_failure("upstream_protocol_error", status=502, bytes_out=len(body))}


@ending(EVENT_STREAM + chunk(EVENTS) + b"no size\r\n")
def nonsense_during_a_stream(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("nonsense_during_a_stream", STREAM_BODY)) as client:
        client.read_to_end()
    expected = upstream_failure("upstream_protocol_error", **estimated(STREAM_BODY, 2), bytes_out=len(EVENTS), stream=1)
    return {"nonsense_during_a_stream": expected}


@ending(then_waits(b""))
def no_head_in_time(caller: Caller) -> ExpectedRows:
    raw = CHAT_BODY.replace(b'"m"', b'"hasty"')
    body = caller.answer(caller.request("no_head_in_time", raw), 504)
    expected = upstream_failure("upstream_timeout", **generated(raw, 1), status=504, bytes_out=len(body), model="hasty")
    return {"no_head_in_time": expected}


@ending(then_waits(EVENT_STREAM + chunk(event(role="assistant"))))
def no_chunk_in_time(caller: Caller) -> ExpectedRows:
    raw = STREAM_BODY.replace(b'"m"', b'"hasty"')
    with caller.sent(caller.request("no_chunk_in_time", raw)) as client:
        client.read_to_end()
    expected = upstream_failure(
        "upstream_timeout", **generated(raw, 1), bytes_out=len(event(role="assistant")), stream=1, model="hasty"
    )
    return {"no_chunk_in_time": expected}


@ending()
def no_server(caller: Caller) -> ExpectedRows:
    # it may have been sent: all that is known is that no answer came
    raw = CHAT_BODY.replace(b'"m"', b'"gone"')
    body = caller.answer(caller.request("no_server", raw), 502)
    expected = upstream_failure(
        "upstream_unreachable", status=502, bytes_in=len(raw), bytes_out=len(body), model="gone"
    )
    return {"no_server": expected}
