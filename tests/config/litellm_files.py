"""The combinations of settings that LiteLLM's own example files have (1.108), with values of ours.

A combination is a set of paths. `entry` are settings of the entries of ``model_list``; each has a ``model`` of a vLLM
server beside them. What the files are for is in their names.
"""

from __future__ import annotations

from typing import Any

import attrs

#: mappings in lists, as LiteLLM has them in many sections
_NAMED = [{"name": "one", "params": {"provider": "two"}}]


@attrs.frozen
class Example:
    """One combination.

    Attributes:
        name: what it is for.
        entry: the settings of an entry, by section and name.
        sections: the rest of the file.
        refused: the paths that keep the gateway from starting.
    """

    name: str
    entry: dict[str, Any] = attrs.field(factory=dict)
    sections: dict[str, Any] = attrs.field(factory=dict)
    refused: tuple[str, ...] = ()


EXAMPLES = (
    Example("one model"),
    Example(
        "health checks",
        {"litellm_params.api_version": "1", "model_info.mode": "chat"},
        {
            "litellm_settings": {"set_verbose": True},
            "general_settings": {"background_health_checks": True, "health_check_interval": 60},
        },
    ),
    Example(
        "a router that adapts",
        {
            "litellm_params.adaptive_router_config": {"a": 1},
            "litellm_params.input_cost_per_token": 0.000001,
            "model_info.adaptive_router_preferences": {"b": 2},
        },
        {"litellm_settings": {"drop_params": True}, "general_settings": {"master_key": "os.environ/KEY"}},
    ),
    Example(
        "web search",
        {"litellm_params.aws_region_name": "x"},
        {
            "search_tools": _NAMED,
            "litellm_settings": {"callbacks": ["websearch_interception"], "websearch_interception_params": {"a": 1}},
        },
        ("litellm_settings.callbacks",),
    ),
    Example("parameters of a model", {"litellm_params.temperature": 0.5, "litellm_params.max_tokens": 9}),
    Example(
        "timeouts of a model",
        {
            "litellm_params.tpm": 9000,
            "litellm_params.timeout": 30,
            "litellm_params.stream_timeout": 20,
            "litellm_params.max_retries": 2,
        },
    ),
    Example(
        "a code interpreter",
        {"litellm_params.extra_body": {"a": 1}},
        {
            "sandbox_tools": _NAMED,
            "litellm_settings": {
                "callbacks": ["code_interpreter_interception"],
                "code_interpreter_interception_params": {"a": 1},
            },
        },
        ("litellm_settings.callbacks",),
    ),
    Example(
        "a schema that stays",
        {},
        {
            "litellm_settings": {"callbacks": ["prometheus"]},
            "general_settings": {"disable_prisma_schema_update": True},
        },
    ),
    Example(
        "tags",
        {"litellm_params.tags": ["gold"], "model_info.id": "one"},
        {
            "litellm_settings": {"cache": True, "callbacks": ["otel"]},
            "router_settings": {"enable_tag_filtering": True},
        },
        ("router_settings.enable_tag_filtering",),
    ),
    Example(
        "callbacks",
        {},
        {"litellm_settings": {"drop_params": True, "success_callback": ["langfuse"], "failure_callback": ["sentry"]}},
        ("litellm_settings.failure_callback",),
    ),
    Example(
        "several servers",
        {"rpm": 6, "tpm": 1000},
        {
            "litellm_settings": {"drop_params": True},
            "environment_variables": {"REDIS_HOST": "redis.example.com", "REDIS_PASSWORD": None, "REDIS_PORT": None},
        },
    ),
    Example(
        "a Redis for several instances",
        {},
        {"general_settings": {"coordination_redis": {"host": "redis"}, "use_redis_transaction_buffer": True}},
    ),
    Example(
        "batches and files",
        {
            "litellm_params.s3_bucket_name": "b",
            "litellm_params.s3_region_name": "r",
            "litellm_params.s3_access_key_id": "os.environ/KEY",
            "litellm_params.s3_secret_access_key": "os.environ/KEY",
            "litellm_params.aws_batch_role_arn": "r",
            "litellm_params.region_name": "eu",
            "model_info.mode": "batch",
        },
        {
            "litellm_settings": {
                "num_retries": 2,
                "request_timeout": 60,
                "context_window_fallbacks": [{"qwen": ["large"]}],
                "default_team_settings": [{"team_id": "blue", "success_callback": ["langfuse"]}],
            },
            "finetune_settings": _NAMED,
            "files_settings": _NAMED,
        },
    ),
    Example(
        "traces",
        {"model_info.supports_vision": True},
        {
            "general_settings": {"otel": True},
            "litellm_settings": {
                "callbacks": ["otel"],
                "disable_end_user_cost_tracking_prometheus_only": True,
                "require_auth_for_metrics_endpoint": False,
            },
        },
    ),
    Example(
        "pass-through",
        {},
        {
            "general_settings": {
                "pass_through_endpoints": [{"path": "/v1/rerank", "target": "http://gpu:8000/v1/rerank"}],
            },
            "litellm_settings": {"include_cost_in_streaming_usage": True},
        },
    ),
    Example(
        "authentication of one's own",
        {},
        {"general_settings": {"custom_auth": "mine.authenticate"}},
        ("general_settings.custom_auth",),
    ),
    Example(
        "no tags of callers",
        {},
        {
            "general_settings": {
                "database_url": "postgresql://u:p@db/litellm",
                "reject_clientside_metadata_tags": True,
            }
        },
        ("general_settings.reject_clientside_metadata_tags",),
    ),
    Example(
        "models in the database",
        {},
        {
            "general_settings": {
                "store_model_in_db": True,
                "custom_team_metadata_validate": "mine.validate",
                "team_metadata_validation_timeout": 3,
                "team_metadata_validation_error_message": "no",
            }
        },
    ),
    Example(
        "policies",
        {},
        {
            "guardrails": _NAMED,
            "policies": {"one": {"guardrails": {"add": ["one"]}}},
            "policy_attachments": [{"policy": "one", "scope": "*"}],
        },
        ("guardrails", "policies", "policy_attachments"),
    ),
    Example(
        "guardrails of the proxy", {}, {"litellm_settings": {"guardrails": _NAMED}}, ("litellm_settings.guardrails",)
    ),
    Example(
        "MCP",
        {},
        {
            "mcp_servers": {"one": {"url": "https://mcp.example.com"}},
            "litellm_settings": {"mcp_semantic_tool_filter": {"enabled": True}},
            "general_settings": {"store_model_in_db": True},
        },
    ),
    Example(
        "other clouds",
        {
            "litellm_params.vertex_project": "p",
            "litellm_params.vertex_location": "l",
            "litellm_params.vertex_credentials": "os.environ/KEY",
        },
    ),
    Example("a section of a later version", {}, {"a_section_of_tomorrow": {"x": 1}}),
)
