"""Turns the rows of LiteLLM's database into our records, and notes what has no equal here.

What restricts somebody and does not exist here is never dropped: who is restricted by it is copied blocked. Keys,
teams and end users can be blocked; what restricts a user, a membership or an organization blocks the keys and teams
below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import attrs
import msgspec

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.customers import NewCustomerRequest
from twisted_vllm.admin.fields import Label, is_printable
from twisted_vllm.admin.keys.models import GenerateRequest
from twisted_vllm.admin.organizations.models import NewOrganizationRequest
from twisted_vllm.admin.scope import AdministratorScope
from twisted_vllm.admin.teams.models import NewTeamRequest
from twisted_vllm.admin.users.models import NewUserRequest
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.config.checks import MAX_DOLLARS
from twisted_vllm.config.restricting import asks_for_something
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.litellm_import.fields import Fields, bounded_dollars, moment
from twisted_vllm.litellm_import.notes import Notes, Outcome, named
from twisted_vllm.litellm_import.restrictions import NO_ROW, OBJECT_PERMISSION_MODELS
from twisted_vllm.litellm_import.source import LiteLLMRows, Row
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import (
    END_USER,
    KEY,
    MEMBER,
    ORGANIZATION,
    PROXY,
    TEAM,
    UNLIMITED,
    USER,
    Allowance,
    member_id,
)
from twisted_vllm.storage.records import (
    BudgetRecord,
    EndUserRecord,
    FormerKeyRecord,
    Member,
    OrganizationMember,
    OrganizationRecord,
    TeamRecord,
    UserRecord,
)

T = TypeVar("T")

#: who made and last changed what was copied, in the records and in the audit log
ACTOR = "litellm-import"

#: the team of the keys that LiteLLM's web page makes for each session
_SESSIONS = "litellm-dashboard"
#: the user whose spend is that of the whole proxy
_WHOLE_PROXY = "litellm-proxy-budget"

_TOKEN = re.compile(r"[0-9a-f]{64}")
_KEY_NAME = re.compile(r"sk-\.\.\.[!-~]{1,4}")

#: columns that are taken by name, and never lost: ids of other rows, and the state of budgets
_LINKS = ("spend", "total_spend", "budget_id", "organization_id", "object_permission_id")


@attrs.frozen
class Spent:
    """What somebody has spent.

    Attributes:
        kind: as in `Limited`.
        id: likewise; a key's is its token, as the key may have another id here.
        spend: in the current period of its budget, in picodollars.
        total: since the beginning.
        allowance: its limits with those of its budget, whose period counts.
    """

    kind: str
    id: str
    spend: int
    total: int
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)


@attrs.define(kw_only=True)
class Converted:
    """Our records of what LiteLLM's database holds."""

    budgets: list[BudgetRecord] = attrs.field(factory=list)
    organizations: list[OrganizationRecord] = attrs.field(factory=list)
    organization_members: list[OrganizationMember] = attrs.field(factory=list)
    users: list[UserRecord] = attrs.field(factory=list)
    teams: list[TeamRecord] = attrs.field(factory=list)
    members: list[Member] = attrs.field(factory=list)
    end_users: list[EndUserRecord] = attrs.field(factory=list)
    keys: list[KeyRecord] = attrs.field(factory=list)
    former: list[FormerKeyRecord] = attrs.field(factory=list)
    spent: list[Spent] = attrs.field(factory=list)


def importer(now: datetime, randbytes: Callable[[int], bytes]) -> AuditContext:
    """Return who imports, for records and the audit log."""
    return AuditContext(
        action="import",
        actor=ACTOR,
        actor_name=ACTOR,
        scope=AdministratorScope(),
        now=now,
        randbytes=randbytes,
    )


def convert(rows: LiteLLMRows, notes: Notes, audit: AuditContext, master_token: str | None = None) -> Converted:
    """Return our records of LiteLLM's rows.

    Args:
        rows: what LiteLLM's database holds.
        notes: where to note what is lost.
        audit: who imports, when, and a source of randomness.
        master_token: the SHA-256 of the master key, which LiteLLM may have among its keys.
    """
    return _Conversion(rows, notes, audit, master_token).run()


