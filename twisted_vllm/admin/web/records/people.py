"""Users, teams and organizations: how the console lists, shows and changes them."""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.users.models import ROLE_WORDS
from twisted_vllm.admin.web.page import PageCall
from twisted_vllm.admin.web.records.forms import (
    EDIT_ORGANIZATION,
    EDIT_TEAM,
    EDIT_USER,
    NEW_ORGANIZATION,
    NEW_TEAM,
    NEW_USER,
)
from twisted_vllm.admin.web.records.keys import SOME_COLUMNS
from twisted_vllm.admin.web.records.noun import (
    BUDGET,
    ID,
    LINK,
    MOMENT,
    NAMES,
    NUMBER,
    SHOWN,
    STATUS,
    Act,
    Column,
    Fact,
    Filter,
    Link,
    Noun,
    Section,
    budget_of,
    limits_of,
    link_to,
    made,
    models_of,
    spending_of,
)

BLOCKED = Filter(name="blocked", label="Status", choices=(("", "any"), ("false", "active"), ("true", "blocked")))
OF_BUDGET = Filter(name="budget_id", label="Budget", sees_all=True, rare=True)
_OF_ORGANIZATION = Filter(name="organization_id", label="Organization")

_TEAM_ROLES = (("user", "user: uses the team's models"), ("admin", "admin: also its members and keys"))
_ORGANIZATION_ROLES = (
    ("internal_user", "internal_user: sees its teams"),
    ("internal_user_viewer", "internal_user_viewer: sees its teams"),
    ("org_admin", "org_admin: sees everybody in it"),
)


def state_of(record: Json) -> str:
    """Return whether a record is blocked, in one word."""
    return "blocked" if record["blocked"] else "active"


async def keys_of(call: PageCall, **query: str) -> Section:
    """Return the newest keys of somebody, those that the caller may see."""
    found = await call.get("/key/list", return_full_object="true", size=SHOWN, **query)
    total = found["total_count"]
    return Section(
        title="Keys",
        columns=SOME_COLUMNS,
        rows=found["keys"],
        more=Link(f"All {total:,} keys", "/ui/keys", query) if total > len(found["keys"]) else None,
        empty="No keys that you may see.",
    )


# users


def _name_of_user(user: Json) -> str:
    return str(user["user_alias"] or user["user_email"] or user["user_id"])


async def _find_user(call: PageCall, identity: str) -> Json:
    found: Json = await call.get("/v2/user/info", user_id=identity)
    return found


def _facts_of_user(user: Json) -> list[Fact]:
    words, _ = ROLE_WORDS.get(user["user_role"], ("", ""))
    return [
        Fact(name="ID", value=user["user_id"], kind=ID),
        Fact(name="E-mail address", value=user["user_email"]),
        Fact(name="Role", value=f"{user['user_role']}: {words}"),
        models_of(user),
        *spending_of(user),
        *limits_of(user),
        Fact(name="Organizations", value=list(user["organizations"]), kind=NAMES),
        *made(user),
    ]


async def _sections_of_user(call: PageCall, user: Json) -> list[Section]:
    teams = await call.get("/v2/team/list", user_id=user["user_id"], page_size=100)
    return [
        await keys_of(call, user_id=user["user_id"]),
        Section(title="Teams", columns=_TEAM_COLUMNS, rows=teams["teams"], empty="In no team."),
    ]


async def _change_user(call: PageCall, identity: str, body: Json) -> Any:
    return await call.post("/user/update", {"user_id": identity, **body})


async def _delete_user(call: PageCall, identity: str) -> Any:
    return await call.post("/user/delete", {"user_ids": [identity]})


_USER_LINK = Column(
    title="User", value=lambda user: link_to("/ui/users", user["user_id"], _name_of_user(user)), kind=LINK
)

USERS = Noun(
    word="user",
    words="users",
    title="Users",
    about="A user is a person or a service. It may have several keys, which share its models, limits and budget.",
    path="/ui/users",
    list_route="/user/list",
    items="users",
    identity=lambda user: str(user["user_id"]),
    name=_name_of_user,
    columns=(
        _USER_LINK,
        Column(title="ID", value=lambda user: user["user_id"], kind=ID, sort="user_id"),
        Column(title="E-mail address", value=lambda user: user["user_email"], sort="user_email"),
        Column(title="Role", value=lambda user: user["user_role"], sort="user_role"),
        Column(title="Keys", value=lambda user: user["key_count"], kind=NUMBER),
        Column(title="Teams", value=lambda user: len(user["teams"]), kind=NUMBER),
        Column(title="Spent", value=budget_of, kind=BUDGET),
        Column(title="Made", value=lambda user: user["created_at"], kind=MOMENT, sort="created_at"),
    ),
    filters=(
        Filter(name="role", label="Role", choices=(("", "any"), *((role, role) for role in ROLE_WORDS))),
        Filter(name="team", label="Team"),
        Filter(name="organization_ids", label="Organization", rare=True),
        OF_BUDGET,
    ),
    sort=("created_at", "desc"),
    searched="id, address or name",
    info_route="GET /v2/user/info",
    find=_find_user,
    facts=_facts_of_user,
    sections=_sections_of_user,
    new_route="POST /user/new",
    new_form=NEW_USER,
    edit_route="POST /user/update",
    edit_form=EDIT_USER,
    change=_change_user,
    delete_route="POST /user/delete",
    delete=_delete_user,
    impact_param="user_id",
    live_by="user_id",
    used_by="user_id",
)


