"""LiteLLM's reports for its dashboard: by team, customer, tag and provider, and the cost of an answer."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from tests.admin.reports.usage_rows import at, id_of, keep, row_at
from tests.proxy.gateway_fakes import server
from twisted_vllm.config.settings import ModelEntry, PriceList, Settings

DOLLAR = 10**12
DATES = "start_date=2026-02-27&end_date=2026-02-28"


@pytest.fixture
def keys(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Two keys with usage on two days."""
    gateway.post("/team/new", {"team_id": "t1", "team_alias": "red"})
    made = {
        "ada": gateway.make_key(key_alias="ada", user_id="ada", team_id="t1"),
        "bob": gateway.make_key(key_alias="bob"),
    }
    ada, bob = id_of(gateway, made["ada"]), id_of(gateway, made["bob"])
    of_ada: dict[str, Any] = {"key_id": ada, "user_id": "ada", "team_id": "t1"}
    keep(
        gateway,
        [
            row_at(1, "2026-02-27T10:00:00", **of_ada, tags=("own",), request_tags=("own", "job-1"), cost=DOLLAR),
            row_at(2, "2026-02-28T10:00:00", **of_ada, end_user="eve", model="llama", cost=2 * DOLLAR),
            row_at(3, "2026-02-28T11:00:00", key_id=bob, request_tags=("job-1", "job-2"), cost=3 * DOLLAR),
        ],
    )
    return made


def exact(answer: Any) -> Any:
    """Return an answer's JSON with all digits of its numbers."""
    assert answer.status == 200, answer.body
    return json.loads(answer.body, parse_float=Decimal)


@pytest.mark.usefixtures("keys")
def test_tags_of_requests_count_beside_those_of_keys_and_once(gateway: Gateway) -> None:
    assert exact(gateway.get(f"/global/spend/tags?{DATES}")) == {
        "spend_per_tag": [
            {"name": "job-1", "spend": 4, "log_count": 2},
            {"name": "job-2", "spend": 3, "log_count": 1},
            {"name": "own", "spend": 1, "log_count": 1},
        ]
    }
    some = exact(gateway.get(f"/global/spend/tags?{DATES}&tags=own,%20job-2"))
    assert [each["name"] for each in some["spend_per_tag"]] == ["job-2", "own"]
    assert gateway.get("/global/spend/all_tag_names").json == {"tag_names": ["job-1", "job-2", "own"]}
    assert [each["individual_request_tag"] for each in gateway.get("/spend/tags").json] == ["job-1", "job-2", "own"]


@pytest.mark.usefixtures("keys")
def test_tags_are_listed_and_named(gateway: Gateway) -> None:
    assert [tag["name"] for tag in gateway.get("/tag/list").json] == ["job-1", "job-2", "own"]
    assert [tag["name"] for tag in gateway.get(f"/tag/list?{DATES}").json] == ["job-1", "job-2", "own"]
    assert gateway.get("/tag/list?start_date=2020-01-01&end_date=2020-01-02").json == []
    assert gateway.get("/tag/list?start_date=null").status == 400
    assert list(gateway.post("/tag/info", {"names": ["own", "job-2"]}).json) == ["own", "job-2"]
    gone = gateway.post("/tag/info", {"names": ["own", "gone"]})
    assert (gone.status, gone.error["param"]) == (404, "names")


@pytest.mark.usefixtures("keys")
def test_rows_show_and_are_found_by_the_tags_of_their_clients(gateway: Gateway) -> None:
    def asked(tag: str) -> list[str]:
        return [row["request_id"] for row in gateway.get(f"/spend/logs?tag={tag}").json]

    assert asked("job-1") == ["request-3", "request-1"]
    assert asked("own") == ["request-1"]
    assert asked("job") == []
    page = gateway.get("/spend/logs/v2?tag=job-1&page_size=1&page=2").json
    assert ([row["request_tags"] for row in page["data"]], page["total"]) == ([["own", "job-1"]], 2)
    hours = gateway.get("/usage/report?group_by=tag&interval=hour&start=2026-02-27&end=2026-02-28").json
    assert [(row["start"][:13], row["tag"]) for row in hours["results"]] == [
        ("2026-02-27T10", "job-1"),
        ("2026-02-27T10", "own"),
        ("2026-02-28T11", "job-1"),
        ("2026-02-28T11", "job-2"),
    ]


