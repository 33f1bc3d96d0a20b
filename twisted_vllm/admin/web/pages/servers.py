"""The servers: how each is, taking one out of service, and acts on them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from twisted_vllm.admin.servers import report_server
from twisted_vllm.admin.web.page import Events, PageCall, Pages
from twisted_vllm.admin.web.shared import Shared
from twisted_vllm.admin.web.templates import NOTHING, moment, number, percent, seconds
from twisted_vllm.auth.steering_headers import SERVER
from twisted_vllm.errors import GatewayError, NotFound

pages = Pages()

#: servers on one page
PAGE_SIZE = 50
#: seconds between two messages to those who watch
INTERVAL = 2.0
#: seconds: no server answers sooner. The measure fades to nothing while a server gets no requests
LEAST_LATENCY = 1e-4

#: each state in a word, and how it is shown
STATES: Mapping[str, tuple[str, str]] = {
    "closed": ("serves", "good"),
    "open": ("taken out", "bad"),
    "half_open": ("on trial", "warn"),
    "dead": ("dead", "bad"),
    "sleeping": ("sleeps", "warn"),
    "drained": ("drained", "warn"),
    "not_configured": ("not configured", ""),
}

#: what an act needs that a key may lack
_ACTS_NEED = (
    "Acts on servers need the master key, or a key whose allowed_routes name them and whose granted_headers hold "
    "x-vllm-passthrough-server."
)


def shown(server: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a server of ``GET /server/list`` as pages and their scripts show it: texts by field."""
    since = server["since"]
    if isinstance(since, str):
        since = datetime.fromisoformat(since)
    words, kind = STATES[server["state"]]
    errors = sum(server["errors"].values())
    return {
        "server": server["server"],
        "kind": kind,
        "drained": server["drained"] is not None,
        "fields": {
            "state": words,
            "reason": server["reason"],
            "why": server["reason"] or NOTHING,
            "since": moment(since),
            "age": seconds(max((now - since).total_seconds() // 1, 0.0)),
            "in_flight": number(server["in_flight"]),
            "queued": number(server["queued"]),
            "latency": _latency(server["latency_seconds"]),
            "running": number(server["running"]),
            "waiting": number(server["waiting"]),
            "kv_usage": percent(server["kv_cache_usage"]),
            "cache_hits": percent(server["prefix_cache_hit_ratio"]),
            "errors": number(errors),
            "version": server["version"] or NOTHING,
        },
    }


def _latency(measured: float | None) -> str:
    """Return a latency; nothing where it has faded away, because the server got no request for long."""
    return NOTHING if measured is None or measured < LEAST_LATENCY else seconds(measured)


def alone_for(server: Mapping[str, Any]) -> list[str]:
    """Return the models whose requests are refused while a server gets none: it is their only one, without fallback."""
    names = (
        each["model_name"] or "models without an entry"
        for each in server["models"]
        if not each["other_servers"] and not each["fallbacks"]
    )
    return list(dict.fromkeys(names))


def watch(call: PageCall) -> Shared[list[dict[str, Any]]]:
    """Return what all who watch the servers see: computed once for them."""
    found: Shared[list[dict[str, Any]]] | None = call.console.parts.get("servers")
    if found is not None:
        return found
    context = call.context

    async def compute() -> list[dict[str, Any]]:
        now = context.now()
        return [shown(report_server(row), now) for row in await context.servers().rows()]

    found = Shared(context.clock, INTERVAL / 2, compute)
    parts: Any = call.console.parts
    parts["servers"] = found
    return found


@pages.get("/ui/servers", needs="GET /server/list", title="Servers", group="Operation")
async def list_servers(call: PageCall) -> bytes:
    """Show all servers."""
    wanted = call.query.get("search", "").strip()
    found = (await call.get("/server/list"))["servers"]
    if wanted:
        found = [each for each in found if _has(each, wanted)]
    pages_of_all = max(-(-len(found) // PAGE_SIZE), 1)
    page = min(_page_number(call.query.get("page", "")), pages_of_all)
    some = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    return call.render(
        "servers/list.html",
        servers=[{**each, "shown": shown(each, call.context.now())} for each in some],
        page=page,
        pages=pages_of_all,
        total=len(found),
        search=wanted,
        **await _acts(call),
    )


@pages.get("/ui/servers/detail", needs="GET /server/list")
async def show(call: PageCall) -> bytes:
    """Show one server."""
    name = call.query.get("server", "")
    found = (await call.get("/server/list", server=name))["servers"] if name else []
    if not found:
        raise NotFound("No server has this name. It may have left the configuration.", param="server")
    server = found[0]
    return call.render(
        "servers/detail.html",
        server={**server, "shown": shown(server, call.context.now())},
        alone_for=alone_for(server),
        done=call.query.get("done", ""),
        **await _acts(call),
    )


@pages.events("/ui/servers/events", needs="GET /server/list")
async def follow(call: PageCall) -> Events:
    """Tell how the servers are."""
    return Events(INTERVAL, watch(call).get)


@pages.post("/ui/servers/drain", needs="POST /server/drain")
async def drain(call: PageCall) -> bytes:
    """Take a server out of service."""
    return await _put(call, "/server/drain", "drained")


@pages.post("/ui/servers/undrain", needs="POST /server/undrain")
async def undrain(call: PageCall) -> bytes:
    """Put a server into service again."""
    return await _put(call, "/server/undrain", "undrained")


async def _put(call: PageCall, route: str, done: str) -> bytes:
    form = await call.form()
    body = {name: form.get(name, [""])[0] for name in ("server", "reason")}
    answer = await call.post(route, {name: value for name, value in body.items() if value or name == "server"})
    if not answer["server"]["configured"] and done == "undrained":
        # nothing is known of it any more
        return call.redirect("/ui/servers")
    return call.redirect("/ui/servers/detail", server=answer["server"]["server"], done=done)


async def _acts(call: PageCall) -> dict[str, Any]:
    """Return whether the caller may act on servers, and why not."""
    principal = call.principal
    may_act = principal.is_administrator or SERVER in principal.granted_headers
    if may_act and not principal.is_administrator:
        try:
            may_act = (await call.get("/key/may_call", route="/vllm/sleep", method="post"))["allowed"]
        except GatewayError:
            may_act = False
    return {"may_act": may_act, "acts_need": _ACTS_NEED, "may_drain": call.may("POST /server/drain")}


def _has(server: Mapping[str, Any], wanted: str) -> bool:
    names = (server["server"], server["state"], *(each["model_name"] for each in server["models"]))
    return any(wanted.lower() in name.lower() for name in names)


def _page_number(text: str) -> int:
    return max(int(text), 1) if text.isascii() and text.isdigit() and len(text) < 10 else 1
