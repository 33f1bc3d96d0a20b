"""Keys: how the console lists, shows and changes them."""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.web.page import PageCall
from twisted_vllm.admin.web.records.forms import EDIT_KEY, NEW_KEY, OWN_KEY_FIELDS
from twisted_vllm.admin.web.records.noun import (
    BUDGET,
    ID,
    LINK,
    MOMENT,
    NAMES,
    STATUS,
    Act,
    Column,
    Fact,
    Filter,
    Noun,
    Section,
    budget_of,
    limits_of,
    link_to,
    made,
    models_of,
    spending_of,
)
from twisted_vllm.errors import GatewayError

PATH = "/ui/keys"

#: LiteLLM's words for the states of a key, in ours
_STATES = {"active": "active", "expired": "expired", "revoked": "blocked"}


def name_of(key: Json) -> str:
    """Return what people call a key."""
    return str(key["key_alias"] or key["key_name"])


def status_of(key: Json) -> str:
    """Return the state of a key in one word."""
    return _STATES[key["status"]]


_ALIAS = Column(title="Key", value=lambda key: link_to(PATH, key["token"], name_of(key)), kind=LINK, sort="key_alias")
_END = Column(title="Ends in", value=lambda key: key["key_name"], kind=ID)
_STATUS = Column(title="Status", value=status_of, kind=STATUS)
_USER = Column(title="User", value=lambda key: link_to("/ui/users", key["user_id"]), kind=LINK, sort="user_id")
_TEAM = Column(title="Team", value=lambda key: link_to("/ui/teams", key["team_id"]), kind=LINK, sort="team_id")
_SPENT = Column(title="Spent", value=budget_of, kind=BUDGET, sort="spend")
_EXPIRES = Column(title="Expires", value=lambda key: key["expires"], kind=MOMENT, sort="expires")
_MADE = Column(title="Made", value=lambda key: key["created_at"], kind=MOMENT, sort="created_at")

#: the columns of keys on the pages of those whose keys they are
SOME_COLUMNS = (_ALIAS, _END, _STATUS, _USER, _SPENT, _MADE)


async def _find(call: PageCall, identity: str) -> Json:
    found: Json = (await call.get("/key/info", key=identity))["info"]
    return found


def _facts(key: Json) -> list[Fact]:
    privacy = {
        "Fields that it must not send": key["forbidden_fields"],
        "Fields that are open to it": key["allowed_fields"],
        "Limits of fields": [f"{name}: {limit:,}" for name, limit in key["field_limits"].items()],
        "Headers that it may set": key["granted_headers"],
        "Tags": key["tags"],
    }
    return [
        Fact(name="Status", value=status_of(key), kind=STATUS),
        Fact(name="Value", value=key["key_name"], kind=ID),
        Fact(name="Hash", value=key["token"], kind=ID),
        Fact(name="User", value=link_to("/ui/users", key["user_id"]), kind=LINK),
        Fact(name="Team", value=link_to("/ui/teams", key["team_id"]), kind=LINK),
        Fact(name="Organization", value=link_to("/ui/organizations", key["organization_id"]), kind=LINK),
        Fact(name="Expires", value=key["expires"], kind=MOMENT),
        models_of(key),
        *(
            [Fact(name="Names of models", value=[f"{a} = {b}" for a, b in key["aliases"].items()], kind=NAMES)]
            if key["aliases"]
            else []
        ),
        Fact(name="Routes", value=list(key["allowed_routes"]) or ["inference and read-only"], kind=NAMES),
        *spending_of(key),
        *limits_of(key),
        *(Fact(name=name, value=list(value), kind=NAMES) for name, value in privacy.items() if value),
        *([Fact(name="Prefix cache", value="kept apart from other keys")] if key["cache_isolation"] else []),
        *([Fact(name="Prompts and answers in traces", value=key["log_bodies"])] if key["log_bodies"] else []),
        *([Fact(name="Priority", value=str(key["priority"]))] if key["priority"] is not None else []),
        *(
            [Fact(name="Regenerated", value=key["last_rotation_at"], kind=MOMENT)]
            if key["last_rotation_at"] is not None
            else []
        ),
        *made(key),
    ]


