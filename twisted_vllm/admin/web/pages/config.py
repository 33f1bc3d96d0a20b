"""The configuration: what is in force and where it came from, the last reload, and the level of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.config.log import LEVELS
from twisted_vllm.errors import GatewayError, InvalidConfiguration

pages = Pages()

#: settings that differ from their defaults, or all
CHANGED, ALL = "changed", "all"

#: for how long a level of the log may be chosen, in seconds; 0 is until the next reload
_TIMES = ((600, "10 minutes"), (3_600, "an hour"), (28_800, "8 hours"), (0, "until the next reload"))

#: entries of the model list on a page
_PAGE_SIZE = 50


@pages.get("/ui/config", needs="GET /config", title="Configuration", group="Operation")
async def show(call: PageCall) -> bytes:
    """Show the settings in effect."""
    return await _show(call)


async def _show(call: PageCall, status: int = 200, problem: str = "") -> bytes:
    search = call.query.get("search", "").strip()[:200]
    shown = call.query.get("show") or (ALL if search else CHANGED)
    found = await call.get("/config", search=search, changed="true" if shown == CHANGED else "false")
    try:
        level = await call.get("/config/log_level")
    except GatewayError:
        # the log is another program's
        level = None
    rows = [{**each, "shown": text_of(each["value"]), "usual": text_of(each["default"])} for each in found["settings"]]
    for each in rows:
        each["place"] = place_of(each["source"])
    return call.render(
        "config/settings.html",
        status=status,
        found=found,
        rows=rows,
        search=search,
        shown=shown,
        level=level,
        levels=LEVELS,
        times=_TIMES,
        problem=problem,
        reloaded="reloaded" in call.query,
    )


@pages.get("/ui/config/models", needs="GET /config/models")
async def show_models(call: PageCall) -> bytes:
    """Show the model list in effect."""
    search = call.query.get("search", "").strip()[:200]
    found = await call.get(
        "/config/models", search=search, page=call.query.get("page") or "1", page_size=str(_PAGE_SIZE)
    )
    rows = [
        {
            **each,
            "said": {name: text_of(value) for name, value in each["values"].items()},
            "place": place_of(each["source"]),
        }
        for each in found["data"]
    ]
    return call.render("config/models.html", found=found, rows=rows, search=search)


@pages.post("/ui/config/reload", needs="POST /config/reload")
async def reload(call: PageCall) -> bytes:
    """Read the configuration again. What came of it is on the page, as the last reload."""
    try:
        await call.post("/config/reload", {})
    except InvalidConfiguration:
        # its problems are those of the last reload
        pass
    except GatewayError as error:
        return await _show(call, error.status, error.message)
    return call.redirect("/ui/config", reloaded="1")


@pages.post("/ui/config/log-level", needs="PUT /config/log_level")
async def set_level(call: PageCall) -> bytes:
    """Change the level of the log."""
    form = await call.form()
    seconds = form.get("seconds", [""])[0]
    body: dict[str, Any] = {"level": form.get("level", [""])[0]}
    if seconds.isdecimal() and int(seconds):
        body["seconds"] = int(seconds)
    try:
        await call.change("PUT", "/config/log_level", body, {})
    except GatewayError as error:
        return await _show(call, error.status, error.message)
    return call.redirect("/ui/config")


def text_of(value: object) -> str:
    """Return a value as a person reads it: texts as they are, lists and mappings as JSON with one item a line."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    encoded = msgspec.json.encode(value)
    if isinstance(value, list | dict) and len(encoded) > 60:
        encoded = msgspec.json.format(encoded, indent=1)
    return encoded.decode()


def place_of(source: Mapping[str, Any]) -> str:
    """Return where a value was written, in words."""
    place = f"{source['file']}:{source['line']}" if source["line"] else source["file"]
    return ", ".join(each for each in (place, source["name"]) if each) or source["kind"]
