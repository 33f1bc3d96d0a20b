"""What a caller of the admin API may see and change, decided in the transaction of its request.

`AdministratorScope` is that of administrators and of their viewers, `OwnScope` of `twisted_vllm.admin.self_service`
that of everybody else. Operations ask the scope; they do not ask who calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from sqlalchemy import ColumnElement
from zope.interface import Attribute, Interface, implementer

from twisted_vllm.admin.fields import redacted
from twisted_vllm.auth.records import PROXY_ADMIN, KeyRecord
from twisted_vllm.errors import GatewayError, NotFound, RouteNotAllowed
from twisted_vllm.storage.records import Member, OrganizationMember, TeamRecord, UserRecord
from twisted_vllm.storage.transaction import Transaction

if TYPE_CHECKING:
    # loaded when somebody asks what is in flight
    from twisted_vllm.observability.live_requests import Whose


class IScope(Interface):
    """What a caller may see and change."""

    sees_all = Attribute("Whether the caller sees everything.")
    author = Attribute("What stands in `created_by` and `updated_by`; None for the name of the caller's key.")

    def check_administrators(field: str) -> None:
        """Check that the caller may send a field that only administrators set, such as the value of a key.

        Raises:
            RouteNotAllowed: it may not.
        """

    def check_keys(transaction: Transaction, *records: KeyRecord) -> None:
        """Check that the caller may create, change or delete these keys.

        Raises:
            RouteNotAllowed: it may not.
        """

    def new_key(
        transaction: Transaction, record: KeyRecord, given: Mapping[str, Any], service_account: bool
    ) -> KeyRecord:
        """Return a key as the caller may make it. What it left out may become its own key's.

        Args:
            transaction: the transaction.
            record: the key that it asks for.
            given: the fields of its request.
            service_account: whether the key shall belong to no user.

        Raises:
            RouteNotAllowed: it may not make it.
            Conflict: it has too many keys.
        """

    def check_key_change(transaction: Transaction, before: KeyRecord, after: KeyRecord) -> None:
        """Check that the caller may change a key.

        Raises:
            RouteNotAllowed: it may not.
        """

    def check_holding(transaction: Transaction, record: KeyRecord) -> None:
        """Check that the caller may act as a key: if it could have its value by regenerating it.

        Raises:
            RouteNotAllowed: it may not.
        """

    def check_removal(member: Member) -> None:
        """Check that the caller may remove a member from a team whose members it may change.

        Raises:
            RouteNotAllowed: it may not.
        """

    def check_user(before: UserRecord | None, after: UserRecord | None) -> None:
        """Check that the caller may create, change or delete a user.

        Raises:
            RouteNotAllowed: it may not.
        """

    def visible_key(transaction: Transaction, record: KeyRecord | None, missing: GatewayError) -> KeyRecord:
        """Return a key that was found, if the caller may see it.

        Raises:
            NotFound, RouteNotAllowed: `missing`, or that it may not.
        """

    def visible_keys(transaction: Transaction, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Return those keys that the caller may see."""

    def own_keys(transaction: Transaction) -> tuple[ColumnElement[bool], ...]:
        """Return the conditions of the keys that the caller may see."""

    def administered_teams(transaction: Transaction) -> frozenset[str] | None:
        """Return the ids of the teams of which the caller may see all keys and members; None for all teams."""

    def own_requests(transaction: Transaction, *, changing: bool = False) -> Whose | None:
        """Return whose requests in flight the caller may see, or with `changing` end; None for everybody's.

        Raises:
            RouteNotAllowed: it may end none.
        """

    def own_teams(transaction: Transaction) -> frozenset[str] | None:
        """Return the ids of the teams that the caller may see at all; None for all teams."""

    def own_organizations(transaction: Transaction) -> Mapping[str, OrganizationMember | None] | None:
        """Return the organizations that the caller may see, with its membership in each; None for all of them."""

    def missing_organization(organization_id: str) -> GatewayError:
        """Return the error for an organization that does not exist, or that the caller may not see."""

    def check_team(
        transaction: Transaction, team: TeamRecord | None, missing: GatewayError, given: Mapping[str, Any]
    ) -> TeamRecord:
        """Return a team that was found, if the caller may change its members as a request asks.

        Raises:
            NotFound, RouteNotAllowed: `missing`, or that it may not.
        """


