"""What the key endpoints answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from twisted_vllm.admin.answers import Answer, Object, Record, Strings, Token


class KeyReport(Record, kw_only=True):
    """A key; the fields of LiteLLM's that mean nothing here have its defaults."""

    token: Token
    key_name: Annotated[str, msgspec.Meta(description="`sk-...` and the last four characters.")]
    key_alias: str | None
    models: Strings
    aliases: dict[str, str]
    allowed_routes: Strings
    priority: int | None
    granted_headers: Strings
    cache_isolation: bool
    blocked: bool
    status: Literal["active", "expired", "revoked"]
    expires: datetime | None
    metadata: Object
    tags: Strings
    user_id: str | None
    team_id: str | None
    rotation_count: int
    last_rotation_at: datetime | None
    litellm_budget_table: None
    config: Object
    permissions: Object
    agent_id: None
    organization_id: None
    project_id: None
    budget_id: None
    budget_limits: None
    model_max_budget: Object
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
    """A key with its value, which is shown this once."""

    key: str
    token_id: Token


class GeneratedKey(NewKey, kw_only=True):
    """A new key with its value, which is shown this once."""

    duration: str | int | None


class ChangedKey(KeyReport, kw_only=True):
    """A key that was changed, under the name that it was called by."""

    key: str


class UpdatedKey(Answer, kw_only=True):
    """One of many keys that was changed."""

    key: Token
    key_info: KeyReport


class FailedUpdate(Answer, kw_only=True):
    """One of many keys that was not changed."""

    index: Annotated[int, msgspec.Meta(description="Which of those that were sent, from 0.")]
    key_info: None
    failed_reason: str


class BulkAnswer(Answer, kw_only=True):
    """What became of each of many keys."""

    total_requested: int
    successful_updates: tuple[UpdatedKey, ...]
    failed_updates: tuple[FailedUpdate, ...]


class DeletedKeys(Answer, kw_only=True):
    """The keys that were deleted, as they were named."""

    deleted_keys: Strings


class KeyInfo(Answer, kw_only=True):
    """A key, under the name that it was asked by."""

    key: str
    info: KeyReport


class KeyInfos(Answer, kw_only=True):
    """Those of the named keys that are known, in the order of their names."""

    key: Strings
    info: tuple[KeyReport, ...]


class _KeyPage(Answer, kw_only=True):
    total_count: int
    current_page: int
    total_pages: int


class KeyList(_KeyPage, kw_only=True):
    """A page of keys, as hashes or as whole records."""

    keys: tuple[Token | KeyReport, ...]


class AliasList(_KeyPage, kw_only=True):
    """A page of aliases."""

    aliases: Strings
    size: int


class ResetSpend(Answer, kw_only=True):
    """What a key has spent, and had before it was set anew."""

    key_hash: Token
    previous_spend: float
    spend: float
    total_spend: float
    max_budget: float | None
    budget_reset_at: datetime | None
