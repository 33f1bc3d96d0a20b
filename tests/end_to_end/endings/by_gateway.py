"""Endings that the gateway decides: the queue before a busy server, and refusals before any server is asked."""

from __future__ import annotations

import threading

from tests.end_to_end.endings.catalog import REPORTED, Endings, ExpectedRows
from tests.end_to_end.ledger_harness import ANSWER, CHAT_BODY, Caller
from tests.end_to_end.messages import whole
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.twistd_harness import PATIENCE, wait_until

BY_GATEWAY = Endings()
ending = BY_GATEWAY.ending

_freed = threading.Event()


def _when_freed(connection: Connection, times: int) -> None:
    assert _freed.wait(PATIENCE)
    connection.send(whole(ANSWER))


@ending(occupies=_when_freed)
def a_busy_server(caller: Caller) -> ExpectedRows:
    body = CHAT_BODY.replace(b'"m"', b'"busy"')
    with caller.sent(caller.request("occupies", body)) as occupant:
        caller.until_arrived("occupies")
        with caller.sent(caller.request("leaves_the_queue", body)):
            # the queue has one place
            assert b"server_busy" in caller.answer(caller.request("is_turned_away", body), 503)
        wait_until(lambda: caller.gateway.logged("leaves_the_queue"))
        caller.answer(caller.request("waits_in_vain", body), 503)
        _freed.set()
        occupant.read_until(ANSWER)
    occupied = {**REPORTED, "model": "busy", "bytes_in": len(body), "bytes_out": len(ANSWER)}
    return {"occupies": occupied, "leaves_the_queue": None, "is_turned_away": None, "waits_in_vain": None}


@ending()
def what_the_gateway_refuses(caller: Caller) -> ExpectedRows:
    caller.answer(caller.request("has_no_key").replace(caller.key.encode(), b"sk-nobody"), 401)
    caller.answer(caller.request("may_not", path="/sleep"), 403)
    with caller.sent(caller.request("is_malformed", b"x", "Transfer-Encoding: chunked", length=-1)) as client:
        assert client.read_head().startswith(b"HTTP/1.1 400 ")
    limited = Caller(caller.gateway, caller.server, caller.gateway.administer("/key/generate", rpm_limit=0)["key"])
    limited.answer(limited.request("has_a_limit"), 429)
    return {"has_no_key": None, "may_not": None, "is_malformed": None, "has_a_limit": None}