@implementer(IScope)
@attrs.frozen
class AdministratorScope:
    """That of an administrator, or of a viewer, who reads everything.

    Attributes:
        unlimited: whether the caller has the rights of the master key.
        changes: whether it may change anything.
    """

    unlimited: bool = True
    changes: bool = True
    sees_all = True
    author = None

    def check_administrators(self, field: str) -> None:
        """Let an administrator send it."""
        self._check_changes()

    def check_keys(self, transaction: Transaction, *records: KeyRecord) -> None:
        """Refuse keys that administer, unless the caller has the master key's rights."""
        self._check_changes()
        if not self.unlimited and administering(transaction, records):
            raise RouteNotAllowed(
                "Only the master key, and keys of users with the role proxy_admin, may make, change or delete a key "
                "that administers."
            )

    def new_key(
        self, transaction: Transaction, record: KeyRecord, given: Mapping[str, Any], service_account: bool
    ) -> KeyRecord:
        """Return the key as it is."""
        self.check_keys(transaction, record)
        return record

    def check_key_change(self, transaction: Transaction, before: KeyRecord, after: KeyRecord) -> None:
        """Refuse a key that administers, before or after."""
        self.check_keys(transaction, before, after)

    def check_holding(self, transaction: Transaction, record: KeyRecord) -> None:
        """Refuse a key that administers, unless the caller has the master key's rights."""
        self.check_keys(transaction, record)

    def check_removal(self, member: Member) -> None:
        """Let an administrator remove everybody."""
        self._check_changes()

    def check_user(self, before: UserRecord | None, after: UserRecord | None) -> None:
        """Refuse users who administer, unless the caller has the master key's rights."""
        self._check_changes()
        if not self.unlimited and any(user is not None and user.user_role == PROXY_ADMIN for user in (before, after)):
            raise RouteNotAllowed(
                "Only the master key, and keys of users with the role proxy_admin, may make, change or delete a user "
                "with this role."
            )

    def visible_key(self, transaction: Transaction, record: KeyRecord | None, missing: GatewayError) -> KeyRecord:
        """Return every key."""
        if record is None:
            raise missing
        return record

    def visible_keys(self, transaction: Transaction, records: Sequence[KeyRecord]) -> list[KeyRecord]:
        """Return all."""
        return list(records)

    def own_keys(self, transaction: Transaction) -> tuple[ColumnElement[bool], ...]:
        """Return no condition."""
        return ()

    def administered_teams(self, transaction: Transaction) -> frozenset[str] | None:
        """Return None: all teams."""
        return None

    def own_requests(self, transaction: Transaction, *, changing: bool = False) -> Whose | None:
        """Return None: everybody's."""
        if changing:
            self._check_changes()
        return None

    def own_teams(self, transaction: Transaction) -> frozenset[str] | None:
        """Return None: all teams."""
        return None

    def own_organizations(self, transaction: Transaction) -> Mapping[str, OrganizationMember | None] | None:
        """Return None: all organizations."""
        return None

    def missing_organization(self, organization_id: str) -> GatewayError:
        """Return that there is none with this id."""
        return no_organization(organization_id)

    def check_team(
        self, transaction: Transaction, team: TeamRecord | None, missing: GatewayError, given: Mapping[str, Any]
    ) -> TeamRecord:
        """Return every team."""
        self._check_changes()
        if team is None:
            raise missing
        return team

    def _check_changes(self) -> None:
        if not self.changes:
            raise RouteNotAllowed("This key may read everything and change nothing.")


def no_organization(organization_id: str, param: str = "organization_id") -> NotFound:
    """Return the error for an organization that does not exist."""
    return NotFound(
        f"No organization has the id `{redacted(organization_id)}`. GET /organization/list shows all.", param=param
    )


def administering(transaction: Transaction, records: Sequence[KeyRecord]) -> bool:
    """Return whether one of some keys administers: by itself, or by the role of its user."""
    if any(record.manages for record in records):
        return True
    users = transaction.users.among("user_id", {each.user_id for each in records if each.user_id is not None})
    return any(user.user_role == PROXY_ADMIN for user in users)
