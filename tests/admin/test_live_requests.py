"""``GET /request/live`` and ``POST /request/cut``: what they ask of the gateway, and what they answer."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import Gateway, HeldStore, value_of
from tests.observability.live_rows import live_request
from twisted_vllm.admin.live_requests import MOST_COUNTED
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut, Whose


@attrs.define
class FakeLive:
    """What is in flight, and what was asked."""

    found: LiveReport = attrs.field(factory=lambda: LiveReport(1.0, 0, 0))
    was_cut: WasCut = attrs.field(factory=lambda: WasCut([live_request("r")]))
    asked: list[LiveQuery | Cut] = attrs.Factory(list)

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        self.asked.append(query)
        return succeed(self.found)

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        self.asked.append(cut)
        return succeed(self.was_cut)


@pytest.fixture
def live() -> FakeLive:
    return FakeLive()


def test_a_query_is_passed_on(live: FakeLive) -> None:
    gateway = Gateway(live=live)
    gateway.get("/request/live")
    gateway.get(
        "/request/live?model=m&key=alias&user_id=u&team_id=t&server=s&state=queued&sort_by=tokens&sort_order=asc&limit=7"
    )
    gateway.get("/request/live?key=sk-...abcd")
    assert live.asked == [
        LiveQuery(),
        LiveQuery(None, "queued", "m", "alias", "t", "u", "s", "tokens", True, 7),
        LiveQuery(key="sk-...abcd"),
    ]


@pytest.mark.parametrize("query", ["limit=501", "limit=0", "state=x", "sort_by=bytes", "sort_order=up", "modl=m"])
def test_a_query_that_cannot_be_meant_is_refused_and_the_parameter_named(live: FakeLive, query: str) -> None:
    answer = Gateway(live=live).get(f"/request/live?{query}")
    assert answer.status == 400
    assert query.partition("=")[0] in answer.error["message"]
    assert live.asked == []


def test_a_virtual_key_asks_for_its_own_alone(live: FakeLive) -> None:
    gateway = Gateway(live=live)
    made = gateway.make_key(user_id="label")
    gateway.get("/request/live?team_id=x", key=made["key"])
    [record] = gateway.records()
    assert live.asked == [LiveQuery(Whose(record.key_id), team="x")]


def test_lists_of_counts_are_short_and_what_is_missing_is_said(live: FakeLive) -> None:
    models = [(f"m{number}", 100 - number) for number in range(MOST_COUNTED + 5)]
    live.found = LiveReport(0.5, 9, 9, [live_request("r")], [("queued", 9)], models, [], [("k", "", 9)], ("worker-2",))
    found = Gateway(live=live).get("/request/live").json
    assert (len(found["by_model"]), found["by_model"][0]) == (MOST_COUNTED, {"name": "m0", "count": 100})
    assert found["warnings"] == ["worker-2 did not answer in time: its requests are missing"]
    assert found["at"] == "1970-01-01T00:00:00.500000Z"


def test_a_cut_is_audited_with_whose_it_was_and_why(live: FakeLive) -> None:
    gateway = Gateway(live=live)
    answer = gateway.post("/request/cut", {"request_id": "r", "reason": "too long"})
    assert (answer.status, answer.json["status"]) == (200, "success")
    assert live.asked == [Cut("r")]
    [entry] = gateway.get("/audit/list").json["audit_logs"]
    assert (entry["action"], entry["object_type"], entry["object_id"]) == ("request/cut", "request", "r")
    assert entry["before"]["key_name"] == "alias"
    assert entry["before"]["client"] == "192.0.2.1"
    assert entry["after"] == {"outcome": "cut", "reason": "too long"}
    [change] = gateway.get("/audit").json["audit_logs"]
    assert change["action"] == "updated"


def test_what_is_not_in_flight_cannot_be_cut_and_nothing_is_audited(live: FakeLive) -> None:
    live.was_cut = WasCut([], ("worker-1",))
    gateway = Gateway(live=live)
    answer = gateway.post("/request/cut", {"request_id": "gone"})
    assert (answer.status, answer.error["param"]) == (404, "request_id")
    assert "worker-1 did not answer in time" in answer.error["message"]
    assert gateway.get("/audit/list").json["audit_logs"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a\u202eb"}, "request_id"),
        ({"request_id": "r", "reason": "x" * 256}, "reason"),
        ({"request_id": "r", "reason": "a\nb"}, "reason"),
        ({"request_id": "r", "why": "x"}, "why"),
    ],
)
def test_a_body_that_cannot_be_used_cuts_nothing(live: FakeLive, body: dict[str, Any], field: str) -> None:
    answer = Gateway(live=live).post("/request/cut", body)
    assert (answer.status, live.asked) == (400, [])
    assert field in answer.error["message"]


def test_who_only_reads_cuts_nothing(live: FakeLive) -> None:
    gateway = Gateway(live=live)
    gateway.post("/user/new", {"user_id": "v", "user_role": "proxy_admin_viewer", "auto_create_key": False})
    gateway.post("/user/new", {"user_id": "e", "user_role": "internal_user_viewer", "auto_create_key": False})
    for fields in ({"user_id": "v"}, {"user_id": "e"}, {}):
        key = gateway.make_key(**fields)["key"]
        assert gateway.post("/request/cut", {"request_id": "r"}, key).error["code"] == "route_not_allowed"
    assert live.asked == []


def test_a_user_cuts_what_is_its_own(live: FakeLive) -> None:
    gateway = Gateway(live=live)
    gateway.post("/user/new", {"user_id": "u", "auto_create_key": False})
    key = gateway.make_key(user_id="u")["key"]
    assert gateway.post("/request/cut", {"request_id": "r"}, key).status == 200
    [record] = gateway.records()
    assert live.asked == [Cut("r", Whose(record.key_id, "u"))]


def test_a_cut_that_the_audit_log_does_not_take_is_done_and_said() -> None:
    store = HeldStore()
    live = FakeLive()
    gateway = Gateway(store, live=live)
    asked = gateway.ask("POST", "/request/cut", body={"request_id": "r"})
    assert live.asked == [Cut("r")]
    store.refuse(StoreUnavailable("The database does not answer."))
    gateway.deliver()
    response = value_of(asked)
    assert response.code == 200
    [warning] = value_of(response.json())["warnings"]
    assert warning == "this is not in the audit log: The database does not answer."
