"""The pages of keys, users, teams, organizations, customers and budgets, without a browser."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.admin.admin_harness import MASTER_KEY, Answer
from tests.admin.reports.usage_rows import id_of, keep, row_at
from tests.admin.web.web_harness import Browser, ConsoleGateway, words
from twisted_vllm.admin.web.pages.records import NOUNS
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut

#: what a stranger may give as a name
HOSTILE = (
    "<script>alert(1)</script>\"'&",
    "{{ 7*7 }}{% x %}",
    "\u05e9\u05dc\u05d5\u05dd rtl",
    "\U0001f600 emoji",
    "n" * 255,
)


@pytest.fixture
def gateway() -> ConsoleGateway:
    return ConsoleGateway()


@pytest.fixture
def admin(gateway: ConsoleGateway) -> Browser:
    return gateway.browser(MASTER_KEY)


def fields_of(answer: Answer) -> dict[str, Any]:
    """Return what a browser would send of the last form of a page, as it was shown."""
    text = answer.body.decode()
    form = text[text.index('class="record"') :]
    found: dict[str, Any] = {}
    for tag in re.findall(r"<input [^>]*>", form):
        name = re.search(r'name="([^"]*)"', tag)
        value = re.search(r'value="([^"]*)"', tag)
        if name is None or ('type="checkbox"' in tag and " checked" not in tag):
            continue
        found[unescape(name[1])] = unescape(value[1]) if value else ""
    for name_of, value_of in re.findall(r'<textarea [^>]*name="([^"]*)"[^>]*>\n?(.*?)</textarea>', form, re.DOTALL):
        found[name_of] = unescape(value_of)
    for name_of, options in re.findall(r'<select [^>]*name="([^"]*)"[^>]*>(.*?)</select>', form, re.DOTALL):
        chosen = re.search(r'value="([^"]*)" selected', options)
        found[name_of] = chosen[1] if chosen else ""
    found.pop("anti_forgery", None)
    return found


def detail(noun: str, identity: str) -> str:
    return f"/ui/{noun}/detail?{urlencode({'id': identity})}"


def identity_of(answer: Answer) -> str:
    """Return the id of the record to whose page a browser is sent."""
    assert answer.status == 303, words(answer)
    found = re.search(r"id=([^&]*)", answer.headers["location"])
    assert found is not None
    from urllib.parse import unquote_plus

    return unquote_plus(found[1])


#: a new record of each noun, and a change of it: field of the form, its text, and where the API has it
RECORDS: dict[str, tuple[dict[str, str], tuple[str, str], str]] = {
    "users": ({"user_id": "ada", "user_email": "ada@example.com"}, ("rpm_limit", "7"), "/v2/user/info?user_id=ada"),
    "teams": ({"team_id": "t/1 ?&", "team_alias": "Red"}, ("max_budget", "2.5"), "/team/info?team_id=t%2F1%20%3F%26"),
    "organizations": (
        {"organization_id": "o1", "organization_alias": "Works"},
        ("models", "qwen\nllama*"),
        "/organization/info?organization_id=o1",
    ),
    "customers": ({"user_id": "zoe"}, ("alias", "Zoe"), "/customer/info?end_user_id=zoe"),
    "budgets": ({"budget_id": "b1", "max_budget": "3"}, ("tpm_limit", "1000"), "/budget/list"),
}


@pytest.mark.parametrize("noun", sorted(RECORDS))
def test_a_record_is_made_changed_and_deleted(gateway: ConsoleGateway, admin: Browser, noun: str) -> None:
    new, (field, text), info = RECORDS[noun]
    shown = fields_of(admin.get(f"/ui/{noun}/new"))
    identity = identity_of(admin.post(f"/ui/{noun}/new", {**shown, **new, "auto_create_key": ""}))
    assert identity == next(iter(new.values()))
    page = admin.get(detail(noun, identity))
    assert page.status == 200
    listed = admin.get(f"/ui/{noun}")
    assert list(new.values())[-1 if noun != "budgets" else 0] in words(listed)
    edit = fields_of(admin.get(f"/ui/{noun}/edit?{urlencode({'id': identity})}"))
    changed = admin.post(f"/ui/{noun}/edit", {**edit, field: text})
    assert changed.headers["location"].endswith("done=changed")
    answer = gateway.get(info).json
    record = answer[0] if isinstance(answer, list) else answer.get("team_info", answer)
    assert str(record[field]) in (text, text + ".0", str(text.split("\n")))
    asked = admin.get(f"/ui/{noun}/delete?{urlencode({'id': identity})}")
    assert "What it breaks" in words(asked)
    assert admin.post(f"/ui/{noun}/delete", {"id": identity}).status == 303
    assert admin.get(detail(noun, identity)).status == 404
    assert "0 " + noun in words(admin.get(f"/ui/{noun}"))


def test_an_unchanged_form_changes_nothing(gateway: ConsoleGateway, admin: Browser) -> None:
    made = gateway.make_key(
        key_alias="busy",
        models=["qwen", " odd "],
        aliases={"a=b": "qwen"},
        metadata={"a": {"b": [1, None]}},
        model_max_budget={"qwen": {"budget_limit": 5, "time_period": "1d"}},
        max_budget=0.1,
        tags=["x"],
        field_limits={"n": 3},
        duration="1d",
        cache_isolation=True,
        spend=0.25,
    )
    before = gateway.get(f"/key/info?key={made['token']}").json
    shown = fields_of(admin.get(f"/ui/keys/edit?id={made['token']}"))
    gateway.clock.advance(5)
    assert admin.post("/ui/keys/edit", shown).status == 303
    assert gateway.get(f"/key/info?key={made['token']}").json == before
    assert gateway.get("/audit/list?action=key/update").json["total"] == 0


def test_what_another_changed_meanwhile_stays(gateway: ConsoleGateway, admin: Browser) -> None:
    made = gateway.make_key(key_alias="shared", rpm_limit=1)
    shown = fields_of(admin.get(f"/ui/keys/edit?id={made['token']}"))
    gateway.post("/key/update", {"key": made["token"], "rpm_limit": 9})
    admin.post("/ui/keys/edit", {**shown, "tpm_limit": "50"})
    info = gateway.get(f"/key/info?key={made['token']}").json["info"]
    assert (info["rpm_limit"], info["tpm_limit"]) == (9, 50)


def test_a_new_key_is_shown_once_with_a_request_to_try(gateway: ConsoleGateway, admin: Browser) -> None:
    answer = admin.post("/ui/keys/new", {"key_alias": "it's", "models": "qwen"})
    text = words(answer)
    value = re.search(r"sk-[\w-]{20,}", text)
    assert value is not None
    assert answer.headers["cache-control"] == "no-store"
    assert f"Authorization: Bearer {value[0]}" in text
    assert "http://gateway:4000/vllm/v1/chat/completions" in text
    assert gateway.get("/key/info", key=value[0]).json["info"]["key_alias"] == "it's"
    [token] = [record.token for record in gateway.records()]
    assert value[0] not in admin.get(detail("keys", token)).body.decode()


def test_errors_stand_at_their_fields_and_what_was_typed_stays(gateway: ConsoleGateway, admin: Browser) -> None:
    gateway.make_key(key_alias="taken")
    answer = admin.post("/ui/keys/new", {"key_alias": "taken", "rpm_limit": "5"})
    assert answer.status == 409
    assert b'aria-describedby="field-key_alias-problem' in answer.body
    assert fields_of(answer)["rpm_limit"] == "5"
    answer = admin.post("/ui/keys/new", {"key_alias": "new", "rpm_limit": "many", "metadata": "{"})
    assert answer.status == 400
    assert "whole number: many" in words(answer)
    assert "not valid JSON" in words(answer)
    assert len(gateway.records()) == 1


def test_a_key_is_blocked_unblocked_regenerated_and_reset(gateway: ConsoleGateway, admin: Browser) -> None:
    made = gateway.make_key(key_alias="ada", spend=1.5)
    token = made["token"]
    assert admin.post("/ui/keys/block", {"id": token}).status == 303
    assert gateway.get("/key/info", key=made["key"]).status == 401
    page = words(admin.get(detail("keys", token) + "&done=block"))
    assert "The key is blocked" in page
    assert "Unblock" in page
    admin.post("/ui/keys/unblock", {"id": token})
    admin.post("/ui/keys/reset-spend", {"id": token})
    assert gateway.get(f"/key/info?key={token}").json["info"]["spend"] == 0
    assert "Regenerate the key" in words(admin.get(f"/ui/keys/regenerate?id={token}"))
    answer = admin.post("/ui/keys/regenerate", {"id": token, "grace_period": "1h"})
    assert "works for one more hour" in words(answer)
    value = re.search(r"sk-[\w-]{20,}", words(answer))
    assert value is not None
    assert gateway.get("/key/info", key=value[0]).status == 200
    assert gateway.get("/key/info", key=made["key"]).status == 200
    gateway.clock.advance(3_601)
    assert gateway.get("/key/info", key=made["key"]).status == 401
    # the session is over meanwhile
    admin = gateway.browser(MASTER_KEY)
    assert admin.post("/ui/keys/regenerate", {"id": "0" * 64}).status == 404


def test_what_was_used_lately_is_deleted_by_its_name_only(gateway: ConsoleGateway, admin: Browser) -> None:
    made = gateway.make_key(key_alias="<b>busy</b>")
    keep(gateway, [row_at(1, "2026-02-28T10:00:00", key_id=id_of(gateway, made))])
    page = admin.get(f"/ui/keys/delete?id={made['token']}")
    assert "1 request came with it in the last 7 days" in words(page)
    assert b"<b>busy</b>" not in page.body
    refused = admin.post("/ui/keys/delete", {"id": made["token"]})
    assert refused.status == 400
    assert "Type the name" in words(refused)
    assert len(gateway.records()) == 1
    assert admin.post("/ui/keys/delete", {"id": made["token"], "confirm": "<b>busy</b>"}).status == 303
    assert gateway.records() == []


def test_what_is_in_flight_is_told_before_a_key_is_deleted() -> None:
    asked: list[LiveQuery] = []

    class Busy:
        def report(self, query: LiveQuery) -> Deferred[LiveReport]:
            asked.append(query)
            return succeed(LiveReport(0.0, 3, 2))

        def cut(self, cut: Cut) -> Deferred[WasCut]:
            raise NotImplementedError

    gateway = ConsoleGateway(live=Busy())
    made = gateway.make_key(key_alias="busy")
    page = words(gateway.browser(MASTER_KEY).get(f"/ui/keys/delete?id={made['token']}"))
    assert "2 requests are in flight now." in page
    assert made["token"].startswith(asked[0].key)


def test_a_budget_in_use_is_not_deleted(gateway: ConsoleGateway, admin: Browser) -> None:
    admin.post("/ui/budgets/new", {"budget_id": "b1", "max_budget": "1"})
    gateway.make_key(budget_id="b1")
    page = words(admin.get("/ui/budgets/delete?id=b1"))
    assert "The budget is in use (keys: 1)" in page
    assert "Delete the budget" not in page.replace("Delete the budget b1 ?", "")
    refused = admin.post("/ui/budgets/delete", {"id": "b1"})
    assert "in use" in words(refused)
    assert "keys" in words(admin.get("/ui/budgets/detail?id=b1"))


def test_several_keys_are_blocked_and_deleted_at_once(gateway: ConsoleGateway, admin: Browser) -> None:
    tokens = [gateway.make_key(key_alias=f"k{number}")["token"] for number in range(3)]
    admin.post("/ui/keys/several", {"chosen": tokens[:2], "act": "block"})
    assert sorted(record.key_alias or "" for record in gateway.records() if record.blocked) == ["k0", "k1"]
    admin.post("/ui/keys/several", {"chosen": tokens[:1], "act": "unblock"})
    asked = admin.post("/ui/keys/several", {"chosen": tokens[:2], "act": "delete"})
    assert "Delete 2 keys?" in words(asked)
    assert len(gateway.records()) == 3
    admin.post("/ui/keys/several", {"chosen": tokens[:2], "act": "delete", "confirmed": "yes"})
    assert [record.key_alias for record in gateway.records()] == ["k2"]
    assert admin.post("/ui/keys/several", {"act": "block"}).status == 400
    many = [f"{number:064x}" for number in range(51)]
    assert "At most 50 keys" in words(admin.post("/ui/keys/several", {"chosen": many, "act": "block"}))
    assert admin.post("/ui/keys/several", {"chosen": tokens[2], "act": "explode"}).status == 400


@pytest.mark.parametrize(("noun", "role"), [("teams", "admin"), ("organizations", "org_admin")])
def test_members_are_added_changed_and_removed(gateway: ConsoleGateway, admin: Browser, noun: str, role: str) -> None:
    alias = {"teams": "team_alias", "organizations": "organization_alias"}[noun]
    identity = identity_of(admin.post(f"/ui/{noun}/new", {alias: "Red"}))
    # an id that is an address
    gateway.post("/user/new", {"user_id": "eve@example.com", "auto_create_key": False})
    for user in ("ada@example.com", "bob", "eve@example.com"):
        added = admin.post(f"/ui/{noun}/members", {"id": identity, "user": user, "act": "add"})
        assert added.headers["location"].endswith("done=added")
    page = admin.get(detail(noun, identity))
    assert {"ada@example.com", "bob", "eve@example.com"} <= set(words(page).split())
    assert gateway.get("/user/list").json["total"] == 3
    admin.post(f"/ui/{noun}/members", {"id": identity, "user_id": "bob", "role": role, "act": "change"})
    members = gateway.get(f"/user/list?{'team' if noun == 'teams' else 'organization_ids'}={identity}").json
    assert members["total"] == 3
    assert f'value="{role}" selected' in admin.get(detail(noun, identity)).body.decode()
    admin.post(f"/ui/{noun}/members", {"id": identity, "user_id": "eve@example.com", "act": "remove"})
    assert "eve@example.com" not in words(admin.get(detail(noun, identity)))
    assert admin.post(f"/ui/{noun}/members", {"id": identity, "user": " ", "act": "add"}).status == 400


@pytest.mark.parametrize("name", HOSTILE)
def test_markup_in_any_name_stays_text(gateway: ConsoleGateway, admin: Browser, name: str) -> None:
    gateway.post("/budget/new", {"budget_id": name})
    gateway.post("/user/new", {"user_id": name, "user_alias": name, "budget_id": name, "auto_create_key": False})
    gateway.post("/organization/new", {"organization_id": name, "organization_alias": name})
    gateway.post("/customer/new", {"user_id": name, "alias": name, "budget_id": name})
    members = [{"user_id": name}]
    gateway.post(
        "/team/new",
        {"team_id": name, "team_alias": name, "organization_id": name, "members_with_roles": members},
    )
    made = gateway.make_key(
        key_alias=name,
        user_id=name,
        team_id=name,
        models=[name],
        tags=[name],
        metadata={name: name},
        aliases={name: "m"},
    )
    for noun in NOUNS:
        if noun.word == "model":
            # the entries of the configuration are the operator's
            continue
        identity = made["token"] if noun.word == "key" else name
        for path in ("", "/new"):
            check_text(admin.get(noun.path + path), name)
        for path in ("/detail", "/edit", "/delete"):
            answer = admin.get(f"{noun.path}{path}?{urlencode({'id': identity})}")
            assert answer.status == 200, (noun.word, path)
            check_text(answer, name)
        searched = admin.get(f"{noun.path}?{urlencode({'search': name})}")
        assert name in words(searched) or name[:200] in words(searched)
        check_text(searched, name)
    check_text(admin.get(f"/ui/keys/regenerate?id={made['token']}"), name)
    check_text(admin.post("/ui/keys/several", {"chosen": made["token"], "act": "delete"}), name)
    regenerated = admin.post("/ui/keys/regenerate", {"id": made["token"]})
    check_text(regenerated, name)


def check_text(answer: Answer, name: str) -> None:
    text = answer.body.decode()
    assert "<script>alert" not in text
    assert "49" not in re.findall(r"value=\"(49)", text)
    assert 'alert(1)</script>"' not in text
    assert "Traceback" not in text


def test_lists_are_searched_filtered_sorted_and_paged(gateway: ConsoleGateway, admin: Browser) -> None:
    gateway.post("/team/new", {"team_id": "t1"})
    made = [
        gateway.make_key(key_alias=f"key-{number:03}", **({"team_id": "t1"} if number < 3 else {}))
        for number in range(60)
    ]
    gateway.post("/key/block", {"key": made[1]["token"]})
    first = words(admin.get("/ui/keys?sort_by=key_alias&sort_order=asc"))
    assert "60 keys, page 1 of 2" in first
    assert "key-049" in first
    assert "key-050" not in first
    second = words(admin.get("/ui/keys?sort_by=key_alias&sort_order=asc&page=2"))
    assert "key-059" in second
    filtered = words(admin.get("/ui/keys?team_id=t1&status=blocked"))
    assert "1 key" in filtered
    assert "key-001" in filtered
    found = words(admin.get("/ui/keys?search=KEY-00"))
    assert "10 keys" in found
    assert "No keys are like this." in words(admin.get("/ui/keys?search=nothing"))
    assert admin.get("/ui/keys?sort_by=token").status == 404
    assert admin.get("/ui/keys?page=x").status == 400
    sorted_page = admin.get("/ui/keys?search=key-00&sort_by=key_alias&sort_order=asc").body.decode()
    assert 'aria-sort="ascending"' in sorted_page
    assert "search=key-00&amp;sort_by=key_alias&amp;sort_order=desc" in sorted_page


def test_a_key_in_the_search_is_found_by_its_hash_and_stands_in_no_address(
    gateway: ConsoleGateway, admin: Browser
) -> None:
    made = gateway.make_key(key_alias="needle")
    gateway.make_key(key_alias="hay")
    answer = admin.get(f"/ui/keys?{urlencode({'search': made['key'], 'status': ''})}", hx_request="true")
    assert "needle" in words(answer)
    assert "hay" not in words(answer)
    assert answer.headers["hx-replace-url"] == f"/ui/keys?search={made['token']}"
    assert made["key"] not in answer.body.decode()


def member(gateway: ConsoleGateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a member with a key, and somebody else with another in another team."""
    for user, team in (("ada", "red"), ("eve", "blue")):
        gateway.post("/user/new", {"user_id": user, "user_alias": f"secret-{user}", "auto_create_key": False})
        gateway.post("/team/new", {"team_id": team, "team_alias": f"secret-{team}"})
        gateway.post("/team/member_add", {"team_id": team, "member": {"user_id": user, "role": "admin"}})
    gateway.post("/user/new", {"user_id": "bob", "auto_create_key": False})
    own = gateway.make_key(key_alias="secret-own", user_id="ada")
    return own, gateway.make_key(key_alias="secret-other", user_id="eve", team_id="blue")


