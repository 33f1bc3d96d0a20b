"""The requests in flight are told as they are, each to those who may know it, and a cut ends one of them."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    SWITCHING_PROTOCOLS,
    begin,
    capped,
    eventually,
    handshake,
    has_disconnected,
    parse_answer,
    request_bytes,
)
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk
from tests.ledger_file import open_ledger
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.settings import ModelEntry
from twisted_vllm.proxy.live_requests import LOOK_SECONDS

KEY = "sk-tenant-0123456789abcdef"
OTHER = "sk-another-0123456789abcdef"
EVENT = chunk(b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" a"}}]}\n\n')


def chat(name: str, key: str = KEY, *, stream: bool = True, model: str = "m") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x" * 400}], "stream": stream, "max_tokens": 50}
    return request_bytes("POST", "/vllm/v1/chat/completions", key, {"X-Request-Id": name}, body)


async def done(gateway: Any, path: str, key: str = MASTER_KEY, **body: object) -> Any:
    answer = await gateway.ask("POST", path, key, body=body)
    assert answer.status == 200, answer.body
    return answer.json


async def with_people(gateway: Any) -> Any:
    """Make two teams: ada administers x, in which bob has a key; eve has one in y."""
    roles = [{"user_id": "ada", "role": "admin"}, {"user_id": "bob", "role": "user"}]
    await done(gateway, "/team/new", team_id="x", members_with_roles=roles)
    await done(gateway, "/team/new", team_id="y", members_with_roles=[{"user_id": "eve", "role": "admin"}])
    await gateway.make_key(key=KEY, key_alias="bob's", team_id="x", user_id="bob")
    await gateway.make_key(key=OTHER, key_alias="eve's", team_id="y", user_id="eve")
    return gateway


async def live(gateway: Any, caller: str = MASTER_KEY, **query: object) -> Any:
    """Look anew."""
    gateway.clock.advance(LOOK_SECONDS)
    text = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    answer = await gateway.ask("GET", f"/request/live?{text}", caller)
    assert answer.status == 200, answer.body
    return answer.json


async def cut(gateway: Any, name: str, key: str = MASTER_KEY, **body: object) -> Any:
    return await gateway.ask("POST", "/request/cut", key, body={"request_id": name, **body})


async def streaming(server: Any, gateway: Any, name: str, key: str = KEY, events: int = 3) -> tuple[Any, Any]:
    """Begin a stream; return the client and the server's connection."""
    number = len(server.connections)
    client = await gateway.send(chat(name, key))
    upstream = await server.connection(number)
    await upstream.until_received(b'"max_tokens"')
    upstream.send(EVENT_STREAM + EVENT * events)
    await client.until(lambda: client.received.count(b'"delta"') == events)
    return client, upstream


def has_queued(gateway: Any, count: int) -> bool:
    return bool(gateway.queued == count)


def names(found: Any) -> list[str]:
    return [each["request_id"] for each in found["requests"]]


async def rows(gateway: Any) -> list[tuple[Any, ...]]:
    """Stop the gateway; return the rows of the ledger."""
    await gateway.stop()
    with closing(open_ledger(gateway.database_file)) as database:
        columns = "outcome, error, status, estimated, completion_tokens"
        found = database.execute(f"SELECT {columns} FROM vllm_passthrough_usage ORDER BY outcome DESC")
        return [tuple(row) for row in found]


