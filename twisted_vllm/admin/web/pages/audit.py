"""The audit log: who changed what, and what it was before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import attrs
import msgspec

from twisted_vllm.admin.audit import TABLES
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.pages.usage_filters import address
from twisted_vllm.errors import GatewayError, NotFound

pages = Pages()

PAGE_SIZE = 50
#: characters of a value that is shown
MOST_TEXT = 2_000

_LIST = "GET /audit/list"
_FILTERS = ("actor", "action", "object_type", "object_id", "request_id", "start_date", "end_date")
#: what changes with each change, and says nothing of it
_ALWAYS = frozenset(("updated_at", "updated_by"))


@pages.get("/ui/audit", needs=_LIST, title="Audit", group="Operation")
async def show_list(call: PageCall) -> bytes:
    """Show a page of the changes, the newest first."""
    chosen = {name: value for name in _FILTERS if (value := call.query.get(name, "").strip())}
    found: dict[str, Any] | None = None
    problem, status = "", 200
    try:
        found = await call.get(
            "/audit/list",
            **chosen,
            page=call.query.get("page", "1"),
            after=call.query.get("after") or None,
            page_size=PAGE_SIZE,
        )
    except GatewayError as error:
        problem, status = error.message, error.status
    entries = [] if found is None else found["audit_logs"]
    following = None if found is None else found.get("next")
    return call.render(
        "audit/list.html",
        status=status,
        problem=problem,
        chosen=chosen,
        kinds=[("", "All"), *((kind, kind.replace("_", " ")) for kind in TABLES)],
        entries=[{**entry, "words": in_words(entry), "link": _link(entry)} for entry in entries],
        found=found,
        next=address("/ui/audit", chosen, after=following) if following else "",
        first=address("/ui/audit", chosen) if call.query.get("after") else "",
    )


@pages.get("/ui/audit/<string:id>", needs=_LIST)
async def show_one(call: PageCall) -> bytes:
    """Show a change: what was before, and what is after it."""
    entry = await _entry(call)
    return call.render(
        "audit/entry.html",
        entry=entry,
        words=in_words(entry),
        changes=changes_of(entry["before"], entry["after"]),
        record=_record(entry),
    )


async def _entry(call: PageCall) -> dict[str, Any]:
    """Return the change with the id in the path, which the time in the address finds.

    Raises:
        NotFound: there is none.
    """
    try:
        at = datetime.fromisoformat(call.query.get("at", ""))
        until = (at + timedelta(microseconds=1)).isoformat()
    except (ValueError, OverflowError):
        raise NotFound("There is no such entry of the audit log.") from None
    after: str | None = None
    while True:
        found = await call.get("/audit/list", start_date=at.isoformat(), end_date=until, page_size=100, after=after)
        for entry in found["audit_logs"]:
            if str(entry["id"]) == call.path["id"]:
                return dict(entry)
        after = found.get("next")
        if not after:
            raise NotFound("There is no such entry of the audit log, or it is not kept any more.")


def _link(entry: Mapping[str, Any]) -> str:
    return address(f"/ui/audit/{entry['id']}", at=entry["at"])


#: where the page of a record is
_RECORDS = {
    "user": "/ui/users/detail",
    "team": "/ui/teams/detail",
    "organization": "/ui/organizations/detail",
    "budget": "/ui/budgets/detail",
    "end_user": "/ui/customers/detail",
}


def _record(entry: Mapping[str, Any]) -> str:
    """Return the page of what was changed; empty if it has none. The audit log does not know the hash of a key."""
    path = _RECORDS.get(entry["object_type"], "")
    return address(path, id=entry["object_id"]) if path and entry["after"] is not None else ""


#: what acts are called that are no plain change
_VERBS = {
    "block": "blocked",
    "unblock": "unblocked",
    "regenerate": "regenerated",
    "drain": "drained",
    "undrain": "undrained",
    "cut": "cut",
    "reset_spend": "reset the spend of",
    "sleep": "put to sleep",
    "wake_up": "woke up",
    "reload": "reloaded",
}
#: where records have their names
_NAMES = ("key_alias", "team_alias", "organization_alias", "user_email", "alias", "model_name")


def in_words(entry: Mapping[str, Any]) -> str:
    """Return a change in a sentence."""
    who = entry["actor_name"] or entry["actor"]
    what = f"{entry['object_type'].replace('_', ' ')} {_called(entry)}".rstrip()
    verb = _VERBS.get(entry["action"].rpartition("/")[2])
    if verb is not None:
        return f"{who} {verb} the {what}"
    if entry["before"] is None and entry["after"] is None:
        return f"{who} called {entry['action']} for the {what}"
    if entry["before"] is None:
        return f"{who} created the {what}"
    if entry["after"] is None:
        return f"{who} deleted the {what}"
    names = [each.name for each in changes_of(entry["before"], entry["after"]) if each.name not in _ALWAYS]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{who} changed {shown or 'nothing'} of the {what}"


def _called(entry: Mapping[str, Any]) -> str:
    """Return the name of what was changed, with its id; the id alone where the log knows no name."""
    record = {**(entry["before"] or {}), **(entry["after"] or {})}
    name = next((record[each] for each in _NAMES if isinstance(record.get(each), str) and record[each]), "")
    id = str(entry["object_id"])
    return f"{name} ({id})" if name and name != id else id


@attrs.frozen
class Change:
    """A field that differs.

    Attributes:
        name: the field, with those inside of it as ``metadata.note``.
        how: ``changed``, ``added`` or ``removed``.
        before: its value; empty if there was none.
        after: likewise.
    """

    name: str
    how: str
    before: str
    after: str


def changes_of(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[Change]:
    """Return the fields that differ, in the order of their names; those that follow from each change come last."""
    found = _differences("", before or {}, after or {})
    return sorted(found, key=lambda each: (each.name in _ALWAYS, each.name))


def _differences(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    found: list[Change] = []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict) and old and new:
            found += _differences(f"{prefix}{name}.", old, new)
            continue
        had, has = not _is_nothing(old), not _is_nothing(new)
        if had or has:
            how = "changed" if had and has else "added" if has else "removed"
            found.append(Change(f"{prefix}{name}", how, _shown(old) if had else "", _shown(new) if has else ""))
    return found


def _is_nothing(value: Any) -> bool:
    return value is None or value == [] or value == {} or value == ""


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        text = ", ".join(value)
    else:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"
