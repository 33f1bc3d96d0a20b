"""What the key routes answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from twisted_vllm.admin.fields import (
    LogMode,
)
from twisted_vllm.admin.models import (
    BudgetTable,
    Json,
    Next,
    Record,
    Response,
    Strings,
    Token,
)


class KeyReport(Record, kw_only=True):
    """A key. LiteLLM's fields without a meaning here have LiteLLM's defaults."""

    token: Token
    key_name: Annotated[str, msgspec.Meta(description="`sk-...` and the last four characters.")]
    key_alias: str | None
    models: Strings
    aliases: dict[str, str]
    allowed_routes: Strings
    priority: int | None
    granted_headers: Strings
    cache_isolation: bool
    log_bodies: LogMode | None
    forbidden_fields: Strings
    field_limits: dict[str, int]
    allowed_fields: Strings
    blocked: bool
    status: Literal["active", "expired", "revoked"]
    expires: datetime | None
    metadata: Json
    tags: Strings
    user_id: str | None
    team_id: str | None
    rotation_count: int
    last_rotation_at: datetime | None
    litellm_budget_table: BudgetTable | None
    config: Json
    permissions: Json
    agent_id: None
    organization_id: str | None
    project_id: None
    budget_id: str | None
    budget_limits: None
    budget_fallbacks: None
    tpd_limit: None
    tag_rpm_limit: None
    rpm_limit_type: None
    tpm_limit_type: None
    allowed_passthrough_routes: None
    denied_passthrough_routes: None
    allowed_cache_controls: Strings
    guardrails: None
    policies: None
    prompts: None
    enforced_params: None
    end_user_budget_id: None
    auto_rotate: bool
    rotation_interval: None
    router_settings: None
    access_group_ids: None
    object_permission: None
    allowed_vector_store_indexes: None


class NewKey(KeyReport, kw_only=True):
    """A key with its value, which cannot be shown again."""

    key: str
    token_id: Token


class GeneratedKey(NewKey, kw_only=True):
    """A new key with its value, which cannot be shown again."""

    duration: str | int | None


class ChangedKey(KeyReport, kw_only=True):
    """A key after a change, with the `key` that the request named."""

    key: str


class UpdatedKey(Response, kw_only=True):
    """A key that a bulk update changed."""

    key: Token
    key_info: KeyReport


class FailedUpdate(Response, kw_only=True):
    """A key that a bulk update did not change."""

    index: Annotated[int, msgspec.Meta(description="The position in the request, from 0.")]
    key_info: None
    failed_reason: str


class BulkAnswer(Response, kw_only=True):
    """The results of a bulk update."""

    total_requested: int
    successful_updates: tuple[UpdatedKey, ...]
    failed_updates: tuple[FailedUpdate, ...]


class DeletedKeys(Response, kw_only=True):
    """The keys that were deleted, as the request named them."""

    deleted_keys: Strings


class KeyInfo(Response, kw_only=True):
    """A key, with the name that the request used."""

    key: str
    info: KeyReport


class KeyInfos(Response, kw_only=True):
    """The requested keys that exist, in the order of the request."""

    key: Strings
    info: tuple[KeyReport, ...]


class _KeyPage(Response, kw_only=True):
    total_count: int
    current_page: int
    total_pages: int
    next: Next


class FoundUser(Response, kw_only=True):
    """A user by its names."""

    user_id: str
    user_email: str | None
    user_alias: str | None
    user_role: str


class ListedKey(KeyReport, kw_only=True):
    """A key. With ``expand=user`` it has its user; null for a label that is no user."""

    user: FoundUser | None = None


class KeyList(_KeyPage, kw_only=True):
    """A page of keys, as hashes or whole."""

    keys: tuple[Token | ListedKey, ...]


class AliasList(_KeyPage, kw_only=True):
    """A page of aliases."""

    aliases: Strings
    size: int


class ResetSpend(Response, kw_only=True):
    """A key's spend after a reset, and before it."""

    key_hash: Token
    previous_spend: float
    spend: float
    total_spend: float
    max_budget: float | None
    budget_reset_at: datetime | None
