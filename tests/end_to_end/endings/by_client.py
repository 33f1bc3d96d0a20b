"""Endings by the client: it disconnects, it sends something invalid, or its key is blocked."""

from __future__ import annotations

from tests.end_to_end.endings.catalog import (
    DISCONNECTED,
    UPLOAD,
    Endings,
    ExpectedRows,
    estimated,
    generated,
    then_waits,
)
from tests.end_to_end.ledger_harness import ANSWER, EVENTS, STREAM_BODY, Caller, Columns
from tests.end_to_end.messages import EVENT_STREAM, chunk, whole

FORMS = "/v1/audio/transcriptions"
TYPE = "Content-Type: multipart/form-data; boundary=frontier"
MODEL_FIELD = b'--frontier\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE_FIELD = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
#: the `Content-Length` of a form that is too large to be held whole
LARGE = 3_000_000

BY_CLIENT = Endings()
ending = BY_CLIENT.ending


@ending(then_waits(b""))
def the_client_disconnects_before_the_head(caller: Caller) -> ExpectedRows:
    name = "the_client_disconnects_before_the_head"
    with caller.sent(caller.request(name)):
        caller.until_arrived(name)
    return {name: {**DISCONNECTED, **generated(), "status": 0}}


@ending(then_waits(whole(ANSWER)[:-5]))
def the_client_disconnects_during_the_body(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("the_client_disconnects_during_the_body")) as client:
        client.read_until(ANSWER[-10:-5])
    return {"the_client_disconnects_during_the_body": {**DISCONNECTED, **generated(), "bytes_out": len(ANSWER) - 5}}


@ending(then_waits(EVENT_STREAM + chunk(EVENTS)))
def the_client_disconnects_during_a_stream(caller: Caller) -> ExpectedRows:
    with caller.sent(caller.request("the_client_disconnects_during_a_stream", STREAM_BODY)) as client:
        client.read_until(EVENTS)
        client.reset()
    expected = {**DISCONNECTED, **estimated(STREAM_BODY, 2), "bytes_out": len(EVENTS), "stream": 1}
    return {"the_client_disconnects_during_a_stream": expected}


@ending(then_waits(b""))
def the_client_disconnects_with_a_pipelined_request(caller: Caller) -> ExpectedRows:
    name = "the_client_disconnects_with_a_pipelined_request"
    with caller.sent(caller.request(name) + caller.request("is_pipelined")) as client:
        caller.until_arrived(name)
        client.reset()
    return {name: {**DISCONNECTED, **generated(), "status": 0}, "is_pipelined": None}


@ending(then_waits(b""))
def the_client_disconnects_during_its_upload(caller: Caller) -> ExpectedRows:
    name = "the_client_disconnects_during_its_upload"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)):
        caller.until_arrived(name)
    return {name: {**DISCONNECTED, "status": 0, "route": UPLOAD, "model": "", "bytes_in": 500}}


@ending(then_waits(b""))
def the_client_disconnects_during_a_large_form(caller: Caller) -> ExpectedRows:
    name, form = "the_client_disconnects_during_a_large_form", MODEL_FIELD + FILE_FIELD + bytes(100_000)
    with caller.sent(caller.request(name, form, TYPE, "X-Unread: 1", path=FORMS, length=LARGE)):
        caller.until_arrived(name)
    return {name: {**DISCONNECTED, "status": 0, "route": FORMS, "bytes_in": range(len(MODEL_FIELD), len(form) + 1)}}


REFUSED: Columns = {"outcome": "refused"}


@ending(then_waits(b""))
def a_form_that_names_a_second_model(caller: Caller) -> ExpectedRows:
    name, form = "a_form_that_names_a_second_model", MODEL_FIELD + FILE_FIELD + bytes(100_000)
    with caller.sent(caller.request(name, form, TYPE, "X-Unread: 1", path=FORMS, length=LARGE)) as client:
        caller.until_arrived(name)
        client.send(b"\r\n" + MODEL_FIELD + b"--")
        head = client.read_until(b"}}")
        assert head.startswith(b"HTTP/1.1 400 ")
    size = len(head.partition(b"\r\n\r\n")[2])
    row = {**REFUSED, "status": 400, "error": "model_undetermined", "route": FORMS, "bytes_out": size}
    return {name: {**row, "bytes_in": range(len(form), len(form) + len(MODEL_FIELD) + 5)}}


