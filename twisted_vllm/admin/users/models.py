"""The requests and responses of the user routes."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.fields import (
    MAX_ITEMS,
    ROLES,
    Alias,
    Duration,
    Email,
    Label,
    Labels,
    ModelAliases,
    Models,
    Never,
    Reference,
    Role,
    check_alias,
    check_depth,
    check_email,
    check_models,
    check_printable_aliases,
    stored_models,
)
from twisted_vllm.admin.keys.answers import KeyReport
from twisted_vllm.admin.limits import Dollars, LimitFields, Spent
from twisted_vllm.admin.lists import ids_of
from twisted_vllm.admin.models import (
    After,
    Body,
    BudgetTable,
    Json,
    PageNumber,
    PageSize,
    Query,
    Record,
    Response,
    SortOrder,
    Strings,
    Token,
    WalkedPage,
    described,
)
from twisted_vllm.admin.unsupported import ON_CHANGED_USERS, ON_NEW_USERS, ON_USERS
from twisted_vllm.auth.records import PROXY_ADMIN
from twisted_vllm.auth.roles import INTERNAL_USER, INTERNAL_USER_VIEWER, PROXY_ADMIN_VIEWER
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance
from twisted_vllm.storage.paging import PageQuery

#: columns that a search for users looks at
SEARCHED = ("user_id", "user_email")

#: what each role may do, and its short name
ROLE_WORDS = {
    PROXY_ADMIN: ("Administers the gateway: reads and changes everything.", "Admin (All Permissions)"),
    PROXY_ADMIN_VIEWER: ("Reads everything and changes nothing.", "Admin (View Only)"),
    INTERNAL_USER: ("Reads and changes what is its own.", "Internal User (Create/Delete/View)"),
    INTERNAL_USER_VIEWER: ("Reads what is its own.", "Internal User (View Only)"),
}

#: users that one bulk update may change
MAX_BULK_USERS = 500


class UserFields(LimitFields, frozen=True, kw_only=True):
    """The fields of a user that an administrator may set."""

    UNSUPPORTED = ON_USERS

    user_alias: Annotated[Alias | None, described("The name that people know. It must not look like a key.")] = None
    user_email: Annotated[
        Email | None, described("The user's address, which no other user has. It is kept in lower case.")
    ] = None
    user_role: Annotated[
        Role | None,
        described(
            "What the user's keys may do in the admin API and the console: administer "
            "(`proxy_admin`), read everything (`proxy_admin_viewer`), change what is its own "
            "(`internal_user`), or read that (`internal_user_viewer`)."
        ),
    ] = None
    models: Annotated[
        Models | None,
        described("The models that all keys of the user may use, with the wildcards `*` and `?`. Empty allows all."),
    ] = None
    metadata: Annotated[dict[str, Any] | None, described("Your own notes, as a JSON object.")] = None
    spend: Annotated[
        Spent | None, described("What the user has spent already in the present budget period, in US dollars.")
    ] = None
    budget_id: Annotated[
        Reference | None, described("A budget whose limits hold where the user has none of its own.")
    ] = None

    def check(self) -> None:
        """Check the name, the role, the address, models, limits and metadata.

        Raises:
            InvalidRequest: a value cannot be used.
        """
        check_alias(self.user_alias, "user_alias")
        if self.user_role is not None and self.user_role not in ROLES:
            raise InvalidRequest(f"`user_role` must be one of {', '.join(ROLES)}.", param="user_role")
        check_email(self.user_email, "user_email")
        check_models(self.models)
        super().check()
        check_depth(self.metadata)

    def values(self, given: Container[str], before: Allowance = UNLIMITED) -> dict[str, Any]:
        """Return the attributes of a `UserRecord` that a request sets. null sets the empty value.

        Args:
            given: the names of the fields that the request has.
            before: the limits until now.
        """
        found: dict[str, Any] = {
            "user_alias": self.user_alias,
            "user_email": None if self.user_email is None else self.user_email.lower(),
            "user_role": self.user_role or ROLES[0],
            "models": stored_models(self.models),
            "metadata": self.metadata or {},
            "budget_id": self.budget_id,
        }
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before)}


class NamedUser(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user who becomes a member of something, named by `user_id`, or else by `user_email`."""

    user_id: Annotated[Alias | None, described("The user's id.")] = None
    user_email: Annotated[Email | None, described("The user's address, if `user_id` does not name it.")] = None

    def check(self) -> None:
        """Check the id and the address, as those of a user: an unknown member becomes a user.

        Raises:
            InvalidRequest: one of them cannot be used.
        """
        check_alias(self.user_id, "member.user_id")
        check_email(self.user_email, "member.user_email")


