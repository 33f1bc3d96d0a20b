"""Ways in which connections end or change under a request: second tries, tunnels, uploads, and bodies in pieces."""

from __future__ import annotations

import socket

from tests.end_to_end.ledger_harness import ANSWER, CHAT_BODY, LAST, Caller, chunk, whole
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.ways_of_clients import REVOKED, with_its_own_key
from tests.end_to_end.ways_of_servers import LARGE, broken
from tests.end_to_end.ways_of_their_own import AGREED, TUNNEL, UPGRADE
from tests.end_to_end.ways_out import COUNTED, LEFT, UPLOAD, Told, Ways, guessed, then_closes, then_waits

CONNECTIONS = Ways()
way = CONNECTIONS.way

# a kept connection that is dead, and a second one that does no better


def _ends(connection: Connection) -> None:
    connection.socket.shutdown(socket.SHUT_RDWR)


def _dies_again(connection: Connection, times: int) -> None:
    _ends(connection)


def _dies_then_waits(connection: Connection, times: int) -> None:
    if times:
        connection.read_to_end()
    else:
        _ends(connection)


@way(_dies_again, is_kept=whole(b"{}"), second_try_that_its_client_leaves=_dies_then_waits)
def a_second_try_that_fails_as_well(caller: Caller) -> Told:
    dies, leaves = "a_second_try_that_fails_as_well", "second_try_that_its_client_leaves"
    body = CHAT_BODY.replace(b'"m"', b'"frail"')
    usual = {"model": "frail", "bytes_in": len(body)}
    told: Told = {}
    for number in range(2):
        caller.answer(caller.request(f"is_kept_{number}", body, act="is_kept"), 200)
        told[f"is_kept_{number}"] = {**guessed(body), **usual, "bytes_out": 2}
        if number:
            with caller.sent(caller.request(leaves, body)):
                caller.until_came(leaves, 2)
            told[leaves] = {**LEFT, **guessed(body), **usual, "status": 0}
        else:
            size = len(caller.answer(caller.request(dies, body), 502))
            told[dies] = broken("upstream_unreachable", **usual, status=502, bytes_out=size)
    assert [caller.server.came[name] for name in (dies, leaves)] == [2, 2]
    return told


# tunnels


def _resets_a_tunnel(connection: Connection, times: int) -> None:
    connection.send(AGREED + b"hello")
    assert connection.read(6) == b"frames"
    connection.reset()


@way(_resets_a_tunnel)
def a_tunnel_that_its_server_resets(caller: Caller) -> Told:
    name = "a_tunnel_that_its_server_resets"
    with caller.sent(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        client.send(b"frames")
        client.read_to_end()
    return {name: {**TUNNEL, **broken("upstream_protocol_error", status=101, bytes_in=6, bytes_out=5)}}


@way(then_waits(AGREED + b"hello"))
def a_tunnel_whose_key_is_blocked(caller: Caller) -> Told:
    name = "a_tunnel_whose_key_is_blocked"
    other = with_its_own_key(caller, name, allowed_routes=["/v1/realtime"])
    with other.sent(other.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        other.gateway.administer("/key/block", key=other.key)
        client.read_to_end()
    return {name: {**TUNNEL, **REVOKED, "status": 101, "key_name": name, "bytes_in": 0, "bytes_out": 5}}


@way(AGREED + b"hello")
def a_switch_that_nobody_asked_for(caller: Caller) -> Told:
    name = "a_switch_that_nobody_asked_for"
    size = len(caller.answer(caller.request(name), 502))
    return {name: broken("upstream_protocol_error", status=502, bytes_out=size)}


# uploads


@way(then_closes(b""))
def the_server_goes_amid_an_upload(caller: Caller) -> Told:
    name = "the_server_goes_amid_an_upload"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        head, _, body = client.read_to_end().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    row = broken("upstream_unreachable", status=502, route=UPLOAD, model="", bytes_in=500)
    return {name: {**row, "bytes_out": len(body)}}


@way(then_waits(whole(ANSWER)[:-5]))
def an_early_answer_that_its_client_leaves(caller: Caller) -> Told:
    name = "an_early_answer_that_its_client_leaves"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        client.read_until(ANSWER[-10:-5])
        client.reset()
    return {name: {**LEFT, "route": UPLOAD, "model": "", "bytes_in": 500, "bytes_out": len(ANSWER) - 5}}


@way(then_waits(b""))
def a_key_that_is_blocked_amid_an_upload(caller: Caller) -> Told:
    name = "a_key_that_is_blocked_amid_an_upload"
    other = with_its_own_key(caller, name, allowed_routes=[UPLOAD])
    with other.sent(other.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=LARGE)) as client:
        other.until_came(name)
        other.gateway.administer("/key/block", key=other.key)
        head, _, body = client.read_to_end().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    row = {**REVOKED, "status": 401, "route": UPLOAD, "model": "", "key_name": name}
    return {name: {**row, "bytes_in": 500, "bytes_out": len(body)}}


def _continues(connection: Connection, times: int) -> None:
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.read(500)
    connection.send(whole(b"taken"))


@way(_continues, is_not_expected=whole(b"no", "417 Expectation Failed", more="Connection: close\r\n"))
def an_upload_that_waits_until_it_is_asked_for(caller: Caller) -> Told:
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


# bodies in pieces


@way(
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(ANSWER[:9])
    + chunk(ANSWER[9:])
    + b"0\r\nX-Trailer: 1\r\n\r\n"
)
def bodies_in_chunks(caller: Caller) -> Told:
    pieces = chunk(CHAT_BODY[:20]) + chunk(CHAT_BODY[20:]) + LAST
    raw = caller.request("bodies_in_chunks", pieces, "Transfer-Encoding: chunked", length=-1)
    with caller.sent(raw) as client:
        assert client.read_until(b"X-Trailer: 1\r\n").startswith(b"HTTP/1.1 200 ")
    return {"bodies_in_chunks": {**COUNTED, "bytes_out": len(ANSWER)}}


@way(whole(ANSWER) + whole(b"of another request"))
def an_answer_with_more_behind_it(caller: Caller) -> Told:
    assert caller.answer(caller.request("an_answer_with_more_behind_it"), 200) == ANSWER
    return {"an_answer_with_more_behind_it": {**COUNTED, "bytes_out": len(ANSWER)}}
