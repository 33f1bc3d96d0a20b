"""Failed authentication is throttled per client address; valid keys are not."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Engine, event

from tests.end_to_end.end_to_end_harness import request_bytes
from tests.end_to_end.messages import OK
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.header_cache import MOST_HEADS

GUESSES = 1_000


@pytest_twisted.ensureDeferred
async def test_failed_authentication_is_throttled_on_every_route_and_valid_keys_are_served(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_failed_authentications=3))
    key = await gateway.make_key()
    for path in ("/vllm/v1/models", "/key/info", "/vllm/v1/models"):
        assert (await gateway.ask("GET", path, "sk-guess")).status == 401
    for path in ("/vllm/v1/models", "/key/info"):
        refused = await gateway.ask("GET", path, "sk-guess")
        assert (refused.status, refused.error["code"]) == (429, "too_many_failures")
        assert 1 <= int(refused.header("retry-after")) <= 60
        assert (await gateway.ask("GET", path, key)).status == 200
    assert (await gateway.ask("GET", "/vllm/v1/models", None)).status == 401


@pytest.mark.parametrize("limit", [None, 60], ids=["as unknown", "as too many"])
@pytest.mark.parametrize("path", ["/vllm/v1/models", "/key/info", "/key/list"])
@pytest_twisted.ensureDeferred
async def test_a_flood_of_invalid_keys_causes_no_query_and_fills_no_memory(
    stand_in: Any, gateway_to: Any, path: str, limit: int | None
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_failed_authentications=limit))
    await gateway.make_key()
    queries: list[str] = []

    def asked(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        queries.append(statement)

    client = await gateway.connect()
    event.listen(Engine, "before_cursor_execute", asked)
    try:
        for number in range(GUESSES):
            client.send(request_bytes("GET", path, f"sk-guess-{number:032d}"))
        await client.until(lambda: client.received.count(b"HTTP/1.1 4") == GUESSES)
        assert not queries
        # this one does ask, and is heard
        assert (await gateway.ask("GET", "/key/list")).status == 200
        assert queries
    finally:
        event.remove(Engine, "before_cursor_execute", asked)
    site = gateway.service.site
    assert len(site.header_cache) <= MOST_HEADS
    assert not site.running()
    assert len(site.ids) == 0
    assert len(gateway.service.wiring.index) == 1
