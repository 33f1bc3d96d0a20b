"""Endings of requests whose connection ends or changes under them: retries, tunnels, uploads and chunked bodies."""

from __future__ import annotations

import socket

from tests.end_to_end.endings.by_client import REVOKED, with_its_own_key
from tests.end_to_end.endings.by_server import LARGE, upstream_failure
from tests.end_to_end.endings.catalog import (
    DISCONNECTED,
    REPORTED,
    UPLOAD,
    Endings,
    ExpectedRows,
    estimated,
    then_closes,
    then_waits,
)
from tests.end_to_end.ledger_harness import ANSWER, CHAT_BODY, Caller, Columns
from tests.end_to_end.messages import LAST, chunk, whole
from tests.end_to_end.process_harness import Connection

BY_CONNECTION = Endings()
ending = BY_CONNECTION.ending

# retries after a kept connection had died


def _ends(connection: Connection) -> None:
    connection.socket.shutdown(socket.SHUT_RDWR)


def _dies_again(connection: Connection, times: int) -> None:
    _ends(connection)


def _dies_then_waits(connection: Connection, times: int) -> None:
    if times:
        connection.read_to_end()
    else:
        _ends(connection)


@ending(
    _dies_again,
    generation_that_is_not_repeated=_dies_again,
    is_kept=whole(b"{}"),
    retry_that_its_client_leaves=_dies_then_waits,
)
def a_retry_that_fails(caller: Caller) -> ExpectedRows:
    once, dies, leaves = "generation_that_is_not_repeated", "a_retry_that_fails", "retry_that_its_client_leaves"
    path = "/v1/embeddings"
    body = CHAT_BODY.replace(b'"m"', b'"frail"')
    usual = {"model": "frail", "bytes_in": len(body)}
    expected: ExpectedRows = {}
    for number, name in enumerate((once, dies, leaves)):
        caller.answer(caller.request(f"is_kept_{number}", body, script="is_kept"), 200)
        expected[f"is_kept_{number}"] = {**estimated(body), **usual, "bytes_out": 2}
        if name == leaves:
            with caller.sent(caller.request(leaves, body, path=path)):
                caller.until_arrived(leaves, 2)
            expected[leaves] = {**DISCONNECTED, **estimated(body), **usual, "route": path, "status": 0}
            continue
        where: Columns = {} if name == once else {"route": path}
        raw = caller.request(once, body) if name == once else caller.request(dies, body, path=path)
        size = len(caller.answer(raw, 502))
        expected[name] = upstream_failure("upstream_unreachable", **usual, **where, status=502, bytes_out=size)
    assert [caller.server.arrivals[name] for name in (once, dies, leaves)] == [1, 2, 2]
    return expected


# upgrades and tunnels

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
TUNNEL: Columns = {"method": "GET", "route": "/v1/realtime", "model": ""}


def _greets(connection: Connection, times: int) -> None:
    connection.send(AGREED + b"hello")
    assert connection.read(6) == b"frames"
    connection.socket.shutdown(socket.SHUT_RDWR)


