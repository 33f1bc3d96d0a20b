"""A key of any characters is written nowhere, wherever a client puts it and however it is spelled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted
from twisted.python import log
from twisted.python.failure import Failure

from tests.end_to_end.end_to_end_harness import MASTER_KEY, Answer, Gateway, handshake, request_bytes
from tests.end_to_end.messages import OK
from twisted_vllm.config.settings import LogSettings
from twisted_vllm.errors import ERROR_HEADER
from twisted_vllm.proxy.resource import PassThroughResource
from twisted_vllm.storage.registry import Registry

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
#: a key for each visible character, in the middle of ordinary ones
EACH = [f"sk-Key{character}of{character}0123456789" for character in VISIBLE]
#: keys that the gateway makes on demand
KEYS = [
    f"sk-{VISIBLE}",
    "sk-$uper!Secret~Key",
    "sk-100%25-of%2Fthe%2525-keys",
    "sk-a/b/c/../d//0123456",
    "sk-plus+and+plus+0123",
]
#: credentials that no gateway makes, but that clients send
STRANGE = [
    *("$uper!Secret~Key", f"Strange{VISIBLE}", "Sch\xfcssel-\xe9-0123456789", "user:pass/word@0123456789"),
    *("sk-clef-\xe9\xe8-0123456789", "100%25-strange%2Fkey", "a/strange/key/0123456"),
]


def spellings(secret: str) -> list[bytes]:
    """Return how a secret may be written: plain, percent-encoded up to twice, in JSON, and as Python shows it."""
    once = quote(secret, safe="")
    texts = {secret, once, quote(once, safe=""), quote(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    texts.add(json.dumps(secret, ensure_ascii=False)[1:-1])
    return [text.encode(coding, "ignore") for text in texts for coding in ("utf-8", "latin-1")]


def as_header(secret: str) -> str:
    """Return a secret as the bytes of a header: UTF-8, which the harness sends as latin-1."""
    return secret.encode().decode("latin-1")


def in_the_head(secret: str) -> Iterable[bytes]:
    """Return requests that carry a secret as a credential, or elsewhere in the head beside it."""
    sent = as_header(secret)
    once = quote(secret, safe="")
    for value in (f"Bearer {sent}", sent, f"bearer  {sent}", f"Token {sent}"):
        for path in ("/vllm/v1/models", "/key/list", f"/vllm/{once}", f"/{quote(once, safe='')}"):
            yield request_bytes("GET", path, None, headers={"Authorization": value})
    for name in ("x-api-key", "api-key", "x-litellm-api-key", "Proxy-Authorization"):
        yield request_bytes("GET", "/vllm/v1/models", None, headers={name: sent})
        yield request_bytes(
            "GET", f"/vllm/x/{once}", None, headers={name: f"Bearer {sent}", "Referer": f"http://x/{sent}"}
        )
    yield handshake(None, Sec_WebSocket_Protocol=f"realtime, openai-insecure-api-key.{sent}")
    yield request_bytes("GET", "/vllm/v1/models", None, headers={"X-Request-Id": sent[:128], "api-key": sent})
    yield request_bytes("GET", "/vllm/v1/models", None, headers={"X-Request-Id": once[:128], "api-key": sent})


def in_the_path(secret: str) -> Iterable[bytes]:
    """Return requests whose path or query holds a secret: once, twice and not encoded, by anybody."""
    once = quote(secret, safe="")
    for key in (MASTER_KEY, "sk-wrong-0123456789", None):
        for spelled in (as_header(secret), once, quote(once, safe=""), quote(secret, safe="/$&+,:;=@")):
            for path in (f"/key/{spelled}/regenerate", f"/key/{spelled}/reset_spend", f"/key/{spelled}"):
                yield request_bytes("POST", path, key, body={})
            for path in (f"/KEY/{spelled}/x", f"//key/{spelled}", f"/v2/key/{spelled}", f"/key%2F{spelled}"):
                yield request_bytes("GET", path, key)
            yield request_bytes("GET", f"/vllm/key/{spelled}/regenerate", key)
            for path in ("/key/info?key=", "/key/list?api_key=", "/vllm/v1/models?api_key=", "/nowhere?key="):
                yield request_bytes("GET", path + spelled, key)


def in_the_body(secret: str) -> Iterable[bytes]:
    """Return administrative requests whose body holds a secret where a key stands."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/key/update", {"key": secret, "models": ["m"]}),
        ("/key/block", {"key": secret}),
        ("/key/unblock", {"key": secret}),
        ("/key/regenerate", {"key": secret, "grace_period": "1h"}),
        ("/key/regenerate", {"key": "sk-unknown-0123456789", "new_key": secret}),
        ("/key/generate", {"key": secret, "models": "none"}),
        ("/key/delete", {"keys": ["sk-unknown-0123456789", secret]}),
        ("/v2/key/info", {"keys": [secret]}),
        ("/key/bulk_update", {"keys": [{"key": secret}]}),
        ("/key/delete", {"keys": [secret]}),
    ]
    if secret.startswith("sk-"):
        bodies.append(("/key/generate", {"key": secret, secret: secret}))
    for path, body in bodies:
        # a change's id stands in the audit log
        for spelled in (as_header(secret), quote(secret, safe="")):
            yield request_bytes("POST", path, body=body, headers={"X-Request-Id": spelled[:128], "x-api-key": spelled})
        yield request_bytes("POST", path, None, headers={"Authorization": f"Bearer {as_header(secret)}"}, body=body)


async def check(gateway: Gateway, secret: str, requests: Iterable[bytes]) -> None:
    """Send requests; no error of the gateway's own repeats the secret."""
    for raw in requests:
        answer: Answer = await gateway.answer_to(raw)
        if answer.header(ERROR_HEADER.decode()):
            assert [each for each in spellings(secret) if each in answer.body] == [], raw


