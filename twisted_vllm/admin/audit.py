"""The audit log: what administrators did, when, and what it was before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import attrs
import msgspec

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import (
    MOMENT_SCHEMA,
    MOMENT_WORDS,
    Json,
    NumberedPage,
    PageNumber,
    PageSize,
    Query,
    Response,
    SortOrder,
)
from twisted_vllm.admin.routing import Routes
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.repository import PageQuery

_DATE_LENGTH = len("2026-03-01")


class AuditQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /audit/list``."""

    page: PageNumber = 1
    page_size: PageSize = 25
    actor: Annotated[
        str, msgspec.Meta(description="Who did it: `master`, or a key, its hash, or the first digits of its hash.")
    ] = ""
    action: Annotated[str, msgspec.Meta(description="What was done, such as `key/update`.")] = ""
    object_type: Annotated[
        str, msgspec.Meta(description="`key`, `user`, `team`, `organization`, `budget`, `end_user` or `model`.")
    ] = ""
    object_id: Annotated[
        str, msgspec.Meta(description="The id of a user, a team or an end user, or a key as in `actor`.")
    ] = ""
    request_id: str = ""
    start_date: Annotated[
        str, msgspec.Meta(description=f"The first moment: {MOMENT_WORDS}.", extra_json_schema=MOMENT_SCHEMA)
    ] = ""
    end_date: Annotated[
        str,
        msgspec.Meta(
            description="The last day (included), or the moment at which the result ends (excluded).",
            extra_json_schema=MOMENT_SCHEMA,
        ),
    ] = ""
    sort_order: SortOrder = "desc"

    def page_query(self) -> PageQuery:
        """Return the page that is asked for, without the time."""
        names = ("actor", "action", "object_type", "object_id", "request_id")
        equals = {name: getattr(self, name) for name in names if getattr(self, name)}
        for name in ("object_id", "actor"):
            if name in equals:
                equals[name] = _prefix_of(equals[name])
        return PageQuery(
            page=self.page,
            size=self.page_size,
            equals=equals,
            sort_by="id",
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


class AuditList(NumberedPage, kw_only=True):
    """A page of the audit log."""

    audit_logs: tuple[AuditEntry, ...]


routes = Routes()


@routes.get("/audit/list", query=AuditQuery, response=AuditList)
async def list_entries(call: AdminCall, query: AuditQuery) -> Json:
    """Return a page of the audit log, the newest entries first."""
    page_query = query.page_query()
    since = _moment(query.start_date, "start_date")
    until = _moment(query.end_date, "end_date", end=True)
    page = await call.read(lambda transaction: transaction.page_of_audit(page_query, since, until))
    return {
        "audit_logs": [attrs.asdict(entry, recurse=False) for entry in page.records],
        "total": page.total_count,
        "page": page.current_page,
        "page_size": query.page_size,
        "total_pages": page.total_pages,
    }


def _prefix_of(identity: str) -> str:
    """Return the hash prefix of a key or its hash, which the audit log has in place of a key; other ids as they are."""
    token = token_of(identity)
    is_key = identity.startswith("sk-") or token == identity.lower()
    return token[:HASH_PREFIX_LENGTH] if is_key else identity


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
