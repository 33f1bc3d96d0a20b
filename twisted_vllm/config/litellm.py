"""LiteLLM's settings that the gateway knows and does not implement: each is ignored with a warning.

Those that restrict somebody are in `restricting`: with them the gateway does not start.
"""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """Return the names in a text."""
    return frozenset(text.split())


#: what has the effect of a setting, by its name in any block
ADVICE = {
    **dict.fromkeys(
        ("redis_db", "redis_host", "redis_password", "redis_port", "redis_url"), "see passthrough.redis_url"
    ),
    **dict.fromkeys(
        ("allowed_fails_policy", "model_group_retry_policy", "retry_policy"), "see passthrough.retry.statuses"
    ),
    **dict.fromkeys(("background_health_checks", "health_check_interval"), "see passthrough.health"),
    **dict.fromkeys(("max_retries", "num_retries"), "see router_settings.num_retries"),
    **dict.fromkeys(("rpm", "tpm"), "move it to litellm_params"),
    "disable_cooldowns": "see router_settings.allowed_fails",
    "enable_pre_call_checks": "see router_settings.context_window_fallbacks",
    "json_logs": "see passthrough.log.format",
    "maximum_spend_logs_retention_period": "see passthrough.ledger.usage_retention",
    "pass_through_request_timeout": "see passthrough.timeouts",
    "request_timeout": "see router_settings.timeout",
    "stream_timeout": "see passthrough.timeouts.response_head and idle",
    "use_x_forwarded_for": "see passthrough.trusted_proxies",
}

#: blocks at the top of the file
BLOCKS = names(
    """
    assistant_settings callback_settings credential_list default_vertex_config files_settings finetune_settings
    mcp_servers mcp_tools prompts search_tools vector_store_registry
    """
)

_SHARED = """
    allowed_fails_policy cache_responses content_policy_fallbacks disable_cooldowns enable_pre_call_checks
    max_fallbacks model_group_retry_policy redis_db redis_host redis_password redis_port redis_url
    request_timeout retry_policy set_verbose stream_timeout tag_filtering_match_any
"""

LITELLM_SETTINGS = names(
    _SHARED
    + """
    add_function_to_prompt allowed_openai_params api_base api_version audit_log_callbacks
    cache cache_params cost_discount_config cost_margin_config custom_provider_map
    datadog_params default_in_memory_ttl default_redis_ttl disable_add_transform_inline_image_block
    disable_end_user_cost_tracking disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download
    drop_params enable_azure_ad_token_refresh enable_caching_on_provider_specific_optional_params
    enable_end_user_cost_tracking enable_json_schema_validation enable_key_alias_format_validation
    enable_loadbalancing_on_batch_endpoints enable_preview_features extra_spend_tag_headers failure_callback
    force_ipv4 forward_traceparent_to_llm_provider input_callback json_logs
    langfuse_default_tags mcp_aliases modify_params prometheus_initialize_budget_metrics
    prometheus_metrics_config public_model_groups public_model_groups_links redact_messages_in_exceptions
    redact_user_api_key_info s3_callback_params service_callback service_callbacks
    success_callback suppress_debug_info telemetry turn_off_message_logging
    use_chat_completions_url_for_anthropic_messages user_url_validation
    """
)

ROUTER_SETTINGS = names(
    _SHARED
    + """
    alerting_config assistants_config cache_kwargs caching_groups client_ttl debug_level default_litellm_params
    default_priority deployment_affinity_ttl_seconds enable_health_check_routing enable_pre_call_check
    enable_weighted_failover fallback_depth health_check_ignore_transient_errors health_check_staleness_threshold
    ignore_invalid_deployments max_retries model_group_affinity_config polling_interval router_general_settings
    routing_groups routing_strategy_args search_tools
    """
)

GENERAL_SETTINGS = names(
    """
    alert_to_webhook_url alert_types alerting alerting_args alerting_threshold allow_client_side_credentials
    allow_requests_on_db_unavailable allow_user_auth always_include_stream_usage background_health_checks
    block_robots budget_rescheduler cancel_on_disconnect completion_model control_plane_url
    custom_auth_run_common_checks custom_auth_settings custom_sso custom_ui_sso_sign_in_handler database_args
    database_connection_pool_limit database_connection_timeout database_type
    disable_adding_master_key_hash_to_db disable_error_logs disable_master_key_return
    disable_prisma_schema_update disable_responses_id_security disable_retry_on_max_parallel_request_limit_error
    disable_spend_logs disable_spend_updates embedding_model enable_health_check_routing
    forward_client_headers_to_llm_api forward_llm_provider_auth_headers forward_openai_org_id
    health_check_concurrency health_check_details health_check_interval health_check_staleness_threshold
    image_generation_model infer_model_from_keys key_management_settings key_management_system
    litellm_key_header_name litellm_license maximum_spend_logs_cleanup_cron
    maximum_spend_logs_retention_interval maximum_spend_logs_retention_period mcp_internal_ip_ranges
    mcp_trusted_proxy_ranges moderation_model oauth2_config_mappings pass_through_endpoints
    pass_through_request_timeout proxy_batch_polling_interval proxy_batch_write_at
    proxy_budget_rescheduler_max_time proxy_budget_rescheduler_min_time public_routes spend_report_frequency
    store_prompts_in_spend_logs supported_db_objects token_rate_limit_type ui_access_mode
    use_azure_key_vault use_client_credentials_pass_through_routes use_google_kms use_redis_transaction_buffer
    use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl user_mcp_management_mode
    """
)

#: settings of an entry itself
ENTRY = frozenset({"rpm", "tpm"})

#: settings of an entry's ``litellm_params``
ENTRY_PARAMS = names(
    """
    allowed_openai_params api_version auto_router_config aws_access_key_id aws_region_name aws_secret_access_key
    budget_duration cache_creation_input_token_cost configurable_clientside_auth_params custom_llm_provider
    drop_params extra_body extra_headers frequency_penalty headers litellm_credential_name logprobs
    max_completion_tokens max_retries max_tokens merge_reasoning_content_in_choices mock_response model_info n
    num_retries organization output_cost_per_second presence_penalty region_name response_format seed
    stop stream stream_timeout tag_regex tags temperature tool_choice tools top_k top_p
    use_chat_completions_api use_in_pass_through use_litellm_proxy user
    """
)

#: what of an entry's ``model_info`` would change a bill or a permission; every other name is free there
MODEL_INFO = names(
    """
    access_groups cache_creation_input_token_cost disable_background_health_check health_check_max_tokens
    health_check_model health_check_timeout health_check_voice output_cost_per_second
    """
)
