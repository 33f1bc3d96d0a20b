"""One request whole: its row of the ledger, and its prompt and answer where they were kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Row

from twisted_vllm.admin.limits import money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import Filters
from twisted_vllm.admin.reports.operations import failed_attempts
from twisted_vllm.admin.reports.scope import UsageScope, iso
from twisted_vllm.errors import NotFound
from twisted_vllm.storage.request_contents import read_contents
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels, page_of_rows, row_with_id
from twisted_vllm.usage.records import NO_DETAILS, RowDetails, details_of

#: requests with one ``x-request-id`` that are named, besides the newest
MAX_OTHERS = 20


def report_request(transaction: Transaction, scope: UsageScope, request_id: str) -> Json:
    """Return a request as `RequestReport` describes it.

    Raises:
        NotFound: there is none that the caller may see.
    """
    found = _rows(transaction, scope, request_id, 1 + MAX_OTHERS)
    if not found:
        raise NotFound("There is no such request, or its row is not kept any more.", param="request_id")
    row = found[0]
    labels = key_labels(transaction.connection, [row.key_id] if row.key_id else [])
    kept = read_contents(transaction.connection, row.id)
    details = _details(row.details)
    return {
        "id": row.id,
        "request_id": row.request_id,
        "response_id": row.response_id,
        "others": [each.id for each in found[1:]],
        "time": iso(row.time),
        **_caller(row, labels.get(row.key_id)),
        "model": row.model,
        "fallback": details.fallback or None,
        "server": row.server if scope.sees_all else None,
        "route": row.route,
        "method": row.method,
        "status": row.status,
        "outcome": row.outcome,
        "error": row.error,
        "stream": row.stream,
        "timings": {
            "queued_us": details.queued_us,
            "first_byte_us": row.first_byte_us,
            # of several requests that are one row, as each has
            "total_us": row.total_us // (row.requests or 1),
        },
        "attempts": failed_attempts(row.attempts, with_server=scope.sees_all),
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "total_tokens": row.total_tokens,
        "audio_ms": row.audio_ms,
        "estimated": row.estimated,
        "spend": money(row.cost),
        "prices": row.prices,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
        "requests": row.requests or 1,
        "headers": row.headers or {},
        "metadata": None if row.spend_metadata is None else msgspec.Raw(row.spend_metadata.encode()),
        "trace_id": details.trace_id or None,
        "contents": None if kept is None else msgspec.Raw(kept),
    }


def contents_as_litellm(transaction: Transaction, scope: UsageScope, request_id: str) -> Json | None:
    """Return prompt and answer as `LogPayload` describes them; None if there is no such request."""
    found = _rows(transaction, scope, request_id, 1)
    if not found:
        return None
    row = found[0]
    kept = read_contents(transaction.connection, row.id)
    if kept is None:
        return {"messages": {}, "response": {}, "proxy_server_request": {}}
    # A gateway without sinks loads nothing of them, until somebody asks for this.
    from twisted_vllm.observability.sinks.litellm_payload import response_of, usage_of

    contents: Mapping[str, Any] = msgspec.json.decode(kept)
    parameters, tools = contents.get("parameters"), contents.get("tools")
    asked = contents.get("input")
    body: Json = {"model": row.model, "messages" if isinstance(asked, list) else "prompt": asked}
    if isinstance(parameters, dict):
        body = {**parameters, **body}
    if tools:
        body["tools"] = tools
    output = contents.get("output")
    result = output.get("result") or output.get("error") if isinstance(output, dict) else None
    return {
        "messages": asked,
        "response": result
        or response_of(output, row.response_id or row.request_id, row.time // 1_000_000, row.model, usage_of(row))
        or {},
        "proxy_server_request": body,
    }


def _rows(transaction: Transaction, scope: UsageScope, request_id: str, limit: int) -> list[Row[Any]]:
    """Return the rows of a request that the caller may see, the newest first; one whose id it is stands alone."""
    connection = transaction.connection
    equals = scope.filters(connection, Filters())
    if equals is None:
        return []
    row = row_with_id(connection, request_id, equals)
    if row is not None:
        return [row]
    return list(page_of_rows(connection, RowFilter(equals=equals, request_id=request_id), 0, limit))


def _caller(row: Row[Any], label: KeyLabel | None) -> Json:
    return {
        "kind": row.kind,
        "key_id": row.key_id or None,
        "api_key": None if label is None else label.token,
        "key_alias": row.key_name or None,
        "user_id": row.user_id,
        "team_id": row.team_id,
        "organization_id": row.organization_id or None,
        "end_user": row.end_user or None,
        "tags": list(dict.fromkeys((*row.tags, *(row.request_tags or ())))),
    }


def _details(text: str | None) -> RowDetails:
    if text is None:
        return NO_DETAILS
    try:
        return details_of(text)
    except msgspec.MsgspecError:
        # a later version's
        return NO_DETAILS