class _Conversion:
    def __init__(self, rows: LiteLLMRows, notes: Notes, audit: AuditContext, master_token: str | None) -> None:
        self._rows = rows
        self._notes = notes
        self._audit = audit
        self._master_token = master_token
        self._found = Converted()
        self._allowances: dict[str, Allowance] = {}
        self._access_groups = {row["access_group_id"]: row for row in rows.access_groups}
        self._permissions = {row["object_permission_id"]: row for row in rows.object_permissions}
        self._aliases = {row["id"]: row for row in rows.aliases}
        self._projects = {row["project_id"]: row for row in rows.projects}
        self._resets = {str(row["budget_id"]): row.get("budget_reset_at") for row in rows.budgets}
        self._known_organizations: set[str] = set()
        # Why those below must be blocked, by the id of what restricts them.
        self._bad_budgets: dict[str, str] = {}
        self._bad_organizations: dict[str, str] = {}
        self._bad_users: dict[str, str] = {}
        self._bad_personal: dict[str, str] = {}
        self._bad_teams: dict[str, str] = {}
        self._bad_members: dict[tuple[str, str], str] = {}
        self._bad_tags = {
            str(row["tag_name"]): "the budget of its tag" for row in rows.tags if row.get("budget_id") is not None
        }

    def run(self) -> Converted:
        for row in self._rows.budgets:
            self._budget(row)
        for row in self._rows.organizations:
            self._organization(row)
        for row in self._rows.organization_members:
            self._organization_member(row)
        for row in self._rows.users:
            self._user(row)
        for row in self._rows.teams:
            self._team(row)
        self._members()
        for row in self._rows.end_users:
            self._end_user(row)
        for row in self._rows.keys:
            self._key(row)
        self._former_keys()
        for label, count in self._rows.counted.items():
            self._notes.add(Outcome.SKIPPED, label, f"{count} in all")
        return self._found

    # what all have

    def _fields(self, subject: str, row: Row, *unread: str) -> Fields:
        left_out = {*_LINKS, *unread}
        fields = Fields(subject, self._notes, {name: row[name] for name in row if name not in left_out})
        for name in ("metadata", "model_rpm_limit", "model_tpm_limit", "model_max_budget", "aliases", "config"):
            if isinstance(fields.values.get(name), str):
                fields.values[name] = _object(fields.values[name])
        if "metadata" in fields.values:
            fields.take_metadata()
        self._check_permission(fields, row)
        return fields

    def _check_permission(self, fields: Fields, row: Row) -> None:
        """An object permission is about tools that vLLM does not have, but for its models."""
        permission = self._permissions.get(row.get("object_permission_id"), NO_ROW)
        if asks_for_something(permission.get(OBJECT_PERMISSION_MODELS)):
            fields.restrict("the models of its object_permission")

    def _budget_of(self, fields: Fields, row: Row) -> str | None:
        """Return the budget that a row names, if it exists."""
        budget_id = row.get("budget_id")
        if budget_id in self._bad_budgets:
            fields.restrict(self._bad_budgets[budget_id])
        return str(budget_id) if budget_id in self._allowances else None

    def _granted_models(self, fields: Fields) -> list[str]:
        [ids] = fields.take("access_group_ids")
        groups = [self._access_groups.get(each, NO_ROW) for each in ids or ()]
        return [str(model) for group in groups for model in group.get("access_model_names") or ()]

    def _spend(self, kind: str, id: str, row: Row, own: Allowance, budget_id: str | None) -> None:
        """Note what somebody has spent, if it is anything."""
        allowance = own if budget_id is None else own.within(self._allowances[budget_id])
        spend, total = _picodollars(row.get("spend")), _picodollars(row.get("total_spend"))
        reset = moment(row.get("budget_reset_at"))
        if reset is not None and reset <= self._audit.now:
            # LiteLLM has not begun the new period yet.
            total, spend = max(total, spend), 0
        if spend or total:
            self._found.spent.append(Spent(kind, id, spend, max(total, spend), allowance))

    def _stamps(self, row: Row) -> dict[str, Any]:
        return {**self._audit.created, "created_at": moment(row.get("created_at")) or self._audit.now}

    def _label(self, kind: str, value: object) -> str | None:
        """Return an id, or None and a note if it cannot be one here."""
        if self._is_label(value):
            return str(value)
        self._notes.add(Outcome.SKIPPED, named(kind, value), "its id cannot be one here")
        return None

    @staticmethod
    def _is_label(value: object) -> bool:
        """Return whether something may be an id or a name here."""
        try:
            label = msgspec.convert(value, Label)
        except msgspec.ValidationError:
            return False
        return bool(label) and label.isprintable() and not label.startswith("sk-")

    # one kind after the other

    def _budget(self, row: Row) -> None:
        budget_id = self._label("budget", row["budget_id"])
        if budget_id is None:
            self._bad_budgets[row["budget_id"]] = "its budget was not copied"
            return
        fields = self._fields(named("budget", budget_id), row)
        allowance = fields.take_limits()
        fields.take("budget_id")
        for name, value in fields.values.items():
            if asks_for_something(value):
                fields.lose(name)
        if fields.restricting:
            self._bad_budgets[budget_id] = f"{', '.join(fields.restricting)} of {named('budget', budget_id)}"
        self._allowances[budget_id] = allowance
        self._found.budgets.append(BudgetRecord(budget_id=budget_id, allowance=allowance, **self._stamps(row)))

    def _organization(self, row: Row) -> None:
        organization_id = self._label("organization", row["organization_id"])
        if organization_id is None:
            self._bad_organizations[str(row["organization_id"])] = "its organization was not copied"
            return
        alias = row.get("organization_alias")
        subject = named("organization", alias, organization_id)
        fields = self._fields(subject, row, "organization_alias")
        if alias and not self._is_label(alias):
            self._notes.add(Outcome.LESS, subject, "organization_alias: its value cannot be used here")
            alias = None
        fields.take_models()
        budget_id = self._budget_of(fields, row)
        fields.values["organization_alias"] = organization_id
        values = self._accept(fields, NewOrganizationRequest, lambda body, _: body.values())
        values |= {"organization_alias": alias or None, "budget_id": budget_id}
        if fields.restricting:
            self._bad_organizations[organization_id] = f"{', '.join(fields.restricting)} of its organization"
        self._found.organizations.append(
            OrganizationRecord(**{**self._stamps(row), **values, "organization_id": organization_id})
        )
        self._known_organizations.add(organization_id)
        reset = {"budget_reset_at": self._reset_of(budget_id)}
        self._spend(ORGANIZATION, organization_id, {**row, **reset}, UNLIMITED, budget_id)

    def _organization_member(self, row: Row) -> None:
        user_id = self._label("member of an organization", row["user_id"])
        if row["organization_id"] in self._known_organizations and user_id is not None:
            # LiteLLM does not look at the budgets of these memberships.
            role = row.get("user_role") or "internal_user"
            role = role[:32] if self._is_label(role) else "internal_user"
            self._found.organization_members.append(OrganizationMember(row["organization_id"], user_id, role))

    def _user(self, row: Row) -> None:
        if row["user_id"] == _WHOLE_PROXY:
            self._spend(PROXY, PROXY, row, Allowance(budget_duration=row.get("budget_duration")), None)
            return
        user_id = self._label("user", row["user_id"])
        if user_id is None:
            self._bad_users[str(row["user_id"])] = "its user was not copied"
            return
        subject = named("user", row.get("user_alias") or row.get("user_email"), user_id)
        fields = self._fields(subject, row, "teams", "team_id", "user_id")
        if "no-default-models" in (fields.values.get("models") or ()):
            fields.values["models"] = []
            self._bad_personal[user_id] = "its user may use no model outside teams"
        fields.take_models()
        allowance = fields.take_limits()
        values = self._accept(fields, NewUserRequest, lambda body, given: body.values(given))
        values["allowance"] = allowance
        if fields.restricting:
            self._bad_users[user_id] = f"{', '.join(fields.restricting)} of its user"
            self._notes.add(Outcome.BLOCKED, subject, f"its keys: {', '.join(fields.restricting)}")
        self._found.users.append(UserRecord(**{**self._stamps(row), **values, "user_id": user_id}))
        self._spend(USER, user_id, row, allowance, None)

    def _team(self, row: Row) -> None:
        team_id = self._label("team", row["team_id"])
        if row["team_id"] == _SESSIONS:
            return
        if team_id is None:
            self._bad_teams[str(row["team_id"])] = "its team was not copied"
            return
        subject = named("team", row.get("team_alias"), team_id)
        fields = self._fields(subject, row, "admins", "members", "members_with_roles", "model_id", "team_id")
        [default_budget] = (fields.values["metadata"].pop("team_member_budget_id", None),)
        aliases = _object(self._aliases.get(row.get("model_id"), NO_ROW).get("aliases"))
        fields.take_models(self._granted_models(fields))
        allowance = fields.take_limits()
        values = self._accept(fields, NewTeamRequest, lambda body, given: body.values(given))
        values["allowance"] = allowance
        organization_id = row.get("organization_id")
        if organization_id in self._bad_organizations:
            fields.restrict(self._bad_organizations[organization_id])
        values["blocked"] = self._is_blocked(fields, values.get("blocked", False))
        values |= {
            "team_id": team_id,
            "organization_id": organization_id if organization_id in self._known_organizations else None,
            "aliases": self._printable(subject, aliases) or None,
        }
        self._found.teams.append(TeamRecord(**{**self._stamps(row), **values}))
        self._spend(TEAM, team_id, row, allowance, None)
        self._roles(team_id, row, default_budget if default_budget in self._allowances else None)

    def _printable(self, subject: str, aliases: Mapping[str, Any]) -> dict[str, str]:
        kept = {str(name): str(model) for name, model in aliases.items() if is_printable(f"{name}{model}")}
        if len(kept) < len(aliases):
            self._notes.add(Outcome.LESS, subject, "aliases: a name has characters that cannot be printed")
        return kept

    def _roles(self, team_id: str, row: Row, default_budget: str | None) -> None:
        members = _decoded(row["members_with_roles"])
        for each in members if isinstance(members, list) else ():
            user_id = each.get("user_id") if isinstance(each, dict) else None
            label = self._label("member of a team", user_id) if user_id else None
            if label is not None:
                role = "admin" if each.get("role") == "admin" else "user"
                self._found.members.append(Member(team_id, label, role, budget_id=default_budget))

    def _members(self) -> None:
        """Give the memberships their limits and their spend."""
        members = {(each.team_id, each.user_id): each for each in self._found.members}
        for row in self._rows.memberships:
            place = (str(row["team_id"]), str(row["user_id"]))
            member = members.get(place)
            if member is None:
                continue
            fields = self._fields(named("member", f"{place[1]} of {place[0]}"), row)
            budget_id = self._budget_of(fields, row) or member.budget_id
            if budget_id in self._bad_budgets:
                fields.restrict(self._bad_budgets[str(budget_id)])
            if fields.restricting:
                self._bad_members[place] = f"{', '.join(fields.restricting)} of its user in its team"
            members[place] = attrs.evolve(member, budget_id=budget_id)
            reset = {"budget_reset_at": self._reset_of(budget_id)}
            self._spend(MEMBER, member_id(*place), {**row, **reset}, UNLIMITED, budget_id)
        self._found.members = list(members.values())

    def _reset_of(self, budget_id: str | None) -> object:
        return None if budget_id is None else self._resets.get(budget_id)

    def _end_user(self, row: Row) -> None:
        user_id = self._label("end user", row["user_id"])
        if user_id is None:
            return
        subject = named("end user", row.get("alias"), user_id)
        fields = self._fields(subject, row, "user_id")
        budget_id = self._budget_of(fields, row)
        if budget_id is not None:
            row = {**row, "budget_reset_at": self._reset_of(budget_id)}
        fields.values["user_id"] = user_id
        values = self._accept(fields, NewCustomerRequest, lambda body, given: body.values(given))
        values["blocked"] = self._is_blocked(fields, values.get("blocked", False))
        values |= {"user_id": user_id, "budget_id": budget_id}
        self._found.end_users.append(EndUserRecord(**{**self._stamps(row), **values}))
        self._spend(END_USER, user_id, row, UNLIMITED, budget_id)

    def _key(self, row: Row) -> None:
        token = str(row["token"])
        subject = named("key", row.get("key_alias") or row.get("key_name"), token)
        if row.get("team_id") == _SESSIONS:
            self._notes.add(Outcome.SKIPPED, "keys of LiteLLM's web page", "each is one session")
            return
        if not _TOKEN.fullmatch(token):
            self._notes.add(Outcome.SKIPPED, subject, "its token is no SHA-256: LiteLLM hashed no key with it")
            return
        if token == self._master_token:
            self._notes.add(Outcome.SKIPPED, subject, "it is the master key")
            return
        fields = self._fields(subject, row, "token", "key_name", "expires", "project_id")
        self._check_project(fields, row)
        fields.take_models(self._granted_models(fields))
        fields.take_routes()
        budget_id = self._budget_of(fields, row)
        allowance = fields.take_limits()
        self._check_owners(fields, row)
        values = self._accept(fields, GenerateRequest, lambda body, given: body.values(given, self._audit))
        for tag in values.get("tags", ()):
            if tag in self._bad_tags:
                fields.restrict(self._bad_tags[tag])
        name, organization_id = row.get("key_name"), row.get("organization_id")
        values |= {
            "allowance": allowance,
            "blocked": self._is_blocked(fields, values.get("blocked", False)),
            "budget_id": budget_id,
            "expires": moment(row.get("expires")),
            "key_id": self._audit.randbytes(16).hex(),
            "key_name": name if isinstance(name, str) and _KEY_NAME.fullmatch(name) else "sk-...",
            "organization_id": organization_id if organization_id in self._known_organizations else None,
            "token": token,
        }
        self._found.keys.append(KeyRecord(**{**self._stamps(row), **values}))
        reset = row.get("budget_reset_at") or self._reset_of(budget_id)
        self._spend(KEY, token, {**row, "budget_reset_at": reset}, allowance, budget_id)

    def _check_project(self, fields: Fields, row: Row) -> None:
        project = self._projects.get(row.get("project_id"), NO_ROW)
        limits = self._allowances.get(str(project.get("budget_id")), UNLIMITED)
        restricting = ("models", "blocked", "model_rpm_limit", "model_tpm_limit", "object_permission_id")
        if not limits.is_unlimited or any(asks_for_something(project.get(name)) for name in restricting):
            fields.restrict(named("project", project.get("project_alias"), str(project.get("project_id"))))

    def _check_owners(self, fields: Fields, row: Row) -> None:
        """Block a key whose user, team, membership or organization has restrictions that do not exist here."""
        user_id, team_id = row.get("user_id"), row.get("team_id")
        reasons = [
            self._bad_users.get(str(user_id)),
            self._bad_personal.get(str(user_id)) if team_id is None else None,
            self._bad_teams.get(str(team_id)),
            self._bad_members.get((str(team_id), str(user_id))),
            self._bad_organizations.get(str(row.get("organization_id"))),
        ]
        for reason in reasons:
            if reason is not None:
                fields.restrict(reason)

    def _former_keys(self) -> None:
        keys = {key.token: key.key_id for key in self._found.keys}
        for row in self._rows.former_keys:
            until = moment(row["revoke_at"])
            key_id = keys.get(row["active_token_id"])
            if key_id is not None and until is not None and until > self._audit.now and row["token"] not in keys:
                self._found.former.append(FormerKeyRecord(token=row["token"], key_id=key_id, works_until=until))

    def _is_blocked(self, fields: Fields, blocked: bool) -> bool:
        if not fields.restricting:
            return blocked
        self._notes.add(Outcome.BLOCKED, fields.subject, ", ".join(fields.restricting))
        return True

    def _accept(
        self, fields: Fields, model: type[Any], values: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        try:
            body, given = fields.accept(model)
        except InvalidRequest as error:
            fields.restrict(error.message)
            return {}
        return values(body, given)


def _decoded(value: object) -> object:
    """Return a JSON value, which may stand as text in a JSON column."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        return None


def _object(value: object) -> dict[str, Any]:
    found = _decoded(value)
    return found if isinstance(found, dict) else {}


def _picodollars(value: object) -> int:
    """Return an amount that was spent: never less than 0, and within 64 bits."""
    dollars = bounded_dollars(value or 0)
    return from_dollars(MAX_DOLLARS if dollars is None else dollars)
