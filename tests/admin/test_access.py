"""Who may call which route: the whole table, and that the app obeys it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway
from twisted_vllm.admin.access import EXTENTS, Access, Extent, check_access, extent_of
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.routing import Route
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.auth.roles import Standing, standing_of
from twisted_vllm.errors import RouteNotAllowed

#: every route, by who may call it. A route that changes something stands here before it is released.
TABLE = {
    Access.OPEN: """
        GET / GET /openapi.json GET /routes
        GET /health/liveliness GET /health/liveness GET /health/readiness GET /metrics
    """,
    Access.ANY_KEY: """
        GET /key/info POST /v2/key/info GET /key/list GET /key/aliases GET /user/info GET /v2/user/info
        GET /team/info GET /team/list GET /v2/team/list GET /team/available
        GET /key/may_call GET /key/impact GET /v2/organizations/list
        GET /organization/info GET /organization/list GET /user/available_roles GET /health/readiness/details
        GET /team/<string:team_id>/members/me
        GET /v1/models GET /models GET /v1/models/<name:model_id> GET /models/<name:model_id>
        GET /openai/v1/models GET /openai/models
        GET /openai/v1/models/<name:model_id> GET /openai/models/<name:model_id>
        GET /model/info GET /v1/model/info GET /v2/model/info GET /model_group/info GET /v1/model_group/info
        GET /spend/logs GET /spend/logs/v2 GET /spend/logs/ui GET /spend/logs/ui/<string:request_id>
        GET /key/spend/report GET /user/daily/activity GET /user/daily/activity/aggregated
        GET /team/daily/activity GET /team/daily/activity/aggregated GET /usage/report
        GET /usage/requests/<string:request_id> GET /usage/top GET /spend/overview
        GET /request/live
    """,
    Access.SELF_SERVICE: """
        POST /key/generate POST /key/service-account/generate POST /key/update POST /key/block POST /key/unblock
        POST /key/regenerate POST /key/<string:key>/regenerate POST /key/delete
        POST /team/member_add POST /team/member_update POST /team/member_delete
        POST /request/cut
    """,
    Access.NAMED: "GET /metrics/upstreams",
    Access.MASTER: "POST /config/reload",
}

#: routes that read, although they are a POST
READ_BY_POST = {
    "POST /budget/info",
    "POST /tag/info",
    "POST /organization/info",
    "POST /global/spend/end_users",
    "POST /spend/calculate",
}

#: the meaning of each access for each caller, as the documentation has it: everything, one's own, or refused
MEANING = """
                      open  any_key  reader   named    self_service  administrator  master