@ending(then_waits(b""))
def an_upload_that_becomes_malformed(caller: Caller) -> ExpectedRows:
    name = "an_upload_that_becomes_malformed"
    lines = ("X-Unread: 1", "Transfer-Encoding: chunked")
    with caller.sent(caller.request(name, b"3\r\nabc\r\n", *lines, path=UPLOAD, length=-1)) as client:
        caller.until_arrived(name)
        client.send(b"no size\r\n")
        size = len(client.read_to_end().partition(b"\r\n\r\n")[2])
    row = {**REFUSED, "status": 400, "error": "malformed_http", "route": UPLOAD, "model": "", "bytes_in": 3}
    return {name: {**row, "bytes_out": size}}


@ending(then_waits(b""))
def an_upload_that_stalls(caller: Caller) -> ExpectedRows:
    name = "an_upload_that_stalls"
    with caller.sent(caller.request(name, bytes(500), "X-Unread: 1", path=UPLOAD, length=1_000)) as client:
        head = client.read_to_end()
        assert head.startswith(b"HTTP/1.1 408 "), head
    row = {**REFUSED, "status": 408, "error": "request_timeout", "route": UPLOAD, "model": "", "bytes_in": 500}
    return {name: {**row, "bytes_out": len(head.partition(b"\r\n\r\n")[2])}}


# keys that are blocked


def with_its_own_key(caller: Caller, name: str, **fields: object) -> Caller:
    """Return a caller with a new key of this alias."""
    key = caller.gateway.administer("/key/generate", key_alias=name, **fields)["key"]
    return Caller(caller.gateway, caller.server, key)


REVOKED: Columns = {"outcome": "revoked", "error": "blocked_api_key"}


@ending(then_waits(b""))
def a_key_that_is_blocked_before_the_head(caller: Caller) -> ExpectedRows:
    name = "a_key_that_is_blocked_before_the_head"
    other = with_its_own_key(caller, name)
    with other.sent(other.request(name)) as client:
        other.until_arrived(name)
        other.gateway.administer("/key/block", key=other.key)
        head = client.read_until(b"}}")
        assert head.startswith(b"HTTP/1.1 401 ")
    size = len(head.partition(b"\r\n\r\n")[2])
    return {name: {**REVOKED, **generated(), "status": 401, "key_name": name, "bytes_out": size}}


@ending(then_waits(EVENT_STREAM + chunk(EVENTS)))
def a_key_that_is_blocked_during_a_stream(caller: Caller) -> ExpectedRows:
    name = "a_key_that_is_blocked_during_a_stream"
    other = with_its_own_key(caller, name)
    with other.sent(other.request(name, STREAM_BODY)) as client:
        client.read_until(EVENTS)
        other.gateway.administer("/key/block", key=other.key)
        client.read_to_end()
    return {name: {**REVOKED, **estimated(STREAM_BODY, 2), "key_name": name, "bytes_out": len(EVENTS), "stream": 1}}


# requests that somebody cuts

CUT: Columns = {"outcome": "cut", "error": "request_cut"}


@ending(then_waits(b""))
def a_request_that_is_cut_before_the_head(caller: Caller) -> ExpectedRows:
    name = "a_request_that_is_cut_before_the_head"
    with caller.sent(caller.request(name)) as client:
        caller.until_arrived(name)
        caller.gateway.administer("/request/cut", request_id=name)
        head = client.read_until(b"}}")
        assert head.startswith(b"HTTP/1.1 403 ")
    size = len(head.partition(b"\r\n\r\n")[2])
    return {name: {**CUT, **generated(), "status": 403, "bytes_out": size}}


@ending(then_waits(EVENT_STREAM + chunk(EVENTS)))
def a_request_that_is_cut_during_a_stream(caller: Caller) -> ExpectedRows:
    name = "a_request_that_is_cut_during_a_stream"
    with caller.sent(caller.request(name, STREAM_BODY)) as client:
        client.read_until(EVENTS)
        caller.gateway.administer("/request/cut", request_id=name)
        client.read_to_end()
    return {name: {**CUT, **estimated(STREAM_BODY, 2), "bytes_out": len(EVENTS), "stream": 1}}
