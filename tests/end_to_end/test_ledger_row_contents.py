"""What a row records of its request: headers, the end user, tags, and the prices at the time."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest_twisted

from tests.end_to_end.end_to_end_harness import request_bytes, server_at
from tests.end_to_end.ledger_harness import ANSWER, Columns, rows_in
from tests.end_to_end.messages import whole
from tests.ledger_file import SUMS_OF_DAYS
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import EndUserSettings, LedgerSettings, ModelEntry, PriceList
from twisted_vllm.money import PICODOLLARS

CHAT = "/vllm/v1/chat/completions"
MESSAGES = "/vllm/v1/messages"
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
#: characters of a header's value, and of an end user's name, that are kept
KEPT = 255


async def rows(gateway: Any) -> dict[str, list[Columns]]:
    """Stop the gateway, which writes the rest, and return the ledger's rows."""
    await gateway.stop()
    return rows_in(gateway.database_file)


async def ask(gateway: Any, raw: bytes) -> str:
    """Send a request; return its id, which the gateway made."""
    answer = await gateway.answer_to(raw)
    assert answer.status == 200, answer.body
    return str(answer.header("x-request-id"))


def with_lines(raw: bytes, *lines: bytes) -> bytes:
    first, _, rest = raw.partition(b"\r\n")
    return b"\r\n".join([first, *lines, rest])


@pytest_twisted.ensureDeferred
async def test_the_headers_that_the_operator_lists_are_kept(stand_in: Any, gateway_to: Any) -> None:
    settings = LedgerSettings(usage_headers=("x-project", "x-cost-centre"))
    gateway = gateway_to(stand_in(whole(ANSWER)).port, ledger=settings)
    cases: dict[tuple[bytes, ...], dict[str, str]] = {
        (): {},
        (b"X-Other: secret",): {},
        (b"X-Project: apollo",): {"x-project": "apollo"},
        (b"x-PROJECT: apollo", b"X-Cost-Centre: 7"): {"x-project": "apollo", "x-cost-centre": "7"},
        (b"X-Project: first", b"X-Project: second"): {"x-project": "first"},
        (b"X-Project: caf\xe9 \xff",): {"x-project": "caf\u00e9 \u00ff"},
        (b"X-Project: " + b"p" * 300,): {"x-project": "p" * KEPT},
        (b'X-Project: a"b\\c, {1}',): {"x-project": 'a"b\\c, {1}'},
        (b"X-Project:",): {"x-project": ""},
    }
    raw = request_bytes("POST", CHAT, body=HI)
    # each twice: a head that was read before is not read again
    asked = [(await ask(gateway, with_lines(raw, *lines)), kept) for lines, kept in cases.items() for _ in range(2)]
    found = await rows(gateway)
    assert len(found) == len(asked)
    for request_id, kept in asked:
        [row] = found[request_id]
        assert json.loads(row["headers"]) == kept


@pytest_twisted.ensureDeferred
async def test_a_row_tells_for_whom_its_request_was_however_that_is_said(stand_in: Any, gateway_to: Any) -> None:
    users = EndUserSettings(headers=("x-member", "x-litellm-end-user-id"))
    gateway = gateway_to(stand_in(whole(ANSWER)).port, end_users=users)
    anthropic = {**HI, "max_tokens": 4}
    cases: list[tuple[str, tuple[bytes, ...], dict[str, Any], str | None]] = [
        (CHAT, (), HI, None),
        (CHAT, (), {**HI, "user": "eve"}, "eve"),
        (CHAT, (), {**HI, "user": "\u65e5\u672c"}, "\u65e5\u672c"),
        (CHAT, (), {**HI, "user": "e" * 300}, "e" * KEPT),
        (CHAT, (), {**HI, "user": ""}, None),
        (CHAT, (), {**HI, "user": 7}, None),
        (CHAT, (), {**HI, "safety_identifier": "eve"}, "eve"),
        (MESSAGES, (), {**anthropic, "metadata": {"user_id": "eve"}}, "eve"),
        (MESSAGES, (), {**anthropic, "metadata": {"user_id": None}}, None),
        (CHAT, (b"X-LiteLLM-End-User-Id: bob",), HI, "bob"),
        (CHAT, (b"X-LiteLLM-End-User-Id: bob",), {**HI, "user": "eve"}, "bob"),
        (CHAT, (b"X-LiteLLM-End-User-Id: bob", b"X-Member: ann"), HI, "ann"),
        (CHAT, (b"X-LiteLLM-End-User-Id:",), {**HI, "user": "eve"}, "eve"),
        (MESSAGES, (b"X-LiteLLM-End-User-Id: caf\xe9",), {**anthropic, "metadata": {"user_id": "eve"}}, "caf\u00e9"),
    ]
    asked = [
        (await ask(gateway, with_lines(request_bytes("POST", path, body=body), *lines)), user)
        for path, lines, body, user in cases
    ]
    found = await rows(gateway)
    assert [found[request_id][0]["end_user"] for request_id, _ in asked] == [user for _, user in asked]


