"""What the admin API answers: LiteLLM's shapes, as the document of the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

_Token = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the key.")]
_Strings = tuple[str, ...]
_Object = dict[str, Any]


class Answer(msgspec.Struct, kw_only=True):
    """What is answered."""


class ErrorDetail(Answer, kw_only=True):
    """What is wrong."""

    message: Annotated[str, msgspec.Meta(description="What is wrong and what to do about it.")]
    type: str
    param: Annotated[str | None, msgspec.Meta(description="The field or parameter at fault, if it is one.")]
    code: Annotated[str, msgspec.Meta(description="What is wrong, for programs; also in x-vllm-passthrough-error.")]


class Error(Answer, kw_only=True):
    """A refusal, in OpenAI's shape."""

    error: ErrorDetail


class _Changes(Answer, kw_only=True):
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class _Limits(_Changes, kw_only=True):
    """What LiteLLM reports of keys, users and teams alike."""

    spend: float
    max_budget: float | None
    budget_duration: str | None
    tpm_limit: int | None
    rpm_limit: int | None
    max_parallel_requests: int | None


class KeyReport(_Limits, kw_only=True):
    """A key; the fields of LiteLLM's that mean nothing here have its defaults."""

    token: _Token
    key_name: Annotated[str, msgspec.Meta(description="`sk-...` and the last four characters.")]
    key_alias: str | None
    models: _Strings
    aliases: dict[str, str]
    allowed_routes: _Strings
    priority: int | None
    granted_headers: _Strings
    blocked: bool
    status: Literal["active", "expired", "revoked"]
    expires: datetime | None
    metadata: _Object
    tags: _Strings
    user_id: str | None
    team_id: str | None
    rotation_count: int
    last_rotation_at: datetime | None
    soft_budget: float | None
    model_rpm_limit: dict[str, int] | None
    model_tpm_limit: dict[str, int] | None
    litellm_budget_table: None
    config: _Object
    permissions: _Object
    agent_id: None
    organization_id: None
    project_id: None
    budget_id: None
    budget_limits: None
    model_max_budget: _Object
    budget_fallbacks: None
    tpd_limit: None
    tag_rpm_limit: None
    rpm_limit_type: None
    tpm_limit_type: None
    allowed_passthrough_routes: None
    denied_passthrough_routes: None
    allowed_cache_controls: _Strings
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
    token_id: _Token


class GeneratedKey(NewKey, kw_only=True):
    """A new key with its value, which is shown this once."""

    duration: str | int | None


class ChangedKey(KeyReport, kw_only=True):
    """A key that was changed, under the name that it was called by."""

    key: str


class UpdatedKey(Answer, kw_only=True):
    """One of many keys that was changed."""

    key: _Token
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

    deleted_keys: _Strings


class KeyInfo(Answer, kw_only=True):
    """A key, under the name that it was asked by."""

    key: str
    info: KeyReport


class KeyInfos(Answer, kw_only=True):
    """Those of the named keys that are known, in the order of their names."""

    key: _Strings
    info: tuple[KeyReport, ...]


class _KeyPage(Answer, kw_only=True):
    total_count: int
    current_page: int
    total_pages: int


class KeyList(_KeyPage, kw_only=True):
    """A page of keys, as hashes or as whole records."""

    keys: tuple[_Token | KeyReport, ...]


class AliasList(_KeyPage, kw_only=True):
    """A page of aliases."""

    aliases: _Strings
    size: int


class _PersonReport(_Limits, kw_only=True):
    budget_reset_at: datetime | None
    models: _Strings
    metadata: _Object


class UserReport(_PersonReport, kw_only=True):
    """A user."""

    user_id: str
    user_alias: str | None
    user_email: str | None
    user_role: str
    teams: Annotated[_Strings, msgspec.Meta(description="The ids of its teams.")]


class NewUser(UserReport, kw_only=True):
    """A user, with the fields of its first key where one was made."""

    key: Annotated[str | None, msgspec.Meta(description="The key, which is shown this once.")]
    token_id: _Token | None


class Membership(Answer, kw_only=True):
    """A user's place in a team."""

    user_id: str
    team_id: str
    budget_id: None
    litellm_budget_table: None


class MemberRole(Answer, kw_only=True):
    """A user in a team."""

    role: Literal["user", "admin"]
    user_id: str
    user_email: None


class TeamReport(_PersonReport, kw_only=True):
    """A team."""

    team_id: str
    team_alias: str | None
    organization_id: None
    blocked: bool
    members_with_roles: tuple[MemberRole, ...]


class OwnTeam(Answer, kw_only=True):
    """A team, as far as its members see it."""

    team_id: str
    team_alias: str | None
    models: _Strings


class UserInfo(Answer, kw_only=True):
    """A user with its keys and teams."""

    user_id: str
    user_info: UserReport
    keys: tuple[KeyReport, ...]
    teams: Annotated[
        tuple[_Object, ...], msgspec.Meta(description="Whole for an administrator: as `TeamReport`, else `OwnTeam`.")
    ]


class ChangedUser(Answer, kw_only=True):
    """A user that was changed."""

    user_id: str
    data: UserReport


class CountedUser(UserReport, kw_only=True):
    """A user, with the number of its keys."""

    key_count: int


class _PeoplePage(Answer, kw_only=True):
    total: int
    page: int
    page_size: int
    total_pages: int


class UserList(_PeoplePage, kw_only=True):
    """A page of users."""

    users: tuple[CountedUser, ...]


class TeamInfo(Answer, kw_only=True):
    """A team with its members and keys."""

    team_id: str
    team_info: TeamReport
    keys: tuple[KeyReport, ...]
    team_memberships: tuple[Membership, ...]


class ChangedTeam(Answer, kw_only=True):
    """A team that was changed."""

    team_id: str
    data: TeamReport


class DeletedTeams(Answer, kw_only=True):
    """The ids of the teams that were deleted."""

    deleted_teams: _Strings


class AddedMembers(TeamReport, kw_only=True):
    """A team, with those who became its members."""

    updated_users: tuple[UserReport, ...]
    updated_team_memberships: tuple[Membership, ...]


class AuditEntry(Answer, kw_only=True):
    """What was done to one thing."""

    id: int
    at: datetime
    actor: str
    actor_name: str
    action: str
    object_type: str
    object_id: str
    before: _Object | None
    after: _Object | None
    request_id: str
    client: str


class AuditList(_PeoplePage, kw_only=True):
    """A page of the audit."""

    audit_logs: tuple[AuditEntry, ...]


class Welcome(Answer, kw_only=True):
    """What this is."""

    service: str
    about: str
    routes: dict[str, str]
    docs: str


class ReadinessReport(Answer, kw_only=True):
    """How fit the process is to serve."""

    status: Literal["healthy", "unhealthy"]
    db: Literal["connected", "disconnected"]
    draining: bool


class Unready(ReadinessReport, kw_only=True):
    """Why the process should get no requests."""

    error: ErrorDetail
