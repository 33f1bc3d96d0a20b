"""Finished requests as LiteLLM's callbacks get them: ``StandardLoggingPayload`` (LiteLLM 1.108, ``types/utils.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from twisted_vllm.observability.request_event import RequestEvent, is_success

#: the names of LiteLLM's calls, by the end of the route
_CALL_TYPES = {
    "chat/completions": "acompletion",
    "completions": "atext_completion",
    "embeddings": "aembedding",
    "responses": "aresponses",
    "messages": "anthropic_messages",
    "rerank": "arerank",
    "score": "arerank",
    "transcriptions": "atranscription",
    "translations": "atranscription",
    "speech": "aspeech",
}
PASS_THROUGH = "pass_through_endpoint"

#: LiteLLM's further fields, for whose subjects the gateway has nothing
_UNKNOWN = dict.fromkeys(
    (
        *("autorouter_baseline_observation", "autorouter_savings", "autorouter_savings_estimate", "classifier_input"),
        *("originating_request_masked", "request_model_access_groups", "zero_cost_diagnostic"),
    )
)
_UNKNOWN_METADATA = dict.fromkeys(
    (
        *("cold_storage_object_key", "mcp_tool_call_metadata", "routing_decision", "team_alias", "user_agent"),
        *("used_client_oauth_token", "user_api_key_auth_metadata", "user_api_key_org_alias", "user_api_key_project_id"),
        *("user_api_key_project_alias", "user_api_key_team_max_budget", "user_api_key_team_spend"),
        *("user_api_key_user_max_budget", "user_api_key_user_spend", "vector_store_request_metadata"),
    )
)


def payload_of(event: RequestEvent) -> dict[str, object]:
    """Return a request as LiteLLM's payload. Fields that the gateway does not know are null."""
    said = _contents_of(event)
    success = is_success(event.status, event.outcome)
    first_byte = event.started + (event.total_ms if event.first_byte_ms is None else event.first_byte_ms) / 1000
    usage = usage_of(event)
    metadata = _object(event.metadata)
    return {
        "id": event.response_id or event.request_id,
        "trace_id": event.trace_id or event.request_id,
        "session_id": event.session_id or None,
        "litellm_call_id": event.request_id,
        "call_type": call_type(event.route),
        "stream": event.stream,
        "response_cost": event.cost_usd,
        "cost_breakdown": None,
        "response_cost_failure_debug_info": None,
        "status": "success" if success else "failure",
        "status_fields": {"llm_api_status": "success" if success else "failure", "guardrail_status": "not_run"},
        "custom_llm_provider": "hosted_vllm",
        "total_tokens": event.total_tokens,
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "startTime": event.started,
        "endTime": event.ended,
        "completionStartTime": first_byte,
        "response_time": round(event.total_ms / 1000, 6),
        "model_map_information": {"model_map_key": event.model, "model_map_value": None},
        "model": event.model,
        "model_id": event.model_id or None,
        "model_group": event.group or event.model,
        "api_base": event.server,
        "metadata": {
            "user_api_key_hash": event.key_hash or None,
            "user_api_key_alias": event.key_name or None,
            "user_api_key_spend": None,
            "user_api_key_max_budget": None,
            "user_api_key_budget_reset_at": None,
            "user_api_key_org_id": event.organization_id,
            "user_api_key_team_id": event.team_id,
            "user_api_key_user_id": event.user_id,
            "user_api_key_user_email": None,
            "user_api_key_team_alias": None,
            "user_api_key_end_user_id": event.end_user,
            "user_api_key_request_route": event.route,
            "spend_logs_metadata": metadata,
            "requester_ip_address": event.client,
            "requester_metadata": metadata,
            "requester_custom_headers": None,
            "prompt_management_metadata": None,
            "applied_guardrails": [],
            "usage_object": usage,
            "team_id": event.team_id,
            **_UNKNOWN_METADATA,
        },
        "cache_hit": None,
        "cache_key": None,
        "saved_cache_cost": 0.0,
        "request_tags": list(event.tags),
        "end_user": event.end_user or "",
        "requester_ip_address": event.client,
        "user_agent": None,
        "messages": said.get("input"),
        "response": response_of(
            said.get("output"), event.response_id or event.request_id, int(event.started), event.model, usage
        )
        if success
        else None,
        "error_str": None if success else _error_of(event),
        "error_information": {
            "error_code": "" if success else str(event.status or ""),
            "error_class": "" if success else _class_of(event),
            "llm_provider": "" if success else "hosted_vllm",
            "traceback": "",
            "error_message": "" if success else _error_of(event),
        },
        "model_parameters": _parameters_of(event, said),
        "hidden_params": {
            "model_id": event.model_id or None,
            "cache_key": None,
            "api_base": event.server,
            "response_cost": event.cost_usd,
            "litellm_overhead_time_ms": event.overhead_ms,
            "additional_headers": None,
            "batch_models": None,
            "litellm_model_name": event.model,
            "usage_object": usage,
        },
        "guardrail_information": None,
        "standard_built_in_tools_params": None,
        **_UNKNOWN,
    }