@pytest_twisted.ensureDeferred
async def test_a_row_has_its_key_s_user_team_and_tags_and_is_found_by_each_tag(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port)
    tagged = await gateway.make_key(key_alias="one", tags=["blue", "caf\u00e9"], user_id="ada", team_id="lab")
    plain = await gateway.make_key(key_alias="two")
    asked = [await ask(gateway, request_bytes("POST", CHAT, key, body=HI)) for key in (tagged, plain)]
    found = await rows(gateway)
    one, two = (found[request_id][0] for request_id in asked)
    assert (one["key_name"], one["user_id"], one["team_id"]) == ("one", "ada", "lab")
    assert (two["key_name"], two["user_id"], two["team_id"]) == ("two", None, None)
    assert (json.loads(one["tags"]), json.loads(two["tags"])) == (["blue", "caf\u00e9"], [])
    with closing(sqlite3.connect(gateway.database_file)) as connection:
        tags = set(connection.execute("SELECT tag, payer FROM vllm_passthrough_usage_payer_tags"))
    assert tags == {("blue", one["payer"]), ("caf\u00e9", one["payer"])}


def prices(prompt: str, completion: str) -> PriceList:
    return PriceList(input_cost_per_token=Decimal(prompt), output_cost_per_token=Decimal(completion))


@pytest_twisted.ensureDeferred
async def test_a_row_keeps_the_prices_of_its_day(stand_in: Any, gateway_to: Any, tmp_path: Path) -> None:
    server = stand_in(whole(ANSWER))
    database = tmp_path / "both.sqlite3"
    days = []
    # the second day's entry has a price of its own; a start is what brings new prices
    for default_price, own in (("0.000001", None), ("0.0000025", "0.5")):
        entry = ModelEntry("own", "own", server_at(server.port), prices=prices(own, own) if own else PriceList())
        gateway = gateway_to(
            server.port,
            database_url=Secret(f"sqlite:///{database}"),
            default_prices=prices(default_price, default_price),
            models=(entry,),
        )
        asked = [await ask(gateway, request_bytes("POST", CHAT, body={**HI, "model": name})) for name in ("m", "own")]
        await gateway.stop()
        found = rows_in(database)
        days.append([found[request_id][0] for request_id in asked])
    assert len(found) == 4
    costs = [[row["cost"] for row in day] for day in days]
    # 7 tokens each
    assert costs == [[7_000_000, 7_000_000], [17_500_000, 7 * PICODOLLARS // 2]]
    for day, names in zip(days, (("default", "default"), ("default", "own")), strict=True):
        # as they are after the second day
        assert [found[row["request_id"]][0] for row in day] == day
        assert tuple(json.loads(row["prices"])["name"] for row in day) == names
    told = [json.loads(row["prices"])["input_cost_per_token"] for day in days for row in day]
    assert told == ["0.000001", "0.000001", "0.0000025", "0.5"]
    with closing(sqlite3.connect(database)) as connection:
        [(_, _, total)] = connection.execute(SUMS_OF_DAYS)
    assert total == sum(cost for day in costs for cost in day)


@pytest_twisted.ensureDeferred
async def test_an_id_that_comes_again_has_a_row_for_each_request(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port)
    again = [await ask(gateway, request_bytes("POST", CHAT, body=HI, headers={"X-Request-Id": "a"})) for _ in range(3)]
    made = await ask(gateway, request_bytes("POST", CHAT, body=HI))
    found = await rows(gateway)
    assert {name: len(of_it) for name, of_it in found.items()} == {"a": 3, made: 1}
    assert again == ["a"] * 3
    # an id that was made here is nobody else's, and names its row as well
    assert found[made][0]["id"] == made
    assert len({row["id"] for of_it in found.values() for row in of_it}) == 4
