"""The forms of all nouns: which fields stand together."""

from __future__ import annotations

from twisted_vllm.admin.budgets.models import NewBudgetRequest, UpdateBudgetRequest
from twisted_vllm.admin.customers import NewCustomerRequest, UpdateCustomerRequest
from twisted_vllm.admin.keys.models import GenerateRequest, UpdateRequest
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.organizations.models import NewOrganizationRequest, UpdateOrganizationRequest
from twisted_vllm.admin.teams.models import MEMBER_LIMITS, NewTeamRequest, UpdateTeamRequest
from twisted_vllm.admin.users.models import NewUserRequest, UpdateUserRequest
from twisted_vllm.admin.web.forms import Form, Group

_LABELS = {
    "rpm_limit": "Requests in 60 seconds",
    "tpm_limit": "Tokens in 60 seconds",
    "max_parallel_requests": "Requests at a time",
    "model_rpm_limit": "Requests in 60 seconds, by model",
    "model_tpm_limit": "Tokens in 60 seconds, by model",
    "max_budget": "Budget in US dollars",
    "soft_budget": "Warning at US dollars",
    "budget_duration": "Budget period",
    "model_max_budget": "Budgets by model",
    "budget_id": "Shared budget",
    "user_id": "User",
    "team_id": "Team",
    "organization_id": "Organization",
    "models": "Models",
    "duration": "Works for",
    "allowed_routes": "Routes",
    "key_type": "Kind of key",
    "aliases": "Names of models",
    "model_aliases": "Names of models",
    "metadata": "Notes",
    "log_bodies": "Prompts and answers in traces",
    "spend": "Spent already",
    "team_member_budget": "Budget of each member in US dollars",
    "team_member_budget_duration": "Budget period of each member",
    "team_member_rpm_limit": "Requests of each member in 60 seconds",
    "team_member_tpm_limit": "Tokens of each member in 60 seconds",
    "team_member_model_max_budget": "Budgets of each member by model",
}

#: the limits that most records have, shown at once, and the others
_USUAL = ("max_budget", "budget_duration", "rpm_limit", "tpm_limit", "max_parallel_requests")
_RARE = ("model_rpm_limit", "model_tpm_limit", "model_max_budget", "soft_budget")
_LIMITS = Group("Limits", _USUAL, opened=True)
_MORE_LIMITS = Group("More limits", (*_RARE, "budget_id"))
_MORE_LIMITS_AND_SPEND = Group("More limits", (*_MORE_LIMITS.names, "spend"))
_NOTES = Group("Notes", ("metadata",))

_KEY_GROUPS = (
    Group("Models", ("models",), opened=True),
    _LIMITS,
    Group("Routes and names of models", ("key_type", "allowed_routes", "aliases")),
    _MORE_LIMITS_AND_SPEND,
    Group(
        "Fields and privacy",
        ("forbidden_fields", "field_limits", "allowed_fields", "cache_isolation", "log_bodies"),
    ),
    Group("Queue and headers", ("priority", "granted_headers")),
    Group("Tags and notes", ("tags", "metadata")),
)
_KEY_IDENTITY = ("key_alias", "user_id", "team_id", "duration")

NEW_KEY = Form(
    body=GenerateRequest,
    groups=(
        Group("Identity", _KEY_IDENTITY, opened=True),
        *_KEY_GROUPS,
        Group("Value and organization", ("key", "organization_id")),
    ),
    # a new key that is refused is of no use
    left_out=frozenset(("blocked",)),
    labels={**_LABELS, "key_alias": "Alias", "key": "Value"},
)
EDIT_KEY = Form(
    body=UpdateRequest,
    groups=(
        Group("Identity", (*_KEY_IDENTITY, "organization_id", "blocked"), opened=True),
        *_KEY_GROUPS,
    ),
    left_out=frozenset(("key",)),
    labels={**_LABELS, "key_alias": "Alias", "duration": "Works from now on for"},
)

#: the fields of a key that its user may set
OWN_KEY_FIELDS = frozenset(
    (
        *("key_alias", "team_id", "duration", "blocked", "models", "aliases", "key_type", "allowed_routes"),
        *_USUAL,
        *_RARE,
        *("forbidden_fields", "field_limits", "allowed_fields", "cache_isolation", "log_bodies", "metadata"),
    )
)

_USER_LABELS = {
    **_LABELS,
    "user_id": "ID",
    "user_alias": "Name",
    "user_email": "E-mail address",
    "user_role": "Role",
    "teams": "Teams",
    "auto_create_key": "Make a key for the user",
    "key_alias": "Alias of the key",
    "duration": "The key works for",
    "aliases": "Names of models of the key",
    "team_id": "Team of the key",
}
_USER_GROUPS = (Group("Models", ("models",), opened=True), _LIMITS, _MORE_LIMITS_AND_SPEND, _NOTES)

