"""The requests and responses of the organization routes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.fields import (
    MAX_ITEMS,
    NAMES_USER,
    Alias,
    Label,
    Labels,
    Models,
    Reference,
    check_alias,
    check_depth,
    check_member_named,
    check_models,
    redacted,
    stored_models,
)
from twisted_vllm.admin.limits import LimitFields
from twisted_vllm.admin.models import (
    LISTED_MEMBERS,
    MAX_LISTED,
    MAX_SHOWN,
    After,
    Body,
    BudgetTable,
    Json,
    ListSize,
    PageNumber,
    PageSize,
    Query,
    Record,
    Response,
    SortOrder,
    Strings,
    WalkedPage,
    described,
)
from twisted_vllm.admin.unsupported import ON_ORGANIZATION_MEMBERS, ON_ORGANIZATIONS
from twisted_vllm.admin.users.models import NamedUser, OwnTeam, UserReport
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import OrganizationRecord

OrganizationRole = Literal["org_admin", "internal_user", "internal_user_viewer"]


class NewOrganizationMember(NamedUser, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user who becomes a member of an organization, named by `user_id`, or else by `user_email`."""

    role: Annotated[
        OrganizationRole,
        described("What the member sees of the organization: everybody in it (`org_admin`), or itself and its teams."),
    ] = "internal_user"

    def check(self) -> None:
        """Check the id and the address, and that there is one of them."""
        super().check()
        check_member_named(self.user_id, self.user_email, "member")


_Member = Annotated[NewOrganizationMember, msgspec.Meta(extra_json_schema=NAMES_USER)]
_Members = Annotated[tuple[_Member, ...], msgspec.Meta(min_length=1, max_length=MAX_ITEMS)]


class OrganizationFields(LimitFields, frozen=True, kw_only=True):
    """The fields of an organization that an administrator may set."""

    UNSUPPORTED = ON_ORGANIZATIONS

    models: Annotated[
        Models | None,
        described(
            "The models that all keys of the organization may use, with the wildcards `*` and `?`. Empty allows all."
        ),
    ] = None
    metadata: Annotated[dict[str, Any] | None, described("Your own notes, as a JSON object.")] = None
    budget_id: Annotated[
        Reference | None, described("A budget whose limits hold where the organization has none of its own.")
    ] = None

    def check(self) -> None:
        """Check models, limits and metadata."""
        check_models(self.models)
        super().check()
        check_depth(self.metadata)


class NewOrganizationRequest(OrganizationFields, frozen=True, kw_only=True):
    """The body of ``POST /organization/new``."""

    organization_alias: Annotated[Alias, described("The name that people know. It must not look like a key.")]
    organization_id: Annotated[Reference | None, described("The organization's id. Without it, a random one.")] = None

    def check(self) -> None:
        """Check the fields of the organization, its id and its name."""
        check_alias(self.organization_alias, "organization_alias")
        check_alias(self.organization_id, "organization_id")
        super().check()

    def values(self) -> dict[str, Any]:
        """Return the attributes of an `OrganizationRecord` that the request sets."""
        return {
            "organization_alias": self.organization_alias,
            "models": stored_models(self.models),
            "metadata": self.metadata or {},
            "budget_id": self.budget_id,
            "allowance": self.limits(self.__struct_fields__),
        }


class PatchOrganizationRequest(OrganizationFields, frozen=True, kw_only=True):
    """The body of ``PATCH /v2/organization/{organization_id}``. Fields that are absent stay; null clears a field.

    As in LiteLLM, `metadata` is merged into the one from before.
    """

    organization_alias: Annotated[
        Alias | None, described("The name that people know. It must not look like a key.")
    ] = None

    def check(self) -> None:
        """Check the fields of the organization, and its name."""
        check_alias(self.organization_alias, "organization_alias")
        super().check()

    def values(self, given: Container[str], before: OrganizationRecord) -> dict[str, Any]:
        """Return the attributes of an `OrganizationRecord` that the request sets.

        Args:
            given: the names of the fields that the request has.
            before: the organization until now.
        """
        found: dict[str, Any] = {
            "organization_alias": self.organization_alias,
            "models": stored_models(self.models),
            "metadata": {} if self.metadata is None else {**before.metadata, **self.metadata},
            "budget_id": self.budget_id,
        }
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before.allowance)}


