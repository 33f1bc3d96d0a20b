"""The users, teams and organizations of the database, for callers whose tokens name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.ratelimit.allowance import ORGANIZATION, TEAM, USER
from twisted_vllm.storage.records import AuditRecord, UserRecord
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.transaction import Transaction

#: how the audit log calls what made a user
ACTION = "user/upsert"


class Directory:
    """Looks up who is in the database, and makes users."""

    def __init__(self, registry: Registry, now: Callable[[], float]) -> None:
        """Make it.

        Args:
            registry: the database.
            now: the time in Unix seconds.
        """
        self._registry = registry
        self._now = now

    @property
    def changes(self) -> int:
        """The number of changes so far, as `KeyIndex.changes`."""
        return self._registry.index.changes

    def look_up(self, names: Iterable[tuple[str, str]]) -> Deferred[dict[tuple[str, str], bool]]:
        """Return of each kind and id whether it exists. The Deferred fails with StoreUnavailable."""
        wanted = list(names)

        def work(transaction: Transaction) -> dict[tuple[str, str], bool]:
            tables: dict[str, Any] = {
                USER: transaction.users,
                TEAM: transaction.teams,
                ORGANIZATION: transaction.organizations,
            }
            return {(kind, name): tables[kind].get(name) is not None for kind, name in wanted}

        return self._registry.read(work)

    def make_user(self, caller: TokenCaller) -> Deferred[None]:
        """Make the user of a caller, unless it exists by now. The Deferred fails with StoreUnavailable."""
        user_id = caller.user_id
        assert user_id is not None
        now = datetime.fromtimestamp(self._now(), UTC)
        actor = caller.key_id[:HASH_PREFIX_LENGTH]

        def work(transaction: Transaction) -> None:
            if transaction.users.get(user_id) is not None:
                return
            email = None if caller.user_email is None else caller.user_email.lower()
            if email is not None and transaction.users.find(user_email=email):
                # another user has it
                email = None
            user = UserRecord(user_id, now, now, actor, actor, user_email=email)
            transaction.users.insert(user)
            after = {name: value for name, value in msgspec.to_builtins(user).items() if name in _SHOWN}
            transaction.write_audit(AuditRecord(now, actor, caller.name, ACTION, USER, user_id, None, after))

        return self._registry.change(work)


_SHOWN = frozenset(("user_id", "user_email", "user_role", "created_at", "created_by"))
