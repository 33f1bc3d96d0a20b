"""Who guesses keys is slowed, and nobody else is."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from test_forwarding import OK

from twisted_vllm.config.settings import Limits


@pytest_twisted.ensureDeferred
async def test_guesses_are_slowed_on_every_route_and_valid_keys_served_on(stand_in: Any, gateway_to: Any) -> None:
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
