"""The requests of the team routes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.field_rules import FieldLimits, ForbiddenFields, changed_rules, check_paths
from twisted_vllm.admin.fields import (
    MAX_ITEMS,
    NAMES_USER,
    Alias,
    Label,
    Labels,
    LogMode,
    ModelAliases,
    Models,
    Reference,
    check_alias,
    check_depth,
    check_member_named,
    check_models,
    check_printable_aliases,
    stored_models,
)
from twisted_vllm.admin.limits import (
    BudgetDuration,
    Count,
    Dollars,
    LimitFields,
    ModelBudgets,
    allowance_in_team,
    check_budget_duration,
    check_model_budgets,
)
from twisted_vllm.admin.models import (
    MAX_LISTED,
    MAX_SHOWN,
    After,
    Body,
    IsBlocked,
    ListSize,
    PageNumber,
    PageSize,
    Query,
    SortOrder,
    are_blocked,
    described,
)
from twisted_vllm.admin.unsupported import ON_MEMBERS, ON_TEAMS
from twisted_vllm.admin.users.models import NamedUser
from twisted_vllm.config.log_bodies import keep_opt_out
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance
from twisted_vllm.storage.paging import PageQuery

TeamRole = Literal["user", "admin"]

#: members that one bulk request may add
MAX_BULK_MEMBERS = 500

#: LiteLLM's fields for the limits of each member of a team, and those of a budget
MEMBER_LIMITS = {
    "team_member_budget": "max_budget",
    "team_member_budget_duration": "budget_duration",
    "team_member_rpm_limit": "rpm_limit",
    "team_member_tpm_limit": "tpm_limit",
    "team_member_model_max_budget": "model_max_budget",
}


class NewMember(NamedUser, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user who becomes a member of a team, named by `user_id`, or else by `user_email`."""

    role: Annotated[TeamRole, described("Whether the member administers the team's members and keys.")] = "user"


_Member = Annotated[NewMember, msgspec.Meta(extra_json_schema=NAMES_USER)]
_Members = Annotated[tuple[_Member, ...], msgspec.Meta(max_length=MAX_ITEMS)]