def test_a_day_is_broken_down_by_team(gateway: Gateway, keys: dict[str, Any]) -> None:
    found = exact(gateway.get(f"/team/daily/activity?{DATES}"))
    assert [day["date"] for day in found["results"]] == ["2026-02-28", "2026-02-27"]
    entities = found["results"][0]["breakdown"]["entities"]
    assert {name: entity["metrics"]["spend"] for name, entity in entities.items()} == {"t1": 2, "Unassigned": 3}
    assert entities["t1"]["metadata"] == {"team_alias": "red"}
    assert set(entities["t1"]["api_key_breakdown"]) == {keys["ada"]["token"]}
    without = exact(gateway.get(f"/team/daily/activity/aggregated?{DATES}&exclude_team_ids=t1"))
    assert (without["metadata"]["total_spend"], without["metadata"]["total_pages"]) == (3, 1)
    assert exact(gateway.get(f"/team/daily/activity?{DATES}&team_ids=t1,t2"))["metadata"]["total_spend"] == 3


def test_a_key_sees_its_own_usage_in_its_team(gateway: Gateway, keys: dict[str, Any]) -> None:
    ada, bob = keys["ada"]["key"], keys["bob"]["key"]
    assert exact(gateway.get(f"/team/daily/activity?{DATES}", ada))["metadata"]["total_spend"] == 3
    assert gateway.get(f"/team/daily/activity?{DATES}&team_ids=t1", bob).status == 403
    for path in ("/tag/daily/activity", "/customer/daily/activity", "/global/spend/report", "/global/spend/tags"):
        assert gateway.get(path, ada).status == 403


@pytest.mark.usefixtures("keys")
def test_a_day_is_broken_down_by_customer_and_by_tag(gateway: Gateway) -> None:
    customers = exact(gateway.get(f"/customer/daily/activity?{DATES}"))
    [day] = customers["results"]
    assert set(day["breakdown"]["entities"]) == {"eve"}
    assert day["breakdown"]["api_keys"] == {}
    assert gateway.get(f"/end_user/daily/activity/aggregated?{DATES}").status == 200
    tags = exact(gateway.get(f"/tag/daily/activity?{DATES}&tags=job-1,own"))
    spent = [
        {name: part["metrics"]["spend"] for name, part in day["breakdown"]["entities"].items()}
        for day in tags["results"]
    ]
    assert spent == [{"job-1": 3}, {"own": 1, "job-1": 1}]
    refused = gateway.get(f"/tag/daily/activity?{DATES}&api_key=k")
    assert (refused.status, refused.json["error"]["param"]) == (400, "api_key")


def test_a_day_is_broken_down_by_organization(gateway: Gateway) -> None:
    keep(
        gateway,
        [
            row_at(1, "2026-02-27T10:00:00", organization_id="acme", cost=DOLLAR),
            row_at(2, "2026-02-27T10:00:00", cost=DOLLAR),
        ],
    )
    for path in ("", "/aggregated"):
        [day] = exact(gateway.get(f"/organization/daily/activity{path}?{DATES}&organization_ids=acme,other"))["results"]
        assert {name: part["metrics"]["spend"] for name, part in day["breakdown"]["entities"].items()} == {"acme": 1}
    rows = gateway.get("/spend/logs").json
    assert [row["organization_id"] for row in rows] == [None, "acme"]
    assert [row["metadata"]["user_api_key_org_id"] for row in rows] == [None, "acme"]


