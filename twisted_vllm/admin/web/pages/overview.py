"""The overview: what is wrong, what passes now and over a period, and what was spent of which budgets.

Administrators and viewers see the whole gateway; everybody else what is their own: spend, budgets and keys.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import msgspec

from twisted_vllm.admin.responses import send, send_json
from twisted_vllm.admin.web.page import PageCall, Pages

#: the periods to choose from, in minutes, and what they are called
PERIODS = {"5": "5 minutes", "15": "15 minutes", "60": "1 hour", "360": "6 hours", "1440": "24 hours"}
USUAL_PERIOD = "15"
#: the pages of what a problem is about
_PAGES = {
    "server": "/ui/servers",
    "model": "/ui/servers",
    "configuration": "/ui/config",
    "requests": "/ui/live",
}
#: the pages of those who have budgets
_HOLDERS = {
    "key": "/ui/keys",
    "user": "/ui/users",
    "team": "/ui/teams",
    "organization": "/ui/organizations",
    "end_user": "/ui/customers",
}

#: budgets in the table
_MOST_BUDGETS = 20
_NUMBER = re.compile(r"[\d.,]+")

pages = Pages()


@pages.get("/ui", title="Overview")
async def show(call: PageCall) -> bytes:
    """Show the page with what is known at once; what takes longer follows."""
    if not call.may("GET /gateway/traffic"):
        return call.render("overview/own.html")
    period = call.query.get("minutes", "")
    period = period if period in PERIODS else USUAL_PERIOD
    return call.render(
        "overview/gateway.html",
        traffic=await call.get("/gateway/traffic", minutes=period),
        periods=PERIODS,
        period=period,
        **await _problems(call),
    )


@pages.get("/ui/overview/traffic", needs="GET /gateway/traffic")
async def traffic(call: PageCall) -> bytes:
    """Return the figures of a period as JSON, for the charts."""
    found = await call.file("/gateway/traffic", minutes=call.query.get("minutes", USUAL_PERIOD))
    return send_json(call.request, msgspec.Raw(found))


@pages.get("/ui/overview/problems", needs="GET /gateway/problems")
async def problems(call: PageCall) -> bytes:
    """Return the list of problems, unless it is the one that is shown."""
    found = await _problems(call)
    if call.query.get("shown") == found["shown"]:
        return send(call.request, 204, [], b"")
    return call.fragment("overview/problems.html", "problems", **found)


@pages.get("/ui/overview/spend", needs="GET /spend/overview")
async def spend(call: PageCall) -> bytes:
    """Return what was spent of which budgets."""
    found = await call.get("/spend/overview", top="8")
    of = "today" if call.query.get("of") == "today" else "month"
    budgets = [{**each, "link": _holder_page(call, each)} for each in found["budgets"][:_MOST_BUDGETS]]
    return call.fragment(
        "overview/spend.html",
        "spend",
        found=found,
        shown=found[of],
        of=of,
        budgets=budgets,
        days=msgspec.json.encode(found["days"]).decode(),
        pages={kind: _existing(call, path) for kind, path in _HOLDERS.items()},
    )


async def _problems(call: PageCall) -> dict[str, Any]:
    found = await call.get("/gateway/problems")
    listed = [{**each, "link": _page_of(call, each)} for each in found["problems"]]
    # ages and shares alone are news once a minute
    minute = found["looked_at"][: len("2026-03-01T12:00")]
    news = [minute, *((each["code"], _NUMBER.sub("", each["message"]), each["severity"]) for each in listed)]
    return {
        "problems": listed,
        "shown": sha256(msgspec.json.encode(news)).hexdigest()[:16],
        "watched_since": found["watched_since"],
    }


def _page_of(call: PageCall, problem: dict[str, Any]) -> str:
    """Return the address of the page to look at for a problem; empty without one."""
    if problem["subject_type"] == "budget":
        kind, _, id = problem["subject"].partition("/")
        return _holder_page(call, {"kind": kind, "id": id, "api_key": id if kind == "key" else None})
    return _existing(call, _PAGES.get(problem["subject_type"], ""))


def _holder_page(call: PageCall, budget: dict[str, Any]) -> str:
    """Return the address of the page of whoever has a budget; empty without one."""
    kind, id = budget["kind"], budget["id"]
    if kind == "member":
        kind, id = "team", id.partition("/")[0]
    elif kind in ("key", "model_budget"):
        kind, id = "key", budget["api_key"] or ""
    page = _existing(call, _HOLDERS.get(kind, ""))
    return f"{page}/detail?id={quote(id, safe='')}" if page and id else ""


def _existing(call: PageCall, path: str) -> str:
    """Return the path of a page if there is one that the caller may open."""
    found = next((each for each in call.console.pages if each.path == path and each.method == "GET"), None)
    return path if found is not None and (not found.needs or call.may(found.needs)) else ""