@pytest_twisted.ensureDeferred
async def test_a_stream_is_told_with_whose_it_is_and_how_far(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    await streaming(server, gateway, "first", events=5)
    found = await live(gateway)
    [row] = found.pop("requests")
    assert row.pop("started_at").endswith("Z")
    assert row.pop("prompt_tokens") > 90
    assert (row.pop("bytes_in") > 400, row.pop("bytes_out")) == (True, 5 * (len(EVENT) - 6))
    assert row == {
        "request_id": "first",
        "state": "streaming",
        "key_name": "bob's",
        "key_prefix": hash_key(KEY)[:8],
        "user_id": "bob",
        "team_id": "x",
        "model": "m",
        "server": f"127.0.0.1:{server.port}",
        "route": "/v1/chat/completions",
        "age_seconds": LOOK_SECONDS,
        "first_byte_seconds": 0.0,
        "queue_place": None,
        "tokens": 5,
        "stream": True,
        "client": "127.0.0.1",
        "attempts": 1,
    }
    assert found.pop("at").endswith("Z")
    assert found == {
        "total": 1,
        "matching": 1,
        "by_state": [{"name": "streaming", "count": 1}],
        "by_model": [{"name": "m", "count": 1}],
        "by_server": [{"name": f"127.0.0.1:{server.port}", "count": 1}],
        "by_key": [{"key_name": "bob's", "key_prefix": hash_key(KEY)[:8], "count": 1}],
        "warnings": [],
    }


@pytest_twisted.ensureDeferred
async def test_each_state_is_told_apart(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server, busy = stand_in(), stand_in()
    entries = (ModelEntry("m", "m", capped(server.port, limit=100)), ModelEntry("busy", "busy", capped(busy.port)))
    gateway = await with_people(gateway_to(None, models=entries))
    slow, upstream = await streaming(server, gateway, "slow")
    slow.transport.pauseProducing()
    upstream.send(b"100000\r\n" + b"x" * 0x100000 + b"\r\n" + b"1000000\r\n" + b"x" * 0x1000000)
    await streaming(server, gateway, "streams")
    await gateway.send(chat("waits"))
    await (await server.connection(2)).until_received(b'"max_tokens"')
    await gateway.send(chat("holds the place", model="busy").replace(b"holds the place", b"holds-the-place"))
    await busy.connection()
    queued = [("second", KEY), ("third", KEY), ("of-another", OTHER)]
    for number, (name, key) in enumerate(queued, 1):
        await gateway.send(chat(name, key, model="busy"))
        await eventually(reactor, partial(has_queued, gateway, number))
    await gateway.send(chat("uploads").replace(b"Content-Length: ", b"Content-Length: 9"))
    tunnel = await gateway.send(handshake(KEY, target="/v1/realtime?model=m", X_Request_Id="tunnel"))
    connection = await server.connection(3)
    await connection.until_received(b"\r\n\r\n")
    connection.send(SWITCHING_PROTOCOLS)
    await tunnel.until_received(b"101")
    states: dict[str, str] = {}

    async def are_told() -> bool:
        states.update((each["request_id"], each["state"]) for each in (await live(gateway))["requests"])
        return states.get("slow") == "paused" and "uploads" in states

    while not await are_told():
        await tunnel.next_turn()
    assert states == {
        "slow": "paused",
        "streams": "streaming",
        "waits": "waiting",
        "holds-the-place": "waiting",
        "second": "queued",
        "third": "queued",
        "of-another": "queued",
        "uploads": "reading_body",
        "tunnel": "tunnel",
    }
    found = await live(gateway, state="queued")
    assert (found["total"], found["matching"]) == (9, 3)
    # keys take turns
    places = {each["request_id"]: each["queue_place"] for each in found["requests"]}
    assert places == {"second": 1, "of-another": 2, "third": 3}
    assert found["by_model"] == [{"name": "busy", "count": 3}]
    assert {each["attempts"] for each in found["requests"]} == {0}
    assert {each["name"]: each["count"] for each in (await live(gateway))["by_state"]}["queued"] == 3


@pytest_twisted.ensureDeferred
async def test_requests_are_filtered_sorted_and_limited_and_counted_all_the_same(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    for name, key, events in [("a", KEY, 1), ("b", OTHER, 7), ("c", KEY, 4), ("d", MASTER_KEY, 2)]:
        await streaming(server, gateway, name, key, events)
        gateway.clock.advance(0.25)
    await gateway.send(chat("e", stream=False))
    await server.connection(4)
    assert names(await live(gateway)) == ["a", "b", "c", "d", "e"]
    assert names(await live(gateway, sort_order="asc")) == ["e", "d", "c", "b", "a"]
    # what tells no tokens comes last
    assert names(await live(gateway, sort_by="tokens")) == ["b", "c", "d", "a", "e"]
    assert names(await live(gateway, sort_by="tokens", sort_order="asc")) == ["a", "d", "c", "b", "e"]
    short = await live(gateway, sort_by="tokens", limit=2)
    assert (names(short), short["matching"], short["by_model"]) == (["b", "c"], 5, [{"name": "m", "count": 5}])
    for query, wanted in [
        ({"key": "bob's"}, "ace"),
        ({"key": KEY}, "ace"),
        ({"key": hash_key(KEY)}, "ace"),
        ({"key": hash_key(KEY)[:6].upper()}, "ace"),
        ({"key": "master"}, "d"),
        ({"key": "b"}, ""),
        ({"team_id": "y"}, "b"),
        ({"user_id": "bob"}, "ace"),
        ({"model": "m"}, "abcde"),
        ({"model": "M"}, ""),
        ({"server": f"127.0.0.1:{server.port}"}, "abcde"),
        ({"server": "127.0.0.1:1"}, ""),
        ({"state": "waiting"}, "e"),
        ({"state": "streaming", "team_id": "x"}, "ac"),
    ]:
        found = await live(gateway, **query)
        assert (names(found), found["matching"], found["total"]) == (list(wanted), len(wanted), 5), query
    answer = await gateway.ask("GET", "/request/live?state=sleeping")
    assert (answer.status, answer.error["param"]) == (400, "state")


@pytest_twisted.ensureDeferred
async def test_what_is_not_known_yet_is_not_told(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    await begin(server, gateway, chat("json", stream=False))
    [row] = (await live(gateway))["requests"]
    assert (row["stream"], row["tokens"], row["first_byte_seconds"], row["bytes_out"]) == (None, None, None, 0)
    server.connections[0].send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"id"')
    gateway.clock.advance(1)
    while (await live(gateway))["requests"][0]["state"] != "streaming":
        await server.connections[0].next_turn()
    [row] = (await live(gateway))["requests"]
    assert (row["stream"], row["tokens"], row["bytes_out"]) == (False, None, 5)


@pytest_twisted.ensureDeferred
async def test_neither_the_gateway_s_own_routes_nor_idle_connections_are_in_flight(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in().port)
    await gateway.connect()
    assert (await live(gateway))["total"] == 0


@pytest_twisted.ensureDeferred
async def test_people_see_their_own_and_nothing_of_others(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    ada = await gateway.make_key(key_alias="ada's", user_id="ada")
    second = await gateway.make_key(key_alias="bob's second", user_id="bob")
    label = await gateway.make_key(key_alias="label", user_id="nobody")
    nobody = await gateway.make_key(key_alias="nobody's")
    await streaming(server, gateway, "bobs", KEY)
    await streaming(server, gateway, "eves", OTHER)
    await streaming(server, gateway, "masters", MASTER_KEY)
    await streaming(server, gateway, "of-a-label", label)
    await streaming(server, gateway, "of-nobody", nobody)
    for key, wanted in [
        (KEY, ["bobs"]),
        (second, ["bobs"]),
        # she administers his team
        (ada, ["bobs"]),
        (OTHER, ["eves"]),
        (label, ["of-a-label"]),
        (nobody, ["of-nobody"]),
    ]:
        found = await live(gateway, key)
        assert (names(found), found["total"], found["matching"]) == (wanted, 1, 1)
        assert (found["requests"][0]["server"], found["by_server"]) == (None, [])
        assert found["requests"][0]["client"] == (None if key == ada else "127.0.0.1")
        assert [each["count"] for each in found["by_key"]] == [1]
        answer = await gateway.ask("GET", f"/request/live?server=127.0.0.1:{server.port}", key)
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
        for filtered in ({"key": "eve's"}, {"team_id": "y"}, {"user_id": "eve"}):
            hidden = await live(gateway, key, **filtered)
            assert hidden["matching"] == (key == OTHER), filtered
    await done(gateway, "/user/new", user_id="viewer", user_role="proxy_admin_viewer", auto_create_key=False)
    viewer = await gateway.make_key(user_id="viewer")
    assert (await live(gateway, viewer))["total"] == 5
    assert (await cut(gateway, "bobs", viewer)).status == 403


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_cut_ends_on_both_sides_and_the_ledger_and_the_audit_log_say_why(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    client, upstream = await streaming(server, gateway, "runaway", events=4)
    kept, other = await streaming(server, gateway, "kept")
    answer = await cut(gateway, "runaway", reason="it repeats itself")
    assert (answer.status, answer.json["status"], answer.json["warnings"]) == (200, "success", [])
    assert [(each["request_id"], each["tokens"]) for each in answer.json["requests"]] == [("runaway", 4)]
    await client.until_lost()
    await upstream.until_lost()
    assert not client.received.endswith(LAST)
    # who watches does not see it any more, although the look was just made
    answer = await gateway.ask("GET", "/request/live")
    assert names(answer.json) == ["kept"]
    other.send(LAST)
    await kept.until_received(b"\r\n" + LAST)
    [entry] = (await gateway.ask("GET", "/audit/list?object_type=request")).json["audit_logs"]
    assert (entry["actor"], entry["action"], entry["object_id"]) == ("master", "request/cut", "runaway")
    before = entry["before"]
    assert (before["key_name"], before["team_id"], before["model"], before["tokens"]) == ("bob's", "x", "m", 4)
    assert entry["after"] == {"outcome": "cut", "reason": "it repeats itself"}
    [line] = [line for line in gateway.request_lines() if line["request_id"] == "runaway"]
    assert (line["outcome"], line["error"], line["status"], line["level"]) == ("cut", "request_cut", 200, "info")
    found = await rows(gateway)
    assert found[0][:4] == ("cut", "request_cut", 200, 1)
    # at least what came is charged
    assert found[0][4] >= 4


@pytest_twisted.ensureDeferred
async def test_a_request_whose_answer_has_not_begun_gets_an_error_that_no_client_repeats(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    client, upstream = await begin(server, gateway, chat("waits"), until=b'"max_tokens"')
    assert (await cut(gateway, "waits")).status == 200
    await upstream.until_lost()
    await client.until_received(b"}}")
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"]) == (403, "request_cut")
    assert answer.header("x-should-retry") == "false"
    assert [row[:4] for row in await rows(gateway)] == [("cut", "request_cut", 403, 1)]


@pytest_twisted.ensureDeferred
async def test_a_queued_request_gives_up_its_place_and_costs_nothing(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(capped(server.port)))
    first, upstream = await streaming(server, gateway, "first")
    client = await gateway.send(chat("queued"))
    await eventually(reactor, lambda: gateway.queued)
    assert (await cut(gateway, "queued")).status == 200
    await client.until_received(b"}}")
    assert (gateway.queued, parse_answer(client.received).error["code"]) == (0, "request_cut")
    upstream.send(LAST)
    await first.until_received(b"\r\n" + LAST)
    assert [row[0] for row in await rows(gateway)] == ["completed"]


@pytest.mark.parametrize("how", ["an upload", "a tunnel", "a client that does not read"])
@pytest_twisted.ensureDeferred
async def test_whatever_is_in_flight_can_be_cut(stand_in: Any, gateway_to: Any, reactor: Any, how: str) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    if how == "an upload":
        client = await gateway.send(chat("it").replace(b"Content-Length: ", b"Content-Length: 9"))
        await client.next_turn()
    elif how == "a tunnel":
        client, upstream = await begin(server, gateway, handshake(KEY, X_Request_Id="it"))
        upstream.send(SWITCHING_PROTOCOLS)
        await client.until_received(b"101")
    else:
        client, upstream = await streaming(server, gateway, "it")
        client.transport.pauseProducing()
        upstream.send(b"1000000\r\n" + b"x" * 0x1000000)
    assert (await cut(gateway, "it")).status == 200
    if how == "an upload":
        await client.until_received(b"request_cut")
    else:
        await eventually(reactor, lambda: client.lost is not None or has_disconnected(client))
    assert (await live(gateway))["total"] == 0
    [line] = [line for line in gateway.request_lines() if line["request_id"] == "it"]
    assert (line["outcome"], line["error"]) == ("cut", "request_cut")


@pytest_twisted.ensureDeferred
async def test_people_cut_their_own_requests_and_learn_nothing_of_others(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    ada = await gateway.make_key(user_id="ada")
    nobody = await gateway.make_key()
    await done(gateway, "/user/new", user_id="boss", user_role="proxy_admin", auto_create_key=False)
    boss = await gateway.make_key(team_id="x", user_id="boss")
    bobs, _ = await streaming(server, gateway, "bobs", KEY)
    eves, _ = await streaming(server, gateway, "eves", OTHER)
    bosses, _ = await streaming(server, gateway, "of-boss", boss)
    unknown = await cut(gateway, "unknown", OTHER)
    assert (unknown.status, unknown.error["param"]) == (404, "request_id")
    # what is not one's own and what does not exist are refused alike; a team's administrator is no administrator
    for key, name in [(OTHER, "bobs"), (ada, "eves"), (ada, "of-boss")]:
        answer = await cut(gateway, name, key)
        assert answer.error["message"].replace(name, "unknown") == unknown.error["message"]
    assert (await cut(gateway, "of-nobody", nobody)).error["code"] == "route_not_allowed"
    assert (bobs.lost, eves.lost, bosses.lost) == (None, None, None)
    answer = await cut(gateway, "bobs", ada)
    assert answer.json["requests"][0]["server"] is None
    await bobs.until_lost()
    await cut(gateway, "eves", OTHER)
    await eves.until_lost()
    entries = (await gateway.ask("GET", "/audit/list?action=request/cut")).json["audit_logs"]
    assert [(each["object_id"], each["actor"]) for each in entries] == [
        ("eves", hash_key(OTHER)[:8]),
        ("bobs", hash_key(ada)[:8]),
    ]


@pytest_twisted.ensureDeferred
async def test_an_id_that_holds_a_key_is_told_without_it_and_can_be_cut_all_the_same(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = await with_people(gateway_to(server.port))
    client, _ = await streaming(server, gateway, f"of-{KEY}")
    answer = await gateway.ask("GET", "/request/live")
    assert KEY.encode() not in answer.body
    [name] = names(answer.json)
    assert (await cut(gateway, name)).status == 200
    await client.until_lost()