def test_an_organization_s_report_is_of_the_keys_and_teams_that_are_in_it(gateway: Gateway) -> None:
    gateway.post("/organization/new", {"organization_id": "o", "organization_alias": "O"})
    gateway.post("/team/new", {"team_id": "t1", "organization_id": "o"})
    own, of_team, other = (gateway.make_key(**each) for each in ({"organization_id": "o"}, {"team_id": "t1"}, {}))
    day = "2026-02-27T10:00:00"
    keep(
        gateway,
        [
            row_at(1, day, key_id=id_of(gateway, own), cost=DOLLAR),
            row_at(2, day, key_id=id_of(gateway, of_team), team_id="t1", cost=3 * DOLLAR),
            row_at(3, day, key_id=id_of(gateway, other), cost=DOLLAR),
        ],
    )
    found = exact(gateway.get(f"/organization/spend/report?organization_id=o&{DATES}"))
    assert [(each["api_key"], each["total_cost"]) for each in found] == [
        (of_team["token"], 3),
        (own["token"], 1),
    ]
    assert len(exact(gateway.get(f"/organization/spend/report?{DATES}"))) == 3
    assert exact(gateway.get(f"/organization/spend/report?organization_id=gone&{DATES}")) == []


@pytest.mark.usefixtures("keys")
def test_days_of_another_time_zone_are_covered(gateway: Gateway) -> None:
    def dates(zone: str) -> list[str]:
        asked = f"/user/daily/activity/aggregated?start_date=2026-02-28&end_date=2026-02-28&timezone={zone}"
        return [day["date"] for day in gateway.get(asked).json["results"]]

    assert dates("0") == dates("300") == ["2026-02-28"]
    assert dates("-120") == ["2026-02-28", "2026-02-27"]
    assert gateway.get("/user/daily/activity?timezone=Berlin").status == 400


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", ["Unassigned Team", "red", "red"]),
        ("&group_by=team&team_id=t1", ["red", "red"]),
    ],
)
@pytest.mark.usefixtures("keys")
def test_the_spend_report_is_by_day_and_team(gateway: Gateway, query: str, wanted: list[str]) -> None:
    found = exact(gateway.get(f"/global/spend/report?{DATES}{query}"))
    assert [day["group_by_day"] for day in found] == ["2026-02-27", "2026-02-28"]
    assert sorted(team["team_name"] for day in found for team in day["teams"]) == wanted


def test_the_spend_report_is_by_customer_key_or_user(gateway: Gateway, keys: dict[str, Any]) -> None:
    [_, last] = exact(gateway.get(f"/global/spend/report?{DATES}&group_by=customer"))
    assert [(each["customer"], each["total_spend"]) for each in last["customers"]] == [("", 3), ("eve", 2)]
    assert last["customers"][1]["metadata"] == [{"model": "llama", "api_key": None, "spend": 2, "total_tokens": 15}]
    tokens = [keys["ada"]["token"], keys["bob"]["token"]]
    by_key = exact(gateway.get(f"/global/spend/report?{DATES}&group_by=api_key"))
    assert sorted(each["api_key"] for each in by_key) == sorted(tokens)
    for path in ("/global/spend/report?internal_user_id=ada&", "/user/spend/report?user_id=ada&"):
        assert [each["api_key"] for each in exact(gateway.get(path + DATES))] == tokens[:1]
    assert [each["api_key"] for each in exact(gateway.get(f"/team/spend/report?team_id=t1&{DATES}"))] == tokens[:1]
    [both] = exact(gateway.get(f"/global/spend/report?{DATES}&team_id=t1&customer_id=eve"))
    [part] = both["teams_customers"]
    assert (part["team_name"], part["customer"], part["total_spend"]) == ("red", "eve", 2)


def test_end_users_come_in_the_order_of_their_spend(gateway: Gateway, keys: dict[str, Any]) -> None:
    asked = {"startTime": "2026-02-27T00:00:00", "endTime": "2026-02-28T23:00:00"}
    found = gateway.post("/global/spend/end_users", asked)
    assert [(each["end_user"], each["total_count"]) for each in exact(found)] == [("", 2), ("eve", 1)]
    of_ada = exact(gateway.post("/global/spend/end_users", {**asked, "api_key": keys["ada"]["token"]}))
    assert of_ada == [
        {"end_user": "eve", "total_count": 1, "total_spend": 2},
        {"end_user": "", "total_count": 1, "total_spend": 1},
    ]
    assert gateway.get("/global/all_end_users").json == {"end_users": ["eve"]}


