"""Streams that are spelled in another way, or that end with an error: what the client gets, the row and the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.endings.catalog import REPORTED, estimated, then_waits
from tests.end_to_end.ledger_harness import (
    DONE,
    EVENTS,
    STREAM_BODY,
    USAGE_EVENT,
    USED,
    Caller,
    Columns,
    LedgerGateway,
    Script,
    ScriptedServer,
    event,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.twistd_harness import wait_until

SETTINGS = """
passthrough:
  log: {file: gateway.log, format: json}
  default_prices: {input_cost_per_token: 1, output_cost_per_token: 1}
"""
ERROR = b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}\n\n'
TOKEN = event(content="a")
MESSAGES = "/v1/messages"
MESSAGE_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":8,"output_tokens":0}}}\n\n'
)
MESSAGE_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
MESSAGE_ERROR = b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"boom"}}\n\n'


def crlf(stream: bytes) -> bytes:
    return stream.replace(b"\n", b"\r\n").replace(b"data: ", b"data:")


def streams(*pieces: bytes) -> Script:
    """Send a stream; pieces of an event arrive on their own."""

    def script(connection: Connection, times: int) -> None:
        connection.send(EVENT_STREAM)
        for piece in pieces:
            connection.send(chunk(piece))
        connection.send(LAST)

    return script


CRLF_USAGE = crlf(b": the usage\n" + USAGE_EVENT)
SCRIPTS: dict[str, Script] = {
    "crlf": streams(crlf(EVENTS), CRLF_USAGE[:-3], CRLF_USAGE[-3:-1], CRLF_USAGE[-1:] + crlf(DONE)),
    "null": streams(EVENTS, USAGE_EVENT.replace(b'"choices":[]', b'"choices":null'), DONE),
    "absent": streams(EVENTS, b"data: {%b}\n\n" % USED, DONE),
    "error": streams(TOKEN, ERROR, DONE),
    "message": streams(MESSAGE_START, MESSAGE_DELTA, MESSAGE_DELTA, MESSAGE_ERROR),
    "left": then_waits(EVENT_STREAM + chunk(TOKEN) + chunk(ERROR)),
}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    server = ScriptedServer(SCRIPTS)
    try:
        with LedgerGateway(tmp_path_factory.mktemp("odd"), server.port, SETTINGS) as gateway:
            yield Caller(gateway, server, gateway.administer("/key/generate", key_alias="odd")["key"])
    finally:
        server.stop()


def row_of(caller: Caller, name: str) -> Columns:
    wait_until(lambda: name in caller.gateway.rows())
    [row] = caller.gateway.rows()[name]
    return row


def line_of(caller: Caller, name: str) -> Any:
    wait_until(lambda: caller.gateway.logged(name))
    log = (caller.gateway.database.parent / "gateway.log").read_text().splitlines()
    [line] = [line for line in log if f'"request_id":"{name}"' in line]
    return json.loads(line)


def check(row: Columns, expected: Columns) -> None:
    assert {name: row[name] for name in expected} == expected
    assert row["cost"] == (row["prompt_tokens"] + row["completion_tokens"]) * 10**12


@pytest.mark.parametrize(("name", "expected"), [("crlf", crlf(EVENTS + DONE)), ("null", EVENTS + DONE)])
def test_a_usage_event_in_another_spelling_is_removed(caller: Caller, name: str, expected: bytes) -> None:
    assert caller.answer(caller.request(name, STREAM_BODY), 200) == expected
    check(row_of(caller, name), {**REPORTED, "outcome": "completed", "estimated": 0, "stream": 1})
    assert line_of(caller, name)["outcome"] == "completed"


def test_a_usage_event_without_choices_is_removed(caller: Caller) -> None:
    assert caller.answer(caller.request("absent", STREAM_BODY), 200) == EVENTS + DONE
    check(row_of(caller, "absent"), {**REPORTED, "estimated": 0})


def test_an_error_in_a_stream_is_the_server_s_and_what_passed_is_counted(caller: Caller) -> None:
    assert caller.answer(caller.request("error", STREAM_BODY), 200) == TOKEN + ERROR + DONE
    check(row_of(caller, "error"), {**estimated(STREAM_BODY, 1), "outcome": "upstream_error", "status": 200})
    line = line_of(caller, "error")
    assert (line["outcome"], line["level"], line["error"], line["status"]) == ("upstream_error", "warn", "", 200)


def test_an_error_in_a_message_counts_the_same(caller: Caller) -> None:
    body = b'{"model":"m","max_tokens":9,"stream":true,"messages":[]}'
    raw = caller.request("message", body, path=MESSAGES)
    assert caller.answer(raw, 200) == MESSAGE_START + MESSAGE_DELTA * 2 + MESSAGE_ERROR
    expected = {"prompt_tokens": 8, "completion_tokens": 2, "estimated": 1, "outcome": "upstream_error"}
    check(row_of(caller, "message"), expected)


def test_a_client_that_leaves_because_of_the_error_changes_nothing(caller: Caller) -> None:
    with caller.sent(caller.request("left", STREAM_BODY)) as client:
        client.read_until(ERROR)
        client.reset()
    check(row_of(caller, "left"), {**estimated(STREAM_BODY, 1), "outcome": "upstream_error"})
