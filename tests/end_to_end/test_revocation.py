"""With ``revoke_running``, requests in flight end when their key becomes invalid; without it, they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    HOST,
    MASTER_KEY,
    SWITCHING_PROTOCOLS,
    begin,
    eventually,
    handshake,
    has_disconnected,
    parse_answer,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import CHUNKED_HEAD, STREAM
from tests.end_to_end.process_harness import Connection, connect, connected, served
from tests.end_to_end.twistd_harness import Foreground, serving
from tests.ledger_file import open_ledger
from twisted_vllm.proxy.revocation import INTERVAL
from twisted_vllm.storage.registry import FOLLOW_INTERVAL

KEY = "sk-tenant-0123456789abcdef"
OTHER = "sk-another-0123456789abcdef"
#: seconds within which a request in flight ends
PROMISE = 1.0

Change = Callable[[Any], Awaitable[object]]


async def block(gateway: Any) -> None:
    await done(gateway, "/key/block", key=KEY)


async def delete(gateway: Any) -> None:
    await done(gateway, "/key/delete", keys=[KEY])


async def regenerate(gateway: Any) -> None:
    await done(gateway, "/key/regenerate", key=KEY, new_key="sk-successor-0123456789")


async def block_its_team(gateway: Any) -> None:
    await done(gateway, "/team/block", team_id="x")


async def leave_its_team(gateway: Any) -> None:
    await done(gateway, "/team/member_delete", team_id="x", user_id="ada")


CHANGES: dict[Change, str] = {
    block: "blocked_api_key",
    delete: "invalid_api_key",
    regenerate: "expired_api_key",
    block_its_team: "blocked_api_key",
    leave_its_team: "invalid_api_key",
}


async def done(gateway: Any, path: str, **body: object) -> None:
    answer = await gateway.ask("POST", path, body=body)
    assert answer.status == 200, answer.body


async def with_keys(gateway: Any) -> Any:
    """Make a team's key and one that has nothing to do with it."""
    await done(gateway, "/team/new", team_id="x", members_with_roles=[{"user_id": "ada"}])
    await gateway.make_key(key=KEY, team_id="x", user_id="ada")
    await gateway.make_key(key=OTHER)
    return gateway


def completion(key: str) -> bytes:
    return request_bytes("POST", "/vllm/v1/completions", key, body={"model": "m"})


async def streaming(server: Any, gateway: Any, key: str = KEY) -> tuple[Any, Any]:
    """Begin a stream; return the client and the server's connection."""
    number = len(server.connections)
    client = await gateway.send(completion(key))
    upstream = await server.connection(number)
    await upstream.until_received(b'"m"}')
    upstream.send(STREAM)
    await client.until_received(b"abc")
    return client, upstream


def look(gateway: Any) -> None:
    gateway.clock.advance(INTERVAL)


def outcome_of_tenant(gateway: Any) -> Any:
    [line] = [line for line in gateway.request_lines() if line["route"].startswith("/v1/")]
    return line


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest_twisted.ensureDeferred
async def test_a_stream_is_cut_on_both_sides(stand_in: Any, gateway_to: Any, change: Change) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    client, upstream = await streaming(server, gateway)
    look(gateway)
    await change(gateway)
    assert client.lost is None
    look(gateway)
    await client.until_lost()
    await upstream.until_lost()
    assert not client.received.endswith(b"0\r\n\r\n")
    line = outcome_of_tenant(gateway)
    assert (line["outcome"], line["error"], line["status"]) == ("revoked", CHANGES[change], 200)


@pytest_twisted.ensureDeferred
async def test_where_it_is_not_set_a_stream_runs_to_its_end(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port))
    client, upstream = await streaming(server, gateway)
    await delete(gateway)
    gateway.pass_time(5)
    upstream.send(b"0\r\n\r\n")
    await client.until_received(b"\r\n0\r\n\r\n")
    assert outcome_of_tenant(gateway)["outcome"] == "completed"


