"""Usage in LiteLLM's shapes. Money becomes JSON numbers of all the digits that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from twisted_vllm.admin.allowances import money
from twisted_vllm.admin.spend_queries import iso
from twisted_vllm.storage.usage.queries.rows import KeyLabel
from twisted_vllm.storage.usage.tables import SUMS

#: what LiteLLM calls the maker of everything that comes from a vLLM server
PROVIDER = "hosted_vllm"
_CALL_TYPE = "pass_through_endpoint"
_MASTER = "master"


def show_row(row: Row[Any], labels: Mapping[str, KeyLabel], *, server: bool) -> dict[str, Any]:
    """Return a row as LiteLLM shows it.

    Args:
        row: of the ledger.
        labels: of the keys that are there still, by their ids.
        server: whether to name the server, which is for administrators.
    """
    label = labels.get(row.key_id)
    end = row.time + row.total_us
    first = end if row.first_byte_us is None else row.time + row.first_byte_us
    success = row.outcome == "completed" and row.status < 400
    return {
        "request_id": row.request_id,
        "call_type": _CALL_TYPE,
        "api_key": row.key_hash if label is None else label.token,
        "spend": money(row.cost),
        "total_tokens": row.total_tokens,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "startTime": iso(row.time),
        "endTime": iso(end),
        "request_duration_ms": row.total_us // 1000,
        "completionStartTime": iso(first),
        "model": row.model,
        "model_id": None,
        "model_group": row.model,
        "custom_llm_provider": PROVIDER,
        "api_base": row.server if server else None,
        "user": row.user_id or "",
        "team_id": row.team_id,
        "organization_id": None,
        "end_user": row.end_user or "",
        "request_tags": row.tags,
        "cache_hit": "False",
        "cache_key": None,
        "requester_ip_address": None,
        "session_id": None,
        "messages": {},
        "response": {},
        "status": "success" if success else "failure",
        "metadata": {
            "usage_id": row.id,
            "user_api_key_alias": row.key_name,
            "key_id": row.key_id,
            "kind": row.kind,
            "method": row.method,
            "route": row.route,
            "status_code": row.status,
            "outcome": row.outcome,
            "error_code": row.error or None,
            "stream": row.stream,
            "cached_tokens": row.cached_tokens,
            "reasoning_tokens": row.reasoning_tokens,
            "audio_seconds": row.audio_ms / 1000,
            "estimated": row.estimated,
            "prices": row.prices,
            "headers": row.headers or {},
            "bytes_in": row.bytes_in,
            "bytes_out": row.bytes_out,
        },
    }


def show_metrics(sums: Sequence[int]) -> dict[str, Any]:
    """Return sums as LiteLLM's reports by day show them."""
    of = dict(zip(SUMS, sums, strict=True))
    return {
        "spend": money(of["cost"]),
        "prompt_tokens": of["prompt_tokens"],
        "completion_tokens": of["completion_tokens"],
        "cache_read_input_tokens": of["cached_tokens"],
        "cache_creation_input_tokens": 0,
        "total_tokens": of["total_tokens"],
        "successful_requests": of["successful"],
        "failed_requests": of["failed"],
        "api_requests": of["requests"],
        "total_response_time_ms": of["total_us"] // 1000,
    }


def name_of_key(key_id: str, labels: Mapping[str, KeyLabel]) -> str:
    """Return what stands for a key: its hash, or of a deleted key its lasting id."""
    if not key_id:
        return _MASTER
    label = labels.get(key_id)
    return key_id if label is None else label.token
