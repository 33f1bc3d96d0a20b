"""Ways in which a client ends a request: it leaves, it sends what is not fit, or its key is taken away."""

from __future__ import annotations

from tests.end_to_end.ledger_harness import ANSWER, EVENT_STREAM, EVENTS, STREAM_BODY, Caller, Columns, chunk, whole
from tests.end_to_end.ways_out import LEFT, UPLOAD, Told, Ways, guessed, then_waits

FORMS = "/v1/audio/transcriptions"
TYPE = "Content-Type: multipart/form-data; boundary=frontier"
MODEL_FIELD = b'--frontier\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE_FIELD = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
#: bytes that a form announces, so that it is not held whole
LARGE = 3_000_000

CLIENTS = Ways()
way = CLIENTS.way


@way(then_waits(b""))
def the_client_leaves_before_the_head(caller: Caller) -> Told:
    name = "the_client_leaves_before_the_head"
    with caller.sent(caller.request(name)):
        caller.until_came(name)
    return {name: {**LEFT, **guessed(), "status": 0}}


@way(then_waits(whole(ANSWER)[:-5]))
def the_client_leaves_amid_the_body(caller: Caller) -> Told:
    with caller.sent(caller.request("the_client_leaves_amid_the_body")) as client:
        client.read_until(ANSWER[-10:-5])
    return {"the_client_leaves_amid_the_body": {**LEFT, **guessed(), "bytes_out": len(ANSWER) - 5}}


@way(then_waits(EVENT_STREAM + chunk(EVENTS)))
def the_client_leaves_amid_a_stream(caller: Caller) -> Told:
    with caller.sent(caller.request("the_client_leaves_amid_a_stream", STREAM_BODY)) as client:
        client.read_until(EVENTS)
        client.reset()
    expected = {**LEFT, **guessed(STREAM_BODY, 2), "bytes_out": len(EVENTS), "stream": 1}
    return {"the_client_leaves_amid_a_stream": expected}


@way(then_waits(b""))
def the_client_leaves_with_another_request_in_line(caller: Caller) -> Told:
    name = "the_client_leaves_with_another_request_in_line"
    with caller.sent(caller.request(name) + caller.request("is_in_line")) as client:
        caller.until_came(name)
        client.reset()
    return {name: {**LEFT, **guessed(), "status": 0}, "is_in_line": None}


@way(then_waits(b""))
def the_client_leaves_amid_its_upload(caller: Caller) -> Told:
    name = "the_client_leaves_amid_its_upload"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)):
        caller.until_came(name)
    return {name: {**LEFT, "status": 0, "route": UPLOAD, "model": "", "bytes_in": 500}}


@way(then_waits(b""))
def the_client_leaves_amid_a_large_form(caller: Caller) -> Told:
    name, form = "the_client_leaves_amid_a_large_form", MODEL_FIELD + FILE_FIELD + bytes(100_000)
    with caller.sent(caller.request(name, form, TYPE, "X-Unread: 1", path=FORMS, length=LARGE)):
        caller.until_came(name)
    return {name: {**LEFT, "status": 0, "route": FORMS, "bytes_in": range(len(MODEL_FIELD), len(form) + 1)}}


REFUSED: Columns = {"outcome": "refused"}


@way(then_waits(b""))
def a_form_that_names_a_second_model(caller: Caller) -> Told:
    name, form = "a_form_that_names_a_second_model", MODEL_FIELD + FILE_FIELD + bytes(100_000)
    with caller.sent(caller.request(name, form, TYPE, "X-Unread: 1", path=FORMS, length=LARGE)) as client:
        caller.until_came(name)
        client.send(b"\r\n" + MODEL_FIELD + b"--")
        head = client.read_until(b"}}")
        assert head.startswith(b"HTTP/1.1 400 ")
    size = len(head.partition(b"\r\n\r\n")[2])
    row = {**REFUSED, "status": 400, "error": "model_undetermined", "route": FORMS, "bytes_out": size}
    return {name: {**row, "bytes_in": range(len(form), len(form) + len(MODEL_FIELD) + 5)}}


@way(then_waits(b""))
def an_upload_that_becomes_malformed(caller: Caller) -> Told:
    name = "an_upload_that_becomes_malformed"
    lines = ("X-Unread: 1", "Transfer-Encoding: chunked")
    with caller.sent(caller.request(name, b"3\r\nabc\r\n", *lines, path=UPLOAD, length=-1)) as client:
        caller.until_came(name)
        client.send(b"no size\r\n")
        size = len(client.read_to_end().partition(b"\r\n\r\n")[2])
    row = {**REFUSED, "status": 400, "error": "malformed_http", "route": UPLOAD, "model": "", "bytes_in": 3}
    return {name: {**row, "bytes_out": size}}


@way(then_waits(b""))
def an_upload_that_stalls(caller: Caller) -> Told:
    name = "an_upload_that_stalls"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        head = client.read_to_end()
        assert head.startswith(b"HTTP/1.1 408 "), head
    row = {**REFUSED, "status": 408, "error": "request_timeout", "route": UPLOAD, "model": "", "bytes_in": 500}
    return {name: {**row, "bytes_out": len(head.partition(b"\r\n\r\n")[2])}}


# a key that is taken away


def with_its_own_key(caller: Caller, name: str, **fields: object) -> Caller:
    """Return somebody with a key that has this alias."""
    key = caller.gateway.administer("/key/generate", key_alias=name, **fields)["key"]
    return Caller(caller.gateway, caller.server, key)


REVOKED: Columns = {"outcome": "revoked", "error": "blocked_api_key"}


@way(then_waits(b""))
def a_key_that_is_blocked_before_the_head(caller: Caller) -> Told:
    name = "a_key_that_is_blocked_before_the_head"
    other = with_its_own_key(caller, name)
    with other.sent(other.request(name)) as client:
        other.until_came(name)
        other.gateway.administer("/key/block", key=other.key)
        head = client.read_until(b"}}")
        assert head.startswith(b"HTTP/1.1 401 ")
    size = len(head.partition(b"\r\n\r\n")[2])
    return {name: {**REVOKED, **guessed(), "status": 401, "key_name": name, "bytes_out": size}}


@way(then_waits(EVENT_STREAM + chunk(EVENTS)))
def a_key_that_is_blocked_amid_a_stream(caller: Caller) -> Told:
    name = "a_key_that_is_blocked_amid_a_stream"
    other = with_its_own_key(caller, name)
    with other.sent(other.request(name, STREAM_BODY)) as client:
        client.read_until(EVENTS)
        other.gateway.administer("/key/block", key=other.key)
        client.read_to_end()
    return {name: {**REVOKED, **guessed(STREAM_BODY, 2), "key_name": name, "bytes_out": len(EVENTS), "stream": 1}}