@pytest_twisted.ensureDeferred
async def test_the_streams_of_other_keys_go_on(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    ended, _ = await streaming(server, gateway)
    kept = [await streaming(server, gateway, key) for key in (OTHER, MASTER_KEY)]
    await block(gateway)
    look(gateway)
    await ended.until_lost()
    for client, upstream in kept:
        upstream.send(b"0\r\n\r\n")
        await client.until_received(b"\r\n0\r\n\r\n")


@pytest_twisted.ensureDeferred
async def test_changes_that_leave_a_key_valid_end_nothing(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    client, upstream = await streaming(server, gateway)
    await done(gateway, "/key/update", key=KEY, key_alias="renamed", duration="1h", models=["another"])
    await done(gateway, "/key/regenerate", key=KEY, new_key="sk-successor-0123456789", grace_period="1h")
    look(gateway)
    look(gateway)
    upstream.send(b"0\r\n\r\n")
    await client.until_received(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("how", ["its own time", "a grace period", "a time that was set while it ran"])
@pytest_twisted.ensureDeferred
async def test_a_stream_ends_when_the_time_of_its_key_does(
    stand_in: Any, gateway_to: Any, reactor: Any, how: str
) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    if how == "its own time":
        await done(gateway, "/key/update", key=KEY, duration="1s")
    client, upstream = await streaming(server, gateway)
    if how == "a grace period":
        await done(gateway, "/key/regenerate", key=KEY, grace_period="1s")
    elif how != "its own time":
        await done(gateway, "/key/update", key=KEY, duration="1s")
    look(gateway)
    assert client.lost is None

    def ended() -> bool:
        look(gateway)
        return client.lost is not None

    await eventually(reactor, ended)
    await upstream.until_lost()
    line = outcome_of_tenant(gateway)
    assert (line["outcome"], line["error"]) == ("revoked", "expired_api_key")


@pytest_twisted.ensureDeferred
async def test_many_keys_are_looked_through_in_turns_and_none_is_missed(
    stand_in: Any, gateway_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_vllm.proxy.revocation.BATCH_SIZE", 2)
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    streams = [await streaming(server, gateway, await gateway.make_key(team_id="x")) for _ in range(7)]
    await block_its_team(gateway)
    look(gateway)
    for client, upstream in streams:
        await client.until_lost()
        await upstream.until_lost()


@pytest_twisted.ensureDeferred
async def test_a_request_whose_answer_has_not_begun_is_refused(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    client, upstream = await begin(server, gateway, completion(KEY), until=b'"m"}')
    await block(gateway)
    look(gateway)
    await upstream.until_lost()
    await client.until_received(b"}}")
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"]) == (401, "blocked_api_key")
    line = outcome_of_tenant(gateway)
    assert (line["outcome"], line["error"], line["status"]) == ("revoked", "blocked_api_key", 401)
    # the connection serves the next valid key
    client.received = b""
    client.send(request_bytes("GET", "/vllm/v1/models", OTHER))
    again = await server.connection(1)
    await again.until_received(b"\r\n\r\n")
    again.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.until_received(b"\r\n\r\nok")
    await gateway.stop()
    with closing(open_ledger(gateway.database_file)) as database:
        rows = database.execute("SELECT outcome, estimated FROM vllm_passthrough_usage ORDER BY time").fetchall()
    assert rows == [("revoked", 1), ("completed", 0)]


@pytest_twisted.ensureDeferred
async def test_a_request_that_waits_for_a_busy_server_gives_up_its_place(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    busy = attrs.evolve(server_at(server.port), max_concurrent_requests=1)
    gateway = await with_keys(gateway_to(busy, revoke_running=True))
    first, upstream = await streaming(server, gateway, OTHER)
    client = await gateway.send(completion(KEY))
    await eventually(reactor, lambda: gateway.queued)
    await delete(gateway)
    look(gateway)
    await client.until_received(b"}}")
    assert parse_answer(client.received).error["code"] == "invalid_api_key"
    assert gateway.queued == 0
    upstream.send(b"0\r\n\r\n")
    await first.until_received(b"\r\n0\r\n\r\n")
    assert len(server.connections) == 1


@pytest.mark.parametrize("models", [[], ["m"]], ids=["streamed", "held for its model"])
@pytest_twisted.ensureDeferred
async def test_an_upload_is_refused_and_read_no_further(stand_in: Any, gateway_to: Any, models: list[str]) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    await done(gateway, "/key/update", key=KEY, models=models)
    length = {"Content-Length": "9000000", "Content-Type": "application/json"}
    upload = request_bytes("POST", "/vllm/v1/completions", KEY, headers=length) + b'{"prompt": "'
    if not models:
        # a large form goes on as soon as it has named its model
        length["Content-Type"] = "multipart/form-data; boundary=b"
        upload = request_bytes("POST", "/vllm/v1/audio/transcriptions", KEY, headers=length) + (
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + bytes(1000)
        )
    client = await gateway.send(upload)
    if models:
        await client.next_turn()
    else:
        await (await server.connection()).until_received(b"prompt")
    await block(gateway)
    look(gateway)
    if not models:
        await (await server.connection()).until_lost()
    await client.until_received(b"}}")
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"], answer.header("connection")) == (401, "blocked_api_key", "close")
    assert outcome_of_tenant(gateway)["outcome"] == "revoked"


@pytest_twisted.ensureDeferred
async def test_a_tunnel_is_cut_on_both_sides(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    client, upstream = await begin(server, gateway, handshake(KEY))
    upstream.send(SWITCHING_PROTOCOLS + b"hello")
    await client.until_received(b"hello")
    await block(gateway)
    look(gateway)
    await client.until_lost()
    await upstream.until_lost()
    line = outcome_of_tenant(gateway)
    assert (line["outcome"], line["error"], line["status"]) == ("revoked", "blocked_api_key", 101)


@pytest_twisted.ensureDeferred
async def test_a_stream_that_its_client_does_not_read_is_cut_as_well(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = await with_keys(gateway_to(server.port, revoke_running=True))
    client, upstream = await streaming(server, gateway)
    client.transport.pauseProducing()
    upstream.send(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
    upstream.send(b"1000000\r\n" + b"x" * 0x1000000)
    await block(gateway)
    look(gateway)
    await eventually(reactor, lambda: has_disconnected(client))
    await upstream.until_lost()
    assert outcome_of_tenant(gateway)["outcome"] == "revoked"


@pytest_twisted.ensureDeferred
async def test_a_change_of_another_process_counts_too(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    one = await with_keys(gateway_to(server.port, revoke_running=True))
    other = gateway_to(server.port, revoke_running=True, database_url=one.settings.database_url)
    client, upstream = await streaming(server, other)
    await block(one)
    other.clock.advance(FOLLOW_INTERVAL)

    def ended() -> bool:
        look(other)
        return client.lost is not None

    await eventually(reactor, ended)
    await upstream.until_lost()
    assert outcome_of_tenant(other)["outcome"] == "revoked"


def endless(connection: Connection) -> None:
    """Answer with a stream that goes on until it is cut."""
    connection.read_head()
    connection.send(CHUNKED_HEAD)
    while True:
        connection.send(b"1\r\nx\r\n")
        time.sleep(0.02)


def asked(port: int, path: str, body: object) -> bytes:
    with connected(port) as connection:
        connection.send(request_bytes("POST", path, body=body, headers={"Connection": "close"}))
        found = connection.read_to_end()
        assert found.startswith(b"HTTP/1.1 200"), found
        return found


def test_a_real_process_ends_a_stream_within_a_second_of_a_change_in_another(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text("passthrough: {revoke_running: true}")
    variables = {"LITELLM_MASTER_KEY": MASTER_KEY, "DATABASE_URL": f"sqlite:///{tmp_path}/shared.sqlite3"}
    with served(endless) as server:
        variables["HOSTED_VLLM_API_BASE"] = f"http://{HOST}:{server.port}"
        one, other = (Foreground(tmp_path, free_port(), "--config=gateway.yaml", **variables) for _ in range(2))
        with serving(one, other):
            for by in (one, other):
                made = asked(by.port, "/key/generate", {})
                key = json.loads(made.partition(b"\r\n\r\n")[2])["key"]
                # the other process must have read the key first
                time_over = time.monotonic() + 30
                streams = []
                for port in (one.port, other.port):
                    while True:
                        connection = connect(port)
                        connection.send(request_bytes("GET", "/vllm/v1/models", key))
                        if connection.read_head().startswith(b"HTTP/1.1 200"):
                            break
                        connection.close()
                        assert time.monotonic() < time_over
                    streams.append(connection)
                asked(by.port, "/key/block", {"key": key})
                began = time.monotonic()
                for connection in streams:
                    connection.read_to_end()
                    connection.close()
                assert time.monotonic() - began < PROMISE + 1.0, "a busy machine is given one second more"
