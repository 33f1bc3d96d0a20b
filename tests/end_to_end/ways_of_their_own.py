"""Ways of upgrades, and of requests that no server hears of."""

from __future__ import annotations

import socket
import threading

from tests.end_to_end.ledger_harness import ANSWER, CHAT_BODY, Caller, Columns, whole
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.twistd_harness import PATIENCE, wait_until
from tests.end_to_end.ways_out import COUNTED, LEFT, Told, Ways, then_waits

OTHERS = Ways()
way = OTHERS.way

# upgrades

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
TUNNEL: Columns = {"method": "GET", "route": "/v1/realtime", "model": ""}


def _greets(connection: Connection, times: int) -> None:
    connection.send(AGREED + b"hello")
    assert connection.read(6) == b"frames"
    connection.socket.shutdown(socket.SHUT_RDWR)


@way(_greets)
def a_tunnel(caller: Caller) -> Told:
    with caller.sent(caller.request("a_tunnel", b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        assert client.read_until(b"hello").startswith(b"HTTP/1.1 101 ")
        client.send(b"frames")
        assert client.read_to_end() == b""
    return {"a_tunnel": {**TUNNEL, "status": 101, "bytes_in": 6, "bytes_out": 5}}


@way(then_waits(AGREED + b"hello"))
def a_tunnel_that_its_client_resets(caller: Caller) -> Told:
    name = "a_tunnel_that_its_client_resets"
    with caller.sent(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime")) as client:
        client.read_until(b"hello")
        client.reset()
    return {name: {**TUNNEL, **LEFT, "status": 101, "bytes_in": 0, "bytes_out": 5}}


@way(whole(b"no", "403 Forbidden"))
def an_upgrade_that_is_refused(caller: Caller) -> Told:
    name = "an_upgrade_that_is_refused"
    assert caller.answer(caller.request(name, b"", *UPGRADE, method="GET", path="/v1/realtime"), 403) == b"no"
    return {name: {**TUNNEL, "status": 403, "bytes_in": 0, "bytes_out": 2}}


# what no server hears of


_freed = threading.Event()


def _when_freed(connection: Connection, times: int) -> None:
    assert _freed.wait(PATIENCE)
    connection.send(whole(ANSWER))


@way(occupies=_when_freed)
def a_server_that_has_enough_to_do(caller: Caller) -> Told:
    body = CHAT_BODY.replace(b'"m"', b'"busy"')
    with caller.sent(caller.request("occupies", body)) as occupant:
        caller.until_came("occupies")
        with caller.sent(caller.request("leaves_the_queue", body)):
            # there is one place to wait
            assert b"server_busy" in caller.answer(caller.request("is_turned_away", body), 503)
        wait_until(lambda: caller.gateway.logged("leaves_the_queue"))
        caller.answer(caller.request("waits_in_vain", body), 503)
        _freed.set()
        occupant.read_until(ANSWER)
    occupied = {**COUNTED, "model": "busy", "bytes_in": len(body), "bytes_out": len(ANSWER)}
    return {"occupies": occupied, "leaves_the_queue": None, "is_turned_away": None, "waits_in_vain": None}


@way()
def what_the_gateway_refuses(caller: Caller) -> Told:
    caller.answer(caller.request("has_no_key").replace(caller.key.encode(), b"sk-nobody"), 401)
    caller.answer(caller.request("may_not", path="/sleep"), 403)
    with caller.sent(caller.request("is_malformed", b"x", "Transfer-Encoding: chunked", length=-1)) as client:
        assert client.read_head().startswith(b"HTTP/1.1 400 ")
    limited = Caller(caller.gateway, caller.server, caller.gateway.administer("/key/generate", rpm_limit=0)["key"])
    limited.answer(limited.request("has_a_limit"), 429)
    return {"has_no_key": None, "may_not": None, "is_malformed": None, "has_a_limit": None}
