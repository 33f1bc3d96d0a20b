"""Every request that reached a server has exactly one row in the ledger, however it ended, and the row says how."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.endings.by_client import BY_CLIENT
from tests.end_to_end.endings.by_connection import AGREED, BY_CONNECTION, TUNNEL, UPGRADE
from tests.end_to_end.endings.by_gateway import BY_GATEWAY
from tests.end_to_end.endings.by_server import BY_SERVER
from tests.end_to_end.endings.catalog import HASTY, UPLOAD, ExpectedRows, estimated, generated
from tests.end_to_end.ledger_harness import (
    CHAT,
    CHAT_BODY,
    DONE,
    EVENTS,
    STREAM_BODY,
    Caller,
    Columns,
    LedgerGateway,
    ScriptedServer,
    rows_in,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk
from tests.end_to_end.process_harness import Connection
from tests.end_to_end.twistd_harness import answers, wait_until
from twisted_vllm.money import PICODOLLARS

ENDINGS = {**BY_SERVER.endings, **BY_CLIENT.endings, **BY_CONNECTION.endings, **BY_GATEWAY.endings}
SCRIPTS = {**BY_SERVER.scripts, **BY_CLIENT.scripts, **BY_CONNECTION.scripts, **BY_GATEWAY.scripts}
#: a token costs a dollar; entries of one server at different paths are different servers to the gateway
SETTINGS = """
model_list:
  - {{model_name: hasty, litellm_params: {{model: hosted_vllm/hasty, api_base: "http://{host}:{port}/hasty"}}}}
  - {{model_name: kept, litellm_params: {{model: hosted_vllm/kept, api_base: "http://{host}:{port}/kept"}}}}
  - {{model_name: frail, litellm_params: {{model: hosted_vllm/frail, api_base: "http://{host}:{port}/frail"}}}}
  - {{model_name: busy, litellm_params: {{model: hosted_vllm/busy, api_base: "http://{host}:{port}/busy"}}}}
  - {{model_name: gone, litellm_params: {{model: hosted_vllm/gone, api_base: "http://{host}:{free}"}}}}
passthrough:
  log: {{file: gateway.log, format: json}}
  default_prices: {{input_cost_per_token: 1, output_cost_per_token: 1}}
  revoke_running: true
  timeouts: {{client_body: 2}}
  servers:
    "http://{host}:{port}/hasty": {{timeouts: {{response_head: {hasty}, idle: {hasty}}}}}
    "http://{host}:{port}/busy": {{timeouts: {{queue: {hasty}}}, max_concurrent_requests: 1, max_queued_requests: 1}}
