"""Pages call the operations of the admin API as its own clients do."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from tests.admin.admin_harness import MASTER_KEY, Gateway, value_of
from twisted_vllm.admin.access import Access, Extent
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.web.operations import Operations
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.sessions import Session
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import InvalidRequest, NotFound, RouteNotAllowed


class PageRequest:
    """The request of a page, as far as an operation sees it; it would notice if its answer were touched."""

    def __init__(self, session: Session) -> None:
        self.context = RequestContext(Peer("192.0.2.1", False), 0.0)
        self.console_session = session

    def getClientAddress(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 40_000)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def call(
    gateway: Gateway, name: str, given: Any = None, key: str = MASTER_KEY, path: dict[str, str] | None = None
) -> Any:
    kind: Any = "master" if key == MASTER_KEY else "key"
    page = PageRequest(Session("ab" * 16, kind, hash_key(key), 0.0, 1e12))
    operations = Operations(gateway.app.context, ROUTES)
    return value_of(Deferred.fromCoroutine(operations.call(page, name, given or {}, path or {})))  # type: ignore[arg-type]  # what is used of it


def test_it_answers_as_the_api_does(gateway: Gateway) -> None:
    made = call(gateway, "POST /key/generate", {"key_alias": "ada", "models": ["m"]})
    assert gateway.get(f"/key/info?key={made['key']}").json["info"]["key_alias"] == "ada"
    listed = call(gateway, "GET /key/list", {"return_full_object": "true", "page": 1, "user_id": None})
    assert listed == gateway.get("/key/list?return_full_object=true&page=1").json
    assert call(gateway, "GET /health/readiness")["status"] == "healthy"


def test_a_parameter_in_the_path_is_escaped_and_reaches_the_operation(gateway: Gateway) -> None:
    made = gateway.make_key(key_alias="ada")
    renewed = call(gateway, "POST /key/<string:key>/regenerate", path={"key": made["token"]})
    assert renewed["key"] != made["key"]
    with pytest.raises(NotFound):
        call(gateway, "POST /key/<string:key>/regenerate", path={"key": "no/such?key#\u00e9"})


def test_its_errors_are_the_apis(gateway: Gateway) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        call(gateway, "POST /key/generate", {"rpm_limit": "many"})
    assert refusal.value.param == "rpm_limit"
    assert refusal.value.message == gateway.post("/key/generate", {"rpm_limit": "many"}).error["message"]
    with pytest.raises(InvalidRequest, match="whole number"):
        call(gateway, "GET /key/list", {"page": "x"})


def test_who_may_not_call_a_route_may_not_by_a_page_either(gateway: Gateway) -> None:
    key = gateway.make_key(key_alias="ada")["key"]
    for name in ("POST /team/new", "GET /user/list", "POST /config/reload"):
        with pytest.raises(RouteNotAllowed):
            call(gateway, name, {}, key)
    assert [each["key_alias"] for each in call(gateway, "GET /key/list", {"return_full_object": "true"}, key)["keys"]]


def test_changes_are_audited_as_those_of_the_api(gateway: Gateway) -> None:
    call(gateway, "POST /team/new", {"team_alias": "research"})
    (entry,) = gateway.get("/audit/list?action=team/new").json["audit_logs"]
    assert (entry["actor"], entry["client"]) == ("master", "192.0.2.1")


def test_each_route_can_be_called_and_says_how_much_of_it_a_caller_may_use(gateway: Gateway) -> None:
    operations = Operations(gateway.app.context, ROUTES)
    member = gateway.principal_of(gateway.make_key(key_alias="ada")["token"])
    for route in ROUTES:
        name = f"{route.method} {route.path}"
        assert operations.route(name) is route
        assert (route.perform is None) == (route.access is Access.OPEN)
        expected = {Access.OPEN: Extent.ALL, Access.ANY_KEY: Extent.OWN}.get(route.access, Extent.NONE)
        assert operations.extent(name, member) is expected, name
