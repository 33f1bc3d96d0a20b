"""Two gateways on one database: a change through one takes effect in the other a moment later."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.messages import OK
from twisted_vllm.storage.registry import FOLLOW_INTERVAL

PATIENCE_SECONDS = 5


async def until_answered(reactor: Any, gateway: Any, key: str, status: int) -> None:
    """Let a gateway look for changes once, and ask until the answer is `status`."""
    gateway.clock.advance(FOLLOW_INTERVAL)
    began = reactor.seconds()
    while (await gateway.ask("GET", "/vllm/v1/models", key)).status != status:
        assert reactor.seconds() - began < PATIENCE_SECONDS, "the change did not arrive"
        await deferLater(reactor, 0.01, lambda: None)


@pytest_twisted.ensureDeferred
async def test_a_change_of_another_process_acts_within_a_second(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    assert FOLLOW_INTERVAL < 1
    server = stand_in(OK)
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    key = await one.make_key()
    await until_answered(reactor, other, key, 200)
    await one.ask("POST", "/key/block", body={"key": key})
    await until_answered(reactor, other, key, 401)
