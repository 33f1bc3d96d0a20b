"""The bodies of the gateway's errors."""

from __future__ import annotations

import json

import pytest

from twisted_vllm.errors import (
    BlockedApiKey,
    BudgetExceeded,
    ExpiredApiKey,
    GatewayError,
    InvalidApiKey,
    MissingApiKey,
    ModelNotAllowed,
    ModelNotFound,
    RateLimitExceeded,
    RouteNotAllowed,
)


@pytest.mark.parametrize(
    ("error", "code", "openai", "anthropic"),
    [
        (MissingApiKey("m"), "missing_api_key", "auth_error", "authentication_error"),
        (InvalidApiKey("m"), "invalid_api_key", "token_not_found_in_db", "authentication_error"),
        (ExpiredApiKey("m"), "expired_api_key", "expired_key", "authentication_error"),
        (BlockedApiKey("m"), "blocked_api_key", "auth_error", "authentication_error"),
        (ModelNotAllowed("m"), "model_not_allowed", "key_model_access_denied", "permission_error"),
        (ModelNotAllowed("m", level="org"), "model_not_allowed", "org_model_access_denied", "permission_error"),
        (RouteNotAllowed("m"), "route_not_allowed", "auth_error", "permission_error"),
        (RateLimitExceeded("m"), "rate_limit_exceeded", "throttling_error", "rate_limit_error"),
        (BudgetExceeded("m"), "budget_exceeded", "budget_exceeded", "rate_limit_error"),
        (ModelNotFound("m"), "model_not_found", "invalid_request_error", "invalid_request_error"),
        (GatewayError("m"), "internal_error", "api_error", "api_error"),
    ],
)
def test_an_error_has_litellm_s_type_or_anthropic_s(
    error: GatewayError, code: str, openai: str, anthropic: str
) -> None:
    assert json.loads(error.body()) == {"error": {"message": "m", "type": openai, "param": None, "code": code}}
    in_anthropic_s_shape = json.loads(error.body(anthropic=True))
    assert in_anthropic_s_shape["type"] == "error"
    assert in_anthropic_s_shape["error"] == {"message": "m", "type": anthropic, "param": None, "code": code}