async def _levels(call: PageCall, key: Json) -> list[Section]:
    """Return what holds above the key: a request must pass all of it."""
    rows: list[Json] = []
    team = await _asked(call, "/team/info", team_id=key["team_id"], key_limit=1)
    if team is not None:
        team = team["team_info"]
        rows.append({"level": "Team", "link": link_to("/ui/teams", team["team_id"], team["team_alias"]), **team})
    user = await _asked(call, "/v2/user/info", user_id=key["user_id"])
    if user is not None:
        name = user["user_alias"] or user["user_email"]
        rows.insert(0, {"level": "User", "link": link_to("/ui/users", user["user_id"], name), **user})
    organization_id = key["organization_id"] or (team and team["organization_id"])
    organization = await _asked(call, "/organization/info", organization_id=organization_id)
    if organization is not None:
        link = link_to("/ui/organizations", organization["organization_id"], organization["organization_alias"])
        rows.append({"level": "Organization", "link": link, **organization})
    return [
        Section(
            title="What holds above it",
            note="A request must pass the limits of the key and of each of these, and each must allow its model.",
            columns=(
                Column(title="Level", value=lambda row: row["level"]),
                Column(title="Name", value=lambda row: row["link"], kind=LINK),
                Column(title="Models", value=lambda row: list(row["models"]) or ["all"], kind=NAMES),
                Column(
                    title="Limits",
                    value=lambda row: [f"{fact.name}: {fact.value}" for fact in limits_of(row) if fact.kind != NAMES],
                    kind=NAMES,
                ),
                Column(title="Spent", value=budget_of, kind=BUDGET),
            ),
            rows=rows,
            empty="Nothing: only its own limits hold.",
        )
    ]


async def _asked(call: PageCall, route: str, **query: Any) -> Json | None:
    """Return what the API answers about somebody above a key; None for nobody, or what the caller may not see."""
    if not next(iter(query.values())):
        return None
    try:
        found: Json = await call.get(route, **query)
    except GatewayError:
        # a mere label, or somebody who was deleted, or not for the caller's eyes
        return None
    return found


async def _change(call: PageCall, identity: str, body: Json) -> Any:
    return await call.post("/key/update", {"key": identity, **body})


async def _delete(call: PageCall, identity: str) -> Any:
    return await call.post("/key/delete", {"keys": [identity]})


async def _block(call: PageCall, identity: str) -> Any:
    return await call.post("/key/block", {"key": identity})


async def _unblock(call: PageCall, identity: str) -> Any:
    return await call.post("/key/unblock", {"key": identity})


async def _reset(call: PageCall, identity: str) -> Any:
    return await call.post("/key/<string:key>/reset_spend", {"reset_to": 0}, {"key": identity})


KEYS = Noun(
    word="key",
    words="keys",
    title="Keys",
    about="A key lets a program or a person use the models. Its value is shown once, when it is made.",
    path=PATH,
    list_route="/key/list",
    items="keys",
    always={"return_full_object": "true"},
    size="size",
    total="total_count",
    identity=lambda key: str(key["token"]),
    name=name_of,
    columns=(_ALIAS, _END, _STATUS, _USER, _TEAM, _SPENT, _EXPIRES, _MADE),
    filters=(
        Filter(
            name="status",
            label="Status",
            choices=(("", "any"), ("active", "active"), ("blocked", "blocked"), ("expired", "expired")),
        ),
        Filter(name="team_id", label="Team"),
        Filter(name="user_id", label="User", sees_all=True),
        Filter(name="organization_id", label="Organization", sees_all=True, rare=True),
        Filter(name="budget_id", label="Budget", sees_all=True, rare=True),
    ),
    sort=("created_at", "desc"),
    searched="alias, user, last four characters or hash",
    info_route="GET /key/info",
    find=_find,
    facts=_facts,
    sections=_levels,
    new_route="POST /key/generate",
    new_form=NEW_KEY,
    edit_route="POST /key/update",
    edit_form=EDIT_KEY,
    change=_change,
    delete_route="POST /key/delete",
    delete=_delete,
    impact_param="key",
    live_by="key",
    used_by="api_key",
    acts=(
        Act(
            name="block",
            label="Block",
            route="POST /key/block",
            perform=_block,
            done="The key is blocked, from the next request on.",
            applies=lambda key: not key["blocked"],
            danger=True,
        ),
        Act(
            name="unblock",
            label="Unblock",
            route="POST /key/unblock",
            perform=_unblock,
            done="The key works again.",
            applies=lambda key: bool(key["blocked"]),
        ),
        Act(
            name="reset-spend",
            label="Reset spend",
            route="POST /key/<string:key>/reset_spend",
            perform=_reset,
            done="The key has spent nothing in this period. Its total stays.",
            applies=lambda key: key["spend"] > 0,
        ),
    ),
    own_fields=OWN_KEY_FIELDS,
)
