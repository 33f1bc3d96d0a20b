"""A key or a token that somebody puts into the wrong field is in no log, no error, no audit entry and no metric."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY
from tests.end_to_end.messages import OK
from tests.identification.issuer import SigningKey
from twisted_vllm.auth.authenticator import hash_key

#: what may not be asked here: it ends or changes the gateway itself
_LEFT_OUT = frozenset(("/config/reload",))


def fields_of(document: Any, operation: Any) -> list[str]:
    """Return the names of a route's fields, of its body and of its query."""
    found = [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        for part in (schema, *schema.get("allOf", ())):
            name = part.get("$ref", "").rpartition("/")[2]
            part = document["components"]["schemas"].get(name, part)
            found += part.get("properties", {})
    return found


def _values(secret: str) -> list[Any]:
    return [secret, [secret], {secret: secret}, [{"user_id": secret, "user_email": secret, "role": secret}]]


@pytest_twisted.ensureDeferred
async def test_a_secret_in_any_field_of_any_route_is_shown_nowhere(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    document = (await gateway.ask("GET", "/openapi.json")).json
    key = await gateway.make_key(key_alias="victim")
    token = SigningKey(alg="EdDSA").token(1_800_000_000)
    secrets = (key, token, MASTER_KEY)
    errors = []
    asked = 0
    for path, operations in document["paths"].items():
        if path in _LEFT_OUT:
            continue
        for method, operation in operations.items():
            for secret in secrets:
                there = path
                for each in operation.get("parameters", ()):
                    if each["in"] == "path":
                        there = there.replace("{" + each["name"] + "}", quote(secret, safe=""))
                for name in fields_of(document, operation):
                    for value in _values(secret) if method != "get" else [secret]:
                        asked += 1
                        if method == "get":
                            answer = await gateway.ask("GET", f"{there}?{name}={quote(secret)}")
                        else:
                            answer = await gateway.ask(method.upper(), there, body={name: value})
                        if answer.status >= 400 and any(each[:40] in answer.body.decode() for each in secrets):
                            errors.append((method, path, name, answer.body[:300]))
    assert asked > 1000
    assert errors == []
    audit = [
        (await gateway.ask("GET", f"/audit/list?page_size=100&page={page}")).body.decode() for page in range(1, 30)
    ]
    written = {
        "log": gateway.log_text(),
        "audit": "".join(audit),
        "metrics": (await gateway.ask("GET", "/metrics")).body.decode(),
    }
    leaks = {where: sum(text.count(each) for each in secrets) for where, text in written.items()}
    assert leaks == dict.fromkeys(written, 0), [
        text[max(0, text.find(each) - 400) : text.find(each) + 100]
        for text in written.values()
        for each in secrets
        if each in text
    ]
    hashes = [hash_key(each) for each in secrets]
    assert not [where for where in ("log", "metrics") for each in hashes if each in written[where]]
    json.loads(audit[0])