master key            all   all      all      all      all           all            all
proxy_admin           all   all      all      all      all           all            all
management key        all   all      all      all      all           all            refused
proxy_admin_viewer    all   all      all      all      refused       refused        refused
internal_user         all   own      refused  refused  own           refused        refused
internal_user_viewer  all   own      refused  refused  refused       refused        refused
key without a user    all   own      refused  refused  refused       refused        refused
"""

CALLERS: dict[Standing, dict[str, Any]] = {
    Standing.PROXY_ADMIN: {"user_id": "boss"},
    Standing.MANAGER: {"allowed_routes": ["management"]},
    Standing.PROXY_ADMIN_VIEWER: {"user_id": "auditor"},
    Standing.INTERNAL_USER: {"user_id": "ada"},
    Standing.INTERNAL_USER_VIEWER: {"user_id": "eve"},
    Standing.KEY: {},
}
ROLES = {"boss": "proxy_admin", "auditor": "proxy_admin_viewer", "ada": "internal_user", "eve": "internal_user_viewer"}


def _named(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_table_names_who_may_call_each_route() -> None:
    found: dict[Access, list[str]] = {}
    for route in ROUTES:
        found.setdefault(route.access, []).append(_named(route))
    for access, words in TABLE.items():
        assert sorted(found.pop(access)) == sorted(re.findall(r"[A-Z]+ \S+", words)), access
    # what is left reads for readers and changes for administrators
    assert set(found) == {Access.READER, Access.ADMINISTRATOR}
    assert {each for each in found[Access.READER] if not each.startswith("GET ")} == READ_BY_POST
    assert {each.split()[0] for each in found[Access.ADMINISTRATOR]} <= {"POST", "PATCH", "DELETE", "PUT"}


def test_each_access_means_what_the_documentation_says() -> None:
    heads, *rows = MEANING.strip().splitlines()
    columns = [Access[name.upper()] for name in heads.split()]
    for row in rows:
        name, *extents = re.split(r"\s{2,}", row.strip())
        for access, extent in zip(columns, extents, strict=True):
            assert EXTENTS[access][Standing(name)] is Extent(extent), (name, access)
    assert len(rows) == len(Standing)


@pytest.fixture
def callers() -> tuple[Gateway, dict[Standing, str]]:
    gateway = Gateway()
    for user_id, role in ROLES.items():
        body = {"user_id": user_id, "user_role": role, "auto_create_key": False}
        assert gateway.post("/user/new", body).status == 200
    keys = {standing: gateway.make_key(**fields)["key"] for standing, fields in CALLERS.items()}
    return gateway, {Standing.MASTER: MASTER_KEY, **keys}


def test_the_app_obeys_the_table_on_every_route(callers: tuple[Gateway, dict[Standing, str]]) -> None:
    gateway, keys = callers
    for standing, key in keys.items():
        found = gateway.index.find(hash_key(key)) if standing is not Standing.MASTER else None
        assert found is None or standing_of(found.principal) is standing
        for route in ROUTES:
            path = re.sub(r"<\w+:\w+>", "x", route.path)
            gateway.recorded.bodies_read = 0
            answer = gateway.call(route.method, path, key=key, data=b"{" if route.body else None)
            refused = answer.status == 403
            assert refused == (EXTENTS[route.access][standing] is Extent.NONE), (standing, _named(route), answer.body)
            # who may not call it is told so before the body is read
            assert not (refused and gateway.recorded.bodies_read), _named(route)


@pytest.mark.parametrize(
    ("principal", "standing"),
    [
        (MASTER, Standing.MASTER),
        (ANONYMOUS, Standing.MASTER),
        (Principal("key", "k", role="proxy_admin"), Standing.PROXY_ADMIN),
        (Principal("key", "k", role="proxy_admin", allowed_routes=("management",)), Standing.PROXY_ADMIN),
        (Principal("key", "k", role="proxy_admin", allowed_routes=("inference",)), Standing.INTERNAL_USER_VIEWER),
        (Principal("key", "k", role="proxy_admin_viewer"), Standing.PROXY_ADMIN_VIEWER),
        (
            Principal("key", "k", role="proxy_admin_viewer", allowed_routes=("read_only",)),
            Standing.INTERNAL_USER_VIEWER,
        ),
        (Principal("key", "k", role="internal_user"), Standing.INTERNAL_USER),
        (Principal("key", "k", role="internal_user", allowed_routes=("management",)), Standing.MANAGER),
        (Principal("key", "k", role="internal_user_viewer"), Standing.INTERNAL_USER_VIEWER),
        (Principal("key", "k", role="customer"), Standing.INTERNAL_USER_VIEWER),
        (Principal("key", "k", allowed_routes=("privileged",)), Standing.KEY),
        (Principal("key", "k"), Standing.KEY),
    ],
)
def test_the_role_of_its_user_and_its_routes_say_who_a_caller_is(principal: Principal, standing: Standing) -> None:
    assert standing_of(principal) is standing


@pytest.mark.parametrize(
    ("allowed_routes", "extent"),
    [
        ((), Extent.OWN),
        (("/key/generate",), Extent.OWN),
        (("/key/*", "inference"), Extent.OWN),
        (("inference",), Extent.NONE),
        (("/key/update",), Extent.NONE),
    ],
)
def test_allowed_routes_narrow_what_a_user_may_change(allowed_routes: tuple[str, ...], extent: Extent) -> None:
    principal = Principal("key", "k", role="internal_user", user_id="ada", allowed_routes=allowed_routes)
    assert extent_of(Access.SELF_SERVICE, principal, "/key/generate") is extent


def test_a_refusal_says_what_would_allow_it() -> None:
    user = Principal("key", "k", role="internal_user", user_id="ada", allowed_routes=("inference",))
    for access, principal, on, words in (
        (Access.READER, user, True, "proxy_admin_viewer"),
        (Access.ADMINISTRATOR, user, True, "`management`"),
        (Access.MASTER, user, True, "role proxy_admin"),
        (Access.SELF_SERVICE, user, True, "allowed_routes of this key do not name /key/x"),
        (Access.SELF_SERVICE, user, False, "passthrough.self_service.enabled"),
        (Access.SELF_SERVICE, Principal("key", "k"), True, "belongs to no user"),
        (Access.SELF_SERVICE, Principal("key", "k", role="internal_user_viewer"), True, "only reads"),
    ):
        with pytest.raises(RouteNotAllowed) as refusal:
            check_access(access, principal, "/key/x", on)
        assert words in refusal.value.message