class TeamFields(LimitFields, frozen=True, kw_only=True):
    """The fields of a team that an administrator may set."""

    UNSUPPORTED = ON_TEAMS

    team_alias: Annotated[Alias | None, described("The name that people know. It must not look like a key.")] = None
    models: Annotated[
        Models | None,
        described("The models that all keys of the team may use, with the wildcards `*` and `?`. Empty allows all."),
    ] = None
    blocked: Annotated[bool | None, described("Whether all keys of the team are refused.")] = None
    metadata: Annotated[dict[str, Any] | None, described("Your own notes, as a JSON object.")] = None
    forbidden_fields: Annotated[
        ForbiddenFields | None,
        described("Fields of a request's body that no key of the team may send, such as `logprobs`."),
    ] = None
    field_limits: Annotated[
        FieldLimits | None,
        described(
            "The largest value of a number, or size of a list or text, that a key of the team may send in a field."
        ),
    ] = None
    log_bodies: Annotated[
        LogMode | None,
        described(
            "What traces and sinks get of prompts and answers: nothing (`off`), only their sizes "
            "(`metadata`), or all (`full`)."
        ),
    ] = None
    model_aliases: Annotated[
        ModelAliases | None,
        described("Names of models that the team's callers may use, and the model that each stands for."),
    ] = None
    organization_id: Annotated[
        Reference | None, described("The organization that the team is in, whose models and limits hold for it too.")
    ] = None
    budget_id: Annotated[
        Reference | None, described("A budget whose limits hold where the team has none of its own.")
    ] = None
    team_member_budget: Annotated[
        Dollars | None,
        described(
            "The most that each member may spend in the team in a budget period, in US dollars, "
            "unless the member has a budget of its own."
        ),
    ] = None
    team_member_budget_duration: Annotated[
        BudgetDuration | None, described("The length of the budget period of each member, as in 30d.")
    ] = None
    team_member_rpm_limit: Annotated[Count | None, described("The most requests of each member in any 60 seconds.")] = (
        None
    )
    team_member_tpm_limit: Annotated[Count | None, described("The most tokens of each member in any 60 seconds.")] = (
        None
    )
    team_member_model_max_budget: Annotated[
        ModelBudgets | None,
        described(
            "Budgets of each member for single models, by their names: an amount in US dollars, or an "
            "amount and the length of its period."
        ),
    ] = None

    WHOLE_NUMBER_MAPS = (*LimitFields.WHOLE_NUMBER_MAPS, "field_limits")

    def check(self) -> None:
        """Check the name, models, limits, fields and metadata.

        Raises:
            InvalidRequest: a value cannot be used.
        """
        check_alias(self.team_alias, "team_alias")
        check_models(self.models)
        super().check()
        check_paths("forbidden_fields", self.forbidden_fields)
        check_paths("field_limits", self.field_limits)
        check_printable_aliases(self.model_aliases, "model_aliases")
        check_budget_duration(self.team_member_budget_duration, "team_member_budget_duration")
        check_model_budgets(self.team_member_model_max_budget, "team_member_model_max_budget")
        check_depth(self.metadata)

    def member_limits(self, given: Container[str], before: Allowance = UNLIMITED) -> Allowance:
        """Return the limits of each member after a request, as `limits` those of the team."""
        fields = {name: getattr(self, field) for field, name in MEMBER_LIMITS.items() if field in given}
        return LimitFields(**fields).limits(fields, before)

    def values(
        self,
        given: Container[str],
        before: Allowance = UNLIMITED,
        rules: FieldRules = NO_RULES,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the attributes of a `TeamRecord` that a request sets. null sets the empty value.

        Args:
            given: the names of the fields that the request has.
            before: the limits until now.
            rules: the rules about fields until now.
            metadata: its metadata until now.
        """
        found: dict[str, Any] = {
            "team_alias": self.team_alias,
            "models": stored_models(self.models),
            "blocked": bool(self.blocked),
            "metadata": self.metadata or {},
            "organization_id": self.organization_id,
            "budget_id": self.budget_id,
            "log_bodies": self.log_bodies,
        }
        found = {name: value for name, value in found.items() if name in given}
        keep_opt_out(found, metadata)
        if "model_aliases" in given:
            found["aliases"] = self.model_aliases or None
        fields = {"forbidden_fields": self.forbidden_fields, "field_limits": self.field_limits}
        return {
            **found,
            "allowance": self.limits(given, before),
            "fields": changed_rules(fields, given, rules),
        }


class NewTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/new``."""

    team_id: Annotated[Reference | None, described("The team's id. Without it, a random one.")] = None
    members_with_roles: Annotated[
        _Members | None, described("The first members. A user who is unknown is created.")
    ] = None

    def check(self) -> None:
        """Check the fields of the team, its id and its members."""
        super().check()
        check_alias(self.team_id, "team_id")
        for member in self.members_with_roles or ():
            member.check()


class UpdateTeamRequest(TeamFields, frozen=True, kw_only=True):
    """The body of ``POST /team/update``. Fields that are absent stay as they are; null clears a field."""

    team_id: Annotated[Label, described("The team to change.")]


class TeamRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/block`` and ``/team/unblock``."""

    team_id: Annotated[Label, described("The team.")]


class DeleteTeamsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/delete``."""

    team_ids: Annotated[Labels, msgspec.Meta(min_length=1, description="The teams to delete, with their keys.")]


class AddMembersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_add``: one member or several."""

    UNSUPPORTED = ON_MEMBERS

    team_id: Annotated[Label, described("The team.")]
    member: Annotated[
        _Member | _Members,
        described(
            "A new member, or a list of them: each with a `user_id` or `user_email`, and a `role`. A "
            "user who is unknown is created."
        ),
    ]
    max_budget_in_team: Annotated[
        Dollars | None, described("The most that each of them may spend in the team in a budget period, in US dollars.")
    ] = None
    budget_duration: Annotated[BudgetDuration | None, described("The length of that budget period, as in 30d.")] = None

    @property
    def members(self) -> tuple[NewMember, ...]:
        """The members, also where the request has only one."""
        return (self.member,) if isinstance(self.member, NewMember) else self.member

    def check(self) -> None:
        """Check the members and their limits."""
        check_budget_duration(self.budget_duration, "budget_duration")
        for member in self.members:
            member.check()

    @property
    def allowance(self) -> Allowance:
        """The limits of each member in the team."""
        return allowance_in_team(self.max_budget_in_team, self.budget_duration)


class BulkAddMembersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/bulk_member_add``: some members, or all users."""

    team_id: Annotated[Label, described("The team.")]
    members: Annotated[
        Annotated[tuple[_Member, ...], msgspec.Meta(max_length=MAX_BULK_MEMBERS)] | None,
        described("The new members: each with a `user_id` or `user_email`, and a `role`."),
    ] = None
    all_users: Annotated[bool | None, described("Whether to add all users.")] = None
    max_budget_in_team: Annotated[
        Dollars | None, described("The most that each of them may spend in the team in a budget period, in US dollars.")
    ] = None

    @property
    def allowance(self) -> Allowance:
        """The limits of each member in the team."""
        return allowance_in_team(self.max_budget_in_team)

    def check(self) -> None:
        """Check the members, and that there are some.

        Raises:
            InvalidRequest: there are none, or both fields name some.
        """
        if bool(self.members) == bool(self.all_users):
            raise InvalidRequest("Send `members`, or `all_users`.", param="members")
        for member in self.members or ():
            member.check()


class TeamModelsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/model/add`` and ``/team/model/delete``."""

    team_id: Annotated[Label, described("The team.")]
    models: Annotated[Models, msgspec.Meta(min_length=1, description="The models to add or to take away.")]

    def check(self) -> None:
        """Check the models."""
        check_models(self.models)


class UpdateMemberRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_update``. It names the user by `user_id`, or else by `user_email`."""

    UNSUPPORTED = ON_MEMBERS

    team_id: Annotated[Label, described("The team.")]
    user_id: Annotated[Label | None, described("The member.")] = None
    user_email: Annotated[Label | None, described("The member's address, if `user_id` does not name it.")] = None
    role: Annotated[TeamRole | None, described("Whether the member administers the team's members and keys.")] = None
    max_budget_in_team: Annotated[
        Dollars | None, described("The most that the member may spend in the team in a budget period, in US dollars.")
    ] = None
    budget_duration: Annotated[BudgetDuration | None, described("The length of that budget period, as in 30d.")] = None
    tpm_limit: Annotated[
        Count | None, described("The most tokens of the member's keys in this team in any 60 seconds.")
    ] = None
    rpm_limit: Annotated[
        Count | None, described("The most requests of the member's keys in this team in any 60 seconds.")
    ] = None
    model_max_budget: Annotated[
        ModelBudgets | None, described("Budgets of the member in this team for single models, by their names.")
    ] = None

    def check(self) -> None:
        """Check that a member is named, and its limits."""
        check_member_named(self.user_id, self.user_email, "user_id")
        check_budget_duration(self.budget_duration, "budget_duration")
        check_model_budgets(self.model_max_budget, "model_max_budget")

    def limits(self, given: Container[str], before: Allowance) -> Allowance:
        """Return the member's limits after the request, as `LimitFields.limits`."""
        names = {"max_budget_in_team": "max_budget"}
        names |= {name: name for name in ("budget_duration", "tpm_limit", "rpm_limit", "model_max_budget")}
        fields = {name: getattr(self, field) for field, name in names.items() if field in given}
        return LimitFields(**fields).limits(fields, before)


class RemoveMemberRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /team/member_delete``. It names the user by `user_id`, or else by `user_email`."""

    team_id: Annotated[Label, described("The team.")]
    user_id: Annotated[Label | None, described("The member, whose keys of the team are deleted.")] = None
    user_email: Annotated[Label | None, described("The member's address, if `user_id` does not name it.")] = None

    def check(self) -> None:
        """Check that a member is named."""
        check_member_named(self.user_id, self.user_email, "user_id")


class TeamInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/info``."""

    team_id: Annotated[str, msgspec.Meta(description="The team. Default: the team of the caller's key.")] = ""
    members_after: Annotated[
        str, msgspec.Meta(description="The id of the last member that the answer before showed: the members after it.")
    ] = ""
    key_limit: Annotated[
        int,
        msgspec.Meta(ge=1, le=MAX_LISTED, description="The most keys to show. /key/list?team_id=… shows all by page."),
    ] = MAX_SHOWN


class TeamListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/list``."""

    user_id: Annotated[str, msgspec.Meta(description="Only the teams of this user. Default: all teams.")] = ""
    organization_id: Annotated[str, msgspec.Meta(description="Only the teams of this organization.")] = ""
    page: PageNumber = 1
    after: After = ""
    page_size: ListSize = MAX_LISTED

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={"organization_id": self.organization_id} if self.organization_id else {},
            sort_by="team_id",
            descending=False,
        )


class TeamPageQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /v2/team/list``."""

    UNSUPPORTED = {"search_team_id_match": "exact", "status": None}

    user_id: Annotated[str, msgspec.Meta(description="Only the teams of this user.")] = ""
    organization_id: Annotated[str, msgspec.Meta(description="Only the teams of this organization.")] = ""
    team_id: str = ""
    team_alias: Annotated[str, msgspec.Meta(description="Text that the name contains, in any case.")] = ""
    search: Annotated[str, msgspec.Meta(description="Text that the id or the name contains, in any case.")] = ""
    budget_id: Annotated[str, msgspec.Meta(description="Only teams that name this budget.")] = ""
    blocked: IsBlocked = ""
    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 10
    sort_by: Literal["team_id", "team_alias", "created_at", "updated_at"] = "team_id"
    sort_order: SortOrder = "asc"

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={
                **{
                    name: getattr(self, name)
                    for name in ("team_id", "organization_id", "budget_id")
                    if getattr(self, name)
                },
                **are_blocked(self.blocked),
            },
            search=self.search,
            search_in=("team_id", "team_alias"),
            contains={"team_alias": self.team_alias} if self.team_alias else {},
            sort_by=self.sort_by,
            descending=self.sort_order == "desc",
        )
