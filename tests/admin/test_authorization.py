from __future__ import annotations

import base64

import pytest
from twisted.internet.defer import Deferred

from tests.admin.admin_harness import MASTER_KEY, Gateway, value_of
from twisted_vllm.auth.records import MASTER

CHANGING = [
    "/key/generate", "/key/service-account/generate", "/key/update", "/key/bulk_update", "/key/block", "/key/unblock",
    "/key/regenerate", "/key/x/regenerate", "/key/delete", "/user/new", "/user/update", "/user/delete",
    "/user/bulk_update", "/team/model/add", "/team/model/delete", "/team/bulk_member_add",
    "/team/new", "/team/update", "/team/delete", "/team/block", "/team/unblock", "/team/member_add",
    "/team/member_update", "/team/member_delete", "/model/new", "/model/update", "/model/delete",
    "/budget/new", "/budget/update", "/budget/info", "/budget/delete", "/tag/info", "/organization/new",
    "/organization/info",
    "/organization/member_add", "/config/reload", "/request/cut",
]  # fmt: skip
LISTING = [
    "/user/list", "/audit/list", "/customer/list", "/spend/keys", "/budget/list",
    "/budget/settings", "/organization/spend/report", "/user/filter/ui",
    "/audit", "/tag/list", "/v2/customer/list", "/v2/budget/list",
    "/user/impact", "/team/impact", "/organization/impact", "/customer/impact", "/budget/impact", "/model/impact",
]  # fmt: skip
OTHERS = [
    ("PATCH", "/model/x/update"), ("PATCH", "/organization/update"),
    ("PATCH", "/v2/organization/x"), ("PATCH", "/organization/member_update"),
    ("DELETE", "/organization/delete"), ("DELETE", "/organization/member_delete"),
]  # fmt: skip
ADMIN = [*(("POST", path) for path in CHANGING), *OTHERS, *(("GET", path) for path in LISTING)]
#: what every key may read, as far as it is its own
OWN = [
    "/key/info", "/user/info", "/v2/user/info", "/team/info", "/team/available", "/key/list", "/key/aliases",
    "/team/list", "/v2/team/list", "/organization/list", "/organization/info", "/request/live",
    "/v2/organizations/list", "/key/impact",
]  # fmt: skip
KEY_ROUTES = [*ADMIN, *(("GET", path) for path in OWN), ("POST", "/v2/key/info")]


@pytest.mark.parametrize(("method", "path"), KEY_ROUTES)
def test_without_a_key_the_key_routes_say_how_to_send_one(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.call(method, path, key=None)
    assert (answer.status, answer.error["code"]) == (401, "missing_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "x-litellm-api-key" in answer.error["message"]


@pytest.mark.parametrize(("method", "path"), KEY_ROUTES)
def test_an_unknown_key_is_refused_and_not_repeated(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.call(method, path, key="sk-unknown-0123456789")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert "sk-unknown" not in answer.body.decode()


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_a_virtual_key_does_not_administer_also_where_the_gateway_is_open(method: str, path: str) -> None:
    for gateway in (Gateway(), Gateway(master_key=None)):
        made = gateway.make_key(allowed_routes=["privileged"])
        answer = gateway.call(method, path, key=made["key"])
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
        assert len(gateway.index) == 1


def test_who_may_not_administer_learns_nothing_from_the_body(gateway: Gateway) -> None:
    made = gateway.make_key()
    assert gateway.post("/key/generate", data=b"{", key=made["key"]).status == 403
    assert gateway.post("/key/generate", data=b"{", key=None).status == 401


def test_no_body_is_read_before_it_is_known_who_asks_and_for_what(gateway: Gateway) -> None:
    key = gateway.make_key()["key"]
    gateway.recorded.bodies_read = 0
    refused = [
        *((401, "POST", path, None) for path in CHANGING),
        *((401, "POST", path, "sk-unknown-0123456789") for path in CHANGING),
        *((403, "POST", path, key) for path in CHANGING),
        (404, "POST", "/nothing-here", None),
        (404, "POST", "/nothing-here", MASTER_KEY),
        (405, "POST", "/key/list", MASTER_KEY),
        (405, "POST", "/health/liveliness", None),
        (200, "GET", "/health/liveliness", None),
        (200, "GET", "/metrics", None),
        (200, "GET", "/key/list", MASTER_KEY),
    ]
    for status, method, path, caller in refused:
        assert gateway.call(method, path, key=caller, data=b"{}").status == status, (method, path)
    assert gateway.recorded.bodies_read == 0


def test_a_key_that_is_blocked_while_its_body_arrives_changes_nothing(gateway: Gateway) -> None:
    made = gateway.make_key(allowed_routes=["management"])
    arriving: Deferred[bytes] = Deferred()
    gateway.recorded.read = lambda request: arriving
    asked = gateway.ask("POST", "/key/generate", key=made["key"])
    gateway.recorded.read = None
    assert gateway.post("/key/block", {"key": made["key"]}).status == 200
    arriving.callback(b"{}")
    gateway.deliver()
    assert value_of(asked).code == 401
    assert len(gateway.records()) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"x-litellm-api-key": MASTER_KEY},
        {"X-LiteLLM-API-Key": f"Bearer {MASTER_KEY}"},
        {"api-key": MASTER_KEY},
        {"x-api-key": MASTER_KEY},
        {"authorization": f"bearer {MASTER_KEY}"},
        {"authorization": "Basic " + base64.b64encode(b"a:b").decode(), "x-api-key": MASTER_KEY},
    ],
)
def test_the_master_key_is_taken_from_every_credential_header(gateway: Gateway, headers: dict[str, str]) -> None:
    assert gateway.get("/key/list", key=None, headers=headers).status == 200


def test_the_principal_stands_on_the_request_for_the_log(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="team")
    gateway.get("/key/info", key=made["key"])
    first, second = gateway.recorded.requests
    assert first.context.principal is MASTER
    assert (second.context.principal.name, second.context.principal.hash_prefix) == ("team", made["token"][:8])