@pytest.mark.usefixtures("keys")
def test_there_is_one_provider(gateway: Gateway) -> None:
    assert exact(gateway.get(f"/global/spend/provider?{DATES}")) == [{"provider": "hosted_vllm", "spend": 6}]


@pytest.mark.usefixtures("keys")
def test_the_dashboard_s_page_of_a_request_has_no_prompt(gateway: Gateway) -> None:
    empty: dict[str, Any] = {"messages": {}, "response": {}, "proxy_server_request": {}}
    assert gateway.get("/spend/logs/ui/request-1").json == empty
    assert gateway.get("/spend/logs/ui/request-9").json is None
    listed = gateway.get("/spend/logs/ui?start_date=2026-02-27&end_date=2026-02-28&sort_by=startTime&sort_order=desc")
    assert listed.json["total"] == 3


@pytest.mark.parametrize(
    "prefix", ["chatcmpl-", "cmpl-", "embd-", "score-", "pooling-", "classify-", "generate-tokens-", ""]
)
def test_a_request_is_found_by_the_id_of_its_answer(gateway: Gateway, prefix: str) -> None:
    began = "2026-02-27T10:00:00"
    made = row_at(5, began, id=f"{at(began) // 10**6:08x}{'ab' * 12}", request_id="")
    again = row_at(6, "2026-02-27T10:00:01", request_id="mine", response_id="the-second-attempt")
    keep(gateway, [made, again])
    for id, row in ((made.id, made), ("mine", again), ("the-second-attempt", again)):
        [found] = gateway.get(f"/spend/logs?request_id={prefix}{id}").json
        assert found["metadata"]["usage_id"] == row.id
    assert gateway.get("/spend/logs?request_id=other-mine").json == []


def test_a_row_shows_the_metadata_of_its_client(gateway: Gateway) -> None:
    keep(gateway, [row_at(5, "2026-02-27T10:00:00", spend_metadata='{"ticket":"T-1"}', response_id="resp_1")])
    [found] = gateway.get("/spend/logs?request_id=resp_1").json
    assert found["metadata"]["spend_logs_metadata"] == {"ticket": "T-1"}
    assert found["metadata"]["response_id"] == "resp_1"


PRICES = PriceList(input_cost_per_token=Decimal("0.001"), output_cost_per_token=Decimal("0.01"))
PRICED = Settings(models=(ModelEntry("qwen", "qwen", server(), prices=PRICES),))


@pytest.fixture
def priced() -> Gateway:
    """A gateway with the price of a model."""
    return Gateway(settings_in_effect=lambda: PRICED)


def test_the_cost_of_an_answer_is_calculated(priced: Gateway) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    answer = {"id": "chatcmpl-1", "model": "qwen", "usage": usage}
    assert exact(priced.post("/spend/calculate", {"completion_response": answer})) == {"cost": Decimal("0.129")}
    asked = {"model": "qwen", "messages": [{"role": "user", "content": "Hello there, how are you?"}]}
    assert 0 < priced.post("/spend/calculate", asked).json["cost"] < 0.1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "model"),
        ({"model": "qwen"}, 400, "messages"),
        ({"completion_response": {"model": "qwen"}}, 400, "completion_response.usage"),
        ({"completion_response": {"model": 3}}, 400, "completion_response.model"),
        ({"model": "other", "messages": []}, 404, "model"),
    ],
)
def test_what_has_no_cost_is_refused(priced: Gateway, body: Any, status: int, param: str) -> None:
    refused = priced.post("/spend/calculate", body)
    assert (refused.status, refused.json["error"]["param"]) == (status, param)