NEW_USER = Form(
    body=NewUserRequest,
    groups=(
        Group("Identity", ("user_id", "user_alias", "user_email", "user_role", "auto_create_key"), opened=True),
        *_USER_GROUPS,
        Group("Teams and organizations", ("teams", "organizations")),
        Group("The key that is made", ("key_alias", "team_id", "duration", "aliases")),
    ),
    labels=_USER_LABELS,
    initially=frozenset(("auto_create_key",)),
)
EDIT_USER = Form(
    body=UpdateUserRequest,
    groups=(Group("Identity", ("user_alias", "user_email", "user_role"), opened=True), *_USER_GROUPS),
    left_out=frozenset(("user_id",)),
    labels=_USER_LABELS,
)


def _with_member_limits(record: Json) -> Json:
    table = record.get("team_member_budget_table") or {}
    return {**record, **{field: table.get(name) for field, name in MEMBER_LIMITS.items()}}


_TEAM_LABELS = {**_LABELS, "team_alias": "Name", "team_id": "ID"}
_TEAM_GROUPS = (
    Group("Models", ("models",), opened=True),
    _LIMITS,
    Group("Names of models", ("model_aliases",)),
    _MORE_LIMITS,
    Group("Each member", tuple(MEMBER_LIMITS)),
    Group("Fields and privacy", ("forbidden_fields", "field_limits", "log_bodies")),
    _NOTES,
)

NEW_TEAM = Form(
    body=NewTeamRequest,
    groups=(Group("Identity", ("team_alias", "team_id", "organization_id"), opened=True), *_TEAM_GROUPS),
    # members are added on the team's page; a new team that is refused is of no use
    left_out=frozenset(("members_with_roles", "blocked")),
    labels=_TEAM_LABELS,
)
EDIT_TEAM = Form(
    body=UpdateTeamRequest,
    groups=(Group("Identity", ("team_alias", "organization_id", "blocked"), opened=True), *_TEAM_GROUPS),
    left_out=frozenset(("team_id",)),
    labels=_TEAM_LABELS,
    read=_with_member_limits,
)

_ORGANIZATION_LABELS = {**_LABELS, "organization_alias": "Name", "organization_id": "ID"}
_ORGANIZATION_GROUPS = (
    Group("Models", ("models",), opened=True),
    _LIMITS,
    _MORE_LIMITS,
    _NOTES,
)

NEW_ORGANIZATION = Form(
    body=NewOrganizationRequest,
    groups=(Group("Identity", ("organization_alias", "organization_id"), opened=True), *_ORGANIZATION_GROUPS),
    labels=_ORGANIZATION_LABELS,
)
EDIT_ORGANIZATION = Form(
    body=UpdateOrganizationRequest,
    groups=(Group("Identity", ("organization_alias",), opened=True), *_ORGANIZATION_GROUPS),
    # the same limits in the place where LiteLLM's dashboard has them
    left_out=frozenset(("organization_id", "litellm_budget_table")),
    labels=_ORGANIZATION_LABELS,
)

_CUSTOMER_LABELS = {**_LABELS, "alias": "Name", "user_id": "ID"}
_CUSTOMER_GROUPS = (_LIMITS, _MORE_LIMITS_AND_SPEND)

NEW_CUSTOMER = Form(
    body=NewCustomerRequest,
    groups=(Group("Identity", ("user_id", "alias", "blocked"), opened=True), *_CUSTOMER_GROUPS),
    labels=_CUSTOMER_LABELS,
)
EDIT_CUSTOMER = Form(
    body=UpdateCustomerRequest,
    groups=(Group("Identity", ("alias", "blocked"), opened=True), *_CUSTOMER_GROUPS),
    left_out=frozenset(("user_id",)),
    labels=_CUSTOMER_LABELS,
)

_BUDGET_LABELS = {**_LABELS, "budget_id": "ID"}
_BUDGET_GROUPS = (_LIMITS, Group("More limits", _RARE))

NEW_BUDGET = Form(
    body=NewBudgetRequest,
    groups=(Group("Identity", ("budget_id",), opened=True), *_BUDGET_GROUPS),
    labels=_BUDGET_LABELS,
)
EDIT_BUDGET = Form(
    body=UpdateBudgetRequest, groups=_BUDGET_GROUPS, left_out=frozenset(("budget_id",)), labels=_BUDGET_LABELS
)

FORMS = {
    "key": (NEW_KEY, EDIT_KEY),
    "user": (NEW_USER, EDIT_USER),
    "team": (NEW_TEAM, EDIT_TEAM),
    "organization": (NEW_ORGANIZATION, EDIT_ORGANIZATION),
    "customer": (NEW_CUSTOMER, EDIT_CUSTOMER),
    "budget": (NEW_BUDGET, EDIT_BUDGET),
}