def test_a_member_sees_and_changes_what_is_its_own(gateway: ConsoleGateway) -> None:
    own, other = member(gateway)
    browser = gateway.browser(own["key"])
    listed = words(browser.get("/ui/keys"))
    assert "1 key" in listed
    assert "secret-own" in listed
    assert "secret-other" not in listed
    assert "Customers" not in listed
    assert "Users" not in listed
    assert "secret-red" in words(browser.get("/ui/teams"))
    assert "secret-blue" not in words(browser.get("/ui/teams"))
    assert "Priority" not in words(browser.get("/ui/keys/new"))
    made = browser.post("/ui/keys/new", {"key_alias": "second", "rpm_limit": "5"})
    assert made.status == 200, words(made)
    assert "2 keys" in words(browser.get("/ui/keys"))
    shown = words(browser.get(detail("keys", own["token"])))
    assert "secret-ada" in shown
    assert "Reset spend" not in shown
    team = browser.get(detail("teams", "red"))
    assert "Add member" in words(team)
    assert "Edit" not in words(team).split()
    assert browser.post("/ui/teams/members", {"id": "red", "user": "bob", "act": "add"}).status == 303
    assert "bob" in words(browser.get(detail("teams", "red")))
    assert words(browser.get(detail("users", "ada"))).count("secret-ada") > 0
    for answer in (
        browser.get(detail("keys", other["token"])),
        browser.get(f"/ui/keys/delete?id={other['token']}"),
        browser.get(f"/ui/keys/edit?id={other['token']}"),
        browser.get(detail("teams", "blue")),
        browser.get(detail("users", "eve")),
        browser.post("/ui/keys/block", {"id": other["token"]}),
        browser.post("/ui/keys/regenerate", {"id": other["token"]}),
        browser.post("/ui/keys/several", {"chosen": other["token"], "act": "block"}),
        browser.post("/ui/keys/delete", {"id": other["token"]}),
        browser.post("/ui/teams/members", {"id": "blue", "user": "joe", "act": "add"}),
    ):
        assert answer.status == 403
        assert "secret-other" not in answer.body.decode()
        assert "secret-eve" not in answer.body.decode()
        assert "secret-blue" not in answer.body.decode()


@pytest.mark.parametrize("path", ["/ui/users", "/ui/customers", "/ui/budgets", "/ui/users/new", "/ui/teams/new"])
def test_pages_of_administrators_are_closed_to_members(gateway: ConsoleGateway, path: str) -> None:
    own, _ = member(gateway)
    assert gateway.browser(own["key"]).get(path).status == 403


def test_what_does_not_exist_is_told_so(admin: Browser) -> None:
    for noun in NOUNS:
        identity = "0" * 64 if noun.word == "key" else "nobody"
        for page in ("detail", "edit", "delete"):
            assert admin.get(f"{noun.path}/{page}?id={identity}").status == 404, (noun.word, page)
            assert admin.get(f"{noun.path}/{page}").status == 404
