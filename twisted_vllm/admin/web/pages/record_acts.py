"""What only some records have: keys are regenerated and chosen several at once, teams and organizations have
members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.pages.records import show_value
from twisted_vllm.admin.web.records.keys import KEYS
from twisted_vllm.admin.web.records.noun import PAGE_SIZE
from twisted_vllm.errors import GatewayError, InvalidRequest

pages = Pages()

#: how long the old value of a key may still work
_GRACE = (
    ("", "stops at once"),
    ("15m", "works for 15 more minutes"),
    ("1h", "works for one more hour"),
    ("1d", "works for one more day"),
    ("1w", "works for one more week"),
    ("1mo", "works for one more month"),
)


# regenerating


@pages.get("/ui/keys/regenerate", needs="POST /key/regenerate")
async def ask_to_regenerate(call: PageCall) -> bytes:
    """Ask how long the old value shall work."""
    return await _show_regenerate(call, call.query.get("id", ""))


async def _show_regenerate(call: PageCall, identity: str, problem: str = "", status: int = 200) -> bytes:
    impact = await call.get("/key/impact", key=identity or None)
    return call.render(
        "records/regenerate.html", status, identity=identity, impact=impact, grace=_GRACE, problem=problem
    )


@pages.post("/ui/keys/regenerate", needs="POST /key/regenerate")
async def regenerate(call: PageCall) -> bytes:
    """Give a key another value, and show it."""
    form = await call.form()
    identity, grace = _first(form, "id"), _first(form, "grace_period")
    try:
        made = await call.post("/key/regenerate", {"key": identity, **({"grace_period": grace} if grace else {})})
    except GatewayError as error:
        return await _show_regenerate(call, identity, error.message, error.status)
    words = dict(_GRACE).get(grace, f"works for {grace}")
    return await show_value(call, made, f"The key has another value. The old one {words}.")


def _first(form: Mapping[str, Sequence[str]], name: str) -> str:
    return form.get(name, [""])[0].strip()


# several keys at once


@pages.post("/ui/keys/several", needs="POST /key/block")
async def act_on_several(call: PageCall) -> bytes:
    """Block, unblock or delete the keys that were chosen in the list."""
    form = await call.form()
    chosen, act = list(dict.fromkeys(form.get("chosen", ()))), _first(form, "act")
    if not chosen:
        raise InvalidRequest("No key is chosen: tick some in the list first.", param="chosen")
    if len(chosen) > PAGE_SIZE:
        raise InvalidRequest(f"At most {PAGE_SIZE} keys are changed at once, as many as a page has.", param="chosen")
    if act == "delete":
        return await _delete_several(call, chosen, confirmed=_first(form, "confirmed") == "yes")
    if act not in ("block", "unblock"):
        raise InvalidRequest("This cannot be done with several keys.", param="act")
    for identity in chosen:
        await call.post(f"/key/{act}", {"key": identity})
    return call.redirect("/ui/keys", done=f"{act}ed-some")


async def _delete_several(call: PageCall, chosen: list[str], *, confirmed: bool) -> bytes:
    if confirmed:
        await call.post("/key/delete", {"keys": chosen})
        return call.redirect("/ui/keys", done="deleted-some")
    impacts = [await call.get("/key/impact", key=identity) for identity in chosen]
    keys = [{"link": KEYS.link(each["shown_keys"][0]), "impact": each} for each in impacts]
    return call.render("records/delete_several.html", keys=keys, chosen=chosen)


# members


async def _named(call: PageCall, form: Mapping[str, Sequence[str]]) -> Json:
    """Return the user whom a form names: a member by its id, somebody new by an id or an address."""
    if "user_id" in form:
        return {"user_id": form["user_id"][0]}
    user = _first(form, "user")
    if not user:
        raise InvalidRequest("Name the member: the user's ID or e-mail address.", param="user")
    if "@" not in user:
        return {"user_id": user}
    # An id may be an address.
    known = call.may("GET /user/list") and (await call.get("/user/list", user_ids=user))["total"]
    return {"user_id" if known else "user_email": user}


async def _back(call: PageCall, path: str, identity: str, done: str) -> bytes:
    return call.redirect(f"{path}/detail", id=identity, done=done)


@pages.post("/ui/teams/members", needs="POST /team/member_add")
async def change_team_members(call: PageCall) -> bytes:
    """Add a member to a team, remove one, or change the role of one."""
    form = await call.form()
    identity, act, named = _first(form, "id"), _first(form, "act"), await _named(call, form)
    team = {"team_id": identity}
    if act == "remove":
        await call.post("/team/member_delete", {**team, **named})
    elif act == "change":
        await call.post("/team/member_update", {**team, **named, **_role(form)})
    else:
        await call.post("/team/member_add", {**team, "member": {**named, **_role(form)}})
    return await _back(call, "/ui/teams", identity, _DONE.get(act, "added"))


@pages.post("/ui/organizations/members", needs="POST /organization/member_add")
async def change_organization_members(call: PageCall) -> bytes:
    """Add a member to an organization, remove one, or change the role of one."""
    form = await call.form()
    identity, act, named = _first(form, "id"), _first(form, "act"), await _named(call, form)
    organization = {"organization_id": identity}
    if act == "remove":
        await call.change("DELETE", "/organization/member_delete", {**organization, **named}, {})
    elif act == "change":
        await call.change("PATCH", "/organization/member_update", {**organization, **named, **_role(form)}, {})
    else:
        await call.post("/organization/member_add", {**organization, "member": {**named, **_role(form)}})
    return await _back(call, "/ui/organizations", identity, _DONE.get(act, "added"))


_DONE = {"remove": "removed", "change": "changed"}


def _role(form: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    role = _first(form, "role")
    return {"role": role} if role else {}
