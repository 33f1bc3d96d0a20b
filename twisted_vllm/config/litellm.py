"""LiteLLM's settings that the gateway knows and does not implement: each is ignored with a warning."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: blocks at the top of the file
BLOCKS = _names(
    """
    assistant_settings callback_settings credential_list files_settings finetune_settings guardrails mcp_servers
    mcp_tools prompts search_tools vector_store_registry default_vertex_config policies
    """
)

_SHARED = """
    allowed_fails allowed_fails_policy cache_responses content_policy_fallbacks context_window_fallbacks cooldown_time
    default_fallbacks disable_cooldowns enable_pre_call_checks enable_tag_filtering fallbacks max_fallbacks
    model_group_alias model_group_retry_policy num_retries redis_db redis_host redis_password redis_port redis_url
    request_timeout retry_after retry_policy set_verbose stream_timeout tag_filtering_match_any timeout
"""

LITELLM_SETTINGS = _names(
    _SHARED
    + """
    add_function_to_prompt allowed_openai_params api_base api_version audit_log_callbacks blocked_user_list
    budget_duration budget_exceeded_status_code cache cache_params callbacks cost_discount_config cost_margin_config
    custom_provider_map datadog_params default_end_user_max_budget default_in_memory_ttl default_internal_user_params
    default_key_generate_params default_max_internal_user_budget default_redis_ttl default_team_params
    default_team_settings disable_add_transform_inline_image_block disable_end_user_cost_tracking
    disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download drop_params
    enable_azure_ad_token_refresh enable_caching_on_provider_specific_optional_params enable_end_user_cost_tracking
    enable_json_schema_validation enable_key_alias_format_validation enable_loadbalancing_on_batch_endpoints
    enable_preview_features extra_spend_tag_headers failure_callback force_ipv4 forward_traceparent_to_llm_provider
    input_callback internal_user_budget_duration json_logs key_generation_settings langfuse_default_tags
    max_budget max_end_user_budget max_internal_user_budget max_user_budget mcp_aliases modify_params
    prometheus_initialize_budget_metrics prometheus_metrics_config public_model_groups public_model_groups_links
    redact_messages_in_exceptions redact_user_api_key_info
    s3_callback_params service_callback service_callbacks ssl_certificate ssl_verify success_callback
    suppress_debug_info tag_budget_config telemetry turn_off_message_logging upperbound_key_generate_params
    use_chat_completions_url_for_anthropic_messages user_url_validation
    """
)

ROUTER_SETTINGS = _names(
    _SHARED
    + """
    alerting_config allowed_routes assistants_config cache_kwargs caching_groups client_ttl debug_level
    default_litellm_params default_max_parallel_requests default_priority deployment_affinity_ttl_seconds
    enable_pre_call_check fallback_depth ignore_invalid_deployments max_retries optional_pre_call_checks
    polling_interval provider_budget_config router_general_settings routing_strategy routing_strategy_args
    search_tools
    """
)

GENERAL_SETTINGS = _names(
    """
    admin_only_routes alert_to_webhook_url alert_types alerting alerting_args alerting_threshold
    allow_client_side_credentials allow_requests_on_db_unavailable allow_user_auth allowed_ips allowed_routes
    always_include_stream_usage background_health_checks block_robots budget_rescheduler cancel_on_disconnect
    completion_model control_plane_url custom_auth custom_auth_run_common_checks custom_auth_settings
    custom_key_generate custom_key_update custom_sso custom_ui_sso_sign_in_handler database_args
    database_connection_pool_limit database_connection_timeout database_type default_team_disabled
    disable_adding_master_key_hash_to_db disable_error_logs disable_master_key_return disable_prisma_schema_update
    disable_reset_budget disable_responses_id_security disable_retry_on_max_parallel_request_limit_error
    disable_spend_logs disable_spend_updates embedding_model enable_health_check_routing enable_jwt_auth
    enable_oauth2_auth enable_oauth2_proxy_auth enforce_user_param enforced_params forward_client_headers_to_llm_api
    forward_llm_provider_auth_headers forward_openai_org_id global_max_parallel_requests health_check_concurrency
    health_check_details health_check_interval health_check_staleness_threshold image_generation_model
    infer_model_from_keys key_management_settings key_management_system litellm_jwtauth litellm_key_header_name
    litellm_license max_parallel_requests max_request_size_mb max_response_size_mb
    maximum_spend_logs_cleanup_cron maximum_spend_logs_retention_interval maximum_spend_logs_retention_period
    mcp_internal_ip_ranges mcp_trusted_proxy_ranges moderation_model oauth2_config_mappings
    pass_through_endpoints pass_through_request_timeout proxy_batch_polling_interval proxy_batch_write_at
    proxy_budget_rescheduler_max_time proxy_budget_rescheduler_min_time public_routes
    reject_clientside_metadata_tags require_auth_for_metrics_endpoint required_params role_permissions
    service_account_settings spend_report_frequency store_model_in_db store_prompts_in_spend_logs
    supported_db_objects token_rate_limit_type ui_access_mode use_azure_key_vault
    use_client_credentials_pass_through_routes use_google_kms use_redis_transaction_buffer
    use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl user_header_mappings user_header_name
    user_mcp_management_mode
    """
)

#: settings of an entry of ``model_list``
ENTRY = frozenset({"rpm", "tpm"})

#: settings of an entry's ``litellm_params``
ENTRY_PARAMS = _names(
    """
    additional_drop_params allowed_openai_params api_version auto_router_config aws_access_key_id aws_region_name
    aws_secret_access_key budget_duration cache_creation_input_token_cost
    configurable_clientside_auth_params custom_llm_provider default_api_key_rpm_limit default_api_key_tpm_limit
    drop_params extra_body extra_headers frequency_penalty guardrails headers
    litellm_credential_name logprobs max_budget max_completion_tokens max_file_size_mb
    max_retries max_tokens merge_reasoning_content_in_choices mock_response model_info n
    num_retries order organization output_cost_per_second presence_penalty
    region_name response_format rpm seed stop stream stream_timeout tag_regex tags temperature
    tool_choice tools top_k top_p tpm use_chat_completions_api use_in_pass_through use_litellm_proxy user
    """
)

#: what of an entry's ``model_info`` would change a bill or a permission; every other name is free there
MODEL_INFO = _names(
    """
    access_via_team_ids blocked cache_creation_input_token_cost
    disable_background_health_check health_check_max_tokens health_check_model health_check_timeout health_check_voice
    output_cost_per_second
    """
)
