"""LiteLLM's settings that restrict somebody and that the gateway does not implement.

Each limits, refuses, authenticates, isolates, filters or budgets. A gateway that ignored one would let through what its
operator meant to stop, so it does not start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs

from twisted_vllm.config.litellm import names
from twisted_vllm.config.problems import EnvironmentText

#: texts of the environment that switch a setting off
_OFF = frozenset(("", "false", "no", "off", "null", "none"))

#: the names of limits, wherever they stand in a mapping of defaults
_LIMITS = names(
    """
    allowed_routes blocked budget_duration guardrails max_budget max_parallel_requests models rpm_limit tpm_limit
    """
)

#: the router's checks that refuse requests; its others choose a server
_REFUSING_CHECKS = frozenset(("router_budget_limiting", "enforce_model_rate_limits"))


def asks_for_something(value: object) -> bool:
    """Return whether a value restricts anything: null, false, an empty value, and a mapping of such values do not."""
    if isinstance(value, EnvironmentText):
        return value.strip().lower() not in _OFF
    if isinstance(value, dict):
        return any(each is not None and each is not False and each not in ("", [], {}) for each in value.values())
    return value is not None and value is not False and value not in ("", [])


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _has_refusing_check(value: object) -> bool:
    return any(name in _REFUSING_CHECKS for name in _items(value) if isinstance(name, str))


def _says_reject(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() == "reject"


def _holds_limits(value: object) -> bool:
    return any(
        isinstance(each, dict) and any(name in _LIMITS and asks_for_something(each[name]) for name in each)
        for each in _items(value)
    )


def _excludes_fields(value: object) -> bool:
    # prompts and answers are told nobody here but where passthrough.log_bodies asks for them
    return asks_for_something(value) and any(each not in ("messages", "response") for each in _items(value))


@attrs.frozen
class Restriction:
    """A setting of LiteLLM that restricts somebody.

    Attributes:
        effect: what it does in LiteLLM, to follow "would".
        instead: what to do here.
        restricts: whether a value restricts anybody.
        when: the values that restrict, for the reference; empty for each that is not null, false or empty.
    """

    effect: str
    instead: str
    restricts: Callable[[object], bool] = asks_for_something
    when: str = ""

    @property
    def message(self) -> str:
        """What to say of the setting."""
        return f"would {self.effect}, which this gateway does not do ({self.instead}; then take this setting out)"


Restrictions = Mapping[str, Restriction]
NONE: Restrictions = MappingProxyType({})

_CONCURRENCY = "set passthrough.limits.max_concurrent_requests, which holds for each server"
_MODEL_LIMITS = "give keys, users or teams a model_rpm_limit or model_tpm_limit for this model_name"
_BUDGETS = "give keys, users or teams a max_budget"
_VIRTUAL_KEYS = "give each caller a virtual key"
_NEW_USERS = "send the limits with each POST /user/new"
_NEW_KEYS = "send what a key may do with each POST /key/generate"
_NEW_END_USERS = "make the end users with POST /customer/new and their limits"
_CLOSE_ROUTES = "close routes in passthrough.tenant_routes.deny, or by a key's allowed_routes"
_CHECK_BEFORE = "check requests in a proxy before the gateway"

_TAG_ROUTING = Restriction(
    "keep requests from servers without their tags", "give these servers model_names of their own and keys `models`"
)
_ROUTER_CHECKS = Restriction(
    "refuse requests over the budget or the limits of a server",
    _MODEL_LIMITS,
    _has_refusing_check,
    f"a list with {' or '.join(sorted(_REFUSING_CHECKS))}",
)
_GUARDRAILS = Restriction("check prompts and answers", _CHECK_BEFORE)

#: blocks at the top of the file
BLOCKS: Restrictions = {"guardrails": _GUARDRAILS, "policies": _GUARDRAILS, "policy_attachments": _GUARDRAILS}

_SHARED: Restrictions = {
    "default_max_parallel_requests": Restriction("limit the requests in flight at each server", _CONCURRENCY),
    "enable_tag_filtering": _TAG_ROUTING,
    "guardrail_list": _GUARDRAILS,
    "optional_pre_call_checks": _ROUTER_CHECKS,
    "provider_budget_config": Restriction("refuse requests over the budget of a provider", _BUDGETS),
}

LITELLM_SETTINGS: Restrictions = {
    **_SHARED,
    "audit_log_callbacks": Restriction(
        "send the audit log to other programs", "read it by GET /audit, where it is always kept"
    ),
    "banned_keywords_list": Restriction("refuse prompts with certain words", _CHECK_BEFORE),
    "block_requests_for_models_without_pricing": Restriction(
        "refuse requests for models without a price", "write prices for each entry, or passthrough.default_prices"
    ),
    "blocked_user_list": Restriction("refuse certain end users", "block them with POST /customer/block"),
    "default_end_user_max_budget": Restriction("limit what each end user spends", _NEW_END_USERS),
    "default_max_internal_user_budget": Restriction(
        "limit what each user spends", "write litellm_settings.max_internal_user_budget, which LiteLLM uses as well"
    ),
    "default_team_settings": Restriction(
        "limit teams", "send the limits with each POST /team/new", _holds_limits, "a limit in one of its entries"
    ),
    "guardrails": _GUARDRAILS,
    "input_callback": Restriction(
        "tell other programs of requests before they are sent",
        "name them in success_callback and failure_callback, which are told once a request is over",
    ),
    "key_generation_settings": Restriction(
        "decide who may make keys", "write passthrough.self_service.enabled: false to leave that to administrators"
    ),
    "max_parallel_requests": Restriction("limit the requests in flight", _CONCURRENCY),
    "max_user_budget": Restriction("limit what each user spends", _NEW_USERS),
    "post_call_rules": Restriction("check answers by Python of your own", _CHECK_BEFORE),
    "pre_call_rules": Restriction("check prompts by Python of your own", _CHECK_BEFORE),
    "priority_reservation": Restriction(
        "reserve a share of the limits for some keys", "give the other keys lower limits"
    ),
    "redact_user_api_key_info": Restriction(
        "keep keys, users and teams from those who get the traces", "take these attributes out in a collector"
    ),
    "standard_logging_payload_excluded_fields": Restriction(
        "leave fields out of what callbacks get",
        "take them out in a sink of type python; prompts and answers are there only with passthrough.log_bodies",
        _excludes_fields,
        "a list with others than messages and response",
    ),
    "tag_budget_config": Restriction("refuse requests over the budget of a tag", _BUDGETS),
    "validate_end_user_id_in_db": Restriction(
        "refuse end users that nobody created", "give callers keys of their own, and block the others' keys"
    ),
}

ROUTER_SETTINGS: Restrictions = {**_SHARED, "allowed_routes": Restriction("close all other routes", _CLOSE_ROUTES)}

GENERAL_SETTINGS: Restrictions = {
    "admin_only_routes": Restriction("close routes to all but administrators", _CLOSE_ROUTES),
    "allowed_routes": Restriction("close all other routes", _CLOSE_ROUTES),
    "custom_auth": Restriction("authenticate callers by Python of your own", _VIRTUAL_KEYS),
    "custom_key_generate": Restriction("decide by Python of your own which keys may be made", _NEW_KEYS),
    "custom_key_policy": Restriction("decide by Python of your own which keys may be made or changed", _NEW_KEYS),
    "custom_key_update": Restriction("decide by Python of your own how keys may be changed", _NEW_KEYS),
    "default_team_disabled": Restriction("refuse keys without a team", "send team_id with each POST /key/generate"),
    "disable_admin_endpoints": Restriction(
        "close the admin API", "close its paths in a proxy before the gateway (all but /vllm and /health)"
    ),
    "disable_custom_api_keys": Restriction(
        "keep administrators from choosing the values of keys", "let those make keys who send no `key`"
    ),
    "disable_key_generate_for_org_admin": Restriction(
        "keep administrators of organizations from making keys", "give nobody the role org_admin"
    ),
    "disable_llm_api_endpoints": Restriction("close the routes of models", "write passthrough.tenant_routes.deny"),
    "disable_reset_budget": Restriction(
        "keep budgets from beginning anew", "make keys, users and teams without a budget_duration"
    ),
    "enable_oauth2_auth": Restriction("authenticate callers by OAuth 2", _VIRTUAL_KEYS),
    "enable_oauth2_proxy_auth": Restriction("authenticate callers by a proxy's headers", _VIRTUAL_KEYS),
    "enforce_rbac": Restriction("limit callers to the routes of their roles", _CLOSE_ROUTES),
    "enforced_params": Restriction("refuse requests without certain parameters", _CHECK_BEFORE),
    "fail_closed_budget_enforcement": Restriction(
        "refuse requests while their spending cannot be checked",
        "set passthrough.limits_on_redis_loss and passthrough.ledger.on_spool_failure to refuse",
    ),
    "fail_closed_rate_limit_enforcement": Restriction(
        "refuse requests while their limits cannot be counted", "set passthrough.limits_on_redis_loss to refuse"
    ),
    "global_max_parallel_requests": Restriction("limit the requests in flight", _CONCURRENCY),
    "max_in_flight_requests_per_worker": Restriction("limit the requests in flight", _CONCURRENCY),
    "max_parallel_requests": Restriction("limit the requests in flight at each server", _CONCURRENCY),
    "max_queued_requests_per_worker": Restriction(
        "limit the requests that wait", "set passthrough.limits.max_queued_requests, which holds for each model"
    ),
    "max_request_size_mb": Restriction(
        "refuse larger requests", "set passthrough.limits.max_body_bytes, which counts bytes"
    ),
    "max_response_size_mb": Restriction(
        "withhold larger answers", "limit the tokens of a model with vLLM's --max-model-len"
    ),
    "missing_session_id": Restriction("refuse requests without a session id", _CHECK_BEFORE, _says_reject, "reject"),
    "reject_clientside_metadata_tags": Restriction(
        "refuse requests that bring tags",
        "set passthrough.ledger.request_tags: false: the tags of requests are then ignored, and those of keys count",
    ),
    "require_auth_for_metrics_endpoint": Restriction("close GET /metrics from here", "write it below litellm_settings"),
    "required_params": Restriction("refuse requests without certain parameters", _CHECK_BEFORE),
    "role_permissions": Restriction("limit callers to the routes and models of their roles", _CLOSE_ROUTES),
    "service_account_settings": Restriction("refuse requests of service accounts without parameters", _CHECK_BEFORE),
    "user_header_mappings": Restriction(
        "name the end user whose limits count", "name the header in passthrough.end_users.headers"
    ),
}

#: settings of an entry's ``litellm_params``; LiteLLM's own routing takes ``rpm`` and ``tpm`` for weights
ENTRY_PARAMS: Restrictions = {
    "additional_drop_params": Restriction("take parameters out of requests", _CHECK_BEFORE),
    "default_api_key_rpm_limit": Restriction("limit what each key asks of this model", _MODEL_LIMITS),
    "default_api_key_tpm_limit": Restriction("limit what each key asks of this model", _MODEL_LIMITS),
    "guardrails": _GUARDRAILS,
    "max_budget": Restriction("end the service of this entry when it has cost this", _BUDGETS),
    "max_file_size_mb": Restriction("refuse larger files", "set passthrough.limits.max_body_bytes, which counts bytes"),
}

#: settings of an entry's ``model_info``
MODEL_INFO: Restrictions = {
    "access_via_team_ids": Restriction("keep this entry for certain teams", "give keys and teams their `models`"),
    "blocked": Restriction("serve no request by this entry", "take the entry out"),
    "supported_environments": Restriction("use this entry in certain environments alone", "take the entry out"),
    "team_id": Restriction("keep this entry for one team", "give keys and teams their `models`"),
}