class UpdateOrganizationRequest(PatchOrganizationRequest, frozen=True, kw_only=True):
    """The body of ``PATCH /organization/update``. Fields that are absent stay as they are; null clears a field.

    As in LiteLLM, `metadata` is merged into the one from before.
    """

    organization_id: Annotated[Label, described("The organization to change.")]
    litellm_budget_table: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(
            description="Limits, and `budget_id`, as LiteLLM's dashboard sends them. They win over the others."
        ),
    ] = None

    @classmethod
    def flat(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a body with the limits of `litellm_budget_table` beside the others."""
        table = given.get("litellm_budget_table")
        if not isinstance(table, dict):
            return dict(given)
        names = {*LimitFields.ATTRIBUTES, "budget_id"}
        for name in table:
            if name not in names:
                raise InvalidRequest(
                    f"`litellm_budget_table.{redacted(name)}` is not a known field. Known are "
                    f"{', '.join(sorted(names))}.",
                    param=f"litellm_budget_table.{redacted(name)}",
                )
        return {**{name: value for name, value in given.items() if name != "litellm_budget_table"}, **table}


class OrganizationsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /organization/info``."""

    organizations: Annotated[Labels, msgspec.Meta(min_length=1, description="The ids of the organizations.")]


class DeleteOrganizationsRequest(Body, frozen=True, kw_only=True):
    """The body of ``DELETE /organization/delete``."""

    organization_ids: Annotated[
        Labels, msgspec.Meta(min_length=1, description="The organizations to delete, with their teams and keys.")
    ]


class AddOrganizationMembersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /organization/member_add``: one member or several."""

    UNSUPPORTED = ON_ORGANIZATION_MEMBERS

    organization_id: Annotated[Label, described("The organization.")]
    member: Annotated[
        _Member | _Members,
        described(
            "A new member, or a list of them: each with a `user_id` or `user_email`, and a `role`. A "
            "user who is unknown is created."
        ),
    ]

    @property
    def members(self) -> tuple[NewOrganizationMember, ...]:
        """The members, also where the request has only one."""
        return (self.member,) if isinstance(self.member, NewOrganizationMember) else self.member

    def check(self) -> None:
        """Check the members."""
        for member in self.members:
            member.check()


class OrganizationMemberRequest(Body, frozen=True, kw_only=True):
    """The body of ``DELETE /organization/member_delete``. It names the user by `user_id`, or else by `user_email`."""

    organization_id: Annotated[Label, described("The organization.")]
    user_id: Annotated[Label | None, described("The member.")] = None
    user_email: Annotated[Label | None, described("The member's address, if `user_id` does not name it.")] = None

    def check(self) -> None:
        """Check that a member is named."""
        check_member_named(self.user_id, self.user_email, "user_id")


class UpdateOrganizationMemberRequest(OrganizationMemberRequest, frozen=True, kw_only=True):
    """The body of ``PATCH /organization/member_update``. It names the user as ``/organization/member_delete``."""

    UNSUPPORTED = ON_ORGANIZATION_MEMBERS

    role: Annotated[
        OrganizationRole | None,
        described("What the member sees of the organization: everybody in it (`org_admin`), or itself and its teams."),
    ] = None


class OrganizationInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /organization/info``."""

    organization_id: Annotated[str, msgspec.Meta(min_length=1)]


class OrganizationListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /organization/list``."""

    org_id: str = ""
    org_alias: Annotated[str, msgspec.Meta(description="Text that the name contains, in any case.")] = ""
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
            equals={"organization_id": self.org_id} if self.org_id else {},
            contains={"organization_alias": self.org_alias} if self.org_alias else {},
            sort_by="organization_id",
            descending=False,
        )


class OrganizationPageQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /v2/organizations/list``."""

    search: Annotated[str, msgspec.Meta(description="Text that the id or the name contains, in any case.")] = ""
    budget_id: Annotated[str, msgspec.Meta(description="Only organizations that name this budget.")] = ""
    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 25
    sort_by: Literal["organization_id", "organization_alias", "created_at", "updated_at"] = "organization_id"
    sort_order: SortOrder = "asc"

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={"budget_id": self.budget_id} if self.budget_id else {},
            search=self.search,
            search_in=("organization_id", "organization_alias"),
            sort_by=self.sort_by,
            descending=self.sort_order == "desc",
        )


class OrganizationMembership(Response, kw_only=True):
    """The membership of a user in an organization."""

    organization_id: str
    user_id: str
    user_email: str | None
    user_role: OrganizationRole
    budget_id: None
    litellm_budget_table: None


class OrganizationReport(Record, kw_only=True):
    """An organization with its members and teams, and the spend of all its keys together."""

    organization_id: str
    organization_alias: str | None
    models: Strings
    metadata: Json
    budget_id: str | None
    litellm_budget_table: BudgetTable
    members: Annotated[
        tuple[OrganizationMembership, ...],
        msgspec.Meta(
            description=f"By their ids: the first {LISTED_MEMBERS} in a list of organizations, else the first "
            f"{MAX_SHOWN}."
        ),
    ]
    members_count: Annotated[int, msgspec.Meta(description="How many members the organization has.")]
    teams: tuple[OwnTeam, ...]


class OrganizationPage(WalkedPage, kw_only=True):
    """A page of organizations."""

    organizations: tuple[OrganizationReport, ...]


class AddedOrganizationMembers(Response, kw_only=True):
    """The users who became members."""

    organization_id: str
    updated_users: tuple[UserReport, ...]
    updated_organization_memberships: tuple[OrganizationMembership, ...]