# teams


def _name_of_team(team: Json) -> str:
    return str(team["team_alias"] or team["team_id"])


async def _find_team(call: PageCall, identity: str) -> Json:
    after = call.query.get("members_after") or None
    found = await call.get("/team/info", team_id=identity, key_limit=1, members_after=after)
    return {**found["team_info"], "memberships": found["team_memberships"]}


def _facts_of_team(team: Json) -> list[Fact]:
    each = team["team_member_budget_table"]
    of_members = (
        [
            *([Fact(name="Budget of each member", value=f"${each['max_budget']:,.2f}")] if each["max_budget"] else []),
            *(Fact(name=f"{fact.name}, of each member", value=fact.value, kind=fact.kind) for fact in limits_of(each)),
        ]
        if each
        else []
    )
    return [
        Fact(name="ID", value=team["team_id"], kind=ID),
        Fact(name="Status", value=state_of(team), kind=STATUS),
        Fact(name="Organization", value=link_to("/ui/organizations", team["organization_id"]), kind=LINK),
        models_of(team),
        *(
            [Fact(name="Names of models", value=[f"{a} = {b}" for a, b in team["model_aliases"].items()], kind=NAMES)]
            if team["model_aliases"]
            else []
        ),
        *spending_of(team),
        *limits_of(team),
        *of_members,
        *made(team),
    ]


async def _sections_of_team(call: PageCall, team: Json) -> list[Section]:
    memberships = {each["user_id"]: each for each in team["memberships"]}
    rows = [{**member, "membership": memberships.get(member["user_id"])} for member in team["members_with_roles"]]
    shown, total = len(rows), team["members_count"]
    last = {"id": team["team_id"], "members_after": rows[-1]["user_id"]} if rows else {}
    more = shown >= 500 and shown < total
    return [
        Section(
            title=f"Members ({total:,})",
            columns=(
                Column(title="User", value=_link_to_member, kind=LINK),
                Column(title="E-mail address", value=lambda member: member["user_email"]),
                Column(title="Role", value=lambda member: member["role"]),
                Column(title="Spent in the team", value=_spent_in_team, kind=BUDGET),
            ),
            rows=rows,
            more=Link("Next members", "/ui/teams/detail", last) if more else None,
            empty="No members that you may see.",
            members="/ui/teams/members" if call.may("POST /team/member_add") else "",
            roles=_TEAM_ROLES,
            member_of=team["team_id"],
        ),
        await keys_of(call, team_id=team["team_id"]),
    ]


def _link_to_member(member: Json) -> Link:
    return link_to("/ui/users", member["user_id"])


def _spent_in_team(member: Json) -> tuple[float, float | None]:
    membership = member["membership"]
    if membership is None:
        return 0.0, None
    return membership["spend"], (membership["litellm_budget_table"] or {}).get("max_budget")


async def _change_team(call: PageCall, identity: str, body: Json) -> Any:
    return await call.post("/team/update", {"team_id": identity, **body})


async def _delete_team(call: PageCall, identity: str) -> Any:
    return await call.post("/team/delete", {"team_ids": [identity]})


async def _block_team(call: PageCall, identity: str) -> Any:
    return await call.post("/team/block", {"team_id": identity})


async def _unblock_team(call: PageCall, identity: str) -> Any:
    return await call.post("/team/unblock", {"team_id": identity})


_TEAM_COLUMNS = (
    Column(
        title="Team",
        value=lambda team: link_to("/ui/teams", team["team_id"], team["team_alias"]),
        kind=LINK,
        sort="team_alias",
    ),
    Column(title="ID", value=lambda team: team["team_id"], kind=ID, sort="team_id"),
    Column(title="Status", value=state_of, kind=STATUS),
    Column(title="Organization", value=lambda team: link_to("/ui/organizations", team["organization_id"]), kind=LINK),
    Column(title="Members", value=lambda team: team["members_count"], kind=NUMBER),
    Column(title="Keys", value=lambda team: team["keys_count"], kind=NUMBER),
    Column(title="Spent", value=budget_of, kind=BUDGET),
    Column(title="Made", value=lambda team: team["created_at"], kind=MOMENT, sort="created_at"),
)