@ending(_greets)
def a_tunnel(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("a_tunnel", b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        assert client.read_until(b"hello").startswith(b"HTTP/1.1 101 ")
        client.send(b"frames")
        assert client.read_to_end() == b""
    return {"a_tunnel": {**TUNNEL, "status": 101, "bytes_in": 6, "bytes_out": 5}}


@ending(then_waits(AGREED + b"hello"))
def a_tunnel_that_its_client_resets(caller: Caller) -> ExpectedRows:
    name = "a_tunnel_that_its_client_resets"
    with caller.sent(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        client.reset()
    return {name: {**TUNNEL, **DISCONNECTED, "status": 101, "bytes_in": 0, "bytes_out": 5}}


@ending(whole(b"no", "403 Forbidden"))
def an_upgrade_that_is_refused(caller: Caller) -> ExpectedRows:
    name = "an_upgrade_that_is_refused"
    assert caller.answer(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime"), 403) == b"no"
    return {name: {**TUNNEL, "status": 403, "bytes_in": 0, "bytes_out": 2}}


def _resets_a_tunnel(connection: Connection, times: int) -> None:
    connection.send(AGREED + b"hello")
    assert connection.read(6) == b"frames"
    connection.reset()


@ending(_resets_a_tunnel)
def a_tunnel_that_its_server_resets(caller: Caller) -> ExpectedRows:
    name = "a_tunnel_that_its_server_resets"
    with caller.sent(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        client.send(b"frames")
        client.read_to_end()
    return {name: {**TUNNEL, **upstream_failure("upstream_protocol_error", status=101, bytes_in=6, bytes_out=5)}}


@ending(then_waits(AGREED + b"hello"))
def a_tunnel_whose_key_is_blocked(caller: Caller) -> ExpectedRows:
    name = "a_tunnel_whose_key_is_blocked"
    other = with_its_own_key(caller, name, allowed_routes=["/v1/realtime"])
    with other.sent(other.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        other.gateway.administer("/key/block", key=other.key)
        client.read_to_end()
    return {name: {**TUNNEL, **REVOKED, "status": 101, "key_name": name, "bytes_in": 0, "bytes_out": 5}}


@ending(AGREED + b"hello")
def an_upgrade_that_was_not_requested(caller: Caller) -> ExpectedRows:
    name = "an_upgrade_that_was_not_requested"
    size = len(caller.answer(caller.request(name), 502))
    return {name: upstream_failure("upstream_protocol_error", status=502, bytes_out=size)}


# uploads


@ending(then_closes(b""))
def the_server_closes_during_an_upload(caller: Caller) -> ExpectedRows:
    name = "the_server_closes_during_an_upload"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        head, _, body = client.read_to_end().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    row = upstream_failure("upstream_unreachable", status=502, route=UPLOAD, model="", bytes_in=500)
    return {name: {**row, "bytes_out": len(body)}}


@ending(then_waits(whole(ANSWER)[:-5]))
def an_early_answer_whose_client_disconnects(caller: Caller) -> ExpectedRows:
    name = "an_early_answer_whose_client_disconnects"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        client.read_until(ANSWER[-10:-5])
        client.reset()
    return {name: {**DISCONNECTED, "route": UPLOAD, "model": "", "bytes_in": 500, "bytes_out": len(ANSWER) - 5}}


@ending(then_waits(b""))
def a_key_that_is_blocked_during_an_upload(caller: Caller) -> ExpectedRows:
    name = "a_key_that_is_blocked_during_an_upload"
    other = with_its_own_key(caller, name, allowed_routes=[UPLOAD])
    with other.sent(other.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=LARGE)) as client:
        other.until_arrived(name)
        other.gateway.administer("/key/block", key=other.key)
        head, _, body = client.read_to_end().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    row = {**REVOKED, "status": 401, "route": UPLOAD, "model": "", "key_name": name}
    return {name: {**row, "bytes_in": 500, "bytes_out": len(body)}}


def _continues(connection: Connection, times: int) -> None:
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.read(500)
    connection.send(whole(b"taken"))


@ending(_continues, is_not_expected=whole(b"no", "417 Expectation Failed", more="Connection: close\r\n"))
def an_upload_that_waits_until_it_is_asked_for(caller: Caller) -> ExpectedRows:
    name = "an_upload_that_waits_until_it_is_asked_for"
    lines = ("X-Unread: 1", "Expect: 100-continue")
    with caller.sent(caller.request(name, b"", *lines, path=UPLOAD, length=500)) as client:
        assert client.read_head().startswith(b"HTTP/1.1 100 ")
        client.send(bytes(500))
        assert client.read_until(b"taken").startswith(b"HTTP/1.1 200 ")
    with caller.sent(caller.request("is_not_expected", b"", *lines, path=UPLOAD, length=500)) as client:
        assert client.read_until(b"no").startswith(b"HTTP/1.1 417 ")
    usual = {"route": UPLOAD, "model": ""}
    refused = {**usual, "status": 417, "bytes_in": 0, "bytes_out": 2}
    return {name: {**usual, "bytes_in": 500, "bytes_out": 5}, "is_not_expected": refused}


# chunked bodies


@ending(
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(ANSWER[:9])
    + chunk(ANSWER[9:])
    + b"0\r\nX-Trailer: 1\r\n\r\n"
)
def bodies_in_chunks(caller: Caller) -> ExpectedRows:
    pieces = chunk(CHAT_BODY[:20]) + chunk(CHAT_BODY[20:]) + LAST
    raw = caller.request("bodies_in_chunks", pieces, "Transfer-Encoding: chunked", length=-1)
    with caller.sent(raw) as client:
        assert client.read_until(b"X-Trailer: 1\r\n").startswith(b"HTTP/1.1 200 ")
    return {"bodies_in_chunks": {**REPORTED, "bytes_out": len(ANSWER)}}


@ending(whole(ANSWER) + whole(b"of another request"))
def an_answer_with_surplus_bytes(caller: Caller) -> ExpectedRows:
    assert caller.answer(caller.request("an_answer_with_surplus_bytes"), 200) == ANSWER
    return {"an_answer_with_surplus_bytes": {**REPORTED, "bytes_out": len(ANSWER)}}