"""
#: what a row says where nothing else is expected
USUAL: Columns = {
    "kind": "key",
    "key_name": "endings",
    "model": "m",
    "route": CHAT,
    "method": "POST",
    "status": 200,
    "outcome": "completed",
    "error": "",
    "stream": 0,
    "estimated": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "bytes_in": len(CHAT_BODY),
    "bytes_out": 0,
}


@attrs.frozen
class Results:
    """What came of all endings.

    Attributes:
        expected: the rows that each ending expects, or why it failed.
        rows: the ledger's rows by their requests' ids.
        came: how often each request came to the server.
        key_hash: the SHA-256 of the key.
    """

    expected: dict[str, Future[ExpectedRows]]
    rows: dict[str, list[Columns]]
    arrivals: Counter[str]
    key_hash: str


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    server = ScriptedServer(SCRIPTS)
    settings = SETTINGS.format(host=HOST, port=server.port, free=free_port(), hasty=HASTY)
    try:
        with LedgerGateway(tmp_path_factory.mktemp("endings"), server.port, settings) as gateway:
            routes = ["inference", "read_only", UPLOAD, "/v1/realtime"]
            key = gateway.administer("/key/generate", key_alias="endings", allowed_routes=routes)["key"]
            caller = Caller(gateway, server, key)
            # one after the other, each would wait for those before it
            with ThreadPoolExecutor(12) as pool:
                expected = {name: pool.submit(ending, caller) for name, ending in ENDINGS.items()}
            done = [each.result() for each in expected.values() if not each.exception()]
            names = [name for each in done for name, row in each.items() if row is not None]
            wait_until(lambda: all(map(gateway.logged, names)))
        # the process moves the rest when it ends: a second row of anything would be there
        yield Results(expected, gateway.rows(), server.arrivals, hashlib.sha256(key.encode()).hexdigest())
    finally:
        server.stop()


def check(row: Columns, expected: Columns) -> None:
    wanted = {**USUAL, **expected}
    for name, value in wanted.items():
        # a range where the number of bytes depends on timing
        assert row[name] in value if isinstance(value, range) else row[name] == value, (name, row)
    assert (row["first_byte_us"] is None) == (row["status"] == 0)
    assert row["total_us"] >= (row["first_byte_us"] or 0)
    charged = row["estimated"] or 200 <= row["status"] < 300
    assert row["cost"] == (row["prompt_tokens"] + row["completion_tokens"]) * PICODOLLARS * charged


@pytest.mark.parametrize("name", ENDINGS)
def test_a_request_has_one_row_where_it_reached_a_server_and_none_where_not(results: Results, name: str) -> None:
    for request_id, expected in results.expected[name].result().items():
        rows = results.rows.get(request_id, [])
        if expected is None:
            assert (rows, results.arrivals[request_id]) == ([], 0)
            continue
        assert len(rows) == 1, rows
        check(rows[0], expected)
        if rows[0]["key_name"] == USUAL["key_name"]:
            assert rows[0]["key_id"]
            assert results.key_hash.startswith(rows[0]["key_hash"])
            assert len(rows[0]["key_hash"]) >= 8


def test_the_ledger_has_what_the_server_saw_and_nothing_else(results: Results) -> None:
    found = {request_id: len(rows) for request_id, rows in results.rows.items()}
    # no connection to this server was made, and the request has its row
    assert found.pop("no_server") == 1
    assert found == dict.fromkeys(results.arrivals, 1)
    ids = [row["id"] for rows in results.rows.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_what_a_drain_waits_for_and_what_it_cuts_has_one_row_each(tmp_path: Path) -> None:
    def streams(connection: Connection, times: int) -> None:
        connection.send(EVENT_STREAM + chunk(EVENTS))
        connection.read_to_end()

    def ends(connection: Connection, times: int) -> None:
        connection.send(EVENT_STREAM + chunk(EVENTS))
        wait_until(lambda: drains)
        connection.send(chunk(DONE) + LAST)

    def agrees(connection: Connection, times: int) -> None:
        wait_until(lambda: drains)
        connection.send(AGREED)
        connection.read_to_end()

    drains: list[bool] = []
    server = ScriptedServer({"cut": streams, "hung": lambda connection, times: None, "finished": ends, "late": agrees})
    settings = (
        "passthrough: {log: {file: gateway.log, format: json}, "
        "default_prices: {input_cost_per_token: 1, output_cost_per_token: 1}}"
    )
    try:
        with LedgerGateway(tmp_path, server.port, settings) as gateway:
            routes = ["inference", "/v1/realtime"]
            made = gateway.administer("/key/generate", key_alias="endings", allowed_routes=routes)
            caller = Caller(gateway, server, made["key"])
            with (
                caller.sent(caller.request("late", b"", *UPGRADE, method="GET", path="/v1/realtime")) as late,
                caller.sent(caller.request("cut", STREAM_BODY)) as cut,
                caller.sent(caller.request("hung")) as hung,
                caller.sent(caller.request("finished", STREAM_BODY)) as finished,
            ):
                cut.read_until(EVENTS)
                finished.read_until(EVENTS)
                caller.until_arrived("hung")
                caller.until_arrived("late")
                gateway.signal()
                wait_until(lambda: not answers(gateway.port))
                drains.append(True)
                head, _, refusal = late.read_to_end().partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 503 ")
                assert finished.read_to_end().endswith(chunk(DONE) + LAST)
                gateway.signal()
                assert hung.read_to_end() == b""
                assert not cut.read_to_end().endswith(LAST)
                assert gateway.wait() == 0
    finally:
        server.stop()
    rows = rows_in(gateway.database)
    assert {name: len(found) for name, found in rows.items()} == {"cut": 1, "hung": 1, "finished": 1, "late": 1}
    failed = {"outcome": "failed", "error": "draining"}
    streamed = {**estimated(STREAM_BODY, 2), "stream": 1}
    for name, expected in {
        "cut": {**streamed, **failed, "bytes_out": len(EVENTS)},
        "hung": {**generated(), **failed, "status": 0},
        "finished": {**streamed, "bytes_out": len(EVENTS + DONE)},
        # what the server agreed to never began
        "late": {
            **TUNNEL,
            "outcome": "refused",
            "error": "draining",
            "status": 503,
            "bytes_in": 0,
            "bytes_out": len(refusal),
        },
    }.items():
        [row] = rows[name]
        check(row, expected)
