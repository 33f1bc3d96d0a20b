"""LiteLLM's names of metrics and labels, as LiteLLM 1.108 has them.

Labels for which the gateway has no value are left out, which Prometheus takes for an empty value.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

#: LiteLLM's name of the provider of all servers
PROVIDER = "hosted_vllm"

KEY_AND_TEAM = ("hashed_api_key", "api_key_alias", "team", "team_alias")
CALLER = (*KEY_AND_TEAM, "user", "org_id")
REQUEST = (*CALLER, "requested_model", "route", "model_id", "api_provider")
USED = (*CALLER, "requested_model", "model", "model_id", "api_provider")
DEPLOYMENT = ("litellm_model_name", "model_id", "api_base", "api_provider")
# LiteLLM has no ``api_base`` here: without it, servers of one model could not be told apart
LATENCY = ("model_group", "requested_model", "model", "api_base", "api_provider")

#: LiteLLM's names of exceptions, by status
_EXCEPTIONS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "Timeout",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "Timeout",
}


#: the counters: LiteLLM's name, what it counts, and its labels
COUNTERS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "proxy_total_requests": (
        "litellm_proxy_total_requests_metric",
        "Requests of vLLM's routes, and those that were refused.",
        (*REQUEST, "status_code"),
    ),
    "proxy_failed_requests": (
        "litellm_proxy_failed_requests_metric",
        "Requests whose client did not get a whole answer with a status below 400.",
        (*REQUEST, "exception_status", "exception_class"),
    ),
    "requests": ("litellm_requests_metric", "Requests that a server answered well.", USED),
    "llm_api_failed_requests": (
        "litellm_llm_api_failed_requests_metric",
        "Requests that were sent to a server and failed.",
        (*KEY_AND_TEAM, "user", "model", "model_id"),
    ),
    "spend": ("litellm_spend_metric", "What requests cost, in US dollars.", USED),
    "total_tokens": ("litellm_total_tokens_metric", "Tokens of prompts and completions.", USED),
    "input_tokens": ("litellm_input_tokens_metric", "Tokens of prompts.", USED),
    "output_tokens": ("litellm_output_tokens_metric", "Tokens of completions.", USED),
    "input_cached_tokens": (
        "litellm_input_cached_tokens_metric",
        "Tokens of prompts that came from the prefix cache.",
        USED,
    ),
    "output_reasoning_tokens": (
        "litellm_output_reasoning_tokens_metric",
        "Tokens of completions that were reasoning.",
        USED,
    ),
    "successful_fallbacks": (
        "litellm_deployment_successful_fallbacks",
        "Requests that another model served in place of their own.",
        ("fallback_model", *KEY_AND_TEAM, "exception_status", "exception_class"),
    ),
    "failed_fallbacks": (
        "litellm_deployment_failed_fallbacks",
        "Requests for which another model was asked, and that failed.",
        ("fallback_model", *KEY_AND_TEAM, "exception_status", "exception_class"),
    ),
    "deployment_total_requests": (
        "litellm_deployment_total_requests",
        "Attempts to have a request answered by a server.",
        ("model_group", "requested_model", *DEPLOYMENT, *KEY_AND_TEAM),
    ),
    "deployment_success_responses": (
        "litellm_deployment_success_responses",
        "Requests that a server answered well.",
        ("model_group", "requested_model", *DEPLOYMENT, *KEY_AND_TEAM),
    ),
    "deployment_failure_responses": (
        "litellm_deployment_failure_responses",
        "Attempts that failed, those that another followed included.",
        ("model_group", "requested_model", *DEPLOYMENT, "exception_status", "exception_class", *KEY_AND_TEAM),
    ),
}


def exception_of(status: int) -> str:
    """Return the OpenAI client's name of the error with a status; empty below 400."""
    known = _EXCEPTIONS.get(status)
    if known is not None or status < 400:
        return known or ""
    return "APIError" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "BadRequestError"