async def written(gateway: Gateway) -> dict[str, bytes]:
    """Return everything that a gateway has written."""
    metrics = (await gateway.ask("GET", "/metrics")).body
    log = gateway.log_file.read_bytes() if gateway.log_text() else b""
    directory = gateway.database_file.parent
    files = {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file() and "log" not in path.name}
    assert any("spool" in name for name in files)
    return {"log": log, "metrics": metrics, **files}


async def assert_unwritten(gateway: Gateway, secrets: Iterable[str]) -> None:
    found = await written(gateway)
    leaks = [
        (where, spelling)
        for where, text in found.items()
        for secret in secrets
        for spelling in spellings(secret)
        if spelling in text
    ]
    assert leaks == []


@pytest.fixture(params=["json", "text"])
def gateway(request: Any, stand_in: Any, gateway_to: Any, tmp_path: Any) -> Gateway:
    settings = LogSettings(format=request.param, file=str(tmp_path / "gateway0" / "gateway.log"), level="debug")
    made: Gateway = gateway_to(stand_in(OK).port, log=settings)
    return made


@pytest_twisted.ensureDeferred
async def test_a_valid_key_is_written_nowhere(gateway: Gateway) -> None:
    for key in KEYS:
        assert await gateway.make_key(key=key, key_alias=f"alias-{KEYS.index(key)}") == key
        await check(gateway, key, in_the_head(key))
        for field in ("model", "user"):
            body = {"model": "m", "prompt": "x", field: key} if field == "model" else {"model": key, "prompt": key}
            await gateway.ask("POST", "/vllm/v1/completions", key, body=body)
        await check(gateway, key, in_the_path(key))
        await check(gateway, key, in_the_body(key))
    await assert_unwritten(gateway, KEYS)


@pytest_twisted.ensureDeferred
async def test_a_credential_that_is_no_key_is_written_nowhere(gateway: Gateway) -> None:
    for secret in STRANGE:
        await check(gateway, secret, in_the_head(secret))
        await check(gateway, secret, in_the_path(secret))
        await check(gateway, secret, in_the_body(secret))
    await assert_unwritten(gateway, STRANGE)


@pytest_twisted.ensureDeferred
async def test_every_visible_character_may_be_part_of_a_key(gateway: Gateway) -> None:
    for key in EACH:
        once = quote(key, safe="")
        for raw in (
            request_bytes("POST", f"/key/{once}/regenerate", key, body={}),
            request_bytes("POST", f"/key/{key}/regenerate", body={}),
            request_bytes("GET", f"/vllm/{quote(once, safe='')}", key, headers={"X-Request-Id": key}),
            request_bytes("GET", f"/key/info?key={once}", headers={"x-api-key": key}),
        ):
            await check(gateway, key, [raw])
    await assert_unwritten(gateway, EACH)


@pytest_twisted.ensureDeferred
async def test_the_log_names_the_route_and_not_the_path_with_the_key(stand_in: Any, gateway_to: Any) -> None:
    gateway: Gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key(key="sk-$uper!Secret~Key")
    for path in (f"/key/{quote(key, safe='')}/regenerate", f"/key/{key}/reset_spend", f"/key/{key}/regenerat"):
        await gateway.ask("POST", path, body={})
    await gateway.ask("GET", f"/vllm/v1/models/{key}")
    assert [line["route"] for line in gateway.request_lines()] == [
        "/key/generate",
        "/key/{key}/regenerate",
        "/key/{key}/reset_spend",
        "/key/{key}/{key}",
        "/v1/models",
    ]
    assert key not in gateway.log_text()


@pytest.mark.parametrize("secret", [*STRANGE, *KEYS])
@pytest_twisted.ensureDeferred
async def test_no_traceback_shows_what_its_request_carried(
    secret: str, gateway: Gateway, logged_failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError(f"broken by {secret} {quote(secret, safe='')} {secret!r} {json.dumps(secret)}")

    monkeypatch.setattr(PassThroughResource, "render", fail)
    monkeypatch.setattr(Registry, "change", fail)
    sent = as_header(secret)
    for raw in (
        request_bytes("GET", "/vllm/health", None, headers={"api-key": sent}),
        request_bytes("POST", f"/key/{quote(secret, safe='')}/regenerate", body={}),
        request_bytes("POST", "/key/regenerate", headers={"x-api-key": sent}, body={"key": "sk-unknown-0123456789"}),
    ):
        await check(gateway, secret, [raw])
    assert "broken by" in gateway.log_text()
    assert logged_failures.flush(RuntimeError)
    await assert_unwritten(gateway, [secret])


@pytest.mark.parametrize("secret", [*STRANGE, *KEYS])
@pytest_twisted.ensureDeferred
async def test_no_failure_that_twisted_logs_shows_what_a_request_in_flight_carries(
    secret: str, stand_in: Any, gateway_to: Any, logged_failures: Any
) -> None:
    server = stand_in()
    gateway: Gateway = gateway_to(server.port, master_key=None)
    headers = {"Host": "localhost", "Authorization": f"Bearer {as_header(secret)}"}
    client = await gateway.send(request_bytes("GET", "/vllm/v1/models", None, headers=headers))
    await server.connection()
    log.err(Failure(ValueError(f"odd {secret}")), "Unhandled Error Processing Request.")
    assert "Unhandled Error Processing Request." in gateway.log_text()
    client.cut()
    assert logged_failures.flush(ValueError)
    for spelling in spellings(secret):
        assert spelling not in gateway.log_file.read_bytes()
