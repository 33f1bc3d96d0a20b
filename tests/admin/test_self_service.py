"""What people do for themselves, and every way to get more by it."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, NOW, Answer, Gateway, value_of
from twisted_vllm.admin.self_service import MAX_METADATA, OwnScope, SelfService
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.change_limits import ChangeLimits
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import KeyRecord, Principal
from twisted_vllm.config.settings import KeyUpperBounds, TenantRoutes
from twisted_vllm.errors import ModelNotAllowed, RouteNotAllowed
from twisted_vllm.ratelimit.allowance import Allowance, Limited


class People:
    """A gateway with ada, an internal user, and others whose things are not hers.

    Attributes:
        ada: ada's key, which has no limits of its own.
    """

    def __init__(self, gateway: Gateway, **user: Any) -> None:
        self.gateway = gateway
        self.user("ada", **user)
        self.user("bob")
        self.ada = self.key(user_id="ada", key_alias="ada-1")
        self.bob = self.key(user_id="bob", key_alias="bob-1")

    def user(self, user_id: str, **fields: Any) -> None:
        body = {"user_id": user_id, "auto_create_key": False, **fields}
        answer = self.gateway.post("/user/new", body)
        assert answer.status == 200, answer.body

    def team(self, team_id: str, *admins: str, users: tuple[str, ...] = (), **fields: Any) -> None:
        members = [{"user_id": each, "role": "admin"} for each in admins] + [{"user_id": each} for each in users]
        answer = self.gateway.post("/team/new", {"team_id": team_id, "members_with_roles": members, **fields})
        assert answer.status == 200, answer.body

    def key(self, **fields: Any) -> str:
        made: str = self.gateway.make_key(**fields)["key"]
        return made

    def post(self, path: str, by: str | None = None, **body: Any) -> Answer:
        return self.gateway.post(path, body, self.ada if by is None else by)

    def get(self, path: str, by: str | None = None) -> Answer:
        return self.gateway.get(path, self.ada if by is None else by)

    def record(self, key: str) -> Any:
        return value_of(self.gateway.store.read(lambda transaction: transaction.keys.get(hash_key(key))))


@pytest.fixture
def people(gateway: Gateway) -> People:
    return People(gateway)


def refused(answer: Answer, param: str | None = None) -> str:
    """Check that an act was refused, and return why."""
    assert (answer.status, answer.error["code"]) == (403, "route_not_allowed"), answer.body
    assert param is None or answer.error["param"] == param, answer.body
    message: str = answer.error["message"]
    return message


# what a user may do


def test_a_user_makes_a_key_that_is_its_own(people: People) -> None:
    answer = people.post("/key/generate", key_alias="notebook", models=["qwen"], rpm_limit=5, duration="7d")
    assert answer.status == 200
    made = answer.json
    assert (made["user_id"], made["models"], made["rpm_limit"]) == ("ada", ["qwen"], 5)
    assert made["created_by"] == made["updated_by"] == "user:ada"
    assert people.get("/key/info", made["key"]).json["info"]["key_alias"] == "notebook"
    [entry] = people.gateway.get("/audit/list?action=key/generate&page_size=1").json["audit_logs"]
    assert (entry["actor"], entry["actor_name"]) == (hash_key(people.ada)[:8], "ada-1")


def test_a_user_changes_blocks_regenerates_and_deletes_its_keys(people: People) -> None:
    made = people.post("/key/generate", key_alias="x").json["key"]
    assert people.post("/key/update", key=made, metadata={"for": "tests"}).json["metadata"] == {"for": "tests"}
    assert people.post("/key/block", key=made).json["blocked"]
    assert not people.post("/key/unblock", key=made).json["blocked"]
    value = people.post("/key/regenerate", key=made).json["key"]
    assert people.get("/key/info", value).json["info"]["key_alias"] == "x"
    assert people.post("/key/delete", keys=[value]).json == {"deleted_keys": [value]}
    assert people.get("/key/info", value).status == 401


def test_a_user_sees_its_own_keys_and_no_others(people: People) -> None:
    second = people.key(user_id="ada", key_alias="ada-2")
    listed = people.get("/key/list?return_full_object=true").json
    assert ({each["key_alias"] for each in listed["keys"]}, listed["total_count"]) == ({"ada-1", "ada-2"}, 2)
    assert people.get("/key/aliases").json["aliases"] == ["ada-1", "ada-2"]
    assert people.get("/key/list?user_id=bob").json["keys"] == []
    several = people.post("/v2/key/info", keys=[second, people.bob]).json
    assert [each["key_alias"] for each in several["info"]] == ["ada-2"]
    assert people.get(f"/key/info?key={second}").json["info"]["key_alias"] == "ada-2"
    assert people.get("/user/info").json["user_id"] == "ada"


def test_a_viewer_sees_its_own_and_makes_none(people: People) -> None:
    people.user("eve", user_role="internal_user_viewer")
    eve = people.key(user_id="eve")
    assert people.get("/key/list", eve).json["total_count"] == 1
    assert "only reads" in refused(people.post("/key/generate", eve))


def test_an_administrator_by_role_does_what_the_master_key_does(people: People) -> None:
    people.user("boss", user_role="proxy_admin")
    boss = people.key(user_id="boss")
    assert people.post("/key/generate", boss, allowed_routes=["management"]).status == 200
    assert people.post("/user/new", boss, user_id="boss-2", user_role="proxy_admin").status == 200
    assert people.get("/key/list", boss).json["total_count"] == 5
    # a key that may only call models is no administrator's
    narrow = people.key(user_id="boss", allowed_routes=["inference"])
    assert people.get("/user/list", narrow).status == 403


def test_a_viewer_of_everything_changes_nothing(people: People) -> None:
    people.user("auditor", user_role="proxy_admin_viewer")
    auditor = people.key(user_id="auditor")
    assert people.get("/key/list", auditor).json["total_count"] == 3
    assert people.get("/user/info?user_id=bob", auditor).json["user_id"] == "bob"
    refused(people.post("/key/generate", auditor))
    refused(people.post("/user/update", auditor, user_id="auditor", user_role="proxy_admin"))


def test_what_a_request_leaves_out_becomes_as_in_the_key_that_asks(people: People) -> None:
    people.user("dora", rpm_limit=100, max_budget=50, budget_duration="30d")
    dora = people.key(
        user_id="dora", models=["qwen*"], rpm_limit=10, max_budget=5, budget_duration="30d", duration="10d",
        tags=["lab"], priority=3, granted_headers=["x-session-id"], cache_isolation=True,
        forbidden_fields=["tools"], field_limits={"n": 2},
    )  # fmt: skip
    made = people.post("/key/generate", dora)
    assert made.status == 200, made.body
    mine, its = people.record(dora), people.record(made.json["key"])
    for name in ("models", "allowance", "expires", "tags", "priority", "granted_headers", "fields", "user_id"):
        assert getattr(its, name) == getattr(mine, name), name
    assert its.cache_salt not in (None, mine.cache_salt)
    less = people.post("/key/generate", dora, models=["qwen-7b"], rpm_limit=1, max_budget=1, duration="1d")
    assert (less.status, less.json["budget_duration"]) == (200, "30d")


def test_the_operators_bounds_hold_for_what_people_make() -> None:
    bounds = KeyUpperBounds(rpm_limit=60, max_budget=Decimal(10), duration="30d")
    people = People(Gateway(key_bounds=bounds), rpm_limit=100, max_budget=100)
    made = people.post("/key/generate").json
    assert (made["rpm_limit"], made["max_budget"]) == (60, 10)
    assert people.post("/key/generate", rpm_limit=61).status == 400


# ways to get more


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_routes": ["management"]}, "allowed_routes"),
        ({"key_type": "management"}, "allowed_routes"),
        ({"allowed_routes": ["management_routes"]}, "allowed_routes"),
        ({"allowed_routes": ["privileged"]}, "allowed_routes"),
        ({"allowed_routes": ["/sleep"]}, "allowed_routes"),
        ({"allowed_routes": ["llm_api_routes", "/sleep"]}, "allowed_routes"),
        ({"granted_headers": ["X-Vllm-Priority"]}, "granted_headers"),
        ({"allowed_fields": ["priority"]}, "the rules about fields"),
        ({"allowed_fields": ["*"]}, "the rules about fields"),
        ({"priority": -1}, "priority"),
        ({"tags": ["another-budget"]}, "tags"),
        ({"user_id": "bob"}, "user_id"),
        ({"user_id": "nobody"}, "user_id"),
        ({"team_id": "physics"}, None),
        ({"team_id": "no-such-team"}, None),
        ({"key": "sk-0123456789abcdef"}, "key"),
        ({"spend": 0}, "spend"),
        ({"budget_id": "rich"}, "budget_id"),
        ({"organization_id": "acme"}, "organization_id"),
    ],
)
def test_a_user_makes_no_key_with(people: People, fields: dict[str, Any], param: str | None) -> None:
    people.team("physics", "bob")
    assert people.post("/budget/new", MASTER_KEY, budget_id="rich", max_budget=1000).status == 200
    assert people.post("/organization/new", MASTER_KEY, organization_id="acme", organization_alias="a").status == 200
    before = len(people.gateway.records())
    refused(people.post("/key/generate", **fields), param)
    assert len(people.gateway.records()) == before


def test_no_team_can_be_told_from_one_that_is_not_there(people: People) -> None:
    people.team("physics", "bob")
    for path, body in (
        ("/key/generate", {}),
        ("/team/member_add", {"member": {"user_id": "ada"}}),
        ("/team/member_delete", {"user_id": "bob"}),
        ("/team/member_update", {"user_id": "bob", "role": "user"}),
    ):
        there = refused(people.post(path, team_id="physics", **body))
        assert there == refused(people.post(path, team_id="nowhere", **body))
    assert refused(people.get("/team/info?team_id=physics")) == refused(people.get("/team/info?team_id=nowhere"))


@pytest.mark.parametrize("path", ["/key/update", "/key/block", "/key/unblock", "/key/regenerate", "/key/delete"])
def test_no_key_of_others_can_be_told_from_one_that_is_not_there(people: People, path: str) -> None:
    def named(key: str, alias: str) -> list[dict[str, Any]]:
        if path == "/key/delete":
            return [{"keys": [key]}, {"keys": [hash_key(key)]}, {"key_aliases": [alias]}]
        return [{"key": key}, {"key": hash_key(key)}, {"key_alias": alias}]

    unknown = named("sk-unknown-0123456789", "no-such-alias")
    for others, nobodys in zip(named(people.bob, "bob-1"), unknown, strict=True):
        assert refused(people.post(path, **others)) == refused(people.post(path, **nobodys))
    assert people.get("/key/info", people.bob).json["info"]["status"] == "active"
    assert refused(people.get(f"/key/info?key={people.bob}")) == refused(people.get("/key/info?key=sk-unknown-01234"))


@pytest.mark.parametrize(
    ("own", "asked", "param"),
    [
        ({"models": ["qwen"]}, {"models": ["qwen", "llama"]}, "models"),
        ({"models": ["qwen*"]}, {"models": ["*"]}, "models"),
        ({"models": ["qwen-?"]}, {"models": ["qwen-*"]}, "models"),
        ({"models": ["qwen"]}, {"aliases": {"qwen": "llama"}}, "aliases"),
        ({"duration": "1d"}, {"duration": "2d"}, "duration"),
        ({"duration": "1d"}, {"duration": "-1"}, "duration"),
        ({"forbidden_fields": ["tools"]}, {"allowed_fields": ["tools"]}, "the rules about fields"),
        ({"priority": 5}, {"priority": 4}, "priority"),
    ],
)
def test_a_key_makes_no_key_that_may_do_more(
    people: People, own: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    refused(people.post("/key/generate", people.key(user_id="ada", **own), **asked), param)


@pytest.mark.parametrize(
    ("own", "asked", "param"),
    [
        ({"rpm_limit": 5}, {"rpm_limit": 6}, "rpm_limit"),
        ({"tpm_limit": 5}, {"tpm_limit": 6}, "tpm_limit"),
        ({"max_parallel_requests": 5}, {"max_parallel_requests": 6}, "max_parallel_requests"),
        ({"max_budget": 5}, {"max_budget": 6}, "max_budget"),
        ({"max_budget": 5, "budget_duration": "30d"}, {"budget_duration": "1d"}, "budget_duration"),
        ({"max_budget": 5}, {"max_budget": 5, "budget_duration": "1h"}, "budget_duration"),
        ({"model_rpm_limit": {"qwen": 5}}, {"model_rpm_limit": {"qwen": 6}}, "model_rpm_limit"),
        ({"model_tpm_limit": {"qwen": 5}}, {"model_tpm_limit": {"qwen": 6}}, "model_tpm_limit"),
    ],
)
def test_a_key_makes_no_key_with_wider_limits(
    gateway: Gateway, own: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    people = People(gateway, rpm_limit=100, tpm_limit=100, max_parallel_requests=100, max_budget=100)
    by = people.key(user_id="ada", **own)
    assert people.post("/key/generate", by).status == 200
    refused(people.post("/key/generate", by, **asked), param)


@pytest.mark.parametrize(
    "own", [{"rpm_limit": 5}, {"max_budget": 5}, {"max_parallel_requests": 1}, {"model_rpm_limit": {"qwen": 1}}]
)
def test_a_limit_of_a_key_alone_is_not_doubled_by_a_second_key(people: People, own: dict[str, Any]) -> None:
    by = people.key(user_id="ada", **own)
    [field] = own
    assert f"`{field}` of its own" in refused(people.post("/key/generate", by))
    # nor by the value of another key, or by a new life of an expired one
    old = people.key(user_id="ada", duration="1d", **own)
    people.gateway.clock.advance(2 * 86_400)
    refused(people.post("/key/regenerate", by, key=old))
    refused(people.post("/key/update", by, key=old, duration="1d"))
    # its own value it may change
    assert people.post("/key/regenerate", by, key=by).status == 200


def test_no_key_gets_the_value_of_one_that_may_do_more(people: People) -> None:
    narrow = people.key(user_id="ada", models=["qwen"])
    refused(people.post("/key/regenerate", narrow, key=people.ada), "models")
    # as long as the answer narrows it, it may
    assert people.post("/key/regenerate", narrow, key=people.ada, models=["qwen"]).status == 200


@pytest.mark.parametrize(
    "change",
    [
        {"models": []}, {"models": None}, {"models": ["llama"]}, {"duration": None}, {"duration": "20d"},
        {"rpm_limit": None}, {"rpm_limit": 11}, {"max_budget": None}, {"max_budget": 6}, {"budget_duration": None},
        {"budget_duration": "1d"}, {"allowed_routes": None}, {"allowed_routes": ["privileged"]},
        {"key_type": "management"}, {"granted_headers": ["x-session-id"]},
        {"tags": []}, {"tags": None}, {"priority": None}, {"cache_isolation": False}, {"forbidden_fields": []},
        {"field_limits": {"n": 3}}, {"field_limits": None}, {"allowed_fields": ["*"]},
        {"user_id": "bob"}, {"user_id": None}, {"team_id": "physics"}, {"spend": 0}, {"budget_id": "rich"},
        {"organization_id": "acme"}, {"model_max_budget": {}},
    ],
)  # fmt: skip
def test_a_key_does_not_widen_itself(people: People, change: dict[str, Any]) -> None:
    people.team("physics", "bob")
    by = people.key(
        user_id="ada", models=["qwen"], duration="10d", rpm_limit=10, max_budget=5, budget_duration="30d",
        model_max_budget={"qwen": {"budget_limit": 1, "time_period": "1d"}},
        allowed_routes=["inference", "/key/update"], tags=["lab"], priority=3, cache_isolation=True,
        forbidden_fields=["tools"], field_limits={"n": 2},
    )  # fmt: skip
    assert people.post("/budget/new", MASTER_KEY, budget_id="rich", max_budget=1000).status == 200
    assert people.post("/organization/new", MASTER_KEY, organization_id="acme", organization_alias="a").status == 200
    before = people.record(by)
    refused(people.post("/key/update", by, key=by, **change))
    assert people.record(by) == before


def test_what_narrows_a_key_its_user_may_do(people: People) -> None:
    by = people.key(user_id="ada", models=["qwen*"], rpm_limit=10, max_budget=5, tags=["lab"])
    answer = people.post("/key/update", by, key=by, models=["qwen-7b"], rpm_limit=5, max_budget=1, duration="1d")
    assert answer.status == 200, answer.body
    assert (answer.json["models"], answer.json["tags"]) == (["qwen-7b"], ["lab"])


def test_a_key_that_an_administrator_blocked_is_not_revived(people: People) -> None:
    other = people.key(user_id="ada", key_alias="other")
    assert people.post("/key/block", MASTER_KEY, key=other).status == 200
    for path in ("/key/unblock", "/key/regenerate", "/key/update"):
        refused(people.post(path, key=other))
    refused(people.post("/key/update", key=other, blocked=False))
    assert people.post("/key/delete", keys=[other]).status == 200


def test_a_block_of_ones_own_is_taken_back_also_after_a_regeneration(people: People) -> None:
    other = people.key(user_id="ada")
    assert people.post("/key/block", key=other).status == 200
    people.ada = people.post("/key/regenerate", key=people.ada).json["key"]
    assert people.post("/key/unblock", key=other).status == 200


def test_the_former_value_of_a_key_changes_nothing(people: People) -> None:
    former = people.ada
    assert people.post("/key/regenerate", key=former, grace_period="1h").status == 200
    assert people.get("/key/info", former).status == 200
    for path, body in (
        ("/key/generate", {}),
        ("/key/regenerate", {"key": former}),
        ("/key/delete", {"keys": [former]}),
    ):
        refused(people.post(path, former, **body))


def test_the_keys_of_a_user_who_loses_its_role_change_nothing(people: People) -> None:
    assert people.post("/user/update", MASTER_KEY, user_id="ada", user_role="internal_user_viewer").status == 200
    refused(people.post("/key/generate"))


def test_spend_is_not_reset_by_those_who_spent_it(people: People) -> None:
    refused(people.post(f"/key/{people.ada}/reset_spend", reset_to=0))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/user/update", {"user_id": "ada", "max_budget": 1000}),
        ("/user/update", {"user_id": "ada", "user_role": "proxy_admin"}),
        ("/user/new", {"user_id": "ada-2"}),
        ("/user/delete", {"user_ids": ["bob"]}),
        ("/team/new", {"team_id": "mine"}),
        ("/team/update", {"team_id": "physics", "max_budget": 1000}),
        ("/team/block", {"team_id": "physics"}),
        ("/team/delete", {"team_ids": ["physics"]}),
        ("/key/bulk_update", {"keys": [{"key_alias": "ada-1"}]}),
        ("/customer/new", {"user_id": "x"}),
        ("/model/new", {"model_name": "x", "litellm_params": {"model": "hosted_vllm/x"}}),
        ("/config/reload", {}),
    ],
)
def test_a_user_who_administers_a_team_does_not_administer_the_gateway(
    people: People, path: str, body: dict[str, Any]
) -> None:
    people.team("physics", "ada")
    refused(people.post(path, **body))


def test_models_of_the_user_bound_what_its_keys_name(gateway: Gateway) -> None:
    people = People(gateway, models=["qwen*"])
    assert people.post("/key/generate", models=["qwen-7b"]).status == 200
    assert people.post("/key/generate").json["models"] == []
    refused(people.post("/key/generate", models=["llama"]), "models")
    refused(people.post("/key/generate", aliases={"small": "llama"}), "aliases")
    refused(people.post("/key/update", key=people.ada, aliases={"small": "llama"}), "aliases")


def test_presets_of_routes_do_not_open_what_the_operator_closed() -> None:
    closed = People(Gateway(self_service=SelfService(presets=False)))
    refused(closed.post("/key/generate", key_type="llm_api"), "allowed_routes")
    opened = People(Gateway())
    assert opened.post("/key/generate", key_type="llm_api").json["allowed_routes"] == ["llm_api_routes"]


def test_keys_and_changes_of_a_user_are_bounded() -> None:
    people = People(Gateway(self_service=SelfService(max_keys=2), changes=ChangeLimits(5, 7)))
    made = [people.post("/key/generate") for _ in range(3)]
    assert [each.status for each in made] == [200, 200, 409]
    assert "passthrough.self_service.max_keys" in made[-1].error["message"]
    # a second key of the same user, and refused attempts, count as well
    other = made[0].json["key"]
    assert [people.post("/key/block", other, key="x").status for _ in range(3)] == [403, 403, 429]
    assert people.post("/key/generate", people.bob).status == 200
    people.gateway.clock.advance(61)
    answers = [people.post("/key/delete", keys=[other]) for _ in range(3)]
    assert [each.status for each in answers] == [429, 429, 429] or answers[-1].status == 429
    assert "max_changes_per_day" in answers[-1].error["message"]
    assert int(answers[-1].headers["retry-after"]) > 60
    # administrators are not counted
    assert people.post("/key/generate", MASTER_KEY, user_id="ada").status == 200


def test_metadata_of_people_is_small(people: People) -> None:
    answer = people.post("/key/generate", metadata={"text": "x" * MAX_METADATA})
    assert (answer.status, answer.error["param"]) == (400, "metadata")


def test_the_operator_may_leave_it_to_administrators() -> None:
    people = People(Gateway(self_service=SelfService(enabled=False)))
    assert "passthrough.self_service.enabled" in refused(people.post("/key/generate"))
    assert people.get("/key/list").json["total_count"] == 1


def test_limits_that_come_from_a_budget_bound_what_its_key_makes(people: People) -> None:
    assert people.post("/budget/new", MASTER_KEY, budget_id="small", max_budget=5, rpm_limit=9).status == 200
    people.user("dora", max_budget=50, rpm_limit=100)
    dora = people.key(user_id="dora", budget_id="small")
    made = people.post("/key/generate", dora, tpm_limit=2)
    assert (made.status, made.json["budget_id"], made.json["tpm_limit"]) == (200, "small", 2), made.body
    refused(people.post("/key/generate", dora, max_budget=6), "max_budget")
    refused(people.post("/key/generate", dora, rpm_limit=10), "rpm_limit")
    refused(people.post("/key/update", dora, key=dora, budget_id=None))
    # the budget is the key's alone, unless its user has one
    alone = people.key(user_id="ada", budget_id="small")
    refused(people.post("/key/generate", alone))


# teams


@pytest.fixture
def team(people: People) -> People:
    """Ada administers physics, in which bob is a member with a key; eve administers the gateway."""
    people.user("boss", user_role="proxy_admin")
    people.user("carl")
    people.team("physics", "ada", users=("bob", "boss"), models=["qwen*"], max_budget=100, metadata={"cost": "42"})
    return people


def test_who_administers_a_team_manages_its_keys(team: People) -> None:
    bobs = team.key(user_id="bob", team_id="physics", key_alias="bob-physics")
    service = team.post("/key/service-account/generate", team_id="physics", key_alias="ci")
    assert (service.status, service.json["user_id"], service.json["team_id"]) == (200, None, "physics")
    assert team.post("/key/generate", team_id="physics").json["user_id"] == "ada"
    listed = team.get("/key/list?team_id=physics&return_full_object=true").json["keys"]
    assert {each["key_alias"] for each in listed} >= {"bob-physics", "ci"}
    assert team.post("/key/block", key=bobs).status == 200
    assert "Somebody else blocked" in refused(team.post("/key/unblock", team.bob, key=bobs))
    assert team.post("/key/unblock", key=bobs).status == 200
    assert team.post("/key/update", key=bobs, rpm_limit=3).json["rpm_limit"] == 3
    assert team.post("/key/delete", keys=[bobs]).status == 200


def test_who_administers_a_team_gets_no_key_of_another_user(team: People) -> None:
    bobs = team.key(user_id="bob", team_id="physics")
    refused(team.post("/key/regenerate", key=bobs), "key")
    refused(team.post("/key/generate", team_id="physics", user_id="bob"), "user_id")
    refused(team.post("/key/update", key=bobs, user_id="ada"), "user_id")


def test_keys_of_administrators_in_a_team_are_not_touched(team: People) -> None:
    bosses = team.key(user_id="boss", team_id="physics")
    managing = team.key(team_id="physics", allowed_routes=["management"])
    for key in (bosses, managing):
        for path in ("/key/regenerate", "/key/block", "/key/update"):
            refused(team.post(path, key=key))
        refused(team.post("/key/delete", keys=[key]))
    refused(team.post("/team/member_delete", team_id="physics", user_id="boss"))


def test_a_key_of_a_team_makes_no_keys_outside_it(team: People) -> None:
    inside = team.key(user_id="ada", team_id="physics")
    team.team("chemistry", "ada")
    assert team.post("/key/generate", inside).json["team_id"] == "physics"
    refused(team.post("/key/generate", inside, team_id="chemistry"), "team_id")
    # nor gets the value of one
    refused(team.post("/key/regenerate", inside, key=team.ada), "team_id")
    refused(team.post("/key/update", inside, key=inside, team_id=None), "team_id")


def test_members_make_no_keys_of_a_team_that_they_do_not_administer(team: People) -> None:
    refused(team.post("/key/generate", team.bob, team_id="physics"))
    refused(team.post("/key/service-account/generate", team.bob, team_id="physics"))
    refused(team.post("/key/generate", team.key(user_id="bob", team_id="physics")))


def test_who_administers_a_team_manages_its_members(team: People) -> None:
    added = team.post("/team/member_add", team_id="physics", member={"user_id": "carl"})
    assert added.status == 200
    # what else carl has and does concerns administrators only
    assert added.json["updated_users"] == []
    assert team.post("/team/member_update", team_id="physics", user_id="carl", role="admin").json["role"] == "admin"
    assert team.post("/team/member_delete", team_id="physics", user_id="carl").status == 200


def test_who_administers_a_team_makes_no_users_and_sets_no_limits_of_members(team: People) -> None:
    refused(team.post("/team/member_add", team_id="physics", member={"user_id": "new"}))
    assert team.gateway.get("/user/info?user_id=new").status == 404
    for limit in ({"max_budget_in_team": 5}, {"tpm_limit": 5}, {"budget_duration": "1d"}):
        answer = team.post("/team/member_update", team_id="physics", user_id="ada", **limit)
        assert answer.status in (400, 403), answer.body


def test_members_see_of_a_team_what_is_theirs(team: People) -> None:
    bobs = team.key(user_id="bob", team_id="physics")
    team.key(user_id="carl", team_id="physics")
    full = team.get("/team/info?team_id=physics").json
    assert (len(full["keys"]), len(full["team_memberships"])) == (2, 3)
    assert full["team_info"]["metadata"] == {"cost": "42"}
    for key, users in ((bobs, ["bob"]), (team.key(team_id="physics"), [])):
        seen = team.get("/team/info?team_id=physics", key).json
        assert seen["team_info"]["max_budget"] == 100
        assert seen["team_info"]["metadata"] == {}
        assert [each["user_id"] for each in seen["team_info"]["members_with_roles"]] == users
        assert [each["user_id"] for each in seen["team_memberships"]] == users
        assert [each["token"] for each in seen["keys"]] == [hash_key(key)]
        assert [each["team_id"] for each in team.get("/team/list", key).json] == ["physics"]
    assert team.get("/team/list", team.key()).json == []
    refused(team.get("/team/list?user_id=bob"), "user_id")


# those who administer, and not without limits


def test_a_management_key_gets_no_key_of_an_administrator(team: People) -> None:
    manager = team.key(allowed_routes=["management"])
    bosses = team.key(user_id="boss")
    refused(team.post("/key/generate", manager, user_id="boss"))
    refused(team.post("/key/regenerate", manager, key=bosses))
    refused(team.post("/key/update", manager, key=team.bob, user_id="boss"))
    refused(team.post("/key/delete", manager, keys=[bosses]))
    refused(team.post("/user/new", manager, user_id="boss-2", user_role="proxy_admin"))
    refused(team.post("/user/update", manager, user_id="ada", user_role="proxy_admin"))
    refused(team.post("/user/update", manager, user_id="boss", user_role="internal_user"))
    refused(team.post("/user/delete", manager, user_ids=["boss"]))
    assert team.post("/user/update", manager, user_id="ada", user_role="internal_user_viewer").status == 200


def test_a_key_that_expires_while_it_asks_changes_nothing(people: People) -> None:
    short = people.key(user_id="ada", duration="1h")
    record = people.record(short)
    assert record.expires == NOW + timedelta(hours=1)
    people.gateway.clock.advance(3601)
    assert people.post("/key/generate", short).status == 401


def test_a_caller_with_a_token_of_a_login_service_serves_itself_within_its_limits(people: People) -> None:
    """Such a caller is no key of the database: its principal says what it may do."""
    limited = (Limited("key", "t" * 32, Allowance(rpm=5)),)
    principal = Principal(
        "key", "ada", key_id="t" * 32, user_id="ada", role="internal_user", models=("qwen",), limited=limited
    )
    scope = OwnScope(principal, None, SelfService(), NOW, lambda count: b"x" * count)

    def made(**given: Any) -> Any:
        record = KeyRecord("a" * 64, "sk-...aaaa", NOW, NOW, "user:ada", models=tuple(given.get("models", ())))
        work = people.gateway.store.read(lambda transaction: scope.new_key(transaction, record, given, False))
        return value_of(work)

    with pytest.raises(RouteNotAllowed, match="`rpm_limit` of its own"):
        made()
    assert people.post("/user/update", MASTER_KEY, user_id="ada", rpm_limit=9).status == 200
    assert (made().models, made().allowance.rpm, made().user_id) == (("qwen",), 5, "ada")
    with pytest.raises(RouteNotAllowed, match="`models`"):
        made(models=["llama"])


def test_the_own_names_of_a_team_lead_its_keys_to_models_and_no_name_of_a_key_does(team: People) -> None:
    team.gateway.post("/team/update", {"team_id": "physics", "model_aliases": {"gpt-4": "secret"}})
    own = team.key(user_id="ada", team_id="physics", aliases={"old": "gone"})
    made = team.post("/key/generate", own, models=["gpt-4"])
    assert made.status == 200, made.body
    principal = team.gateway.principal_of(made.json["token"])
    # the new key has the caller's names of models, and those of its team
    assert dict(principal.aliases) == {"gpt-4": "secret", "old": "gone"}
    policy = RoutePolicy(TenantRoutes())
    policy.check_model(principal, "secret")
    refused(team.post("/key/generate", own, aliases={"x": "secret"}), "aliases")
    refused(team.post("/key/update", made.json["key"], key=made.json["key"], aliases={"gpt-4": "llama"}), "aliases")
    # the names of another team lead nowhere
    team.team("chemistry", models=["llama"], model_aliases={"gpt-4": "llama"})
    with pytest.raises(ModelNotAllowed):
        policy.check_model(principal, "llama")
