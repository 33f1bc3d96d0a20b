"""Teams, users and organizations of which more is there than one answer shows."""

from __future__ import annotations

from tests.admin.admin_harness import Gateway
from tests.storage.filled_database import Sizes, fill
from twisted_vllm.admin.models import LISTED_MEMBERS, MAX_SHOWN

LARGE = Sizes(
    keys=3_000,
    users=1_300,
    teams=3,
    large_teams=1,
    large_team=1_200,
    customers=2_050,
    organizations=1,
    budgets=1,
    audited=130,
)


def fill_large(gateway: Gateway) -> None:
    """Fill the gateway's database beside its store."""

    def work(transaction: object) -> None:
        fill(transaction.connection, LARGE)  # type: ignore[attr-defined]  # a Transaction

    gateway.store.read(work)


def test_a_list_shows_some_members_of_a_large_team_and_says_how_many_there_are(gateway: Gateway) -> None:
    fill_large(gateway)
    for teams in (gateway.get("/team/list").json, gateway.get("/v2/team/list").json["teams"]):
        assert [(each["team_id"], each["members_count"]) for each in teams] == [
            ("team-0", 1_200),
            ("team-1", 20),
            ("team-2", 20),
        ]
        assert [len(each["members_with_roles"]) for each in teams] == [LISTED_MEMBERS, 20, 20]


def test_all_members_of_a_large_team_are_read_in_parts(gateway: Gateway) -> None:
    fill_large(gateway)
    first = gateway.get("/team/info?team_id=team-0").json
    shown = [each["user_id"] for each in first["team_info"]["members_with_roles"]]
    assert len(shown) == len(first["team_memberships"]) == MAX_SHOWN
    assert first["team_info"]["members_count"] == 1_200
    assert (len(first["keys"]), first["keys_count"]) == (MAX_SHOWN, 1_500)
    others = list[str]()
    while len(shown + others) < 1_200:
        last = [*shown, *others][-1]
        rest = gateway.get(f"/team/info?team_id=team-0&key_limit=7&members_after={last}").json
        others += [each["user_id"] for each in rest["team_info"]["members_with_roles"]]
    assert sorted(shown + others) == sorted(f"user-{number}" for number in range(1_200))
    assert (len(rest["keys"]), rest["keys_count"]) == (7, 1_500)
    assert [each["created_at"] for each in rest["keys"]] == sorted(
        (each["created_at"] for each in rest["keys"]), reverse=True
    )


def test_a_member_finds_itself_in_a_large_team(gateway: Gateway) -> None:
    """Its own entry is shown, though it is not among the first."""
    fill_large(gateway)
    key = gateway.make_key(user_id="user-999", team_id="team-0")["key"]
    [team] = [each for each in gateway.get("/team/list", key).json if each["team_id"] == "team-0"]
    assert [each["user_id"] for each in team["members_with_roles"]] == ["user-999"]
    assert team["members_count"] == 1
    found = gateway.get("/team/info?team_id=team-0", key).json
    assert [each["user_id"] for each in found["team_memberships"]] == ["user-999"]


def test_a_large_organization_says_how_many_members_it_has(gateway: Gateway) -> None:
    fill_large(gateway)
    [listed] = gateway.get("/organization/list").json
    assert (len(listed["members"]), listed["members_count"]) == (LISTED_MEMBERS, 1_300)
    found = gateway.get("/organization/info?organization_id=organization-0").json
    assert (len(found["members"]), found["members_count"]) == (MAX_SHOWN, 1_300)


def test_a_bare_list_is_read_to_its_end_by_its_links(gateway: Gateway) -> None:
    fill_large(gateway)
    refused = gateway.get("/customer/list")
    assert (refused.status, refused.error["param"]) == (400, "page")
    path, seen = "/customer/list?page_size=1000", list[str]()
    while path:
        answer = gateway.get(path)
        seen += [each["user_id"] for each in answer.json]
        link = answer.headers.get("link", "")
        path = link.removeprefix("<").partition(">")[0]
        assert link in ("", f'<{path}>; rel="next"')
    assert len(seen) == len(set(seen)) == 2_050


def test_every_list_is_read_to_its_end_by_its_cursor(gateway: Gateway) -> None:
    fill_large(gateway)
    for path, name, count in (
        ("/key/list?size=100", "keys", 3_000),
        ("/key/list?size=100&sort_by=expires&sort_order=asc", "keys", 3_000),
        ("/key/aliases?size=100", "aliases", 2_250),
        ("/user/list?page_size=100&sort_by=user_alias", "users", 1_300),
        ("/v2/team/list?page_size=2", "teams", 3),
        ("/audit?page_size=100", "audit_logs", 130),
        ("/audit/list?page_size=100&sort_order=asc", "audit_logs", 130),
    ):
        seen, following = list[str](), ""
        while following is not None:
            answer = gateway.get(f"{path}&after={following}").json
            seen += map(str, answer[name])
            following = answer["next"]
        assert len(seen) == len(set(seen)) == count, path
    answer = gateway.get("/key/list?sort_by=spend&size=100").json
    assert (len(answer["keys"]), answer["next"]) == (100, None)
    refused = gateway.get("/user/list?after=nonsense")
    assert (refused.status, refused.error["param"]) == (400, "after")
