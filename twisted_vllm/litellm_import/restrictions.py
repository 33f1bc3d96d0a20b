"""What LiteLLM's fields mean where this gateway has nothing like them: they restrict somebody, or they do not.

A field that is in none of these tables, such as one of a newer LiteLLM, is taken for a restriction.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: fields that restrict nobody and grant nothing here: not worth a line
SILENT = _names(
    """
    agent_id allow_team_guardrail_config allowed_cache_controls budget_reset_at created_at created_by
    default_estimated_output_tokens default_estimated_output_tokens_per_model disable_global_guardrails
    enable_prompt_caching key_rotation_at key_type last_active last_breach_check_at last_rotation_at
    password_reset_required rotation_count rpm_limit_type settings_updated_at soft_budget_cooldown
    sso_user_id throttle_on_budget_exceeded total_spend tpm_limit_type updated_at updated_by
    """
)

#: fields that restrict nobody: left out with a line
HARMLESS = _names(
    """
    aliases allowed_passthrough_routes allowed_vector_store_indexes auto_rotate budget_duration budget_fallbacks config
    default_model default_team_member_models enforced_batch_output_expires_after enforced_file_expires_after
    key_alias logging mcp_rpm_limit metadata model_aliases permissions prompts rotation_interval router_settings
    secret_manager_settings soft_budget tags team_alias team_member_key_duration team_member_permissions
    temp_budget_expiry temp_budget_increase user_alias user_email user_role
    """
)

#: fields that LiteLLM keeps in ``metadata`` (its ``_types.py``, LiteLLM_ManagementEndpoint_MetadataFields)
IN_METADATA = _names(
    """
    allowed_passthrough_routes allowed_vector_store_indexes default_estimated_output_tokens
    default_estimated_output_tokens_per_model denied_passthrough_routes disable_global_guardrails
    enable_prompt_caching end_user_budget_id enforced_batch_output_expires_after enforced_file_expires_after
    enforced_params guardrails logging mcp_rpm_limit model_itpm_limit model_max_budget model_otpm_limit
    model_rpm_limit model_tpm_limit policies prompts require_trace_id rpm_limit_type secret_manager_settings
    tag_rpm_limit tag_tpm_limit tags team_member_key_duration temp_budget_expiry temp_budget_increase
    throttle_on_budget_exceeded tpm_limit_type
    """
)

#: the columns of an object permission that concern models; the others are about tools that vLLM does not have
OBJECT_PERMISSION_MODELS = "models"

#: an empty row, for what is not in the database
NO_ROW: Mapping[str, Any] = MappingProxyType({})