def call_type(route: str) -> str:
    """Return LiteLLM's name of the call that a route is for."""
    # the longest first
    return next((name for end, name in _CALL_TYPES.items() if route == end or route.endswith("/" + end)), PASS_THROUGH)


def _parameters_of(event: RequestEvent, said: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of a request: all of them where its body is kept, else the limit of tokens."""
    kept = said.get("parameters")
    limit = {} if event.max_tokens is None else {"max_tokens": event.max_tokens}
    return {**kept, **limit} if isinstance(kept, dict) else {**limit}


class HasTokens(Protocol):
    """What `usage_of` reads: an event, or a row of the ledger."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""

    @property
    def completion_tokens(self) -> int:
        """Generated tokens."""

    @property
    def total_tokens(self) -> int:
        """The server's total."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt from the prefix cache."""

    @property
    def reasoning_tokens(self) -> int:
        """Generated tokens that were reasoning."""


def usage_of(event: HasTokens) -> dict[str, object]:
    """Return the usage of a request in OpenAI's shape."""
    return {
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "total_tokens": event.total_tokens,
        "prompt_tokens_details": {"cached_tokens": event.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": event.reasoning_tokens},
    }


def _class_of(event: RequestEvent) -> str:
    return event.error or ("server_error" if event.outcome == "completed" else event.outcome)


def _error_of(event: RequestEvent) -> str:
    return f"{_class_of(event)} (status {event.status})"


def _object(text: str) -> dict[str, object] | None:
    if not text:
        return None
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else None


def _contents_of(event: RequestEvent) -> dict[str, object]:
    if event.contents is None:
        return {}
    try:
        found = msgspec.json.decode(event.contents)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def response_of(output: object, id: str, created: int, model: str, usage: object) -> object:
    """Return an answer in OpenAI's shape, as far as it was kept.

    Args:
        output: the ``output`` of what was kept.
        id: the id of the answer.
        created: when the request began, in Unix seconds.
        model: the model that the caller names.
        usage: as `usage_of` returns it.
    """
    if not isinstance(output, dict):
        return None
    message: dict[str, object] = {"role": "assistant", "content": output.get("text")}
    if output.get("reasoning"):
        message["reasoning_content"] = output["reasoning"]
    calls = output.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_tool_call(each) for each in calls]
    reasons = output.get("finish_reasons")
    reason = reasons[0] if isinstance(reasons, list) and reasons else None
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": usage,
    }


def _tool_call(call: object) -> object:
    """Return a call in OpenAI's shape; of metadata alone there is only the name."""
    if not isinstance(call, dict):
        return {"type": "function", "function": {"name": call}}
    function = {"name": call.get("name"), "arguments": call.get("arguments")}
    return {"id": call.get("id"), "type": call.get("type") or "function", "function": function}
