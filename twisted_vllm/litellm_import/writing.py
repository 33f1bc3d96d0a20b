"""Writes what was read of LiteLLM's database into ours. Idempotent.

A record that an earlier import made and that nobody has changed since is brought up to date. Any other record of the
same id stays as it is. A spend is raised to LiteLLM's, and never lowered, so that a second import takes over what was
spent between both, and forgives nobody what was spent here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from twisted_vllm.admin.context import AuditContext
from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.litellm_import.conversion import ACTOR, Converted, Spent
from twisted_vllm.litellm_import.notes import Notes, Outcome, named
from twisted_vllm.ratelimit.allowance import KEY
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.storage.records import UserRecord
from twisted_vllm.storage.repository import Repository
from twisted_vllm.storage.transaction import Transaction

#: the attribute by which records of each kind are told apart
_IDENTITIES = {
    "budget": "budget_id",
    "organization": "organization_id",
    "user": "user_id",
    "team": "team_id",
    "end user": "user_id",
    "key": "token",
}

#: what a second import does not take over from the record that it makes anew
_OURS = (
    "created_at",
    "created_by",
    "key_id",
    "cache_salt",
    "rotation_count",
    "last_rotation_at",
    "fields",
    "log_bodies",
)
#: what differs between equal records of two imports
_WHEN = ("updated_at", "updated_by")


@attrs.define
class Count:
    """How many objects of one kind were written.

    Attributes:
        new: made.
        updated: brought up to date.
        unchanged: as they were.
        kept: left alone, because they were changed or made here.
    """

    new: int = 0
    updated: int = 0
    unchanged: int = 0
    kept: int = 0


def write(transaction: Transaction, audit: AuditContext, found: Converted, notes: Notes) -> dict[str, Count]:
    """Write records and spend, and return how many of each kind."""
    writer = _Writer(transaction, audit, notes)
    counts = {
        "budgets": writer.put_all("budget", transaction.budgets, found.budgets),
        "organizations": writer.put_all("organization", transaction.organizations, found.organizations),
        "users": writer.put_all("user", transaction.users, found.users, writer.free_emails(found.users)),
        "teams": writer.put_all("team", transaction.teams, found.teams),
        "members of teams": writer.put_members("team", transaction.members, found.members),
        "members of organizations": writer.put_members(
            "organization", transaction.organization_members, found.organization_members
        ),
        "end users": writer.put_all("end user", transaction.end_users, found.end_users),
        "keys": writer.put_all("key", transaction.keys, found.keys, writer.free_tokens_and_aliases(found.keys)),
        "former values of keys": writer.put_former(found),
        "sums of spend": writer.put_spend(found.spent),
    }
    summary = {kind: attrs.asdict(count) for kind, count in counts.items()}
    audit.record(transaction, "database", "litellm", None, summary)
    return counts


class _Writer:
    def __init__(self, transaction: Transaction, audit: AuditContext, notes: Notes) -> None:
        self._transaction = transaction
        self._audit = audit
        self._notes = notes
        self._kept: set[tuple[str, str]] = set()

    def put_all(
        self,
        kind: str,
        repository: Repository[Any],
        records: Sequence[Any],
        fit: Callable[[Any], Any] | None = None,
    ) -> Count:
        """Write records of one kind.

        Args:
            kind: what they are called.
            repository: where they are.
            records: the records.
            fit: makes a record fit beside the others; None for one that must be left out.
        """
        count = Count()
        name = _IDENTITIES[kind]
        known = {
            getattr(each, name): each for each in repository.among(name, (getattr(each, name) for each in records))
        }
        added = []
        for record in records:
            existing = known.get(getattr(record, name))
            if existing is not None and existing.updated_by != ACTOR:
                self._notes.add(Outcome.SKIPPED, _name(kind, existing), "it was made or changed here: it stays")
                self._kept.add((kind, getattr(record, name)))
                count.kept += 1
                continue
            fitting = record if fit is None else fit(record)
            if fitting is None:
                continue
            if existing is None:
                added.append(fitting)
                count.new += 1
                continue
            own = {each: getattr(existing, each) for each in _OURS if hasattr(existing, each)}
            if getattr(fitting, "log_bodies", None) is not None:
                # an opt-out that came later
                own["log_bodies"] = fitting.log_bodies
            merged = attrs.evolve(fitting, **own)
            if attrs.evolve(merged, **{each: getattr(existing, each) for each in _WHEN}) == existing:
                count.unchanged += 1
            else:
                repository.replace(getattr(record, name), merged)
                count.updated += 1
        repository.insert_all(added)
        return count

    def free_emails(self, users: Sequence[UserRecord]) -> Callable[[UserRecord], UserRecord]:
        """Return what takes the address from a user if another one has it."""
        found = self._transaction.users.among("user_email", (each.user_email for each in users if each.user_email))
        owners = {each.user_email: each.user_id for each in found}

        def fit(user: UserRecord) -> UserRecord:
            if user.user_email is None or owners.setdefault(user.user_email, user.user_id) == user.user_id:
                return user
            self._notes.add(Outcome.LESS, _name("user", user), "user_email: another user has it")
            return attrs.evolve(user, user_email=None)

        return fit

    def free_tokens_and_aliases(self, keys: Sequence[KeyRecord]) -> Callable[[KeyRecord], KeyRecord | None]:
        """Return what takes the alias from a key if another one has it, and leaves out a former value of a key."""
        former = {each.token for each in self._transaction.former.among("token", (key.token for key in keys))}
        found = self._transaction.keys.among("key_alias", (key.key_alias for key in keys if key.key_alias))
        owners = {key.key_alias: key.token for key in found}

        def fit(key: KeyRecord) -> KeyRecord | None:
            if key.token in former:
                self._notes.add(Outcome.SKIPPED, _name("key", key), "it was regenerated here")
                return None
            if key.key_alias is None or owners.setdefault(key.key_alias, key.token) == key.token:
                return key
            self._notes.add(Outcome.LESS, _name("key", key), "key_alias: another key has it")
            return attrs.evolve(key, key_alias=None)

        return fit

    def put_members(self, kind: str, repository: Any, members: list[Any]) -> Count:
        """Write the memberships of groups of one kind. Those of a group that stays as it is here stay too."""
        count = Count()
        for member in members:
            group = getattr(member, _IDENTITIES[kind])
            existing = repository.get(group, member.user_id)
            if existing == member:
                count.unchanged += 1
            elif (kind, group) in self._kept:
                count.kept += 1
            else:
                repository.put(member)
                count.updated += existing is not None
                count.new += existing is None
        return count

    def put_former(self, found: Converted) -> Count:
        """Write the values that keys had before LiteLLM regenerated them, and that still work."""
        count = Count()
        tokens = {key.key_id: key.token for key in found.keys}
        for former in found.former:
            key = self._transaction.keys.get(tokens[former.key_id])
            if key is None or self._transaction.keys.get(former.token) is not None:
                continue
            if self._transaction.former.get(former.token) is not None:
                count.unchanged += 1
                continue
            self._transaction.former.insert(attrs.evolve(former, key_id=key.key_id))
            count.new += 1
        return count

    def put_spend(self, spent: list[Spent]) -> Count:
        """Raise what was spent to LiteLLM's figures."""
        count = Count()
        now = self._audit.now.timestamp()
        keys = self._transaction.keys.among("token", (each.id for each in spent if each.kind == KEY))
        key_ids = {key.token: key.key_id for key in keys}
        ids = [(each, key_ids.get(each.id) if each.kind == KEY else each.id) for each in spent]
        before: dict[tuple[str, str], Spend] = {}
        for kind in {each.kind for each in spent}:
            found = self._transaction.spend.of(kind, [id for each, id in ids if each.kind == kind and id is not None])
            before |= {(kind, id): spend for id, spend in found.items()}
        changed = []
        for each, id in ids:
            if id is None:
                continue
            start, _ = period_of(each.allowance.budget_duration, now)
            known = before[each.kind, id]
            in_period = known.spend if known.period_start >= start else 0
            after = Spend(each.kind, id, max(in_period, each.spend), start, max(known.total_spend, each.total))
            if (after.spend, after.total_spend) == (in_period, known.total_spend):
                count.unchanged += 1
                continue
            changed.append(after)
            count.new += known.total_spend == 0
            count.updated += known.total_spend > 0
        self._transaction.spend.put_all(changed)
        return count


def _name(kind: str, record: Any) -> str:
    if isinstance(record, KeyRecord):
        return named(kind, record.key_alias or record.key_name, record.token)
    names = ("team_alias", "organization_alias", "user_alias", "user_email", "alias")
    name = next((getattr(record, each) for each in names if getattr(record, each, None)), None)
    return named(kind, name, getattr(record, _IDENTITIES[kind]))