TEAMS = Noun(
    word="team",
    words="teams",
    title="Teams",
    about="A team is a group of users. Its keys share its models, limits and budget.",
    path="/ui/teams",
    list_route="/v2/team/list",
    items="teams",
    identity=lambda team: str(team["team_id"]),
    name=_name_of_team,
    columns=_TEAM_COLUMNS,
    filters=(BLOCKED, _OF_ORGANIZATION, OF_BUDGET),
    sort=("team_id", "asc"),
    searched="id or name",
    info_route="GET /team/info",
    find=_find_team,
    facts=_facts_of_team,
    sections=_sections_of_team,
    new_route="POST /team/new",
    new_form=NEW_TEAM,
    edit_route="POST /team/update",
    edit_form=EDIT_TEAM,
    change=_change_team,
    delete_route="POST /team/delete",
    delete=_delete_team,
    impact_param="team_id",
    live_by="team_id",
    used_by="team_id",
    acts=(
        Act(
            name="block",
            label="Block",
            route="POST /team/block",
            perform=_block_team,
            done="The keys of the team are refused, from the next request on.",
            applies=lambda team: not team["blocked"],
            danger=True,
        ),
        Act(
            name="unblock",
            label="Unblock",
            route="POST /team/unblock",
            perform=_unblock_team,
            done="The keys of the team work again.",
            applies=lambda team: bool(team["blocked"]),
        ),
    ),
)


# organizations


async def _find_organization(call: PageCall, identity: str) -> Json:
    found: Json = await call.get("/organization/info", organization_id=identity)
    return found


def _facts_of_organization(organization: Json) -> list[Fact]:
    return [
        Fact(name="ID", value=organization["organization_id"], kind=ID),
        models_of(organization),
        *spending_of(organization),
        *limits_of(organization),
        *made(organization),
    ]


async def _sections_of_organization(call: PageCall, organization: Json) -> list[Section]:
    identity, total = organization["organization_id"], organization["members_count"]
    shown = len(organization["members"])
    return [
        Section(
            title=f"Members ({total:,})",
            columns=(
                Column(title="User", value=_link_to_member, kind=LINK),
                Column(title="E-mail address", value=lambda member: member["user_email"]),
                Column(title="Role", value=lambda member: member["user_role"]),
            ),
            rows=organization["members"],
            more=Link("All members", "/ui/users", {"organization_ids": identity}) if shown < total else None,
            empty="No members that you may see.",
            members="/ui/organizations/members" if call.may("POST /organization/member_add") else "",
            roles=_ORGANIZATION_ROLES,
            member_of=identity,
        ),
        Section(
            title=f"Teams ({len(organization['teams']):,})",
            columns=(
                Column(
                    title="Team",
                    value=lambda team: link_to("/ui/teams", team["team_id"], team["team_alias"]),
                    kind=LINK,
                ),
                Column(title="Models", value=lambda team: list(team["models"]) or ["all"], kind=NAMES),
            ),
            rows=organization["teams"][:100],
            more=Link("All teams", "/ui/teams", {"organization_id": identity}),
            empty="No teams that you may see.",
        ),
        await keys_of(call, organization_id=identity),
    ]


async def _change_organization(call: PageCall, identity: str, body: Json) -> Any:
    return await call.change("PATCH", "/organization/update", {"organization_id": identity, **body}, {})


async def _delete_organization(call: PageCall, identity: str) -> Any:
    return await call.change("DELETE", "/organization/delete", {"organization_ids": [identity]}, {})


ORGANIZATIONS = Noun(
    word="organization",
    words="organizations",
    title="Organizations",
    about="An organization is a group of teams. All keys of its teams share its models, limits and budget.",
    path="/ui/organizations",
    list_route="/v2/organizations/list",
    items="organizations",
    identity=lambda each: str(each["organization_id"]),
    name=lambda each: str(each["organization_alias"] or each["organization_id"]),
    columns=(
        Column(
            title="Organization",
            value=lambda each: link_to("/ui/organizations", each["organization_id"], each["organization_alias"]),
            kind=LINK,
            sort="organization_alias",
        ),
        Column(title="ID", value=lambda each: each["organization_id"], kind=ID, sort="organization_id"),
        Column(title="Teams", value=lambda each: len(each["teams"]), kind=NUMBER),
        Column(title="Members", value=lambda each: each["members_count"], kind=NUMBER),
        Column(title="Spent", value=budget_of, kind=BUDGET),
        Column(title="Made", value=lambda each: each["created_at"], kind=MOMENT, sort="created_at"),
    ),
    filters=(OF_BUDGET,),
    sort=("organization_id", "asc"),
    searched="id or name",
    info_route="GET /organization/info",
    find=_find_organization,
    facts=_facts_of_organization,
    sections=_sections_of_organization,
    new_route="POST /organization/new",
    new_form=NEW_ORGANIZATION,
    edit_route="PATCH /organization/update",
    edit_form=EDIT_ORGANIZATION,
    change=_change_organization,
    delete_route="DELETE /organization/delete",
    delete=_delete_organization,
    impact_param="organization_id",
)
