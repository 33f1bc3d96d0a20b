"""Callers with a JSON Web Token of the company's issuer, through a whole gateway, with the issuer on a real port."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.end_to_end.end_to_end_harness import HOST, request_bytes
from tests.end_to_end.messages import OK
from tests.identification.issuer import AUDIENCE, ISSUER, SigningKey, key_set
from twisted_vllm.config.jwt import JwtClaims
from twisted_vllm.identification.key_sets import FETCH_INTERVAL

BY_SUBJECT = JwtClaims(user_id_jwt_field="sub", user_email_jwt_field="email", team_ids_jwt_field="groups")


class Issuer(Resource):
    """Publishes its keys."""

    isLeaf = True

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.keys: list[Any] = [SigningKey()]
        self.status = 200
        self.asked: list[bytes] = []
        self._port = reactor.listenTCP(0, Site(self), interface=HOST)
        self.url = f"http://{HOST}:{self._port.getHost().port}"

    def render_GET(self, request: Any) -> bytes:
        self.asked.append(request.path)
        request.setResponseCode(self.status)
        if request.path.endswith(b"openid-configuration"):
            return json.dumps({"issuer": ISSUER, "jwks_uri": f"{self.url}/keys"}).encode()
        return key_set(*self.keys)

    def token(self, **claims: Any) -> str:
        return str(self.keys[-1].token(time.time(), **claims))

    async def stop(self) -> None:
        await self._port.stopListening()


@pytest.fixture
def issuer(reactor: Any) -> Iterator[Issuer]:
    made = Issuer(reactor)
    yield made
    pytest_twisted.blockon(ensureDeferred(made.stop()))


@pytest.fixture
def gateway_of(gateway_to: Any, stand_in: Any, issuer: Issuer) -> Callable[..., Any]:
    """Makes gateways that take the issuer's tokens."""

    def make(claims: JwtClaims = BY_SUBJECT, **settings: Any) -> Any:
        defaults = {
            "enable_jwt_auth": True,
            "litellm_jwtauth": claims,
            "jwt_public_key_url": (f"{issuer.url}/keys",),
            "jwt_audience": (AUDIENCE,),
            "jwt_issuer": (ISSUER,),
        }
        return gateway_to(stand_in(OK).port, **{**defaults, **settings})

    return make


async def make_user(gateway: Any, user_id: str = "ada", **fields: Any) -> None:
    body = {"user_id": user_id, "auto_create_key": False, **fields}
    assert (await gateway.ask("POST", "/user/new", body=body)).status == 200


async def make_team(gateway: Any, team_id: str, **fields: Any) -> None:
    assert (await gateway.ask("POST", "/team/new", body={"team_id": team_id, **fields})).status == 200


async def complete(gateway: Any, key: str, model: str = "m", **options: Any) -> Any:
    return await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": model, "prompt": "x"}, **options)


