"""The endpoint of the audit: what administrators did."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import attrs
from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorize import token_of
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import AuditQuery, parse_query
from twisted_vllm.admin.respond import read_query, send_json
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.repository import PageQuery

_FILTERS = ("actor", "action", "object_type", "object_id", "request_id")

#: the length of a date without a time, as in 2026-03-01
_DATE_LENGTH = 10


@attrs.frozen
class AuditSearch:
    """What ``/audit/list`` was asked.

    Attributes:
        query: which page of what.
        since: the first moment that counts.
        until: the first moment that does not count any more.
    """

    query: PageQuery
    since: datetime | None
    until: datetime | None


class AuditEndpoints:
    """Shows who did what, when, and what it was before."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def list_entries(self, request: IRequest) -> bytes:
        """Answer ``GET /audit/list``: a page of what administrators did, the newest first."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse_audit(read_query(request))
        page = await self._office.read(
            lambda transaction: transaction.page_of_audit(asked.query, asked.since, asked.until)
        )
        return send_json(
            request,
            {
                "audit_logs": [attrs.asdict(entry, recurse=False) for entry in page.records],
                "total": page.total_count,
                "page": page.current_page,
                "page_size": asked.query.size,
                "total_pages": page.total_pages,
            },
        )


def parse_audit(query: Mapping[str, str]) -> AuditSearch:
    """Return what is asked of ``/audit/list``.

    Args:
        query: the parameters of the query. Dates are ISO 8601 and in UTC unless they say otherwise; a last date without
            a time is meant with its whole day.

    Raises:
        InvalidRequest: a parameter is not known, or its value is not one that it takes.
    """
    asked = parse_query(query, AuditQuery)
    equals = {name: getattr(asked, name) for name in _FILTERS if getattr(asked, name)}
    for name in ("object_id", "actor"):
        if name in equals:
            equals[name] = _prefix_of(equals[name])
    return AuditSearch(
        query=PageQuery(
            page=asked.page,
            size=asked.page_size,
            equals=equals,
            sort_by="id",
            descending=asked.sort_order == "desc",
        ),
        since=_moment(asked.start_date, "start_date"),
        until=_moment(asked.end_date, "end_date", end=True),
    )


def _prefix_of(identity: str) -> str:
    """Return what the audit calls a key that is given as it is or as its hash; anything else as it is."""
    token = token_of(identity)
    is_key = identity.startswith("sk-") or token == identity.lower()
    return token[:HASH_PREFIX_LENGTH] if is_key else identity


def _moment(text: str, name: str, *, end: bool = False) -> datetime | None:
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
