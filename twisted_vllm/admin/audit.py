"""The audit log: what administrators did, when, and what it was before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import attrs
import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.admin.authorization import prefix_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.lists import place_of
from twisted_vllm.admin.models import (
    MOMENT_SCHEMA,
    MOMENT_WORDS,
    After,
    Json,
    PageNumber,
    PageSize,
    Query,
    Response,
    SortOrder,
    WalkedPage,
)
from twisted_vllm.admin.routing import Routes
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.paging import Page, PageQuery
from twisted_vllm.storage.records import AuditRecord

_DATE_LENGTH = len("2026-03-01")

#: the kinds of objects, and LiteLLM's tables of them
TABLES = {
    "key": "LiteLLM_VerificationToken",
    "user": "LiteLLM_UserTable",
    "team": "LiteLLM_TeamTable",
    "organization": "LiteLLM_OrganizationTable",
    "budget": "LiteLLM_BudgetTable",
    "end_user": "LiteLLM_EndUserTable",
    "model": "LiteLLM_ProxyModelTable",
}

_KINDS = {table: kind for kind, table in TABLES.items()}

_Start = Annotated[str, msgspec.Meta(description=f"The first moment: {MOMENT_WORDS}.", extra_json_schema=MOMENT_SCHEMA)]
_End = Annotated[
    str,
    msgspec.Meta(
        description="The last day (included), or the moment at which the result ends (excluded).",
        extra_json_schema=MOMENT_SCHEMA,
    ),
]


class AuditQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /audit/list``."""

    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 25
    actor: Annotated[
        str, msgspec.Meta(description="Who did it: `master`, or a key, its hash, or the first digits of its hash.")
    ] = ""
    action: Annotated[str, msgspec.Meta(description="What was done, such as `key/update`.")] = ""
    object_type: Annotated[
        str,
        msgspec.Meta(
            description="`key`, `user`, `team`, `organization`, `budget`, `end_user`, `model`, `request` or "
            "`configuration`."
        ),
    ] = ""
    object_id: Annotated[
        str, msgspec.Meta(description="The id of a user, a team or an end user, or a key as in `actor`.")
    ] = ""
    request_id: str = ""
    start_date: _Start = ""
    end_date: _End = ""
    sort_order: SortOrder = "desc"

    def page_query(self) -> PageQuery:
        """Return the page that is asked for, without the time."""
        names = ("actor", "action", "object_type", "object_id", "request_id")
        equals = {name: getattr(self, name) for name in names if getattr(self, name)}
        for name in ("object_id", "actor"):
            if name in equals:
                equals[name] = prefix_of(equals[name])
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals=equals,
            sort_by="at",
            descending=self.sort_order == "desc",
        )


class AuditEntry(Response, kw_only=True):
    """A change of one object."""

    id: int
    at: datetime
    actor: str
    actor_name: str
    action: str
    object_type: str
    object_id: str
    before: Json | None
    after: Json | None
    request_id: str
    client: str


class AuditList(WalkedPage, kw_only=True):
    """A page of the audit log."""

    audit_logs: tuple[AuditEntry, ...]


class ChangesQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /audit``, LiteLLM's audit log."""

    UNSUPPORTED = {
        **dict.fromkeys(("action", "search", "object_team_id", "object_key_hash")),
        "sort_by": "updated_at",
    }

    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 10
    changed_by: Annotated[str, msgspec.Meta(description="The name of a key, or `master`.")] = ""
    changed_by_api_key: Annotated[str, msgspec.Meta(description="As `actor` of ``/audit/list``.")] = ""
    table_name: Annotated[str, msgspec.Meta(description=f"One of {', '.join(TABLES.values())}.")] = ""
    object_id: Annotated[str, msgspec.Meta(description="As `object_id` of ``/audit/list``.")] = ""
    start_date: _Start = ""
    end_date: _End = ""
    sort_order: SortOrder = "desc"

    def page_query(self) -> PageQuery:
        """Return the page that is asked for, without the time."""
        equals = {
            "actor_name": self.changed_by,
            "actor": prefix_of(self.changed_by_api_key),
            "object_type": _KINDS.get(self.table_name, self.table_name),
            "object_id": prefix_of(self.object_id),
        }
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={name: value for name, value in equals.items() if value},
            sort_by="at",
            descending=self.sort_order == "desc",
        )


class Change(Response, kw_only=True):
    """A change of one object, as LiteLLM shows it."""

    id: str
    updated_at: datetime
    changed_by: str
    changed_by_api_key: Annotated[str, msgspec.Meta(description="The first digits of the key's hash, or `master`.")]
    action: Literal["created", "updated", "deleted"]
    table_name: str
    object_id: str
    before_value: Json | None
    updated_values: Json | None


class ChangeList(WalkedPage, kw_only=True):
    """A page of changes."""

    audit_logs: tuple[Change, ...]


routes = Routes()


@routes.get("/audit/list", query=AuditQuery, response=AuditList)
async def list_entries(call: AdminCall, query: AuditQuery) -> Json:
    """Return a page of the audit log, the newest entries first."""
    page = await _page(call, query)
    entries = [attrs.asdict(entry, recurse=False) for entry in page.records]
    return {"audit_logs": entries, **place_of(page, query.page_size)}


@routes.get("/audit", query=ChangesQuery, response=ChangeList)
async def list_changes(call: AdminCall, query: ChangesQuery) -> Json:
    """Return a page of the audit log as LiteLLM shows it, the newest changes first."""
    page = await _page(call, query)
    return {"audit_logs": [_report_change(entry) for entry in page.records], **place_of(page, query.page_size)}


def _page(call: AdminCall, query: AuditQuery | ChangesQuery) -> Deferred[Page[AuditRecord]]:
    page_query = query.page_query()
    since = _moment(query.start_date, "start_date")
    until = _moment(query.end_date, "end_date", end=True)
    return call.read(lambda transaction: transaction.page_of_audit(page_query, since, until))


def _report_change(entry: AuditRecord) -> Json:
    """Return an entry as `Change` describes it."""
    return {
        "id": str(entry.id),
        "updated_at": entry.at,
        "changed_by": entry.actor_name,
        "changed_by_api_key": entry.actor,
        "action": "created" if entry.before is None else "deleted" if entry.after is None else "updated",
        "table_name": TABLES.get(entry.object_type, entry.object_type),
        "object_id": entry.object_id,
        "before_value": entry.before,
        "updated_values": entry.after,
    }


def _moment(text: str, name: str, *, end: bool = False) -> datetime | None:
    """Return a date or a moment in UTC. As an end, a date without a time includes its day."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        return found + timedelta(days=1) if end and len(text) == _DATE_LENGTH else found
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"`{name}` must be a date, as in 2026-03-01, or a moment, as in 2026-03-01T12:00:00Z.", param=name
        ) from None