@pytest_twisted.ensureDeferred
async def test_a_token_of_a_known_user_is_served_and_the_issuer_asked_once(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    answers = await gatherResults([ensureDeferred(complete(gateway, issuer.token())) for _ in range(20)])
    assert [answer.status for answer in answers] == [200] * 20
    assert issuer.asked == [b"/keys"]


@pytest_twisted.ensureDeferred
async def test_an_openid_configuration_leads_to_the_keys(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of(jwt_public_key_url=(f"{issuer.url}/.well-known/openid-configuration",))
    await make_user(gateway)
    assert (await complete(gateway, issuer.token())).status == 200
    assert issuer.asked == [b"/.well-known/openid-configuration", b"/keys"]


@pytest_twisted.ensureDeferred
async def test_a_virtual_key_works_beside_tokens(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    assert (await complete(gateway, await gateway.make_key())).status == 200
    assert issuer.asked == []


@pytest_twisted.ensureDeferred
async def test_without_the_setting_a_token_is_an_unknown_key(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of(enable_jwt_auth=False)
    refused = await complete(gateway, issuer.token())
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert issuer.asked == []


@pytest_twisted.ensureDeferred
async def test_a_token_of_another_key_is_refused_on_every_route(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    for path in ("/vllm/v1/models", "/key/info", "/user/info"):
        forged = SigningKey().token(time.time())
        refused = await gateway.ask("GET", path, forged)
        assert (refused.status, refused.error["code"]) == (401, "invalid_token")
        assert "signature" in refused.error["message"]


@pytest_twisted.ensureDeferred
async def test_a_user_that_is_not_known_is_refused_until_it_is_made(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    token = issuer.token()
    refused = await complete(gateway, token)
    assert (refused.status, refused.error["code"]) == (403, "token_not_allowed")
    message = "The user of this token, 'ada', is not known here. Ask an administrator to make the user."
    assert refused.error["message"] == message
    await make_user(gateway)
    assert (await complete(gateway, token)).status == 200
    await gateway.ask("POST", "/user/delete", body={"user_ids": ["ada"]})
    assert (await complete(gateway, token)).status == 403


@pytest_twisted.ensureDeferred
async def test_a_user_is_made_where_the_operator_wants_it(gateway_of: Any, issuer: Issuer) -> None:
    claims = JwtClaims(user_id_jwt_field="sub", user_email_jwt_field="email", user_id_upsert=True)
    gateway = gateway_of(claims)
    tokens = [issuer.token(email="Ada@example.com", jti=f"{number}") for number in range(10)]
    answers = await gatherResults([ensureDeferred(complete(gateway, token)) for token in tokens])
    assert [answer.status for answer in answers] == [200] * 10
    user = (await gateway.ask("GET", "/user/info?user_id=ada")).json["user_info"]
    assert user["user_email"] == "ada@example.com"
    entries = (await gateway.ask("GET", "/audit/list")).json
    assert str(entries).count("user/upsert") == 1
    await gateway.ask("POST", "/user/delete", body={"user_ids": ["ada"]})
    assert (await complete(gateway, tokens[0])).status == 200


@pytest_twisted.ensureDeferred
async def test_the_limits_of_user_and_team_hold_for_all_tokens(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway, rpm_limit=2)
    await make_team(gateway, "physics", models=["m"])
    statuses = [(await complete(gateway, issuer.token(jti=f"{each}"))).status for each in range(3)]
    assert statuses == [200, 200, 429]
    await make_user(gateway, "bob")
    token = issuer.token(sub="bob", groups=["physics"])
    assert (await complete(gateway, token)).status == 200
    assert (await complete(gateway, token, "other")).status == 403


@pytest_twisted.ensureDeferred
async def test_the_first_team_that_is_known_counts_or_the_one_that_the_request_names(
    gateway_of: Any, issuer: Issuer
) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    await make_team(gateway, "physics", models=["m"])
    await make_team(gateway, "chemistry", models=["n"])
    token = issuer.token(groups=["unknown", "physics", "chemistry"])
    assert (await complete(gateway, token, "m")).status == 200
    assert (await complete(gateway, token, "n")).status == 403
    chosen = {"x-litellm-team-id": "chemistry"}
    assert (await complete(gateway, token, "n", headers=chosen)).status == 200
    assert (await complete(gateway, token, "m", headers=chosen)).status == 403
    for other in ("unknown", "biology"):
        refused = await complete(gateway, token, headers={"x-litellm-team-id": other})
        assert (refused.status, refused.error["code"]) == (403, "token_not_allowed")
        says = "is not known here" if other == "unknown" else "none of this token's: 'unknown', 'physics', 'chemistry'"
        assert says in refused.error["message"]
    nowhere = await complete(gateway, issuer.token(groups=["unknown", "biology"]))
    assert "None of the teams of this token is known here: 'unknown', 'biology'." in nowhere.error["message"]
    await gateway.ask("POST", "/team/block", body={"team_id": "physics"})
    assert (await complete(gateway, token, "n")).status == 200
    await gateway.ask("POST", "/team/block", body={"team_id": "chemistry"})
    gateway.clock.advance(0.05)
    refused = await complete(gateway, token, "n")
    assert (refused.status, refused.error["code"]) == (401, "blocked_api_key")


@pytest_twisted.ensureDeferred
async def test_a_scope_makes_an_administrator(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of(JwtClaims(user_id_jwt_field="uid"))
    token = issuer.token(scope="openid litellm_proxy_admin")
    made = await gateway.ask("POST", "/key/generate", token, body={})
    assert made.status == 200
    assert (await gateway.ask("GET", "/key/list", token)).status == 200
    others = await gateway.ask("GET", "/key/list", issuer.token(scope="openid"))
    assert (others.status, others.json["keys"]) == (200, [])
    assert (await gateway.ask("GET", "/audit/list", token)).status == 200
    assert (await gateway.ask("GET", "/audit/list", issuer.token(scope="openid"))).status == 403
    # as in LiteLLM, administrators use the models with keys, unless the operator says otherwise
    assert (await complete(gateway, token)).status == 403
    entry = (await gateway.ask("GET", "/audit/list")).json
    assert "ada" in str(entry)


@pytest_twisted.ensureDeferred
async def test_a_key_that_a_token_makes_is_its_users_and_ends_with_the_token(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    began = time.time()
    made = (await gateway.ask("POST", "/key/generate", issuer.token(), body={})).json
    assert made["user_id"] == "ada"
    assert 590 < datetime.fromisoformat(made["expires"]).timestamp() - began < 610
    assert (await complete(gateway, made["key"])).status == 200


@pytest_twisted.ensureDeferred
async def test_what_no_key_may_do_no_token_may(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    refused = await gateway.ask("POST", "/vllm/sleep", issuer.token())
    assert (refused.status, refused.error["code"]) == (403, "route_not_allowed")
    refused = await gateway.ask(
        "POST", "/vllm/v1/completions", issuer.token(), body={"model": "m", "prompt": "x", "vllm_xargs": {"a": 1}}
    )
    assert (refused.status, refused.error["code"]) == (400, "field_not_allowed")


@pytest_twisted.ensureDeferred
async def test_a_new_key_of_the_issuer_is_fetched_when_a_token_names_it(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    assert (await complete(gateway, issuer.token())).status == 200
    old = issuer.token()
    issuer.keys.append(SigningKey("k2", "ES256"))
    refused = await complete(gateway, issuer.token())
    assert refused.status == 401  # a moment after the last fetch
    assert "kid" in refused.error["message"]
    gateway.clock.advance(FETCH_INTERVAL)
    assert (await complete(gateway, issuer.token(jti="2"))).status == 200
    assert (await complete(gateway, old)).status == 200
    assert len(issuer.asked) == 2


@pytest_twisted.ensureDeferred
async def test_tokens_of_a_key_that_the_issuer_withdrew_end_with_the_next_fetch(
    gateway_of: Any, issuer: Issuer
) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    token = issuer.token()
    assert (await complete(gateway, token)).status == 200
    issuer.keys = [SigningKey("k2")]
    gateway.clock.advance(FETCH_INTERVAL)
    assert (await complete(gateway, issuer.token())).status == 200
    assert (await complete(gateway, token)).status == 401


@pytest_twisted.ensureDeferred
async def test_while_the_issuer_is_down_known_keys_are_used_and_nothing_else(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    issuer.status = 500
    refused = await complete(gateway, issuer.token())
    assert (refused.status, refused.error["code"]) == (503, "issuer_unavailable")
    issuer.status = 200
    gateway.clock.advance(FETCH_INTERVAL)
    assert (await complete(gateway, issuer.token(jti="1"))).status == 200
    issuer.status = 500
    gateway.clock.advance(601)
    assert (await complete(gateway, issuer.token(jti="2"))).status == 200
    gateway.clock.advance(3600)
    assert (await complete(gateway, issuer.token(jti="3"))).status == 503
    assert "cannot be fetched: it answers 500" in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_old_keys_are_fetched_again_while_tokens_come(gateway_of: Any, issuer: Issuer, reactor: Any) -> None:
    gateway = gateway_of(attrs.evolve(BY_SUBJECT, public_key_ttl=1.0))
    await make_user(gateway)
    token = issuer.token()
    assert (await complete(gateway, token)).status == 200
    issuer.keys = [SigningKey("k2")]
    gateway.clock.advance(FETCH_INTERVAL)
    # the wall clock decides how long a principal is kept
    await deferLater(reactor, 1.1, lambda: None)
    assert (await complete(gateway, token)).status == 200
    while len(issuer.asked) < 2:
        await deferLater(reactor, 0.01, lambda: None)
    await deferLater(reactor, 0.05, lambda: None)
    assert (await complete(gateway, token)).status == 401


@pytest_twisted.ensureDeferred
async def test_no_token_is_in_the_log_or_the_ledger_and_the_caller_is_named(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    token = issuer.token(email="ada@example.com")
    assert (await complete(gateway, token)).status == 200
    assert (await gateway.ask("GET", f"/vllm/v1/{token}", token)).status == 404
    assert (await gateway.ask("GET", f"/vllm/{token}/x", None)).status == 401
    log = gateway.log_text()
    assert "ada@example.com" in log
    for part in token.split("."):
        assert part not in log


@pytest_twisted.ensureDeferred
async def test_a_changed_team_acts_on_the_next_request_of_a_token(gateway_of: Any, issuer: Issuer) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    await make_team(gateway, "physics")
    token = issuer.token(groups=["physics"])
    assert (await complete(gateway, token)).status == 200
    await gateway.ask("POST", "/team/update", body={"team_id": "physics", "models": ["other"]})
    assert (await complete(gateway, token)).status == 403
    assert len(issuer.asked) == 1


@pytest_twisted.ensureDeferred
async def test_a_flood_of_forged_tokens_asks_the_issuer_seldom_and_fills_no_memory(
    gateway_of: Any, issuer: Issuer, reactor: Any
) -> None:
    gateway = gateway_of()
    await make_user(gateway)
    assert (await complete(gateway, issuer.token())).status == 200
    forger = SigningKey()
    client = await gateway.connect()
    for number in range(200):
        forged = forger.token(time.time(), {"kid": f"k{number}"}, jti=f"{number}")
        client.send(request_bytes("GET", "/vllm/v1/models", forged))
    await client.until(lambda: client.received.count(b"HTTP/1.1 4") == 200)
    assert len(issuer.asked) == 1
    assert b"HTTP/1.1 429" in client.received
    assert (await complete(gateway, issuer.token(jti="good"))).status == 200
    await deferLater(reactor, 0, lambda: None)
