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
    "enforce_fallback_model_access": "fallbacks to models that the key may not use are passed over here",
    **dict.fromkeys(("user_url_allowed_hosts", "user_url_validation"), "see passthrough.tenant_fields.media"),
    "allow_public_health_readiness_details": "GET /health/readiness is open to everybody here",
    "apply_user_budget_to_team_keys": "a user's limits hold for all its keys here",
    "coordination_redis": "see passthrough.redis_url",
    "credential_list": "write api_base and api_key below litellm_params",
    "custom_llm_provider": "write hosted_vllm/NAME as the model",
    "dangerously_permit_weak_or_unset_master_key": "see passthrough.allow_anonymous",
    "litellm_credential_name": "write api_base and api_key below litellm_params",
    "pass_through_endpoints": "what is below /vllm needs none; other paths and servers are not served",
    "proxy_config_reload_interval_seconds": "send a SIGHUP, or POST /config/reload",
    "trusted_proxy_ranges": "see passthrough.trusted_proxies",
    "disable_cooldowns": "see router_settings.allowed_fails",
    "enable_pre_call_checks": "see router_settings.context_window_fallbacks",
    "json_logs": "see passthrough.log.format",
    "maximum_spend_logs_retention_period": "see passthrough.ledger.usage_retention",
    "pass_through_request_timeout": "see passthrough.timeouts",
    "request_timeout": "see router_settings.timeout",
    "stream_timeout": "see passthrough.timeouts.response_head and idle",
    "use_x_forwarded_for": "see passthrough.trusted_proxies",
    **dict.fromkeys(
        ("service_callback", "service_callbacks"),
        "database, Redis and event loop have metrics of their own in /metrics",
    ),
    "disable_requester_ip_address_logging": "the ledger holds no addresses; the log, traces and sinks do",
    "disable_streaming_logging": "see passthrough.log_bodies",
    "langfuse_default_tags": "key, team and request are metadata of each trace",
    "prometheus_initialize_budget_metrics": "/metrics counts the budgets that are nearly spent, used or not",
    "prometheus_latency_buckets": "see passthrough.metrics.latency_buckets",
    "prometheus_metrics_config": "drop metrics and labels by metric_relabel_configs of Prometheus",
    "redact_messages_in_exceptions": "no error and no alert holds a prompt",
    "store_audit_logs": "the audit log is always kept: GET /audit",
}

#: blocks at the top of the file
BLOCKS = names(
    """
    agent_list agents assistant_settings classifier_plugin credential_list default_vertex_config
    files_settings finetune_settings mcp_servers mcp_tools plugins prompts sandbox_tools search_tools
    vector_store_registry worker_registry
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
    add_function_to_prompt allowed_openai_params api_base api_version
    cache cache_params cost_discount_config cost_margin_config custom_provider_map
    datadog_params default_in_memory_ttl default_redis_ttl disable_add_transform_inline_image_block
    disable_end_user_cost_tracking disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download
    drop_params enable_azure_ad_token_refresh enable_caching_on_provider_specific_optional_params
    enable_end_user_cost_tracking enable_json_schema_validation enable_key_alias_format_validation
    enable_loadbalancing_on_batch_endpoints enable_preview_features extra_spend_tag_headers
    force_ipv4 forward_traceparent_to_llm_provider json_logs
    langfuse_default_tags mcp_aliases modify_params prometheus_initialize_budget_metrics
    prometheus_latency_buckets
    prometheus_metrics_config public_model_groups public_model_groups_links redact_messages_in_exceptions
    service_callback service_callbacks
    suppress_debug_info telemetry
    use_chat_completions_url_for_anthropic_messages user_url_allowed_hosts user_url_validation
    azure_content_safety_params budget_exceeded_throttle_percentage budget_reset_time budget_rollover
    code_interpreter_interception_params compression_interception_params default_soft_budget
    disable_add_user_agent_to_request_tags disable_aiohttp_transport disable_streaming_logging disable_token_counter
    enable_redis_auth_cache global_bitbucket_config global_gitlab_config
    global_prompt_directory include_cost_in_streaming_usage key_alias_pattern log_auth_failure_key_identity
    max_ui_session_budget mcp_semantic_tool_filter model_group_settings overwrite_user_with_key_hash
    personal_key_model_access_from_teams presidio_logging_only priority_reservation_settings
    prometheus_deployment_and_latency_caller_identity prometheus_emit_rate_limit_labels
    prometheus_end_user_metrics_max_series_per_metric prometheus_metrics_max_series_per_metric
    prompt_injection_params provider_url_destination_allowed_hosts require_managed_files responses scim_admin_group
    scim_upsert_user store_audit_logs websearch_interception_params
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
    allow_client_side_credentials
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
    supported_db_objects token_rate_limit_type ui_access_mode
    use_azure_key_vault use_client_credentials_pass_through_routes use_google_kms use_redis_transaction_buffer
    use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl user_mcp_management_mode
    admission_queue_timeout_seconds agent_access_default_deny alert_type_config
    allow_public_health_readiness_details allow_unmanaged_response_ids allowed_file_extensions
    apply_user_budget_to_team_keys background_health_check_model_groups blocked_file_extensions
    claude_code_gateway_managed_settings coordination_redis custom_team_metadata_validate
    dangerously_permit_weak_or_unset_master_key database_connect_timeout database_connection_pool_timeout
    database_disable_prepared_statements database_extra_connection_params database_max_idle_connection_lifetime
    database_socket_timeout disable_auto_add_proxy_admin_to_teams disable_batch_input_file_rate_limiting
    disable_bedrock_agent_runtime_passthrough disable_budget_reservation disable_env_credential_login
    disable_fallbacks_on_per_model_rate_limits disable_model_info_refresh disable_password_login_when_sso_enabled
    disable_requester_ip_address_logging drain_endpoint_token enable_claude_code_gateway enable_drain_endpoint
    enable_mcp_registry enable_openai_websocket_passthrough enable_public_model_hub enforce_fallback_model_access
    expose_fallback_errors_to_caller
    health_check_ignore_transient_errors health_check_skip_disabled_background_models hide_default_credentials_hint
    include_call_id_in_error_body max_batch_file_records max_batch_file_size_mb max_batch_file_uploads_per_day
    max_file_downloads_per_minute max_file_size_mb model_list_healthy_only otel passthrough_managed_object_ids plugins
    provider_url_destination_allowed_hosts proxy_config_reload_interval_seconds require_end_user_mcp_access_defined
    require_key_mcp_access_defined responses_websocket_session_limit_seconds search_tools
    skip_batch_input_file_rate_limiting_for_models spend_logs_metadata_fields team_metadata_schema
    team_metadata_validation_error_message team_metadata_validation_timeout tracing trusted_proxy_ranges
    use_spend_logs_partitioning use_team_public_model_name user_api_key_cache_max_size user_url_allowed_hosts
    user_url_validation vector_store_deny_by_default
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
    adaptive_router_config aws_batch_role_arn s3_access_key_id s3_bucket_name s3_region_name s3_secret_access_key
    use_chat_completions_api use_in_pass_through use_litellm_proxy user vertex_credentials vertex_location
    vertex_project
    """
)

#: what of an entry's ``model_info`` would change a bill or a permission; every other name is free there
MODEL_INFO = names(
    """
    access_groups cache_creation_input_token_cost disable_background_health_check health_check_max_tokens
    health_check_model health_check_timeout health_check_voice output_cost_per_second
    """
)
