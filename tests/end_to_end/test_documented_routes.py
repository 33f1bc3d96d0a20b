"""The documents name every route of the gateway's own, and their commands ask for no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest_twisted

from twisted_vllm.mounts import Mounts

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: a path of the gateway's own, after its address in a command
ASKED = re.compile(r"(?:\$GATEWAY|http://127\.0\.0\.1:4000)(/[^\s\"'?`>]*)")


async def routes_of(gateway: Any) -> set[str]:
    answer = await gateway.ask("GET", "/openapi.json", None)
    return set(answer.json["paths"])


@pytest_twisted.ensureDeferred
async def test_every_admin_route_is_named_in_a_document(stand_in: Any, gateway_to: Any) -> None:
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"(?<![\w/])(/[a-z_{}/0-9-]+)`", text))
    # the same routes as below /customer
    routes = {re.sub("^/end_user/", "/customer/", route) for route in await routes_of(gateway_to(stand_in().port))}
    assert sorted(routes - named - {"/", "/openapi.json"}) == []


@pytest_twisted.ensureDeferred
async def test_commands_ask_for_routes_that_exist(stand_in: Any, gateway_to: Any) -> None:
    routes = await routes_of(gateway_to(stand_in().port))
    asked = {path for document in DOCUMENTS for path in ASKED.findall(document.read_text("utf-8"))}
    vllms = Mounts()
    own = {path.replace("$KEY", "{key}") for path in asked if vllms.find(path.encode()) is None}
    # OpenAI's client begins its paths with this; and the console is for browsers
    own -= {"/v1", "/ui"}
    assert own and sorted(own - routes) == []