class NewUserTeam(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A team of a new user, with what the user is and may spend there."""

    team_id: Annotated[Label, described("The team.")]
    user_role: Annotated[
        Literal["user", "admin"], described("Whether the user administers the team's members and keys.")
    ] = "user"
    max_budget_in_team: Annotated[
        Dollars | None, described("The most that the user may spend in the team in a budget period, in US dollars.")
    ] = None


class NewUserRequest(UserFields, frozen=True, kw_only=True):
    """The body of ``POST /user/new``. A key is created as well, unless `auto_create_key` is false.

    `key_alias`, `duration` and `aliases` are the key's; the limits and `models` are the user's, and hold for all its
    keys. `team_id` is a team of the user, and the team of the key.
    """

    UNSUPPORTED = ON_NEW_USERS

    user_id: Annotated[Alias | None, described("The user's id. Without it, a random one.")] = None
    teams: Annotated[
        Annotated[tuple[Label | NewUserTeam, ...], msgspec.Meta(max_length=MAX_ITEMS)] | None,
        described("The teams that the user joins: their ids, or objects with a role and a budget."),
    ] = None
    team_id: Annotated[
        Reference | None, described("One more team that the user joins, and the team of the key that is made.")
    ] = None
    organizations: Annotated[Labels | None, described("The ids of the organizations that the user joins.")] = None
    auto_create_key: Annotated[bool | None, described("Whether a key is made for the user. Without it, one is.")] = None
    key_alias: Annotated[Alias | None, described("The name of the key that is made.")] = None
    duration: Annotated[
        Duration | Never | None, described("How long the key that is made works, as in 30d. -1 is for ever.")
    ] = None
    aliases: Annotated[
        ModelAliases | None,
        described("Names of models that callers of the key that is made may use, and the model that each stands for."),
    ] = None

    @property
    def memberships(self) -> list[NewUserTeam]:
        """The teams that the user joins, each once."""
        teams = [NewUserTeam(team_id=each) if isinstance(each, str) else each for each in self.teams or ()]
        if self.team_id is not None:
            teams.append(NewUserTeam(team_id=self.team_id))
        return list({each.team_id: each for each in reversed(teams)}.values())[::-1]

    def check(self) -> None:
        """Check the fields of the user, its id, and those of its key.

        Raises:
            InvalidRequest: a value cannot be used, or is a key's and no key is made.
        """
        super().check()
        check_alias(self.user_id, "user_id")
        check_alias(self.key_alias, "key_alias")
        check_printable_aliases(self.aliases)
        if self.auto_create_key is False:
            for name in ("key_alias", "duration", "aliases"):
                if getattr(self, name):
                    raise InvalidRequest(f"`{name}` is a key's, and none is made: send `auto_create_key`.", param=name)


class UpdateUserRequest(UserFields, frozen=True, kw_only=True):
    """The body of ``POST /user/update``. It names the user by `user_id`, or by `user_email`. null clears a field.

    As in LiteLLM, a user who is not known is created.
    """

    UNSUPPORTED = ON_CHANGED_USERS

    user_id: Annotated[Alias | None, described("The user to change.")] = None

    def check(self) -> None:
        """Check that a user is named, and the fields of the user.

        Raises:
            InvalidRequest: none is named, or a value cannot be used.
        """
        if self.user_id is None and self.user_email is None:
            raise InvalidRequest("Name the user: `user_id`, or `user_email`.", param="user_id")
        super().check()
        check_alias(self.user_id, "user_id")


class BulkUpdateUsersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /user/bulk_update``: bodies of ``/user/update``, or one for all users."""

    users: Annotated[
        Annotated[tuple[dict[str, Any], ...], msgspec.Meta(min_length=1, max_length=MAX_BULK_USERS)] | None,
        described("Bodies of `/user/update`, one for each user."),
    ] = None
    all_users: Annotated[bool | None, described("Whether to change all users, by `user_updates`.")] = None
    user_updates: Annotated[
        dict[str, Any] | None, described("One body of `/user/update` for all users, without an id.")
    ] = None

    def check(self) -> None:
        """Check that it says whom to change, once.

        Raises:
            InvalidRequest: it does not, or names everybody's address or id.
        """
        if (self.users is not None) == bool(self.all_users):
            raise InvalidRequest("Send `users`, or `all_users` with `user_updates`.", param="users")
        if bool(self.all_users) != (self.user_updates is not None):
            raise InvalidRequest("`all_users` and `user_updates` belong together.", param="user_updates")
        for name in ("user_id", "user_email"):
            if (self.user_updates or {}).get(name) is not None:
                raise InvalidRequest(f"`user_updates` cannot give all users one `{name}`.", param="user_updates")


class DeleteUsersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /user/delete``."""

    user_ids: Annotated[Labels, msgspec.Meta(min_length=1, description="The users to delete, with their keys.")]


class UserInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/info``."""

    user_id: Annotated[str, msgspec.Meta(description="The user. Default: the user of the caller's key.")] = ""


class UserListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/list``."""

    UNSUPPORTED = dict.fromkeys(("sso_user_ids",))

    role: str = ""
    user_ids: Annotated[str, msgspec.Meta(description="Ids of users, separated by commas.")] = ""
    team: Annotated[str, msgspec.Meta(description="The id of a team: only its members.")] = ""
    organization_ids: Annotated[
        str, msgspec.Meta(description="Ids of organizations, separated by commas: only their members.")
    ] = ""
    budget_id: Annotated[str, msgspec.Meta(description="Only users who name this budget.")] = ""
    search: Annotated[str, msgspec.Meta(description="Text that the id, the address or the name contains.")] = ""
    user_email: Annotated[str, msgspec.Meta(description="Text that the address contains.")] = ""
    user_alias: Annotated[str, msgspec.Meta(description="Text that the name contains.")] = ""
    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 25
    sort_by: Literal["created_at", "user_id", "user_email", "user_alias", "user_role"] = "created_at"
    sort_order: SortOrder = "desc"

    def page_query(self) -> PageQuery:
        """Return the page that is asked for."""
        equals = {"user_role": self.role, "budget_id": self.budget_id}
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={name: value for name, value in equals.items() if value},
            contains={name: getattr(self, name) for name in ("user_email", "user_alias") if getattr(self, name)},
            among={"user_id": ids_of(self.user_ids, "user_ids")} if self.user_ids else {},
            search=self.search,
            search_in=(*SEARCHED, "user_alias"),
            sort_by=self.sort_by,
            descending=self.sort_order == "desc",
        )


class UserFilterQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/filter/ui``."""

    user_id: Annotated[str, msgspec.Meta(description="Text that the id contains.")] = ""
    user_email: Annotated[str, msgspec.Meta(description="Text that the address contains.")] = ""
    search: Annotated[str, msgspec.Meta(description="Text that one of both contains.")] = ""
    team_id: Annotated[str, msgspec.Meta(description="No effect: an administrator finds every user.")] = ""
    page: PageNumber = 1
    page_size: PageSize = 50

    def page_query(self) -> PageQuery:
        """Return the page that is asked for, the newest first."""
        return PageQuery(
            page=self.page,
            size=self.page_size,
            contains={name: getattr(self, name) for name in SEARCHED if getattr(self, name)},
            search=self.search,
            search_in=SEARCHED,
        )


class RoleWords(Response, kw_only=True):
    """What a role may do."""

    description: str
    ui_label: str


class UserReport(Record, kw_only=True):
    """A user."""

    models: Strings
    metadata: Json
    user_id: str
    user_alias: str | None
    user_email: str | None
    user_role: str
    budget_id: str | None
    litellm_budget_table: BudgetTable | None
    organizations: Annotated[Strings, msgspec.Meta(description="The ids of the user's organizations.")]
    teams: Annotated[Strings, msgspec.Meta(description="The ids of the user's teams.")]


class NewUser(UserReport, kw_only=True):
    """A new user, with the fields of its key if one was created."""

    key: Annotated[str | None, msgspec.Meta(description="The value of the key, which cannot be shown again.")]
    token_id: Token | None


class OwnTeam(Response, kw_only=True):
    """What the members of a team see of it."""

    team_id: str
    team_alias: str | None
    models: Strings


class UserInfo(Response, kw_only=True):
    """A user with its keys and teams."""

    user_id: str
    user_info: UserReport
    keys: Annotated[tuple[KeyReport, ...], msgspec.Meta(description="The newest keys, up to 500. /key/list shows all.")]
    keys_count: Annotated[int, msgspec.Meta(description="How many keys the user has.")]
    teams: Annotated[
        tuple[Json, ...], msgspec.Meta(description="As `TeamReport` for administrators, as `OwnTeam` for others.")
    ]


class UpdatedUser(Response, kw_only=True):
    """The result for one user of a bulk update."""

    user_id: str | None
    user_email: str | None
    success: bool
    error: str | None
    updated_user: UserReport | None


class UpdatedUsers(Response, kw_only=True):
    """The results of a bulk update, in the order of the request."""

    results: tuple[UpdatedUser, ...]
    total_requested: int
    successful_updates: int
    failed_updates: int


class ChangedUser(Response, kw_only=True):
    """A user after a change."""

    user_id: str
    data: UserReport


class CountedUser(UserReport, kw_only=True):
    """A user, with the number of its keys."""

    key_count: int


class UserList(WalkedPage, kw_only=True):
    """A page of users."""

    users: tuple[CountedUser, ...]
