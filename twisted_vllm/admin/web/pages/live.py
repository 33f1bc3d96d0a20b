"""The page of the requests in flight, which updates itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_vllm.admin.fields import MAX_LENGTH
from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.page import Events, PageCall, Pages

pages = Pages()

_LIVE, _CUT = "/request/live", "/request/cut"

#: seconds between two messages
INTERVAL = 2.0

#: what a request may be doing, and how the page calls it
STATES: Mapping[str, str] = {
    "reading_body": "Reading its body",
    "preparing": "Preparing",
    "queued": "Queued",
    "waiting": "Waiting for the first byte",
    "streaming": "Streaming",
    "paused": "Client reads slowly",
    "tunnel": "WebSocket",
}
#: the orders of the list: how the page calls each, and what the API is asked for
SORTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "-age": ("Oldest first", {"sort_by": "age", "sort_order": "desc"}),
    "age": ("Newest first", {"sort_by": "age", "sort_order": "asc"}),
    "-tokens": ("Most tokens first", {"sort_by": "tokens", "sort_order": "desc"}),
    "tokens": ("Fewest tokens first", {"sort_by": "tokens", "sort_order": "asc"}),
}
#: how many requests the list names
LIMITS = ("50", "100", "200", "500")
_DEFAULTS = {"sort": "-age", "limit": "100"}
#: the filters that hold any text
_TEXTS = ("model", "key", "user_id", "team_id", "server")


@pages.get("/ui/live", needs=f"GET {_LIVE}", title="Live", group="Operation")
async def show(call: PageCall) -> bytes:
    """Show the filters; the list comes as events."""
    return call.render(
        "live.html",
        chosen=_chosen(call),
        defaults=_DEFAULTS,
        states=[("", "Any state"), *STATES.items()],
        sorts=[(name, words) for name, (words, _) in SORTS.items()],
        limits=LIMITS,
        sees_servers=call.reads_everything,
        may_cut=call.may(f"POST {_CUT}"),
    )


@pages.events("/ui/live/events", needs=f"GET {_LIVE}")
async def events(call: PageCall) -> Events:
    """Send the list, as ``GET /request/live`` answers."""
    chosen = _chosen(call)
    order = SORTS[chosen.pop("sort")][1]
    wanted = {name: value for name, value in (*chosen.items(), *order.items()) if value}
    # what the API refuses is the answer, and not a stream that breaks off
    await call.raw(_LIVE, **wanted)

    async def produce() -> Any:
        return await call.raw(_LIVE, **wanted)

    return Events(INTERVAL, produce)


@pages.post("/ui/live/cut", needs=f"POST {_CUT}")
async def cut(call: PageCall) -> bytes:
    """End a request."""
    form = await call.form()
    body = {"request_id": form.get("request_id", [""])[0], "reason": form.get("reason", [""])[0].strip()}
    return send_json(call.request, await call.post(_CUT, body))


def _chosen(call: PageCall) -> dict[str, str]:
    """Return the filters, the order and the number of requests of a query; what the page does not know is left out."""
    query = call.query
    chosen = {name: query.get(name, "").strip()[:MAX_LENGTH] for name in _TEXTS}
    if not call.reads_everything:
        # which server answers is for administrators
        chosen["server"] = ""
    chosen["state"] = query.get("state", "") if query.get("state") in STATES else ""
    chosen["sort"] = query["sort"] if query.get("sort") in SORTS else _DEFAULTS["sort"]
    chosen["limit"] = query["limit"] if query.get("limit") in LIMITS else _DEFAULTS["limit"]
    return chosen
